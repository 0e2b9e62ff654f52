"""Sparsity: the smallest weights become zero and stay in place, which makes the file smaller."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar

from autocompress.errors import InfeasiblePlan
from autocompress.graph.view import Layer, LayerView
from autocompress.methods._base import METHODS, CompressionMethod, Context, asked, values_of
from autocompress.plan import Scalar, Settings, Stage
from autocompress.profile import HardwareProfile
from autocompress.space import Choice, MethodSpace, Suggest

if TYPE_CHECKING:
    from torch import Tensor, nn

SPARSITIES = (0.0, 0.5, 0.7, 0.8, 0.9)
UNSTRUCTURED = "unstructured"
LAYER, GLOBAL = "layer", "global"
GRADUAL, ONE_SHOT = "gradual", "one_shot"
WORDS: Mapping[str, tuple[str, ...]] = {"scope": (LAYER, GLOBAL), "schedule": (GRADUAL, ONE_SHOT)}
KINDS = ("conv", "linear", "embedding")


@dataclass
class _Target:
    """A weight that gets zeros: where it is, and how many."""

    name: str
    module: nn.Module
    weight: Tensor
    zeros: int


@METHODS.register
class Sparsity(CompressionMethod):
    """Sets weights to zero by magnitude, one by one or N of each M along the input axis.

    No kernel of ONNX Runtime skips zeros, so the gain is size alone. Layers that share a ranking lose far less: with
    80 % zeros the digits example keeps 99.0 % accuracy before any training, and 27 % with as many in each layer.

    References:
        Han et al., "Learning both Weights and Connections for Efficient Neural Networks", 2015; Mishra et al.,
        "Accelerating Sparse Deep Neural Networks", 2021, on N:M patterns.
    """

    name = "sparsity"
    stage = Stage.WEIGHTS
    parameters: ClassVar[Mapping[str, str]] = {
        "sparsity": "share of zeros in each weight, in (0, 1); 0 leaves a layer alone in a search space",
        "threshold": "instead of sparsity: weights below this many standard deviations of the layer become zero, > 0",
        "pattern": (
            "unstructured (default), or N:M such as '2:4' (in quotes in YAML), where at most 2 of each 4 weights are "
            "not zero"
        ),
        "scope": "layer (default), or global: such layers share one ranking at their mean sparsity",
        "schedule": "gradual (default), where zeros grow during the first quarter of recovery, or one_shot",
    }

    def propose(self, model: LayerView, suggest: Suggest, space: MethodSpace, profile: HardwareProfile) -> Settings:
        """A pattern, sparsity or threshold for each layer; all share one ranking unless the space says otherwise."""
        settings: dict[str, dict[str, Scalar]] = {}
        for layer in model.layers:
            if layer.kind in KINDS and layer.shape and not layer.tied_to and space.admits(layer.name):
                amount = self._amount(layer, suggest, space)
                if amount:
                    words = self._words(layer.name, suggest, space, pattern="pattern" in amount)
                    settings[layer.name] = {**amount, **words}
        return settings

    def _amount(self, layer: Layer, suggest: Suggest, space: MethodSpace) -> dict[str, Scalar]:
        """The first answer that is not neutral, to pattern, sparsity and threshold."""
        defaults: Mapping[str, tuple[Scalar, ...]] = {"pattern": (), "sparsity": SPARSITIES, "threshold": ()}
        for parameter, default in defaults.items():
            neutral = UNSTRUCTURED if parameter == "pattern" else 0.0
            wanted = [value for value in values_of(space, parameter, default) if value != neutral]
            options = [value for value in wanted if parameter != "pattern" or _fits(layer, _groups(value))]
            if options:
                answer = suggest(f"{self.name}/{layer.name}/{parameter}", Choice((neutral, *options)))
                if answer != neutral:
                    return {parameter: answer}
        return {}

    def _words(self, layer: str, suggest: Suggest, space: MethodSpace, *, pattern: bool) -> dict[str, Scalar]:
        """Scope and schedule; a word is asked if the space offers several."""
        offered = {"scope": values_of(space, "scope", (GLOBAL,)), "schedule": values_of(space, "schedule", ())}
        words: dict[str, Scalar] = {}
        for word, options in offered.items():
            if not (pattern and word == "scope"):
                words |= asked(word, options, suggest, method=self.name, layer=layer)
        return words

    def leaves(self, model: LayerView, settings: Settings, profile: HardwareProfile) -> LayerView:
        """The layers with their zeros; what a threshold makes zero is not known before it does."""

        def emptied(layer: Layer) -> Layer:
            setting = settings.get(layer.name, {})
            groups = _groups(setting.get("pattern"))
            density = groups[0] / groups[1] if groups else 1 - float(setting.get("sparsity", 0.0))
            return replace(layer, density=layer.density * density) if density < 1 else layer

        return replace(model, layers=tuple(map(emptied, model.layers)))

    def takes(self, parameter: str, value: Scalar) -> bool:
        """True for sparsities in [0, 1), thresholds from 0 up, patterns and the known words."""
        if parameter == "pattern":
            return value == UNSTRUCTURED or _groups(value) is not None
        if parameter in WORDS:
            return value in WORDS[parameter]
        return _is_number(value) and 0 <= float(value) < (1 if parameter == "sparsity" else math.inf)

    def check(self, model: LayerView, settings: Settings, profile: HardwareProfile) -> None:
        """Refuse settings that say no amount or two, and layers whose weights can't be reached or grouped."""
        for name, setting in settings.items():
            for parameter, value in setting.items():
                if not self.takes(parameter, value) or (parameter in ("sparsity", "threshold") and value == 0):
                    expected = self.parameters[parameter]
                    raise InfeasiblePlan(f"{self.name}: layer {name!r}: {parameter} {value!r}; expected {expected}")
            self._check_amount(name, setting)
            layers = model.beneath(name)
            groups = _groups(setting.get("pattern"))
            unfit = [layer for layer in layers if layer.kind not in KINDS or (groups and not _fits(layer, groups))]
            if unfit or not layers:
                found = f"{unfit[0].kind} {unfit[0].shape}" if unfit else "no layer that the model uses"
                raise InfeasiblePlan(f"{self.name}: layer {name!r} is {found}; {_expected(groups)}; leave it out")

    def _check_amount(self, name: str, setting: Mapping[str, Scalar]) -> None:
        grouped = _groups(setting.get("pattern")) is not None
        given = [key for key in ("sparsity", "threshold") if key in setting] + ["pattern"] * grouped
        if len(given) != 1:
            raise InfeasiblePlan(
                f"{self.name}: layer {name!r}: {' and '.join(given) or 'no amount'} given; expected one of sparsity, "
                "threshold, and a pattern N:M"
            )
        if grouped and setting.get("scope", LAYER) == GLOBAL:
            raise InfeasiblePlan(f"{self.name}: layer {name!r}: a pattern N:M has no global ranking; drop the scope")

    def apply(self, model: nn.Module, settings: Settings, context: Context) -> nn.Module:
        """Put a mask on every weight beneath the layers.

        Raises:
            InfeasiblePlan: If the share rounds to no weight of a layer, or those that became zero already were; of
                layers that share a ranking, if that holds for all of them.
        """
        from autocompress.graph.constraints import hold, users
        from autocompress.graph.masks import Mask, input_axis

        targets = self._targets(model, settings)
        masked: set[nn.Module] = set()
        idle: list[str] = []
        for layer, setting in settings.items():
            before = [(target.module, target.weight) for target in targets[layer]]
            for target in targets[layer]:
                if target.module in masked or not target.zeros:
                    continue
                mask = Mask(
                    target.weight,
                    target.zeros,
                    groups=_groups(setting.get("pattern")),
                    axis=input_axis(target.module),
                    gradual=setting.get("schedule", GRADUAL) == GRADUAL,
                )
                hold(model, target.module, mask)
                masked |= {user for user, _ in users(model, target.module)}
            if all(module.weight.equal(weight) for module, weight in before):  # type: ignore[operator]
                idle.append(layer)
        alone = [layer for layer in idle if settings[layer].get("scope") != GLOBAL]
        ranked = {layer for layer, setting in settings.items() if setting.get("scope") == GLOBAL}
        if alone or (ranked and ranked <= set(idle)):
            layer = (alone or idle)[0]
            raise InfeasiblePlan(
                f"{self.name}: layer {layer!r}: {dict(settings[layer])} makes no weight zero that is not; ask for more "
                "or leave the layer out"
            )
        return model

    def _check_effect(self, model: nn.Module, changed: nn.Module, settings: Settings) -> None:
        """Layers that share a ranking were looked at together."""
        alone = {layer: setting for layer, setting in settings.items() if setting.get("scope") != GLOBAL}
        super()._check_effect(model, changed, alone)

    def _targets(self, model: nn.Module, settings: Settings) -> dict[str, list[_Target]]:
        """The weights beneath each layer with the zeros they get; one that is tied stands under each of its layers.

        Raises:
            InfeasiblePlan: If groups do not divide a weight, or tied layers want different things of it.
        """
        from autocompress.graph.constraints import users
        from autocompress.graph.inspect import weighted_modules
        from autocompress.graph.masks import input_axis, shared_out

        targets: dict[str, list[_Target]] = {}
        known: dict[nn.Module, tuple[str, _Target]] = {}
        for layer, setting in settings.items():
            for name, module in weighted_modules(model, layer):
                if module in known:
                    other, target = known[module]
                    self._check_alike(settings, other, layer)
                    targets.setdefault(layer, []).append(target)
                    continue
                weight: Tensor = module.weight.detach()  # type: ignore[operator]
                groups = _groups(setting.get("pattern"))
                if groups is not None and weight.shape[input_axis(module)] % groups[1]:
                    raise InfeasiblePlan(
                        f"{self.name}: the weight of {name!r} is {tuple(weight.shape)}; {_expected(groups)}; leave "
                        f"{layer!r} out"
                    )
                target = _Target(name, module, weight, _zeros(weight, setting))
                targets.setdefault(layer, []).append(target)
                known |= {user: (layer, target) for user, _ in users(model, module)}
        ranked = [one for layer in targets if settings[layer].get("scope") == GLOBAL for one in targets[layer]]
        shared = list({id(one): one for one in ranked}.values())
        if shared:
            counts = shared_out([one.weight for one in shared], sum(one.zeros for one in shared))
            for one, zeros in zip(shared, counts, strict=True):
                one.zeros = zeros
        return targets

    def _check_alike(self, settings: Settings, one: str, other: str) -> None:
        """Refuse tied layers that want different things of their weight."""
        first, second = dict(settings[one]), dict(settings[other])
        if first != second:
            raise InfeasiblePlan(
                f"{self.name}: layers {one!r} and {other!r} share a weight, and are given {first} and {second}; "
                "expected the same, or one of them left out"
            )

    def finalize(self, model: nn.Module) -> nn.Module:
        """Make the zeros plain weights."""
        from autocompress.graph.constraints import release

        return release(model)

    def verify(self, model: nn.Module, settings: Settings) -> None:
        """Count the zeros of each weight, or of all that share a ranking, and look at each group of a pattern."""
        from autocompress.graph.inspect import weighted_modules
        from autocompress.graph.masks import input_axis, obeys_groups

        shared, counted = [0, 0], set()
        for layer, setting in settings.items():
            for name, module in weighted_modules(model, layer):
                weight = module.get_parameter("weight")
                if weight in counted:
                    continue
                counted.add(weight)
                groups = _groups(setting.get("pattern"))
                if groups is not None and not obeys_groups(weight, groups, input_axis(module)):
                    raise InfeasiblePlan(f"{self.name}: the weight of {name!r} is not {setting['pattern']}")
                zeros, wanted = int((weight == 0).sum()), _least(weight.numel(), setting)
                if setting.get("scope") == GLOBAL:
                    shared = [shared[0] + zeros, shared[1] + wanted]
                elif zeros < wanted:
                    raise InfeasiblePlan(f"{self.name}: the weight of {name!r} has {zeros} zeros; expected {wanted}")
        if shared[0] < shared[1]:
            raise InfeasiblePlan(f"{self.name}: the weights ranked together have {shared[0]} zeros of {shared[1]}")


