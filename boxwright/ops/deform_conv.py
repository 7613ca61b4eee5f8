"""Deformable convolution (arXiv:1703.06211, Sec. 2.1) and its modulated form (arXiv:1811.11168, Sec. 3.2).

A convolution whose taps are moved by offsets that differ from place to place, and weighted, if modulated.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain
from typing import Any

import torch
import torchvision  # registers torch.ops.torchvision.deform_conv2d  # noqa: F401
from torch import Tensor

from boxwright.ops import _deform_conv_bags
from boxwright.ops._deform_conv_bags import Sizes
from boxwright.ops.boxes import as_float

Pair = int | Sequence[int]
"""One number for both axes, or one for rows and one for columns."""


def deform_conv2d(
    x: Tensor,
    offset: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Pair = 1,
    padding: Pair = 0,
    dilation: Pair = 1,
    mask: Tensor | None = None,
) -> Tensor:
    """Convolve at moved taps: `y(p) = sum_k w_k * m_k(p) * x(p + p_k + offset_k(p))` (1811.11168, Eq. 1).

    Values between pixels are bilinear, those outside the map 0. Differentiable, once, in all tensors.

    Args:
        x: `(B, C, H, W)`.
        offset: `(B, D * K * 2, H', W')` pixels, for D groups of channels and K = kernel height times width
            taps, row by row; of each tap first the vertical, then the horizontal offset.
        weight: `(O, C / groups, kernel height, kernel width)`.
        bias: `(O,)`.
        stride: of the convolution.
        padding: rows and columns of zeros at each side.
        dilation: distance between taps.
        mask: `(B, D * K, H', W')` factors of the taps; None for 1 everywhere (the first paper).

    Returns:
        `(B, O, H', W')` in the dtype of `x`, whatever that of the others; sampled in float32 (float64 stays
        float64), since offsets are pixel coordinates.

    Raises:
        ValueError: shapes do not fit each other.
    """
    sizes = pair(stride), pair(padding), pair(dilation)
    _check(x, offset, weight, mask, sizes)
    output = _deform_conv2d_op(x, offset, weight, mask, *sizes)
    return output if bias is None else output + bias.to(output.dtype)[:, None, None]


def deform_conv2d_reference(
    x: Tensor,
    offset: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Pair = 1,
    padding: Pair = 0,
    dilation: Pair = 1,
    mask: Tensor | None = None,
) -> Tensor:
    """The definition of `deform_conv2d`: each value is a sum over the whole map (1703.06211, Eq. 3 and 4)."""
    (sy, sx), (py, px), (dy, dx) = pair(stride), pair(padding), pair(dilation)
    kernel_height, kernel_width = weight.shape[2:]
    taps, (height, width) = kernel_height * kernel_width, offset.shape[2:]
    value = as_float(x)
    moved = offset.to(value.dtype).unflatten(1, (-1, taps, 2))
    groups = moved.shape[1]

    def grid(count: int, step: int) -> Tensor:
        return torch.arange(count, device=x.device, dtype=value.dtype) * step

    tap_y, tap_x = torch.meshgrid(grid(kernel_height, dy), grid(kernel_width, dx), indexing="ij")
    y = moved[:, :, :, 0] + tap_y.reshape(-1, 1, 1) + grid(height, sy)[:, None] - py
    x_ = moved[:, :, :, 1] + tap_x.reshape(-1, 1, 1) + grid(width, sx) - px
    # G(q, p) = g(q_x, p_x) g(q_y, p_y) with g(a, b) = max(0, 1 - |a - b|), over all pixels q of the map.
    rows = (1 - (y[..., None] - grid(x.shape[2], 1)).abs()).clamp(min=0)
    columns = (1 - (x_[..., None] - grid(x.shape[3], 1)).abs()).clamp(min=0)
    samples = torch.einsum("bgchw,bgkpqh,bgkpqw->bgckpq", value.unflatten(1, (groups, -1)), rows, columns)
    if mask is not None:
        samples = samples * mask.to(value.dtype).unflatten(1, (groups, taps))[:, :, None]

    weight_groups = x.shape[1] // weight.shape[1]
    samples = samples.flatten(1, 2).unflatten(1, (weight_groups, -1))
    kernels = weight.to(value.dtype).flatten(2).unflatten(0, (weight_groups, -1))
    output = torch.einsum("bgckpq,gock->bgopq", samples, kernels).flatten(1, 2).to(x.dtype)
    return output if bias is None else output + bias.to(output.dtype)[:, None, None]


@torch.library.custom_op("boxwright::deform_conv2d", mutates_args=())
def _deform_conv2d_op(
    x: Tensor,
    offset: Tensor,
    weight: Tensor,
    mask: Tensor | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
) -> Tensor:
    sizes = stride, padding, dilation
    if x.device.type == "cpu":
        return _deform_conv_bags.forward(x, offset, weight, mask, sizes)
    tensors, settings = _torchvision_arguments(x, offset, weight, mask, sizes)
    return torch.ops.torchvision.deform_conv2d(*tensors, *settings).to(x.dtype)


@_deform_conv2d_op.register_fake
def _deform_conv2d_fake(x: Tensor, offset: Tensor, weight: Tensor, *_: Any) -> Tensor:
    if x.device.type == "cpu":
        return _deform_conv_bags.empty_channels_last(x, weight.shape[0], offset.shape[2:])
    return x.new_empty(x.shape[0], weight.shape[0], *offset.shape[2:])


@torch.library.custom_op("boxwright::deform_conv2d_backward", mutates_args=())
def _deform_conv2d_backward_op(
    grad: Tensor,
    x: Tensor,
    offset: Tensor,
    weight: Tensor,
    mask: Tensor | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    sizes = stride, padding, dilation
    if x.device.type == "cpu":
        return _deform_conv_bags.backward(grad, x, offset, weight, mask, sizes)
    tensors, settings = _torchvision_arguments(x, offset, weight, mask, sizes)
    grad_x, grad_weight, grad_offset, grad_mask, _ = torch.ops.torchvision._deform_conv2d_backward(
        grad.to(tensors[0].dtype).contiguous(), *tensors, *settings
    )
    grad_mask = x.new_empty(0) if mask is None else grad_mask.to(mask.dtype)
    return grad_x.to(x.dtype), grad_offset.to(offset.dtype), grad_weight.to(weight.dtype), grad_mask


@_deform_conv2d_backward_op.register_fake
def _deform_conv2d_backward_fake(
    grad: Tensor, x: Tensor, offset: Tensor, weight: Tensor, mask: Tensor | None, *_: Any
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    grad_mask = x.new_empty(0) if mask is None else mask.new_empty(mask.shape)
    if x.device.type == "cpu":
        grad_x = _deform_conv_bags.empty_channels_last(x, x.shape[1], x.shape[2:])
    else:
        grad_x = x.new_empty(x.shape)
    return grad_x, offset.new_empty(offset.shape), weight.new_empty(weight.shape), grad_mask


def _setup_context(ctx, inputs, output) -> None:
    x, offset, weight, mask, ctx.stride, ctx.padding, ctx.dilation = inputs
    ctx.save_for_backward(x, offset, weight, mask)


def _backward(ctx, grad: Tensor):
    x, offset, weight, mask = ctx.saved_tensors
    *grads, grad_mask = _deform_conv2d_backward_op(
        grad, x, offset, weight, mask, ctx.stride, ctx.padding, ctx.dilation
    )
    return *grads, None if mask is None else grad_mask, None, None, None


_deform_conv2d_op.register_autograd(_backward, setup_context=_setup_context)


def _torchvision_arguments(
    x: Tensor, offset: Tensor, weight: Tensor, mask: Tensor | None, sizes: Sizes
) -> tuple[list[Tensor], list[int | bool]]:
    """Tensors of one dtype and the numbers in torchvision's order; it always wants a mask and a bias."""
    value = as_float(x)
    given = [weight, offset, value.new_zeros(x.shape[0], 1) if mask is None else mask]
    tensors = [value, *(t.to(value.dtype) for t in given), value.new_zeros(weight.shape[0])]
    groups = x.shape[1] // weight.shape[1]
    offset_groups = offset.shape[1] // (2 * weight.shape[2] * weight.shape[3])
    return tensors, [*chain.from_iterable(sizes), groups, offset_groups, mask is not None]


