"""From a plan to a model, and from the model to a graph."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from autocompress import __version__
from autocompress.errors import InfeasiblePlan, UnknownName
from autocompress.formats import onnx_export
from autocompress.formats.compact import compact
from autocompress.formats.encodings import encode_weights
from autocompress.graph.inspect import layer_view
from autocompress.graph.view import LayerView
from autocompress.graph.width import scaled_copy
from autocompress.methods import METHODS, CompressionMethod, Context
from autocompress.pipeline.workbench import Workbench
from autocompress.plan import ORIGINAL, Plan, Settings, Stage
from autocompress.planner import architectures
from autocompress.serialization import replacing
from autocompress.space import SearchSpace, parse_scaled

if TYPE_CHECKING:
    from onnx import ModelProto
    from torch import nn


def build(bench: Workbench, plan: Plan, seed: int) -> nn.Module:
    """The model of a plan with the structure, factors and zeros that the plan says, before recovery.

    What the plan starts from is not looked at; see `begin`. The plan that changes nothing gives the model as the user
    wrote it. Where the plan asks for it, the architecture is trained towards sparsity first.

    Raises:
        UnknownName: If the plan names a method or architecture that is not known.
        InfeasiblePlan: If a method can't do what the plan says.
    """
    import torch

    torch.manual_seed(seed)
    if plan.is_baseline:
        return bench.task.build_model()  # as the user wrote it: what the exporter makes of it is what to beat
    model = build_architecture(bench, plan.architecture)
    if plan.recovery.sparsify_epochs:
        _sparsify(bench, model, plan, seed)
    return compressed(bench, model, early_steps(plan), seed)


def _sparsify(bench: Workbench, model: nn.Module, plan: Plan, seed: int) -> None:
    """Train an architecture towards sparsity in place; all plans that ask for the same share the weights."""
    from safetensors.torch import load_model

    from autocompress.recovery import sparsify, team

    recovery = replace(plan.recovery, epochs=0, feature_weight=0.0)  # neither has a part in it
    shared = Plan(plan.architecture, recovery=recovery).digest
    saved = bench.directory / "artifacts" / f"{shared}-sparse-{seed}-{__version__}.safetensors"

    def take_up() -> bool:
        if is_saved := bench.site.has(saved):
            load_model(model, str(saved))
        return is_saved

    if team.told(take_up):
        team.equalize(model)
        return
    sparsify(model, bench.lessons, recovery, seed=seed, loss=bench.task.loss)
    if team.leads():
        save_weights(model, saved, {})
        bench.site.share(saved)


def settle(bench: Workbench, model: nn.Module, plan: Plan, seed: int) -> nn.Module:
    """A built and recovered model with the values and numbers that the plan says; schedules of constraints are over.

    Raises:
        InfeasiblePlan: If a method can't do what the plan says.
    """
    end_schedules(model)
    return compressed(bench, model, late_steps(plan), seed)


def end_schedules(model: nn.Module) -> None:
    """Constraints that grow during training are full-grown from now on."""
    from autocompress.graph.constraints import constraints

    for constraint in constraints(model):
        constraint.settled = True


def finish(model: nn.Module, plan: Plan) -> nn.Module:
    """The model without what was only needed to train it, held against the plan.

    Raises:
        InfeasiblePlan: If the model has not become what the plan says.
    """
    for method, _ in steps_of(plan):
        model = method.finalize(model)
    for method, settings in steps_of(plan):
        method.verify(model, settings)
    return model


def compressed(
    bench: Workbench, model: nn.Module, steps: Sequence[tuple[CompressionMethod, Settings]], seed: int
) -> nn.Module:
    context = replace(bench.context, seed=seed)
    for method, settings in steps:
        model = method(model, settings, context)
    return model


def build_architecture(bench: Workbench, architecture: str) -> nn.Module:
    """The original, a narrower or shallower copy with fresh weights, or a student that the task names.

    Torch's multi-head attention is written out as linear layers in all of them, so that methods see these.

    Raises:
        UnknownName: If it is none of these.
        InfeasiblePlan: If the original can't be made narrower or shallower.
    """
    from autocompress.graph.attention import expand_attention

    if architecture == ORIGINAL:
        return expand_attention(bench.task.build_model())
    scale = parse_scaled(architecture)
    if scale is not None:
        return _scaled(bench, *scale)
    students = [variant for variants in bench.task.student_variants.values() for variant in variants]
    if architecture not in students:
        raise UnknownName("architecture", architecture, [ORIGINAL, "width_0.5", "depth_0.5", *students])
    return expand_attention(bench.task.build_student(architecture))


def _scaled(bench: Workbench, width: float, depth: float) -> nn.Module:
    from autocompress.graph.attention import expand_attention
    from autocompress.graph.depth import shallow_copy

    model, examples = expand_attention(copy.deepcopy(bench.teacher)), bench.task.examples
    if depth != 1:
        model = shallow_copy(model, examples, depth)
    return scaled_copy(model, examples, width, bench.target.channel_multiple) if width != 1 else model


def lower(model: nn.Module, plan: Plan, context: Context) -> tuple[ModelProto, ModelProto]:
    """The exported graph of a model, plain and as the plan's methods change it.

    Raises:
        ConversionError: If the export fails.
        InfeasiblePlan: If a method finds nothing of its layers in the graph.
    """
    plain = onnx_export.export(model, context.examples)
    graph = plain
    for method, settings in steps_of(plan):
        graph = method.lower(graph, settings, context)
    return plain, compact(encode_weights(graph))


def survey_architectures(bench: Workbench, space: SearchSpace) -> tuple[dict[str, LayerView], dict[str, str]]:
    """The layers of every architecture that a space and a task offer, and why some can't be built."""
    models, refused = {}, {}
    for name in architectures(space, bench.task.student_variants):
        try:
            models[name] = layer_view(build_architecture(bench, name), bench.task.examples, name)
        except InfeasiblePlan as error:
            refused[name] = str(error)
    return models, refused


