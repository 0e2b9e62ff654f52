"""What a search sees of a model: its layers and channel groups as plain data."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal, get_args

from pydantic import ConfigDict

LayerKind = Literal["conv", "linear", "embedding", "attention", "recurrent"]
Importance = Literal["l1", "l2", "bn_scale", "taylor", "activation"]


@dataclass(frozen=True)
class Layer:
    """One layer with weights.

    Args:
        name: Its name in the user's model.
        kind: What it computes; convolutions of 1 to 3 axes, also transposed, are "conv".
        parameters: Number of weights and biases.
        macs: Multiply-adds of one example inference.
        shape: Of its weight as torch holds it: (out, in / groups, *kernel) for convolutions, (in, out / groups,
            *kernel) for transposed ones, (out, in) for linear layers, (entries, width) for embeddings; empty for
            layers with several weights.
        groups: Of a convolution; equal to its channels if it is depthwise.
        transposed: True for transposed convolutions.
        replaceable: False for convolutions and linear layers that other layers can't stand in for: those that compute
            in a way of their own, and those that share their weight.
        tied_to: Name of an earlier layer whose weight it has too; empty if there is none.
        parts: Layers that stand in its place in a row; 1 for itself.
        density: Share of its weights that are not zero.
        bits: What a stored weight takes that is not zero.
        precision: In which numbers it is computed, as quantization names them.
    """

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid")
    name: str
    kind: LayerKind
    parameters: int
    macs: int
    shape: tuple[int, ...] = ()
    groups: int = 1
    transposed: bool = False
    replaceable: bool = True
    tied_to: str = ""
    parts: int = 1
    density: float = 1.0
    bits: float = 32.0
    precision: str = "fp32"

    @property
    def outputs(self) -> int:
        """Channels or features that it gives; 0 for layers with several weights."""
        if not self.shape:
            return 0
        if self.kind == "embedding":
            return self.shape[1]
        return self.shape[1] * self.groups if self.transposed else self.shape[0]


@dataclass(frozen=True)
class ChannelGroup:
    """Channels of several layers that can only be removed together.

    Args:
        name: The first of `layers` in the order of the model; the group goes by it. Where a layer's channels are
            taken apart, what the group holds follows: `attention.query:heads` and `attention.query:width`.
        layers: Layers whose output channels are removed.
        channels: How many there are.
        kind: "heads" if each of them is a block of several channels of the first layer, such as an attention head or
            a group of a grouped convolution.
        importances: Ways to tell which of them matter that have something to go by here.
        shares: For each of `layers`, the share of its outputs that are of the group; all of them if this is empty.
        readers: Layers whose inputs are removed with the channels.
        read_shares: For each of `readers`, the share of its inputs that are of the group.
    """

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid")
    name: str
    layers: tuple[str, ...]
    channels: int
    kind: Literal["channels", "heads"] = "channels"
    importances: tuple[Importance, ...] = get_args(Importance)
    shares: tuple[float, ...] = ()
    readers: tuple[str, ...] = ()
    read_shares: tuple[float, ...] = ()


@dataclass(frozen=True)
class Block:
    """A residual block, which can be taken out so that its input flows on.

    Args:
        name: Of the module in the user's model.
        parameters: Number of weights and biases inside.
        macs: Multiply-adds of the layers inside, for one example inference.
        layers: Names of the layers inside.
    """

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid")
    name: str
    parameters: int
    macs: int
    layers: tuple[str, ...]


@dataclass(frozen=True)
class LayerView:
    """A model as layers, channel groups and residual blocks; one for each architecture, readable without torch."""

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid")
    architecture: str
    layers: tuple[Layer, ...]
    channel_groups: tuple[ChannelGroup, ...]
    blocks: tuple[Block, ...] = ()

    def beneath(self, name: str) -> tuple[Layer, ...]:
        """The layer of a name, or those inside the module of that name."""
        return tuple(layer for layer in self.layers if f"{layer.name}.".startswith(f"{name}."))

    @property
    def parameters(self) -> int:
        """Weights and biases of all layers."""
        return sum(layer.parameters for layer in self.layers)

    @property
    def macs(self) -> int:
        """Multiply-adds of one example inference."""
        return sum(layer.macs for layer in self.layers)
