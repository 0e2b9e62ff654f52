"""Low-rank factorization: a layer becomes a chain of smaller ones where that has fewer weights."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import TYPE_CHECKING, ClassVar, Literal, get_args

from autocompress.errors import InfeasiblePlan
from autocompress.graph.channel_groups import rounding_step
from autocompress.graph.view import Layer, LayerView
from autocompress.methods._base import METHODS, CompressionMethod, Context, asked, said, values_of
from autocompress.plan import Scalar, Settings, Stage
from autocompress.profile import HardwareProfile
from autocompress.space import Choice, MethodSpace, Suggest

if TYPE_CHECKING:
    from torch import Tensor, nn

    from autocompress.graph.factorization import Factorized

Decomposition = Literal["svd", "whitened_svd", "nmf", "channel", "spatial", "tucker"]
OF_LINEAR: tuple[Decomposition, ...] = ("whitened_svd", "svd", "nmf")
NEUTRAL = 1.0
RATIOS = (NEUTRAL, 0.75, 0.5, 0.25)
LEAST_WEIGHTS = 1024
"""Layers with fewer weights are not offered: a second layer costs more time than they do."""

LEAST_CHANNELS = 8
"""Convolutions between fewer channels are not split along their kernel unless asked: the rank would be next to none."""


@dataclass(frozen=True)
class Geometry:
    """What the ranks of a layer depend on.

    Args:
        outputs, inputs: Channels or features.
        kernel: Of a convolution; empty for linear layers.
    """

    outputs: int
    inputs: int
    kernel: tuple[int, ...] = ()

    @classmethod
    def of(cls, layer: Layer) -> Geometry:
        """The geometry of a linear layer or an ungrouped convolution."""
        first, second, *kernel = layer.shape
        return cls(second, first, tuple(kernel)) if layer.transposed else cls(first, second, tuple(kernel))

    @property
    def weights(self) -> int:
        """How many the layer has."""
        return self.outputs * self.inputs * math.prod(self.kernel)

    @property
    def decompositions(self) -> tuple[Decomposition, ...]:
        """Those that the layer can have, the default first."""
        if not self.kernel:
            return OF_LINEAR
        if max(self.kernel) == 1:
            return ("channel",)
        if len(self.kernel) != 2 or min(self.kernel) == 1:
            return ("channel", "tucker")
        if min(self.kernel) >= 3 and min(self.outputs, self.inputs) >= LEAST_CHANNELS:
            return ("spatial", "channel", "tucker")
        return ("channel", "spatial", "tucker")

    def full_ranks(self, decomposition: Decomposition) -> tuple[int, ...]:
        """What a ratio of 1 means.

        It is where the factors are exact, but for the spatial split, which has more weights than the layer there: its
        ratio counts from the smaller number of channels.
        """
        positions = math.prod(self.kernel)
        reads, writes = min(self.inputs, self.outputs * positions), min(self.outputs, self.inputs * positions)
        if decomposition == "tucker":
            return reads, writes
        return (writes,) if decomposition == "channel" else (min(self.inputs, self.outputs),)

    def factor_weights(self, decomposition: Decomposition, ranks: tuple[int, ...]) -> int:
        """How many the factors have."""
        positions = math.prod(self.kernel)
        if decomposition == "tucker":
            return ranks[0] * self.inputs + ranks[0] * ranks[1] * positions + ranks[1] * self.outputs
        if decomposition == "spatial":
            return ranks[0] * (self.inputs * self.kernel[0] + self.outputs * self.kernel[1])
        return ranks[0] * (self.inputs * positions + self.outputs)


@METHODS.register
class LowRank(CompressionMethod):
    """Writes linear layers as products of two and convolutions as chains of two or three.

    Linear layers are split by singular values, weighted by what the layer reads (`whitened_svd`, the default) or not
    (`svd`), or by non-negative factors (`nmf`). Convolutions are split along their kernel (`spatial`, the default from
    3×3 on), into one with fewer outputs and a pointwise one (`channel`), or by Tucker's decomposition (`tucker`).
    The papers stand with each in `autocompress.graph.factorization`.
    """

    name = "low_rank"
    stage = Stage.FACTORS
    parameters: ClassVar[Mapping[str, str]] = {
        "rank_ratio": "rank / full rank, in (0, 1), rounded up to the machine's multiple; 1 leaves the layer alone",
        "decomposition": "svd, whitened_svd or nmf for linear layers; channel, spatial or tucker for convolutions",
    }

    def propose(self, model: LayerView, suggest: Suggest, space: MethodSpace, profile: HardwareProfile) -> Settings:
        """A ratio for each layer that has smaller factors; ratios that round to the same ranks are one choice."""
        wanted = values_of(space, "rank_ratio", RATIOS)
        settings: dict[str, dict[str, Scalar]] = {}
        for layer in model.layers:
            if not (_is_splittable(layer) and layer.replaceable and space.admits(layer.name)):
                continue
            geometry = Geometry.of(layer)
            decompositions = self._offered(geometry, space)
            options = distinct_ratios(geometry, decompositions[0], wanted, profile.channel_multiple)
            if geometry.weights < LEAST_WEIGHTS or len(options) == 1:
                continue
            ratio = suggest(f"{self.name}/{layer.name}/rank_ratio", Choice(options))
            if ratio != NEUTRAL:
                settings[layer.name] = {"rank_ratio": ratio}
                if "decomposition" in space.parameters:
                    fitting = _fitting(geometry, decompositions, options, profile.channel_multiple)
                    settings[layer.name] |= asked("decomposition", fitting, suggest, method=self.name, layer=layer.name)
        return settings

    def _offered(self, geometry: Geometry, space: MethodSpace) -> tuple[Decomposition, ...]:
        """Those of the space that the layer can have, its default first; the default alone if there are none."""
        wanted = space.parameters.get("decomposition", ())
        return tuple(name for name in geometry.decompositions if name in wanted) or geometry.decompositions[:1]

    def fitting(self, model: LayerView, settings: Settings, profile: HardwareProfile) -> Settings:
        """The settings of layers that are still large enough to have smaller factors."""
        layers = {layer.name: layer for layer in model.layers}

        def saves(name: str) -> bool:
            geometry, setting = Geometry.of(layers[name]), settings[name]
            decomposition = _decomposition(geometry, setting)
            if decomposition not in geometry.decompositions:
                return False
            ranks = planned_ranks(geometry, decomposition, float(setting["rank_ratio"]), profile.channel_multiple)
            return geometry.factor_weights(decomposition, ranks) < geometry.weights

        return {name: setting for name, setting in settings.items() if saves(name)}

    def leaves(self, model: LayerView, settings: Settings, profile: HardwareProfile) -> LayerView:
        """The layers with the weights of their factors."""

        def split(layer: Layer) -> Layer:
            if layer.name not in settings:
                return layer
            geometry, setting = Geometry.of(layer), settings[layer.name]
            decomposition = _decomposition(geometry, setting)
            ranks = planned_ranks(geometry, decomposition, float(setting["rank_ratio"]), profile.channel_multiple)
            left = geometry.factor_weights(decomposition, ranks) / geometry.weights
            return replace(
                layer,
                parameters=round(layer.parameters * left),
                macs=round(layer.macs * left),
                parts=len(ranks) + 1,
            )

        return replace(model, layers=tuple(map(split, model.layers)))

    def takes(self, parameter: str, value: Scalar) -> bool:
        """True for ratios in (0, 1] and the known decompositions."""
        if parameter == "decomposition":
            return value in get_args(Decomposition)
        return isinstance(value, int | float) and not isinstance(value, bool) and 0 < value <= 1

    def check(self, model: LayerView, settings: Settings, profile: HardwareProfile) -> None:
        """Refuse layers that can't be split, ratios that are none, and factors that are not smaller."""
        layers = {layer.name: layer for layer in model.layers}
        for name, setting in settings.items():
            layer = layers.get(name)
            if layer is None or not _is_splittable(layer):
                raise InfeasiblePlan(
                    f"{self.name}: layer {name!r}: expected a linear layer or an ungrouped convolution that the "
                    "forward pass uses; leave it out"
                )
            self._check_setting(name, Geometry.of(layer), setting, profile.channel_multiple)

    def _check_setting(self, name: str, geometry: Geometry, setting: Mapping[str, Scalar], multiple: int) -> None:
        ratio, decomposition = setting.get("rank_ratio"), setting.get("decomposition", geometry.decompositions[0])
        if isinstance(ratio, bool | str) or ratio is None or not 0 < ratio < 1:
            raise InfeasiblePlan(f"{self.name}: layer {name!r}: {said(setting, 'rank_ratio')}; expected 0 < ratio < 1")
        if decomposition not in geometry.decompositions:
            raise InfeasiblePlan(
                f"{self.name}: layer {name!r}: decomposition {decomposition!r}; expected "
                f"{' or '.join(geometry.decompositions)}"
            )
        ranks = planned_ranks(geometry, decomposition, ratio, multiple)
        count = geometry.factor_weights(decomposition, ranks)
        if count >= geometry.weights:
            raise InfeasiblePlan(
                f"{self.name}: layer {name!r}: rank_ratio {ratio:g} gives rank {' and '.join(map(str, ranks))} and "
                f"{count} weights; expected fewer than the {geometry.weights} of the layer; choose a smaller ratio"
            )

    def apply(self, model: nn.Module, settings: Settings, context: Context) -> nn.Module:
        """Replace each layer, under all of its names, by its factors."""
        from autocompress.graph.factorization import input_moments
        from autocompress.graph.inspect import replace as put
        from autocompress.graph.inspect import used_layers

        geometries = {layer.name: Geometry.of(layer) for layer in used_layers(model, context.examples) if layer.shape}
        chosen = {name: _decomposition(geometries[name], setting) for name, setting in settings.items()}
        for name in settings:
            _require_own_weight(model, name)
        whitened = [name for name, decomposition in chosen.items() if decomposition == "whitened_svd"]
        moments = input_moments(model, whitened, context.calibration)
        for name, decomposition in chosen.items():
            ratio = float(settings[name]["rank_ratio"])
            ranks = planned_ranks(geometries[name], decomposition, ratio, context.profile.channel_multiple)
            layer = model.get_submodule(name)
            factors = _factorized(layer, decomposition, ranks, moments.get(name), context.seed)
            for alias in [other for other, module in model.named_modules(remove_duplicate=False) if module is layer]:
                put(model, alias, factors)
        return model

    def verify(self, model: nn.Module, settings: Settings) -> None:
        """Each layer is a chain whose ranks are those planned."""
        from autocompress.graph.factorization import Factorized

        for name in settings:
            factors = model.get_submodule(name)
            if not isinstance(factors, Factorized):
                raise InfeasiblePlan(f"{self.name}: layer {name!r} is a {type(factors).__name__}; expected its factors")
            if factors.ranks != factors.planned_ranks:
                raise InfeasiblePlan(
                    f"{self.name}: layer {name!r} has ranks {factors.ranks}; planned were {factors.planned_ranks}"
                )


