"""Layers written as chains of smaller ones: the decompositions, and the module that takes the layer's place.

Singular values are shared evenly between the factors, so that both train at the same pace and what flows between them
has a range that 8 bits can hold. Everything is computed in double precision.
"""

from __future__ import annotations

import warnings
from collections import OrderedDict
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from autocompress.data import Split
from autocompress.errors import InfeasiblePlan
from autocompress.graph.running import evaluating, inputs_of

DAMPING = 0.01
"""Share of the mean energy of the inputs that is added to every direction, so that none counts as never used."""

LARGE = 256
"""Rows and columns from which on a matrix is large."""

BATCH = 32
NMF_ITERATIONS = 500
CONVOLUTIONS: Mapping[int, Any] = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
TRANSPOSED: Mapping[int, Any] = {1: nn.ConvTranspose1d, 2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}
FACTS = (
    *("in_features", "out_features", "in_channels", "out_channels", "kernel_size", "stride", "padding"),
    *("output_padding", "dilation", "groups", "transposed", "padding_mode"),
)
"""What a layer tells about itself."""


class Factorized(nn.Sequential):
    """A chain of layers in the place of one, which can be read like that one: `weight`, `bias`, `in_features`, …

    Args:
        factors: Name to layer, in the order in which they are called.
        formula: How their weights give that of the layer, as for `torch.einsum`.
        layer: What is replaced; only read.
    """

    def __init__(self, factors: Mapping[str, nn.Module], formula: str, layer: nn.Module) -> None:
        super().__init__(OrderedDict(factors))
        self.formula = formula
        self.planned_ranks = self.ranks
        for fact in FACTS:
            if hasattr(layer, fact):
                setattr(self, fact, getattr(layer, fact))

    @property
    def ranks(self) -> tuple[int, ...]:
        """How many channels or features flow from each factor to the next."""
        return tuple(_outputs(factor) for factor in list(self)[:-1])

    @property
    def weight(self) -> Tensor:
        """The weight that the layer would have; computed anew each time."""
        return torch.einsum(self.formula, *(factor.weight for factor in self))

    @property
    def bias(self) -> Tensor | None:
        """The bias of the last factor."""
        bias: Tensor | None = self[-1].bias  # type: ignore[assignment]
        return bias


def is_plain(layer: nn.Module) -> bool:
    """True for a linear layer or convolution that computes as torch's own does.

    Of linear layers with a forward of their own, such as those that cast what they read, an inference tells.
    """
    own = (nn.Linear, *CONVOLUTIONS.values(), *TRANSPOSED.values())
    if type(layer).forward in {kind.forward for kind in own}:
        return True
    return isinstance(layer, nn.Linear) and _computes_a_product(layer)


def _computes_a_product(linear: nn.Linear) -> bool:
    generator = torch.Generator().manual_seed(0)
    probe = torch.randn(4, 3, linear.in_features, generator=generator).to(linear.weight)
    wanted = functional.linear(probe, linear.weight, linear.bias)
    with evaluating(linear), torch.no_grad():
        try:
            got = linear(probe)
        except Exception:  # a layer that takes something else is not torch's own, whatever it raises
            return False
    return isinstance(got, Tensor) and got.shape == wanted.shape and torch.allclose(got, wanted, rtol=1e-4, atol=1e-5)


def svd(linear: nn.Linear, rank: int) -> Factorized:
    """Write W (out, in) as B @ A, its best approximation of a rank in the Frobenius norm.

    Args:
        linear: Left as it is.
        rank: In [1, min(out, in)].

    Returns:
        Layers A (rank, in) and B (out, rank); B has the bias. The squared error is the sum of the squared singular
        values left out.

    References:
        Eckart and Young, "The approximation of one matrix by another of lower rank", 1936.
    """
    return _linear_pair(linear, *_truncated(_weight(linear), rank))


