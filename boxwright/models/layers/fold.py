"""Convolution and norm in one, where the norm is a fixed affine map of each channel."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .depthwise import StridedDepthwiseConv2d
from .inplace_norm import InPlaceBatchNorm2d
from .norm import FrozenBatchNorm2d
from .settle import ready, run

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
            layer.__dict__["folding"] = when


def folds(conv: nn.Module, x: Tensor) -> bool:
    """Whether a convolution takes over a norm with fixed statistics behind it, for this input."""
    when = getattr(conv, "folding", "auto")
    return in_low_precision(x) if when == "auto" else when == "always"


def conv_norm(
    conv: nn.Module,
    norm: nn.Module | None,
    x: Tensor,
    activation: nn.Module | None = None,
    shortcut: Tensor | None = None,
) -> Tensor:
    """`activation(norm(conv(x)) + shortcut)`, a norm with fixed statistics multiplied into the kernel.

    Batch norm in evaluation mode is `scale * y + shift`, so a convolution with the kernel `scale * weight`
    and the bias `shift` gives the same, and the chain rule gives the same gradients to kernel, scale and
    shift. The norm's pass over the activations, and the memory that its gradient would need, are saved.
    A layer that `settle` has made ready does the sum and the activation itself, too.

    Where nothing else was set (`set_folding`) only in bf16 and fp16: the two ways round differently, and in
    float32 ours shall agree with other implementations to the last decimal. Other norms and other
    convolutions are called one after the other. An in-place norm does an activation behind it itself.

    Args:
        conv: the convolution.
        norm: what follows it, or None.
        x: `(B, C, H, W)`.
        activation: what follows in the end, or None.
        shortcut: of the output's shape, added before the activation; or None.
    """
    if norm is None:
        output = _with_bias(conv, x, activation, shortcut)
    else:
        plain = type(conv) in CONVOLUTIONS and type(norm) in (nn.BatchNorm2d, FrozenBatchNorm2d)
        output = None
        if plain and folds(conv, x):
            output = folded(conv, norm, x, activation, shortcut)  # pyright: ignore[reportArgumentType]
    if output is not None:
        return output
    x = conv(x)
    if isinstance(norm, InPlaceBatchNorm2d) and activation is not None and shortcut is None:
        return norm.activated(x, activation)
    return _rest(x if norm is None else norm(x), activation, shortcut)


def conv_norm_act(conv: nn.Module, norm: nn.Module | None, activation: nn.Module | None, x: Tensor) -> Tensor:
    """`activation(norm(conv(x)))`; an in-place norm does the activation itself."""
    return conv_norm(conv, norm, x, activation)


def folded(
    conv: nn.Conv2d,
    norm: nn.Module,
    x: Tensor,
    activation: nn.Module | None = None,
    shortcut: Tensor | None = None,
) -> Tensor | None:
    """As `conv_norm`, by a scaled kernel, which `settle` has kept; None while the norm learns."""
    if not is_fixed(norm):
        return None
    kept = ready(conv, x, norm, lambda: scaled(conv, *scale_and_shift(norm)))  # pyright: ignore
    if kept is not None:
        return run(conv, x, kept, activation, shortcut)
    return _rest(scaled_conv(conv, *scale_and_shift(norm), x), activation, shortcut)  # pyright: ignore


def _with_bias(
    conv: nn.Module, x: Tensor, activation: nn.Module | None, shortcut: Tensor | None
) -> Tensor | None:
    kept = ready(conv, x, None, lambda: (conv.get_parameter("weight"), conv._parameters["bias"]))
    return None if kept is None else run(conv, x, kept, activation, shortcut)


def _rest(x: Tensor, activation: nn.Module | None, shortcut: Tensor | None) -> Tensor:
    x = x if shortcut is None else x + shortcut
    return x if activation is None else activation(x)


def in_low_precision(x: Tensor) -> bool:
    """Whether a convolution of this input computes in bf16 or fp16."""
    return x.dtype.itemsize < 4 or torch.is_autocast_enabled(x.device.type)


def scaled_conv(conv: nn.Conv2d, scale: Tensor, shift: Tensor, x: Tensor) -> Tensor:
    """`scale * conv(x) + shift` for each channel, `(C,)` both, at the price of the convolution."""
    simple = type(conv) is nn.Conv2d and conv.padding_mode == "zeros" and not isinstance(conv.padding, str)
    if not simple or not torch.is_grad_enabled() or torch.compiler.is_compiling():
        return conv._conv_forward(x, *scaled(conv, scale, shift))
    if conv.bias is not None:
        shift = shift + conv.bias * scale
    if torch.is_autocast_enabled(x.device.type):
        x = x.to(torch.get_autocast_dtype(x.device.type))
    return _ScaledConv.apply(  # pyright: ignore[reportReturnType]
        x, conv.weight, scale, shift, conv.stride, conv.padding, conv.dilation, conv.groups
    )


def scaled(conv: nn.Conv2d, scale: Tensor, shift: Tensor) -> tuple[Tensor, Tensor]:
    """Kernel and bias of a convolution that scales and shifts what the given one computes."""
    bias = shift if conv.bias is None else shift + conv.bias * scale
    return conv.weight * scale[:, None, None, None], bias


class _ScaledConv(torch.autograd.Function):
    """Keeps weight and scale, which are there anyway, and not their product: a copy of all weights."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, scale: Tensor, shift: Tensor, *settings: Any) -> Tensor:
        ctx.save_for_backward(x, weight, scale)
        ctx.settings = settings
        kernel = (weight * scale[:, None, None, None]).to(x.dtype)
        return F.conv2d(x, kernel, shift.to(x.dtype), *settings)

    @staticmethod
    def backward(ctx: Any, grad: Tensor):  # pyright: ignore[reportIncompatibleMethodOverride]
        x, weight, scale = ctx.saved_tensors
        stride, padding, dilation, groups = ctx.settings
        of_x, of_weight, of_scale, of_shift = ctx.needs_input_grad[:4]
        kernel = (weight * scale[:, None, None, None]).to(x.dtype)
        wanted = of_x, of_weight or of_scale, of_shift
        if _is_product(x, kernel, padding, groups):
            grad_x, grad_kernel, grad_shift = _product_gradients(grad, x, kernel, stride, wanted)
        else:
            grad_x, grad_kernel, grad_shift = torch.ops.aten.convolution_backward(
                *(grad, x, kernel, [len(weight)], stride, padding, dilation, False, (0, 0), groups), wanted
            )
        grad_weight = grad_scale = None
        if grad_kernel is not None:
            grad_kernel = grad_kernel.to(weight.dtype)
            grad_scale = (grad_kernel * weight).sum((1, 2, 3)) if of_scale else None
            grad_weight = grad_kernel.mul_(scale[:, None, None, None]) if of_weight else None
        grad_shift = None if grad_shift is None else grad_shift.to(scale.dtype)
        return grad_x, grad_weight, grad_scale, grad_shift, None, None, None, None