def _zeros(weight: Tensor, setting: Mapping[str, Scalar]) -> int:
    """How many weights of a layer become zero if it is ranked alone; one stays."""
    if "threshold" in setting:
        small = int((weight.abs() < float(setting["threshold"]) * weight.std(correction=0)).sum())
        return min(small, weight.numel() - 1)
    return _least(weight.numel(), setting)


def _least(count: int, setting: Mapping[str, Scalar]) -> int:
    """How many of `count` weights are zero at least in the end; of a threshold that is not known afterwards."""
    groups = _groups(setting.get("pattern"))
    share = 1 - groups[0] / groups[1] if groups is not None else float(setting.get("sparsity", 0.0))
    return min(round(share * count), count - 1)


def _groups(pattern: Scalar | None) -> tuple[int, int] | None:
    """N and M of a pattern such as 2:4; None for anything else.

    >>> _groups("2:4"), _groups("unstructured"), _groups("4:4")
    ((2, 4), None, None)
    """
    found = re.fullmatch(r"(\d+):(\d+)", pattern) if isinstance(pattern, str) else None
    count, size = (int(found[1]), int(found[2])) if found else (0, 0)
    return (count, size) if 0 < count < size else None


def _fits(layer: Layer, groups: tuple[int, int] | None) -> bool:
    """True if groups divide the input axis of a layer that multiplies."""
    if groups is None or layer.kind == "embedding" or not layer.shape:
        return False
    length = layer.shape[0] // layer.groups if layer.transposed else layer.shape[1]
    return length % groups[1] == 0


def _expected(groups: tuple[int, int] | None) -> str:
    if groups is None:
        return f"expected {', '.join(KINDS)}"
    return f"expected conv or linear with a multiple of {groups[1]} inputs, of each group of a convolution"


def _is_number(value: Scalar) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
