"""What is tried: each method as a user would set it, and the best plans of several."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import reduce

from autocompress.graph.view import LayerView
from autocompress.methods import METHODS
from autocompress.plan import ORIGINAL, Kept, Plan, Recovery, Scalar, Settings, Step
from autocompress.profile import HardwareProfile
from autocompress.space import Choice, Knob, MethodSpace


@dataclass(frozen=True)
class Setting:
    """A plan in the words of a search space, and what is hoped of it.

    Args:
        task: Name of the task's folder.
        parts: Methods, each with the neutral and the wanted value of its parameters and the layers it is for; of two
            parts of one method the later wins where both name a layer.
        recovery: Training after it.
        architecture: The original or a student of the task.
        most_drop: Points of test accuracy that it may cost; None where there is no such aim.
        least_size_factor: Bytes of the baseline over its own that it has to reach.
        most_latency_ratio: Its latency over that of the baseline at most.
        seeds: How often it is tried.
    """

    task: str
    parts: tuple[tuple[str, MethodSpace], ...] = ()
    recovery: Recovery = field(default_factory=Recovery)
    architecture: str = ORIGINAL
    most_drop: float | None = None
    least_size_factor: float | None = None
    most_latency_ratio: float | None = None
    seeds: int = 1


def plan_of(setting: Setting, view: LayerView, profile: HardwareProfile) -> Plan:
    """The plan that a setting means for the layers of its architecture.

    Args:
        setting: What is wanted; a layer that can't have it is left alone.
        view: The architecture.
        profile: The machine; what it has no kernel for is left out.
    """
    steps: dict[str, Settings] = {}
    for name, space in setting.parts:
        method = METHODS[name]()
        remaining = reduce(lambda left, step: METHODS[step[0]]().leaves(left, step[1], profile), steps.items(), view)
        steps[name] = {**steps.get(name, {}), **method.propose(remaining, wanted, space, profile)}
    return Plan(setting.architecture, tuple(Step(name, found) for name, found in steps.items()), setting.recovery)


def wanted(_: str, knob: Knob) -> Scalar:
    """The last value of a knob, which is the wanted one where a space names the neutral one and one more."""
    return knob.options[-1] if isinstance(knob, Choice) else knob.high


def space(
    layers: tuple[str, ...] = ("*",), exclude: tuple[str, ...] = (), **parameters: tuple[Scalar, ...]
) -> MethodSpace:
    """A method space by keyword."""
    return MethodSpace(parameters, layers, exclude)


INT8 = ("quantization", space(precision=("fp32", "int8"), bits=(8,)))
W4A8 = ("quantization", space(precision=("fp32", "int8"), bits=(4,)))
EDGES_W8 = ("quantization", space(("conv1", "linear"), precision=("fp32", "int8"), bits=(8,)))
STAGE_3_W3 = ("quantization", space(("layer3*",), precision=("fp32", "int8"), bits=(3,)))
DYNAMIC = ("quantization", space(precision=("fp32", "dynamic_int8"), bits=(8,)))
EMBEDDING_W8 = ("quantization", space(("words",), precision=("fp32", "weight_only"), bits=(8,)))
CODEBOOK = ("clustering", space(exclude=("*shortcut*",), bits=(32, 4)))
SPARSE_80 = ("sparsity", space(exclude=("conv1", "linear", "*shortcut*"), sparsity=(0.0, 0.8)))
SPARSE_75 = ("sparsity", space(exclude=("conv1", "linear", "*shortcut*"), sparsity=(0.0, 0.75)))
INNER = ("channel_pruning", space(("layer*.conv1",), pruning_ratio=(0.0, 0.5)))
ONE_NARROWER = ("channel_pruning", space(("layer1.2.conv1",), pruning_ratio=(0.0, 0.75)))
"""Stem and shortcuts keep their channels, so half of those inside the blocks is 0.51 of the MACs."""

SPATIAL = ("low_rank", space(("layer*",), exclude=("*shortcut*",), rank_ratio=(1, 0.5), decomposition=("spatial",)))
FEWER = ("layer_drop", space(("layer1.1", "layer1.2", "layer2.2"), drop=(False, True)))
FEWEST = ("layer_drop", space(("layer1.1", "layer1.2", "layer2.2", "layer3.1"), drop=(False, True)))
"""Residual blocks of ResNet-20 that are missed little together; those of the first stage take the most time, since
16 channels fill the processor badly."""

HALF_HEADS = ("channel_pruning", space(("*attention*:heads",), pruning_ratio=(0.0, 0.5)))
HALF_MLP = ("channel_pruning", space(("*fc1",), pruning_ratio=(0.0, 0.5)))
LOW_RANK_TEXT = ("low_rank", space(("blocks*",), rank_ratio=(1, 0.25)))


def taught(epochs: int, learning_rate: float, keep: Kept = "last") -> Recovery:
    """Training that listens mostly to the original.

    On CIFAR-10 the last epoch counts: the original has been trained on the validation images.
    """
    return Recovery(epochs, learning_rate, temperature=4.0, alpha=0.1, keep=keep)


def looked_at(epochs: int) -> Recovery:
    """The same with inner layers taught too, and a higher rate: what zeros need."""
    return replace(taught(epochs, 0.004), feature_weight=1.0)


def untaught(epochs: int, learning_rate: float) -> Recovery:
    """Training on the true classes alone."""
    return Recovery(epochs, learning_rate, alpha=1.0, keep="last")


def small(recovery: Recovery, *parts: tuple[str, MethodSpace]) -> Setting:
    """A plan of several methods that is to take a twelfth of the bytes."""
    return Setting("cifar10", parts, recovery, most_drop=1.0, least_size_factor=12)


SETTINGS: Mapping[str, Setting] = {
    "int8": Setting("cifar10", (INT8,), most_drop=0.3),
    "w4a8": Setting("cifar10", (W4A8, EDGES_W8), taught(2, 0.001), most_drop=0.8),
    "codebook_16": Setting("cifar10", (CODEBOOK,), taught(1, 0.001), most_drop=0.3),
    "sparse_80": Setting("cifar10", (SPARSE_80,), looked_at(3), most_drop=1.0),
    "half_macs": Setting("cifar10", (INNER, ONE_NARROWER), taught(10, 0.003), most_drop=2.0),
    "spatial_half_rank": Setting("cifar10", (SPATIAL,), taught(3, 0.003), most_drop=1.0),
    "half_width_taught": Setting("cifar10", (), taught(20, 0.01), "half_width", seeds=3),
    "half_width_untaught": Setting("cifar10", (), untaught(20, 0.01), "half_width", seeds=3),
    "small_low_rank_w4a8": small(taught(24, 0.003), SPATIAL, W4A8, EDGES_W8),
    "small_fewer_blocks_w4w3a8": small(taught(24, 0.003), FEWEST, W4A8, STAGE_3_W3, EDGES_W8),
    "small_sparse_w4a8": small(looked_at(20), SPARSE_75, W4A8, EDGES_W8),
    "fast_fewer_blocks_int8": Setting(
        "cifar10", (FEWER, INT8), taught(16, 0.003), most_drop=1.0, most_latency_ratio=0.33
    ),
    "text_dynamic_w8": Setting("banking77", (DYNAMIC, EMBEDDING_W8), most_drop=0.3),
    "text_half_heads_half_mlp": Setting("banking77", (HALF_HEADS, HALF_MLP), taught(5, 0.001, "best"), most_drop=2.0),
    "text_low_rank": Setting("banking77", (LOW_RANK_TEXT,), taught(5, 0.001, "best"), most_drop=2.0),
}
