"""How long recovery takes with one trainer and with several, and whether models become as good.

python experiments/cluster/team.py [--trainers 2] [--seeds 3] [--epochs 6] [--images 1024]
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from statistics import mean, median, stdev
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # the checkout, wherever this file is started from

from autocompress.executors._ray.connecting import connect, hold, release, the_ray
from autocompress.executors._ray.tasks import Outcome
from autocompress.executors._ray.trainers import Crew, train_together
from experiments.cluster.nodes import started

BATCH_SIZE = 128
TIMED = 3
"""How often an epoch is timed by each, in turn."""


def main() -> None:
    """Start a cluster of a processor a trainer, train on it, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trainers", type=int, default=2)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--images", type=int, default=1024, help="random ones, of the epoch of ResNet-20")
    options = parser.parse_args()
    sides = (1, options.trainers)
    with started((1,) * options.trainers) as nodes:
        connect(nodes.address)
        hold()
        try:
            times = [[_ask(count, epoch_of_resnet, options.images) for count in sides] for _ in range(TIMED)]
            asked = ((options.epochs, seed) for seed in range(options.seeds))
            reached = [[_ask(count, student_of_digits, *one) for count in sides] for one in asked]
        finally:
            release()
    print("| trainers | " + " | ".join(map(str, sides)) + " | times as fast |")
    print("|---|--:|--:|--:|")
    epoch = f"epoch of {options.images} images, ResNet-20"
    _print_times(epoch, times)
    _print_times("epoch of the digits", [[seconds for _, seconds in pair] for pair in reached])
    scores = [_shown([100 * pair[side][0] for pair in reached]) for side in (0, 1)]
    print(f"| accuracy of a student of the digits, {options.epochs} epochs | {' | '.join(scores)} | |")


def epoch_of_resnet(images: int) -> float:
    """Seconds of an epoch of ResNet-20 with distillation on random images."""
    import numpy as np

    from autocompress.recovery import Lessons, epoch_seconds
    from autocompress.task import Task
    from experiments.networks import CifarResNet

    rng = np.random.default_rng(0)
    data = (rng.standard_normal((images, 3, 32, 32)).astype(np.float32), rng.integers(0, 10, images))
    task = Task(name="random", model=CifarResNet(), train=data, validation=data, batch_size=BATCH_SIZE)
    lessons = Lessons(task, task.build_model())
    next(lessons.epoch(0))  # the teacher answers once
    return epoch_seconds(task.build_model(), lessons, None, steps=lessons.steps - 1)


def student_of_digits(epochs: int, seed: int) -> tuple[float, float]:
    """Accuracy on validation data of a student of half the width, and seconds of an epoch of its training."""
    import time

    import torch

    from autocompress.formats.parity import torch_predictor
    from autocompress.graph.width import scaled_copy
    from autocompress.plan import Recovery
    from autocompress.recovery import Lessons, recover
    from experiments.digits.task import task

    torch.manual_seed(seed)
    student = scaled_copy(task.build_model(), task.examples, 0.5, 1)
    lessons = Lessons(task, task.build_model())
    next(lessons.epoch(0))  # the teacher answers once
    scored = []

    def score(model: torch.nn.Module) -> float:
        began = time.perf_counter()
        value = task.score(torch_predictor(model), batch_size=task.batch_size)
        scored.append(time.perf_counter() - began)
        return value

    began = time.perf_counter()
    reached = recover(student, lessons, Recovery(epochs=epochs, learning_rate=0.01), score=score, seed=seed)
    return reached.score, (time.perf_counter() - began - sum(scored)) / epochs


def _ask(trainers: int, function: Callable[..., Any], *args: Any) -> Any:
    """What the first trainer returns of a function that so many call together."""
    outcome: Outcome = the_ray().get(train_together(Crew(trainers), function.__name__, function, args, print))
    return outcome.unwrapped()


def _print_times(what: str, times: list[list[float]]) -> None:
    alone, together = (median(pair[side] for pair in times) for side in (0, 1))
    print(f"| {what} | {alone:.2f} s | {together:.2f} s | {alone / together:.2f} |")


def _shown(values: list[float]) -> str:
    return f"{mean(values):.2f} ± {stdev(values):.2f} %" if len(values) > 1 else f"{values[0]:.2f} %"


if __name__ == "__main__":
    main()
