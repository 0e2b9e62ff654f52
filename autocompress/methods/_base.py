"""What a compression method is, and the contract that its `__call__` keeps."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from autocompress.data import Array, Split
from autocompress.errors import InfeasiblePlan, did_you_mean
from autocompress.graph.view import LayerView
from autocompress.plan import ORIGINAL, Scalar, Settings, Stage
from autocompress.profile import HardwareProfile
from autocompress.registry import Registry
from autocompress.space import Choice, MethodSpace, Suggest

if TYPE_CHECKING:
    from onnx import ModelProto
    from torch import Tensor, nn


@dataclass(frozen=True)
class Context:
    """What a method may look at beside the model.

    Args:
        examples: Inputs of one inference, arrays (batch, …).
        calibration: Samples for activation ranges and importance.
        profile: The machine the model is made for.
        seed: For anything random.
        loss: The task's own loss of outputs and targets, if it has one.
    """

    examples: tuple[Array, ...]
    calibration: Split
    profile: HardwareProfile
    seed: int = 0
    loss: Callable[[Tensor, Tensor], Tensor] | None = None


class CompressionMethod(ABC):
    """One way to make a model smaller or faster.

    A subclass sets `name`, `stage` and `parameters`, lists its knobs in `propose`, and overrides at least one of
    `apply` and `lower`. Calling the method keeps the contract; see `__call__`. Its module is imported where torch is
    missing, so torch and ONNX are imported inside the functions that need them.
    """

    name: ClassVar[str]
    stage: ClassVar[Stage]
    order: ClassVar[int] = 0
    """Among the methods of one stage, those of a lower order act first."""

    @property
    def turn(self) -> tuple[Stage, int]:
        """When it acts; methods are sorted by it."""
        return self.stage, self.order

    parameters: ClassVar[Mapping[str, str]]
    """Every parameter that a setting may hold, with what it means."""

    @abstractmethod
    def propose(self, model: LayerView, suggest: Suggest, space: MethodSpace, profile: HardwareProfile) -> Settings:
        """Settings for a model, every choice asked from `suggest`.

        Knobs are named `method/layer/parameter`; layers whose answer is neutral are left out.
        """

    def withheld(self, model: LayerView, space: MethodSpace, profile: HardwareProfile) -> Mapping[str, str]:
        """What a space names and some layers are not offered on a machine: the choice and the layers, to the reason."""
        return {}

    def takes(self, parameter: str, value: Scalar) -> bool:
        """True if a parameter may have a value in some setting, or it is the neutral one."""
        return True

    def fitting(self, model: LayerView, settings: Settings, profile: HardwareProfile) -> Settings:
        """The settings proposed for the full model without those that mean nothing to what is left of it."""
        return settings

    def leaves(self, model: LayerView, settings: Settings, profile: HardwareProfile) -> LayerView:
        """The layers once the settings are carried out: what later methods act on, and what a search reckons with.

        A method that does not say what it leaves is searched all the same, by what trials show of it.
        """
        return model

    def check(self, model: LayerView, settings: Settings, profile: HardwareProfile) -> None:  # noqa: B027
        """Refuse settings that this model or machine can't take.

        Args:
            model: The layers before the method acts; the channel groups, which take long to find, are left out.
            settings: Layer name to parameter to value.
            profile: The machine the model is made for.

        Raises:
            InfeasiblePlan: Naming layer, value and what was expected.
        """

    def apply(self, model: nn.Module, settings: Settings, context: Context) -> nn.Module:
        """Change a model before recovery; the model may be changed in place and is returned."""
        return model

    def needs_recovery(self, settings: Settings) -> bool:
        """True if settings cost accuracy that fine-tuning brings back."""
        return True

    def wants_integer_kernels(self, settings: Settings) -> bool:
        """True if settings are to make the runtime compute on integers."""
        return False

    def finalize(self, model: nn.Module) -> nn.Module:
        """Take off after recovery what was only needed during it; the model may be changed in place."""
        return model

    def verify(self, model: nn.Module, settings: Settings) -> None:  # noqa: B027
        """Hold the finished model against what the settings say, after every method has finalized it.

        Raises:
            InfeasiblePlan: If the model has not become what was planned; the message gives what was found.
        """

    def lower(self, graph: ModelProto, settings: Settings, context: Context) -> ModelProto:
        """The exported graph, changed; the graph given is left as it is."""
        return graph

    def __call__(self, model: nn.Module, settings: Settings, context: Context) -> nn.Module:
        """Apply the method to a copy of the model and verify that every setting changed something.

        From `Stage.VALUES` on, batch norms are folded first. Torch's random numbers start from the context's seed and
        are put back afterwards.

        Raises:
            InfeasiblePlan: If a setting names no layer of the model, holds an unknown parameter, or changed nothing;
                the message begins with the method's name.
        """
        try:
            return self._apply_to_copy(model, settings, context)
        except InfeasiblePlan as error:
            text = str(error)
            raise InfeasiblePlan(text if text.startswith(self.name) else f"{self.name}: {text}") from error

    def _apply_to_copy(self, model: nn.Module, settings: Settings, context: Context) -> nn.Module:
        import torch

        from autocompress.graph.folding import fold_batch_norms
        from autocompress.graph.inspect import used_layers
        from autocompress.graph.running import output_shapes

        self._check_settings(model, settings)
        self.check(LayerView(ORIGINAL, used_layers(model, context.examples), ()), settings, context.profile)
        folds = self.stage >= Stage.VALUES
        model = fold_batch_norms(model, context.examples) if folds else model
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(context.seed)
            changed = self.apply(copy.deepcopy(model), settings, context)
        shapes, expected = output_shapes(changed, context.examples), output_shapes(model, context.examples)
        if shapes != expected:
            raise InfeasiblePlan(f"{self.name}: the model's output became {shapes}; expected {expected}")
        if type(self).apply is not CompressionMethod.apply:
            self._check_effect(model, changed, settings)
        return changed

    def _check_settings(self, model: nn.Module, settings: Settings) -> None:
        if not settings:
            raise InfeasiblePlan(f"{self.name}: no settings; leave the step out of the plan")
        modules = {name: module for name, module in model.named_modules(remove_duplicate=False) if name}
        for layer, setting in settings.items():
            if layer not in modules:
                raise InfeasiblePlan(f"{self.name}: {_missing(layer, modules)}")
            for parameter in setting:
                if parameter not in self.parameters:
                    known = ", ".join(sorted(self.parameters))
                    raise InfeasiblePlan(
                        f"{self.name}: layer {layer!r}: unknown parameter {parameter!r}; known: {known}"
                    )

    def _check_effect(self, model: nn.Module, changed: nn.Module, settings: Settings) -> None:
        after = dict(changed.named_modules(remove_duplicate=False))
        for layer in settings:
            if layer in after and _same_weights(model.get_submodule(layer), after[layer]):
                raise InfeasiblePlan(f"{self.name}: layer {layer!r}: {dict(settings[layer])} changed nothing")


def _missing(layer: str, modules: Mapping[str, nn.Module]) -> str:
    """Why a model has no layer of a name, and which it has."""
    from torch import nn

    from autocompress.graph.blocks import Dropped

    for name, module in modules.items():
        if isinstance(module, Dropped) and layer.startswith(f"{name}."):
            return f"layer {layer!r} is gone with {name!r}, which layer_drop leaves out; leave one of the two out"
    kinds = (nn.modules.conv._ConvNd, nn.Linear, nn.Embedding, nn.MultiheadAttention, nn.RNNBase)
    layers = [name for name, module in modules.items() if isinstance(module, kinds)]
    return f"the model has no layer {layer!r}; {did_you_mean(layer, layers or list(modules))}"


def said(setting: Mapping[str, Scalar], parameter: str) -> str:
    """What a setting says of a parameter, for messages."""
    return f"{parameter} {setting[parameter]!r}" if parameter in setting else f"no {parameter}"


METHODS: Registry[type[CompressionMethod]] = Registry("compression method", "autocompress.methods")


def asked(name: str, options: Sequence[Scalar], suggest: Suggest, *, method: str, layer: str) -> dict[str, Scalar]:
    """The answer to a further parameter of a layer, to be put into its setting.

    Args:
        name: Of the parameter.
        options: What it may be, the default first; a single one is taken without asking, none leaves it out.
        suggest: Answers.
        method, layer: Whose parameter it is.
    """
    if len(options) > 1:
        return {name: suggest(f"{method}/{layer}/{name}", Choice(tuple(options)))}
    return {name: options[0]} if options else {}


def values_of(space: MethodSpace, parameter: str, default: Sequence[Scalar]) -> tuple[Scalar, ...]:
    """The values that a space offers for a parameter."""
    return tuple(space.parameters.get(parameter, default))


def _same_weights(one: nn.Module, other: nn.Module) -> bool:
    before, after = one.state_dict(), other.state_dict()
    return before.keys() == after.keys() and all(
        before[key].shape == after[key].shape and before[key].equal(after[key]) for key in before
    )
