"""Weight clustering: the weights of a layer share a few values, stored as a codebook and small indices."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, ClassVar

from autocompress.errors import InfeasiblePlan
from autocompress.graph.grids import SHARING
from autocompress.graph.view import Layer, LayerView
from autocompress.methods._base import METHODS, CompressionMethod, Context, asked, said, values_of
from autocompress.plan import Scalar, Settings, Stage
from autocompress.profile import HardwareProfile
from autocompress.space import Choice, MethodSpace, Suggest

if TYPE_CHECKING:
    from torch import nn

FLOAT_BITS = 32
MOST_BITS = 8
BITS = (FLOAT_BITS, 8, 4, 2)
KINDS = ("conv", "linear", "embedding")


@METHODS.register
class Clustering(CompressionMethod):
    """Finds the shared values of each weight by K-means and fine-tunes them; which weight has which stays.

    Each weight beneath a layer gets a codebook of its own. Weights that are exactly zero stay so.

    References:
        Han et al., "Deep Compression: Compressing Deep Neural Networks with Pruning, Trained Quantization and Huffman
        Coding", 2016.
    """

    name = "clustering"
    stage = Stage.VALUES
    parameters: ClassVar[Mapping[str, str]] = {
        "bits": "width of an index, 1 to 8, for 2**bits values; 32 leaves a layer alone in a search space",
        "integers": "true to keep the values of a layer on a grid of 8-bit integers times one scale, default false",
    }

    def propose(self, model: LayerView, suggest: Suggest, space: MethodSpace, profile: HardwareProfile) -> Settings:
        """Bits for each layer, those whose codebook and indices take less than the weights."""
        wanted = values_of(space, "bits", BITS)
        settings: dict[str, dict[str, Scalar]] = {}
        for layer in model.layers:
            options = [bits for bits in wanted if bits != FLOAT_BITS and _saves(layer, int(bits))]
            if options and layer.kind in KINDS and not layer.tied_to and space.admits(layer.name):
                bits = suggest(f"{self.name}/{layer.name}/bits", Choice((FLOAT_BITS, *options)))
                if bits != FLOAT_BITS:
                    integers = values_of(space, "integers", ())
                    settings[layer.name] = {
                        "bits": bits,
                        **asked("integers", integers, suggest, method=self.name, layer=layer.name),
                    }
        return settings

    def fitting(self, model: LayerView, settings: Settings, profile: HardwareProfile) -> Settings:
        """The settings of layers that still take more than a codebook and indices."""
        layers = {layer.name: layer for layer in model.layers}
        return {name: one for name, one in settings.items() if _saves(layers[name], int(one["bits"]))}

    def leaves(self, model: LayerView, settings: Settings, profile: HardwareProfile) -> LayerView:
        """The layers with indices in place of weights."""
        return replace(
            model,
            layers=tuple(
                replace(layer, bits=float(settings[layer.name]["bits"])) if layer.name in settings else layer
                for layer in model.layers
            ),
        )

    def takes(self, parameter: str, value: Scalar) -> bool:
        """True for 1 to 8 bits and 32, which leaves a layer alone, and for true and false."""
        return isinstance(value, bool) if parameter == "integers" else value == FLOAT_BITS or _is_bits(value)

    def check(self, model: LayerView, settings: Settings, profile: HardwareProfile) -> None:
        """Refuse bits that are none, and layers whose weights can't be reached."""
        for name, setting in settings.items():
            bits, integers = setting.get("bits"), setting.get("integers", False)
            if not _is_bits(bits):
                raise InfeasiblePlan(
                    f"{self.name}: layer {name!r}: {said(setting, 'bits')}; expected a whole number 1 to 8"
                )
            if not isinstance(integers, bool):
                raise InfeasiblePlan(f"{self.name}: layer {name!r}: integers {integers!r}; expected true or false")
            layers = model.beneath(name)
            if not layers or any(layer.kind not in KINDS for layer in layers):
                found = ", ".join(sorted({layer.kind for layer in layers})) or "no layer that the model uses"
                raise InfeasiblePlan(
                    f"{self.name}: layer {name!r} is {found}; expected {', '.join(KINDS)}; leave it out"
                )

    def apply(self, model: nn.Module, settings: Settings, context: Context) -> nn.Module:
        """Put a codebook on every weight beneath the layers.

        Raises:
            InfeasiblePlan: If the weights beneath a layer have no more values than the codebook, or are too few.
        """
        from autocompress.graph.codebooks import cluster
        from autocompress.graph.inspect import weighted_modules

        largest = 63 if context.profile.reduce_range else 127
        for name, setting in settings.items():
            bits, limit = int(setting["bits"]), largest if setting.get("integers") else None
            for inner, module in weighted_modules(model, name):
                _check_size(inner, module.weight.numel(), bits)  # type: ignore[operator]
            found = [cluster(model, module, bits, limit=limit) for _, module in weighted_modules(model, name)]
            if not any(found):
                raise InfeasiblePlan(
                    f"{self.name}: layer {name!r}: no weight beneath it has more than {2**bits} values, so bits {bits} "
                    "changes nothing; choose fewer bits or leave the layer out"
                )
        return model

    def finalize(self, model: nn.Module) -> nn.Module:
        """Make the shared values plain weights."""
        from autocompress.graph.constraints import release

        return release(model)

    def verify(self, model: nn.Module, settings: Settings) -> None:
        """Count the values of each weight beneath the layers."""
        from autocompress.graph.codebooks import count_values
        from autocompress.graph.inspect import weighted_modules

        for layer, setting in settings.items():
            for name, module in weighted_modules(model, layer):
                values, most = count_values(module.get_parameter("weight")), 2 ** int(setting["bits"])
                if values > most:
                    raise InfeasiblePlan(f"{self.name}: the weight of {name!r} has {values} values; expected {most}")


def _is_bits(value: Scalar | None) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= MOST_BITS


def _saves(layer: Layer, bits: int) -> bool:
    """True if indices and float codebook are smaller than the float weight; layers of several weights never."""
    count = math.prod(layer.shape) if layer.shape else 0
    codebook: int = 2**bits * FLOAT_BITS
    return count >= SHARING * 2**bits and count * bits + codebook < count * FLOAT_BITS


def _check_size(name: str, count: int, bits: int) -> None:
    """Refuse a weight of which each value would be shared by too few to tell it from a weight without a codebook."""
    if count < SHARING * 2**bits:
        raise InfeasiblePlan(
            f"clustering: the weight of {name!r} has {count} numbers; expected at least {SHARING * 2**bits} for the "
            f"{2**bits} values of bits {bits}; choose fewer bits or leave the layer out"
        )
