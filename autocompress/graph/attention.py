"""Torch's multi-head attention written out as linear layers, so that every method finds them and heads can go."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from autocompress.graph.inspect import replace


def expand_attention(model: nn.Module) -> nn.Module:
    """Replace every `nn.MultiheadAttention` by an `Attention` that computes the same, in place.

    One that appends a bias or zeros to keys and values (`add_bias_kv`, `add_zero_attn`) stays as it is.

    Args:
        model: Changed and returned; modes and frozen parameters are kept.

    Returns:
        The model, or the module that takes its place if the model itself is an `nn.MultiheadAttention`.
    """
    if isinstance(model, nn.MultiheadAttention) and _is_plain(model):
        return Attention.of(model).train(model.training)
    done: dict[nn.Module, Attention] = {}
    for name, module in list(model.named_modules(remove_duplicate=False)):
        if isinstance(module, nn.MultiheadAttention) and _is_plain(module):
            if module not in done:
                done[module] = Attention.of(module)
            replace(model, name, done[module])
    for module in model.modules():
        if done and isinstance(module, nn.TransformerEncoder):
            module.enable_nested_tensor = module.use_nested_tensor = False  # for the fused kernel alone
    return model


def _is_plain(module: nn.MultiheadAttention) -> bool:
    return type(module) is nn.MultiheadAttention and module.bias_k is None and not module.add_zero_attn


class Attention(nn.Module):
    """Scaled dot-product attention with the interface of `nn.MultiheadAttention`.

    Args:
        widths: Of queries, keys and values as they come in; the first also of what goes out.
        heads: Number of heads.
        head_width: Channels of queries, keys and values in each head.
        bias: Whether the linear layers have biases.
        dropout: Share of attention weights dropped in training.
        batch_first: True for (batch, length, width), False for (length, batch, width).
    """

    in_proj_weight: None = None
    in_proj_bias: None = None
    _qkv_same_embed_dim: Literal[False] = False
    """Transformer layers read these, and keep off their fused kernel for what they find."""

    def __init__(
        self,
        widths: tuple[int, int, int],
        heads: int,
        head_width: int,
        *,
        bias: bool = True,
        dropout: float = 0.0,
        batch_first: bool = False,
    ) -> None:
        super().__init__()
        inner = heads * head_width
        self.query = nn.Linear(widths[0], inner, bias)
        self.key = nn.Linear(widths[1], inner, bias)
        self.value = nn.Linear(widths[2], inner, bias)
        self.out = nn.Linear(inner, widths[0], bias)
        self.num_heads, self.dropout, self.batch_first = heads, dropout, batch_first
        self.scale = head_width**-0.5

    @classmethod
    def of(cls, module: nn.MultiheadAttention) -> Attention:
        """The same attention with the weights of torch's module, which is left as it is."""
        widths, bias = (module.embed_dim, module.kdim, module.vdim), module.in_proj_bias is not None
        new = cls(
            widths,
            module.num_heads,
            module.head_dim,
            bias=bias,
            dropout=module.dropout,
            batch_first=module.batch_first,
        )
        packed = module.in_proj_weight
        pieces = packed.chunk(3) if packed is not None else ()
        separate = (module.q_proj_weight, module.k_proj_weight, module.v_proj_weight)
        sources = (packed, packed, packed) if packed is not None else separate
        biases = module.in_proj_bias.chunk(3) if bias else (None, None, None)
        for index, linear in enumerate((new.query, new.key, new.value)):
            _load(linear, pieces[index] if pieces else separate[index], sources[index], biases[index], module)
        _copy(new.out.weight, module.out_proj.weight, module.out_proj.weight)
        if new.out.bias is not None and module.out_proj.bias is not None:
            _copy(new.out.bias, module.out_proj.bias, module.out_proj.bias)
        return new.to(module.out_proj.weight.device, module.out_proj.weight.dtype).train(module.training)

    def forward(  # noqa: PLR0917  # the interface of torch
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """Attend as `nn.MultiheadAttention.forward` does, with the same arguments and results."""
        single = query.dim() == 2
        if single:
            query, key, value = query.unsqueeze(0), key.unsqueeze(0), value.unsqueeze(0)
            key_padding_mask = None if key_padding_mask is None else key_padding_mask.unsqueeze(0)
        elif not self.batch_first:
            query, key, value = query.transpose(0, 1), key.transpose(0, 1), value.transpose(0, 1)
        heads = [self._heads(part) for part in (self.query(query), self.key(key), self.value(value))]
        scores = heads[0] * self.scale @ heads[1].transpose(-2, -1)
        mask = self._mask(attn_mask, key_padding_mask, scores, is_causal)
        weights = torch.softmax(scores if mask is None else scores + mask, -1)
        weights = nn.functional.dropout(weights, self.dropout, self.training)
        mixed = self.out((weights @ heads[2]).transpose(1, 2).flatten(2))
        if single:
            mixed = mixed.squeeze(0)
        elif not self.batch_first:
            mixed = mixed.transpose(0, 1)
        if not need_weights:
            return mixed, None
        shown = weights.mean(1) if average_attn_weights else weights
        return mixed, shown.squeeze(0) if single else shown

    def _heads(self, value: Tensor) -> Tensor:
        """(batch, length, heads * width) to (batch, heads, length, width)."""
        return value.reshape(*value.shape[:2], self.num_heads, -1).transpose(1, 2)

    def _mask(
        self, attn_mask: Tensor | None, key_padding_mask: Tensor | None, scores: Tensor, is_causal: bool
    ) -> Tensor | None:
        """What is added to the scores, broadcast to (batch, heads, queries, keys)."""
        mask = None
        if attn_mask is not None:
            mask = _additive(attn_mask, scores)
            if mask.dim() == 3:  # (batch * heads, queries, keys)
                mask = mask.reshape(-1, self.num_heads, *mask.shape[1:])
        elif is_causal:
            allowed = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).tril()
            mask = _additive(~allowed, scores)
        if key_padding_mask is not None:
            padding = _additive(key_padding_mask, scores)[:, None, None, :]
            mask = padding if mask is None else mask + padding
        return mask


def _additive(mask: Tensor, scores: Tensor) -> Tensor:
    """A boolean mask, true where nothing is seen, as zeros and minus infinity."""
    if mask.dtype != torch.bool:
        return mask.to(scores.dtype)
    return torch.zeros(mask.shape, dtype=scores.dtype, device=scores.device).masked_fill(mask, float("-inf"))


def _load(
    linear: nn.Linear, weight: Tensor, source: Tensor, bias: Tensor | None, module: nn.MultiheadAttention
) -> None:
    _copy(linear.weight, weight, source)
    if bias is not None:
        _copy(linear.bias, bias, module.in_proj_bias)


def _copy(parameter: Tensor, value: Tensor, source: Tensor) -> None:
    """Take over values, and whether they are trained."""
    with torch.no_grad():
        parameter.copy_(value)
    parameter.requires_grad_(source.requires_grad)