def rounded_rank(full: int, ratio: float, multiple: int) -> int:
    """A rank, rounded up to what the machine computes without waste.

    Full ranks below twice the multiple are rounded to 4, those below 8 to whole numbers, as channels are.

    >>> [rounded_rank(64, ratio, 16) for ratio in (0.25, 0.3, 0.5)]
    [16, 32, 32]
    >>> rounded_rank(16, 0.5, 16), rounded_rank(6, 0.4, 16)
    (8, 3)
    """
    step = rounding_step(full, multiple)
    return min(full, math.ceil(round(ratio * full / step, 9)) * step)


def planned_ranks(geometry: Geometry, decomposition: Decomposition, ratio: float, multiple: int) -> tuple[int, ...]:
    """The ranks of a decomposition: one, or for Tucker's those of the inputs and of the outputs."""
    return tuple(rounded_rank(full, ratio, multiple) for full in geometry.full_ranks(decomposition))


@lru_cache(maxsize=10_000)  # each proposal asks for all layers
def distinct_ratios(
    geometry: Geometry, decomposition: Decomposition, ratios: tuple[Scalar, ...], multiple: int
) -> tuple[float, ...]:
    """The ratios that give different ranks and fewer weights, 1 first, then from large to small.

    Of ratios that give the same ranks, the largest stands for them: it is nearest to the ranks rounded up.
    """
    best: dict[tuple[int, ...], float] = {}
    for ratio in sorted(float(ratio) for ratio in ratios if ratio != NEUTRAL):
        ranks = planned_ranks(geometry, decomposition, ratio, multiple)
        if geometry.factor_weights(decomposition, ranks) < geometry.weights:
            best[ranks] = ratio
    return (NEUTRAL, *sorted(best.values(), reverse=True))