def added_steps(plan: Plan) -> list[tuple[CompressionMethod, Settings]]:
    """The early steps of a plan that the plan it starts from does not have.

    Raises:
        InfeasiblePlan: If the other plan has settings that this one has not, or added ones would come too late.
    """
    steps = early_steps(plan)
    if plan.start is None:
        return steps
    begun = {method.name: settings for method, settings in early_steps(plan.start)}
    wanted = {method.name: settings for method, settings in steps}
    for name, settings in begun.items():
        for layer, setting in settings.items():
            if wanted.get(name, {}).get(layer) != setting:
                raise InfeasiblePlan(
                    f"the plan starts from one with {name} of {layer!r}: {dict(setting)}; expected only settings that "
                    "it has itself"
                )
    added: list[tuple[CompressionMethod, Settings]] = []
    for method, settings in steps:
        new = {layer: setting for layer, setting in settings.items() if layer not in begun.get(method.name, {})}
        if new:
            added.append((method, new))
    last = max((method.turn for method, _ in early_steps(plan.start)), default=None)
    late = next((method for method, _ in added if last is not None and method.turn < last), None)
    if late is not None:
        raise InfeasiblePlan(
            f"the plan adds {late.name} to one that it starts from, whose later methods have acted already; leave the "
            "start out"
        )
    return added


def is_rebuilt(plan: Plan) -> bool:
    return plan.architecture != ORIGINAL or bool(early_steps(plan))


def early_steps(plan: Plan) -> list[tuple[CompressionMethod, Settings]]:
    """The steps before batch norms are folded."""
    return [step for step in steps_of(plan) if step[0].stage < Stage.VALUES]


def late_steps(plan: Plan) -> list[tuple[CompressionMethod, Settings]]:
    """The steps that act on folded weights."""
    return [step for step in steps_of(plan) if step[0].stage >= Stage.VALUES]


def steps_of(plan: Plan) -> list[tuple[CompressionMethod, Settings]]:
    """The plan's methods with their settings, in the order in which they act."""
    found = [(METHODS[step.method](), step.settings) for step in plan.steps]
    return sorted(found, key=lambda step: step[0].turn)


def save_weights(model: nn.Module, path: Path, metadata: dict[str, str]) -> None:
    """Write weights so that at any moment either none or all are there; several processes may do so at once."""
    from safetensors.torch import save_model

    with replacing(path) as temporary:
        save_model(model, str(temporary), metadata)