def _is_product(x: Tensor, kernel: Tensor, padding: tuple[int, int], groups: int) -> bool:
    """Whether gradients are faster as products of matrices: with a 1x1 kernel, in bf16 on a CPU."""
    plain = kernel.shape[2:] == (1, 1) and groups == 1 and not any(padding)
    low = x.device.type == "cpu" and x.dtype == torch.bfloat16
    return plain and low and x.is_contiguous(memory_format=torch.channels_last)


def _product_gradients(
    grad: Tensor, x: Tensor, kernel: Tensor, stride: tuple[int, int], wanted: tuple[bool, bool, bool]
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Gradients of input, kernel and bias of a 1x1 convolution, whose pixels are rows of a matrix."""
    of_x, of_kernel, of_bias = wanted
    seen = (slice(None), slice(None), slice(None, None, stride[0]), slice(None, None, stride[1]))
    rows = grad.permute(0, 2, 3, 1).reshape(-1, len(kernel))
    grad_x = grad_kernel = None
    if of_x:
        pixels = (rows @ kernel.flatten(1)).unflatten(0, (len(x), *grad.shape[2:])).permute(0, 3, 1, 2)
        grad_x = pixels
        if max(stride) > 1:
            grad_x = torch.zeros_like(x)
            grad_x[seen] = pixels
    if of_kernel:
        pixels = x[seen].permute(0, 2, 3, 1).reshape(-1, x.shape[1])
        grad_kernel = (rows.t() @ pixels)[..., None, None]
    return grad_x, grad_kernel, rows.sum(0, dtype=torch.float32) if of_bias else None


def is_fixed(norm: nn.Module) -> bool:
    """Whether a norm is a fixed affine map of each channel."""
    if isinstance(norm, FrozenBatchNorm2d):
        return True
    return isinstance(norm, nn.BatchNorm2d) and not norm.training and norm.running_var is not None


def scale_and_shift(norm: nn.Module) -> tuple[Tensor, Tensor] | None:
    """The affine map `(C,)`, `(C,)` float32 of a norm with fixed statistics; None for any other."""
    if isinstance(norm, FrozenBatchNorm2d):
        return norm.scale_and_shift()
    if not is_fixed(norm):
        return None
    assert isinstance(norm, nn.BatchNorm2d)
    assert norm.running_var is not None
    assert norm.running_mean is not None
    scale = (norm.running_var + norm.eps).rsqrt()
    if norm.weight is None:
        return scale, -norm.running_mean * scale
    scale = norm.weight * scale
    return scale, norm.bias - norm.running_mean * scale