def _fitting(
    geometry: Geometry, decompositions: tuple[Decomposition, ...], ratios: tuple[float, ...], multiple: int
) -> tuple[Decomposition, ...]:
    """The decompositions that give smaller factors at every ratio offered, so that any pair of answers is feasible."""
    return tuple(d for d in decompositions if set(distinct_ratios(geometry, d, ratios, multiple)) == set(ratios))


def _is_splittable(layer: Layer) -> bool:
    return layer.kind in ("conv", "linear") and layer.groups == 1


def _decomposition(geometry: Geometry, setting: Mapping[str, Scalar]) -> Decomposition:
    chosen: Decomposition = setting.get("decomposition", geometry.decompositions[0])  # type: ignore[assignment]
    return chosen


def _require_own_weight(model: nn.Module, name: str) -> None:
    """Refuse a layer that is not what its weight and bias say, or whose weight another layer uses too."""
    from autocompress.graph.constraints import users
    from autocompress.graph.factorization import is_plain

    layer = model.get_submodule(name)
    if not is_plain(layer):
        raise InfeasiblePlan(
            f"low_rank: layer {name!r}: a {type(layer).__name__} computes in a way of its own; expected torch's own "
            "linear layer or convolution; leave it out"
        )
    if len(users(model, layer)) > 1:
        raise InfeasiblePlan(
            f"low_rank: layer {name!r} shares its weight with another layer, which would keep it; leave it out"
        )


def _factorized(
    layer: nn.Module, decomposition: Decomposition, ranks: tuple[int, ...], moment: Tensor | None, seed: int
) -> Factorized:
    from torch import nn

    from autocompress.graph import factorization as make

    if decomposition == "tucker":
        return make.tucker_split(layer, (ranks[0], ranks[1]))
    if decomposition in ("channel", "spatial"):
        return (make.channel_split if decomposition == "channel" else make.spatial_split)(layer, ranks[0])
    assert isinstance(layer, nn.Linear), "only linear layers have the other decompositions"
    if decomposition == "nmf":
        return make.nmf(layer, ranks[0], seed)
    return make.svd(layer, ranks[0]) if moment is None else make.whitened_svd(layer, ranks[0], moment)
