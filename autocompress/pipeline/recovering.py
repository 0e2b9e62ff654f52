"""The recovery of a trial: free, then held to what the plan says, and kept until its record is written."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from autocompress import __version__
from autocompress.errors import InfeasiblePlan
from autocompress.formats import parity
from autocompress.pipeline.models import (
    added_steps,
    build,
    compressed,
    end_schedules,
    is_rebuilt,
    late_steps,
    save_weights,
    settle,
)
from autocompress.pipeline.stopwatch import Stopwatch
from autocompress.pipeline.workbench import Workbench
from autocompress.plan import Plan, Recovery, split_epochs
from autocompress.record import TAKEN_UP, TRAIN, Trial
from autocompress.run_directory import PHASES

if TYPE_CHECKING:
    from torch import nn

LATE_RATE_SHARE = 1 / 3
"""Share of the peak learning rate while values are held: coarse values follow larger steps badly.

On the digits example (weights of 3 bits, 3 seeds) students trained at 0.01 reach 96.7 % at that rate, 99.2 % at 0.003;
pruned originals 98.5 % at 0.003 and 98.9 % at 0.001, with 2 bits 81 and 73 %.
"""


def begin(bench: Workbench, plan: Plan, seed: int) -> nn.Module:
    """The model of a plan before its own recovery, with the weights of the plan that it starts from.

    Raises:
        UnknownName: If a plan names a method or architecture that is not known.
        InfeasiblePlan: If a method can't do what the plan says, or the plan can't start from the other.
    """
    if plan.start is None:
        return build(bench, plan, seed)
    added, start = added_steps(plan), plan.start
    free, _ = _epochs(start)
    earlier = Trial(0, start, seed)
    if free and _is_kept(bench, earlier, "free"):
        model = build(bench, replace(start, start=None, recovery=Recovery()), seed)  # whatever it began with is over
    else:
        model = begin(bench, start, seed)
        if free and added_steps(start):
            recalibrated(bench, model, seed)
    if free:
        _train(bench, model, earlier, free, "free")
        end_schedules(model)
    return compressed(bench, model, added, seed)


def recalibrated(bench: Workbench, model: nn.Module, seed: int) -> None:
    """Take the statistics of batch norms anew, in place."""
    from autocompress.recovery import recalibrate, team

    recalibrate(model, bench.task, seed=seed)
    team.equalize(model)  # a loader gives each process other batches


def recover_and_settle(
    bench: Workbench, model: nn.Module, trial: Trial, clock: Stopwatch
) -> tuple[nn.Module, dict[str, float]]:
    """Recalibrate, fine-tune and settle a model.

    A plan that both changes the structure and restricts values is trained twice: first with batch norms and free
    values, then, in the last `HELD_SHARE` of its epochs, folded and held to its values. Each phase leaves the weights
    of its best epoch, or those it began with if none is better, unless the plan keeps the last epoch's. A plan that
    restricts values alone, as the one that it starts from does, goes on where that ended.

    Args:
        bench: Of the worker.
        model: As `begin` made it.
        trial: What is tried.
        clock: Told how long the epochs of the plan took.
    """
    plan = trial.plan
    free, held = _epochs(plan)
    if plan.recovery.penalty != "none" and not plan.recovery.sparsify_epochs and not free:
        raise InfeasiblePlan(
            f"recovery: penalty {plan.recovery.penalty!r} acts while values are free, and this plan has no such "
            "epochs; give it sparsify_epochs, or leave the penalty out"
        )
    if _goes_on(plan):
        assert plan.start is not None, "it goes on from there"
        earlier = Trial(0, plan.start, trial.seed)
        earlier_held = _epochs(plan.start)[1]
        if earlier_held and _is_kept(bench, earlier, "settled"):  # whatever it began with is over
            model = settle(bench, model, plan, trial.seed)
            _train(bench, model, earlier, earlier_held, "settled")
        else:
            model, _ = recover_and_settle(bench, begin(bench, plan.start, trial.seed), earlier, Stopwatch())
        with clock.stage(TRAIN):
            return model, _train(bench, model, trial, held, "settled")
    if added_steps(plan):
        recalibrated(bench, model, trial.seed)
    with clock.stage(TRAIN):
        first = _train(bench, model, trial, free, "free")
    model = settle(bench, model, plan, trial.seed)
    with clock.stage(TRAIN):
        second = _train(bench, model, trial, held, "settled")
    return model, _joined(first, second)


def _epochs(plan: Plan) -> tuple[int, int]:
    """Epochs with free values and epochs in which they are held, together the plan's."""
    return split_epochs(plan.recovery.epochs, is_rebuilt=is_rebuilt(plan), is_held=_is_held(plan))


def _is_held(plan: Plan) -> bool:
    """True if values are restricted in a way that training has to follow."""
    return any(method.needs_recovery(settings) for method, settings in late_steps(plan))