def pair(value: Pair) -> tuple[int, int]:
    """The number of rows and that of columns."""
    if isinstance(value, Sequence):
        first, second = value
        return first, second
    return value, value


def _check(x: Tensor, offset: Tensor, weight: Tensor, mask: Tensor | None, sizes: Sizes) -> None:
    taps = weight.shape[2] * weight.shape[3]
    groups = offset.shape[1] // (2 * taps)
    if groups == 0 or offset.shape[1] % (2 * taps) or x.shape[1] % groups:
        raise ValueError(
            f"offset has {offset.shape[1]} channels; for {x.shape[1]} channels and {taps} taps it has "
            f"{2 * taps} for each of the groups that share offsets"
        )
    if mask is not None and mask.shape[1:] != (groups * taps, *offset.shape[2:]):
        raise ValueError(
            f"mask is {tuple(mask.shape)}; with offset {tuple(offset.shape)} it has {groups * taps} channels "
            "of the same size"
        )
    stride, padding, dilation = sizes
    for axis, name in enumerate(("rows", "columns")):
        reach = dilation[axis] * (weight.shape[2 + axis] - 1) + 1
        size = (x.shape[2 + axis] + 2 * padding[axis] - reach) // stride[axis] + 1
        if offset.shape[2 + axis] != size:
            raise ValueError(f"offset has {offset.shape[2 + axis]} {name}, but the output has {size}")