def whitened_svd(linear: nn.Linear, rank: int, moment: Tensor) -> Factorized:
    """Write W (out, in) as B @ A with the least error of the outputs, E |(W - BA) x|², over the inputs x.

    With S Sᵀ the second moment E x xᵀ, that error is |(W - BA) S|² in the Frobenius norm, so W S is truncated and S
    taken off again. `DAMPING` keeps directions that the calibration samples never use from being given up.

    Args:
        linear: Left as it is.
        rank: In [1, min(out, in)].
        moment: E x xᵀ (in, in) of the layer's inputs; see `input_moments`.

    References:
        Wang et al., "SVD-LLM: Truncation-aware Singular Value Decomposition for Large Language Model Compression",
        2024; Yuan et al., "ASVD: Activation-aware Singular Value Decomposition for Compressing Large Language Models",
        2023.
    """
    energies, directions = torch.linalg.eigh(moment)
    scales = (energies.clamp_min(0) + DAMPING * energies.mean().clamp_min(1e-12)).sqrt()
    left, right = _truncated(_weight(linear) @ (directions * scales), rank)
    return _linear_pair(linear, left, right @ (directions / scales).T)


def nmf(linear: nn.Linear, rank: int, seed: int = 0) -> Factorized:
    """Write W (out, in) as B @ A by non-negative matrix factorization.

    A weight with both signs is split, W = P - N, and the rank shared between P and N; the columns of B that belong to
    N are negative. A weight of one sign gets factors of one sign.

    Args:
        linear: Left as it is.
        rank: In [1, min(out, in)], at least 2 if the weight has both signs.
        seed: For the start of the iterations.

    References:
        Lee and Seung, "Learning the parts of objects by non-negative matrix factorization", 1999.
    """
    weight = _weight(linear)
    parts = [(sign, (sign * weight).clamp_min(0)) for sign in (1, -1) if bool((sign * weight > 0).any())]
    if rank < len(parts):
        raise InfeasiblePlan(f"nmf of rank {rank}: a weight of both signs needs a rank of at least 2")
    ranks = [rank] if len(parts) < 2 else [rank - rank // 2, rank // 2]
    shares = zip(parts or [(1, weight)], ranks, strict=True)
    pairs = [(sign, *_non_negative(part, share, seed)) for (sign, part), share in shares]
    left = torch.cat([sign * left for sign, left, _ in pairs], 1)
    return _linear_pair(linear, left, torch.cat([right for _, _, right in pairs]))


def channel_split(conv: nn.Module, rank: int) -> Factorized:
    """Write a convolution as one with the same kernel and `rank` outputs, and a pointwise one behind it.

    Args:
        conv: Of 1 to 3 axes, ungrouped, also transposed; left as it is.
        rank: In [1, min(out, in * kernel positions)].

    References:
        Zhang et al., "Accelerating Very Deep Convolutional Networks for Classification and Detection", 2015.
    """
    like: Any = conv
    weight = _outputs_first(like)
    left, right = _truncated(weight.flatten(1), rank)
    first = right.reshape(rank, *weight.shape[1:])
    factors = {
        "kernel": _convolution(like, first.transpose(0, 1) if like.transposed else first),
        "expand": _pointwise(like, left, bias=like.bias),
    }
    return Factorized(factors, "ir...,or...->io..." if like.transposed else "ri...,or...->oi...", conv)


def spatial_split(conv: nn.Module, rank: int) -> Factorized:
    """Write a K×L convolution as a K×1 one with `rank` outputs and a 1×L one behind it.

    Stride, padding and dilation of an axis go to the factor that runs along it.

    Args:
        conv: Of 2 axes, ungrouped, also transposed; left as it is.
        rank: In [1, min(in * K, out * L)].

    References:
        Jaderberg et al., "Speeding up Convolutional Neural Networks with Low Rank Expansions", 2014.
    """
    like: Any = conv
    weight = _outputs_first(like)
    outputs, inputs, height, width = weight.shape
    left, right = _truncated(weight.permute(1, 2, 0, 3).reshape(inputs * height, outputs * width), rank)
    first = left.reshape(inputs, height, rank).permute(2, 0, 1).unsqueeze(3)
    second = right.reshape(rank, outputs, width).transpose(0, 1).unsqueeze(2)
    if like.transposed:
        first, second = first.transpose(0, 1), second.transpose(0, 1)
    factors = {
        "vertical": _convolution(like, first, axes=(0,)),
        "horizontal": _convolution(like, second, axes=(1,), bias=like.bias),
    }
    return Factorized(factors, "ir...,ro...->io..." if like.transposed else "ri...,or...->oi...", conv)


def tucker_split(conv: nn.Module, ranks: tuple[int, int]) -> Factorized:
    """Write a convolution as a pointwise one, one with the same kernel between fewer channels, and a pointwise one.

    The pointwise weights are the leading singular vectors of the weight unfolded along its inputs and its outputs.

    Args:
        conv: Of 1 to 3 axes, ungrouped, also transposed; left as it is.
        ranks: Inputs and outputs of the middle one: at most min(in, out * kernel positions) and min(out, in * kernel
            positions).

    References:
        Kim et al., "Compression of Deep Convolutional Neural Networks for Fast and Low Power Mobile Applications",
        2016; De Lathauwer et al., "A Multilinear Singular Value Decomposition", 2000.
    """
    like: Any = conv
    weight = _outputs_first(like)
    reads = torch.linalg.svd(weight.transpose(0, 1).flatten(1), full_matrices=False).U[:, : ranks[0]]
    writes = torch.linalg.svd(weight.flatten(1), full_matrices=False).U[:, : ranks[1]]
    core = torch.einsum("oi...,oq,ip->qp...", weight, writes, reads)
    factors = {
        "reduce": _pointwise(like, reads.T),
        "core": _convolution(like, core.transpose(0, 1) if like.transposed else core),
        "expand": _pointwise(like, writes, bias=like.bias),
    }
    formula = "pi...,pq...,oq...->io..." if like.transposed else "pi...,qp...,oq...->oi..."
    return Factorized(factors, formula, conv)


def input_moments(model: nn.Module, names: Iterable[str], samples: Split) -> dict[str, Tensor]:
    """The second moment E x xᵀ (in, in) of what some linear layers read, in evaluation mode.

    Args:
        model: Left as it is.
        names: Of linear layers that the forward pass uses.
        samples: Inputs of the model.
    """
    layers = {name: model.get_submodule(name) for name in names}
    sums: dict[str, Tensor] = {}
    counts = dict.fromkeys(layers, 0)

    def add(name: str) -> Any:
        def before(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            value: Tensor = args[0] if args else kwargs["input"]
            rows = value.detach().reshape(-1, value.shape[-1]).double()
            sums[name] = sums.get(name, 0) + rows.T @ rows
            counts[name] += len(rows)

        return before

    hooks = [layer.register_forward_pre_hook(add(name), with_kwargs=True) for name, layer in layers.items()]
    try:
        with evaluating(model), torch.no_grad():
            for batch in samples.batches(BATCH) if layers else ():
                model(*inputs_of(model, batch.inputs))
    finally:
        for hook in hooks:
            hook.remove()
    return {name: sums[name] / counts[name] for name in layers}


def _truncated(matrix: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """The best factors (m, rank) and (rank, n), of equal singular values.

    Those of large matrices come from the eigenvectors of M Mᵀ, which takes a fifth of the time: single values lose half
    of their digits, of which double precision has enough for weights in single precision.
    """
    if min(matrix.shape) < LARGE:
        left, values, right = torch.linalg.svd(matrix, full_matrices=False)
        roots = values[:rank].sqrt()
        return left[:, :rank] * roots, roots[:, None] * right[:rank]
    if matrix.shape[0] > matrix.shape[1]:
        right, left = _truncated(matrix.T, rank)
        return left.T, right.T
    energies, vectors = torch.linalg.eigh(matrix @ matrix.T)
    vectors = vectors[:, -rank:].flip(1)
    roots = energies[-rank:].flip(0).clamp_min(1e-30).sqrt().sqrt()
    return vectors * roots, (vectors.T @ matrix) / roots[:, None]


def _non_negative(matrix: Tensor, rank: int, seed: int) -> tuple[Tensor, Tensor]:
    from sklearn.decomposition import NMF
    from sklearn.exceptions import ConvergenceWarning

    model = NMF(rank, init="nndsvda", max_iter=NMF_ITERATIONS, random_state=seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # the best found within the iterations is what is wanted
        left = model.fit_transform(matrix.cpu().numpy())
    return torch.from_numpy(left).to(matrix), torch.from_numpy(model.components_).to(matrix)


def _linear_pair(linear: nn.Linear, left: Tensor, right: Tensor) -> Factorized:
    factors = {"reduce": _linear(linear, right, None), "expand": _linear(linear, left, linear.bias)}
    return Factorized(factors, "ri,or->oi", linear)


def _linear(like: nn.Linear, weight: Tensor, bias: nn.Parameter | None) -> nn.Module:
    made = _empty(nn.Linear, weight.shape[1], weight.shape[0], bias is not None, **_kind(like))
    return _filled(made, like, weight, bias)


def _pointwise(like: Any, weight: Tensor, bias: nn.Parameter | None = None) -> nn.Module:
    """A convolution of kernel 1 with a weight (out, in)."""
    axes = len(like.kernel_size)
    made = _empty(CONVOLUTIONS[axes], weight.shape[1], weight.shape[0], 1, bias=bias is not None, **_kind(like))
    return _filled(made, like, weight.reshape(*weight.shape, *[1] * axes), bias)


def _convolution(
    like: Any, weight: Tensor, *, axes: tuple[int, ...] | None = None, bias: nn.Parameter | None = None
) -> nn.Module:
    """A convolution with a weight in torch's order, that moves like another along some axes and not along the rest."""
    count = len(like.kernel_size)
    axes = tuple(range(count)) if axes is None else axes

    def along(values: Any, still: int) -> Any:
        return values if isinstance(values, str) else tuple(values[a] if a in axes else still for a in range(count))

    options = {
        "stride": along(like.stride, 1),
        "padding": along(like.padding, 0),
        "dilation": along(like.dilation, 1),
        "padding_mode": like.padding_mode,
        "bias": bias is not None,
    }
    if like.transposed:
        options["output_padding"] = along(like.output_padding, 0)
    kind = (TRANSPOSED if like.transposed else CONVOLUTIONS)[count]
    inputs, outputs = weight.shape[:2] if like.transposed else (weight.shape[1], weight.shape[0])
    made = _empty(kind, inputs, outputs, tuple(weight.shape[2:]), **options, **_kind(like))
    return _filled(made, like, weight, bias)


def _empty(kind: Any, *args: Any, **options: Any) -> nn.Module:
    """A layer whose weights are not yet set, so that no random numbers are drawn."""
    made: nn.Module = nn.utils.skip_init(kind, *args, **options)  # type: ignore[no-untyped-call]
    return made


def _filled(made: nn.Module, like: Any, weight: Tensor, bias: nn.Parameter | None) -> nn.Module:
    """The layer with its weights, as trainable as those it comes from."""
    target: Any = made
    with torch.no_grad():
        target.weight.copy_(weight)
        if bias is not None:
            target.bias.copy_(bias)
    target.weight.requires_grad_(like.weight.requires_grad)
    if bias is not None:
        target.bias.requires_grad_(bias.requires_grad)
    return made


def _kind(like: Any) -> dict[str, Any]:
    return {"device": like.weight.device, "dtype": like.weight.dtype}


def _weight(layer: nn.Module) -> Tensor:
    weight: Tensor = layer.weight  # type: ignore[assignment]
    return weight.detach().double()


def _outputs_first(conv: Any) -> Tensor:
    """The weight as (out, in, *kernel), also of a transposed convolution."""
    weight = _weight(conv)
    return weight.transpose(0, 1) if conv.transposed else weight


def _outputs(factor: Any) -> int:
    return int(getattr(factor, "out_channels", None) or factor.out_features)