def _goes_on(plan: Plan) -> bool:
    """True if a plan trains the settled model of the plan that it starts from: it does nothing but restrict values."""
    return plan.start is not None and plan.start.steps == plan.steps and _is_held(plan) and not is_rebuilt(plan)


def _joined(first: dict[str, float], second: dict[str, float]) -> dict[str, float]:
    """What both phases of a recovery reached; epochs are counted through."""
    if not first or not second:
        return first or second
    best = first["epochs"] + second["best_epoch"] if second["best_epoch"] else first["best_epoch"]
    start, epochs = first["score_before_recovery"], first["epochs"] + second["epochs"]
    return first | second | {"score_before_recovery": start, "best_epoch": best, "epochs": epochs}


def _train(bench: Workbench, model: nn.Module, trial: Trial, epochs: int, phase: str) -> dict[str, float]:
    """Fine-tune a model in place; weights of the same trial, cut short earlier, are taken up.

    Of processes that train together the first alone reads and writes weights.
    """
    from autocompress.recovery import autocast, recover, team

    if not epochs:
        return {}
    direction = 1.0 if bench.task.the_metric.direction == "maximize" else -1.0

    def score(candidate: nn.Module) -> float:
        with autocast():  # in the arithmetic of training: it chooses an epoch, the exported file is scored by itself
            return direction * bench.task.score(parity.torch_predictor(candidate), batch_size=bench.task.batch_size)

    saved = _saved_weights(bench, trial, phase)
    known = team.told(lambda: _taken_up(bench, model, saved))
    if known is not None:
        team.equalize(model)
        return known | {TAKEN_UP: 1.0}
    is_held = phase == "settled"
    recovery = replace(trial.plan.recovery, epochs=epochs)
    if is_held:
        recovery = replace(recovery.without_penalty(), learning_rate=LATE_RATE_SHARE * recovery.learning_rate)
    reached = recover(
        model,
        bench.lessons,
        recovery,
        score=score,
        seed=trial.seed + _trained_before(trial.plan, is_held=is_held),
        before=_went_on(trial.plan, is_held=is_held),
        loss=bench.task.loss,
        features=bench.task.feature_pairs,
        folded=is_held,
    )
    facts = {
        "score_before_recovery": direction * reached.start,
        "recovered_score": direction * reached.score,
        "best_epoch": reached.epoch,
        "epochs": reached.epochs,
    }
    if team.leads():
        save_weights(model, saved, {"reached": json.dumps(facts)})
        bench.site.share(saved)
    return facts


def _taken_up(bench: Workbench, model: nn.Module, saved: Path) -> dict[str, float] | None:
    """Load weights into a model, and what was reached with them; None if there are none."""
    from safetensors import safe_open
    from safetensors.torch import load_model

    if not bench.site.has(saved):
        return None
    load_model(model, str(saved))
    with safe_open(saved, "pt") as file:
        known: dict[str, float] = json.loads(file.metadata()["reached"])
    return known


def _is_kept(bench: Workbench, earlier: Trial, phase: str) -> bool:
    """Whether the recovered weights are there of a trial that another starts from.

    Where they are gone, and other processes train for this one, it is trained there anew.
    """
    if not _is_saved(bench, earlier, phase) and bench.train_elsewhere is not None:
        bench.train_elsewhere(earlier)
    return _is_saved(bench, earlier, phase)


def _is_saved(bench: Workbench, trial: Trial, phase: str) -> bool:
    """Whether the recovered weights of a trial are kept; processes that train together get the same answer."""
    from autocompress.recovery import team

    return team.told(lambda: bench.site.has(_saved_weights(bench, trial, phase)))


def _trained_before(plan: Plan, *, is_held: bool) -> int:
    """Epochs before a phase of a recovery: data are drawn by the number of the epoch, and go on where those ended."""
    before = plan.start.total_epochs if plan.start is not None else plan.recovery.sparsify_epochs
    return before + (_epochs(plan)[0] if is_held else 0)


def _went_on(plan: Plan, *, is_held: bool) -> int:
    """Epochs of the plan that it starts from, if a phase of its recovery but prolongs the one there.

    What is changed anew has to be repaired at the full rate.
    """
    start = plan.start
    if start is None or (not _goes_on(plan) if is_held else bool(added_steps(plan))):
        return 0
    return _epochs(start)[is_held] + _went_on(start, is_held=is_held)


def forget_weights(bench: Workbench, trial: Trial) -> None:
    """Delete the weights of a trial that failed."""
    for phase in PHASES:
        bench.site.forget(_saved_weights(bench, trial, phase))


def _saved_weights(bench: Workbench, trial: Trial, phase: str) -> Path:
    """Where the recovered weights of a trial lie, for a resume and for plans that start from its own."""
    key = f"{trial.plan.digest}-{phase}-{trial.seed}-{__version__}"
    return bench.directory / "artifacts" / f"{key}.safetensors"
