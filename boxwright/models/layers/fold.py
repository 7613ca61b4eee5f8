"""Convolution and norm in one, where the norm is a fixed affine map of each channel."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from .depthwise import StridedDepthwiseConv2d
from .norm import FrozenBatchNorm2d

CONVOLUTIONS = (nn.Conv2d, StridedDepthwiseConv2d)
"""Layers whose kernel can take a scale; others derived from them (weight standardisation) may not."""

Folding = Literal["auto", "always", "never"]
"""When norms with fixed statistics are folded: in bf16 and fp16, in any precision, never."""


def set_folding(module: nn.Module, when: Folding) -> None:
    """Say when the convolutions inside take over the norms behind them; without it, it is "auto".

    "always" folds in float32, too. That saves as much there, and gradients are as exact; but sums are rounded
    otherwise, so that values differ from those of other implementations in the last decimals.
    """
    for layer in module.modules():
        if type(layer) in CONVOLUTIONS:
            layer.folding = when


def folds(conv: nn.Module, x: Tensor) -> bool:
    """Whether a convolution takes over a norm with fixed statistics behind it, for this input."""
    when = getattr(conv, "folding", "auto")
    return in_low_precision(x) if when == "auto" else when == "always"


def conv_norm(conv: nn.Module, norm: nn.Module, x: Tensor) -> Tensor:
    """`norm(conv(x))`, with the norm's scale multiplied into the kernel where its statistics are fixed.

    Batch norm in evaluation mode is `scale * y + shift`, so a convolution with the kernel `scale * weight`
    and the bias `shift` gives the same, and the chain rule gives the same gradients to kernel, scale and
    shift. The norm's pass over the activations, and the memory that its gradient would need, are saved.

    Where nothing else was set (`set_folding`) only in bf16 and fp16: the two ways round differently, and in
    float32 ours shall agree with other implementations to the last decimal. Other norms and other
    convolutions are called one after the other.

    Args:
        conv: the convolution.
        norm: what follows it.
        x: `(B, C, H, W)`.
    """
    plain = type(conv) in CONVOLUTIONS and type(norm) in (nn.BatchNorm2d, FrozenBatchNorm2d)
    fixed = scale_and_shift(norm) if plain and folds(conv, x) else None
    return norm(conv(x)) if fixed is None else scaled_conv(conv, *fixed, x)  # pyright: ignore


def in_low_precision(x: Tensor) -> bool:
    """Whether a convolution of this input computes in bf16 or fp16."""
    return x.dtype.itemsize < 4 or torch.is_autocast_enabled(x.device.type)


def scaled_conv(conv: nn.Conv2d, scale: Tensor, shift: Tensor, x: Tensor) -> Tensor:
    """`scale * conv(x) + shift` for each channel, `(C,)` both, at the price of the convolution."""
    if conv.bias is not None:
        shift = shift + conv.bias * scale
    return conv._conv_forward(x, conv.weight * scale[:, None, None, None], shift)


def scale_and_shift(norm: nn.Module) -> tuple[Tensor, Tensor] | None:
    """The affine map `(C,)`, `(C,)` float32 of a norm with fixed statistics; None for any other."""
    if isinstance(norm, FrozenBatchNorm2d):
        return norm.scale_and_shift()
    if not isinstance(norm, nn.BatchNorm2d) or norm.training or norm.running_var is None:
        return None
    assert norm.running_mean is not None
    scale = (norm.running_var + norm.eps).rsqrt()
    if norm.weight is None:
        return scale, -norm.running_mean * scale
    scale = norm.weight * scale
    return scale, norm.bias - norm.running_mean * scale
