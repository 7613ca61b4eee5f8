"""Deformable convolution on the CPU: sampled rows of channels, then matrix products.

Each tap of each output pixel is a weighted sum of four cells. With the channels innermost in memory that is a
sum over a "bag" of rows (`torch.nn.functional.embedding_bag`), vectorised along the channels, where visiting
each channel's plane by itself works out the same places and weights again for every channel. What remains is
an ordinary product with the kernel, in the dtype of the features.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from boxwright.ops.boxes import as_float

Sizes = tuple[Sequence[int], Sequence[int], Sequence[int]]
"""Stride, padding and dilation, rows before columns."""


class _Axis(NamedTuple):
    """The two cells around each sample along one axis, both `(P, K, D, 2)`, and how their weights change.

    Args:
        cell: int64, within the map.
        weight: 0 outside the map.
        slope: of the weight when the sample moves on.
    """

    cell: Tensor
    weight: Tensor
    slope: Tensor

    @classmethod
    def of(cls, position: Tensor, extent: int) -> _Axis:
        low = position.floor()
        cells = torch.stack((low, low + 1), -1)
        inside = ((cells >= 0) & (cells < extent)).to(position.dtype)
        share = position - low
        weight = torch.stack((1 - share, share), -1) * inside
        return cls(
            cells.nan_to_num(0.0).clamp(0, extent - 1).long(), weight, inside * inside.new_tensor((-1.0, 1.0))
        )


class _Samples(NamedTuple):
    """What the P output pixels of one image sample, for K taps and D groups of channels.

    Args:
        rows: along the first axis.
        columns: along the second axis.
        mask: `(P, K, D)` factors, or None.
        cell: `(P * K * D, 4)` int64, places in the map's table of `(H * W * D, C / D)`.
    """

    rows: _Axis
    columns: _Axis
    mask: Tensor | None
    cell: Tensor

    def weights(self) -> Tensor:
        """`(P * K * D, 4)`, of each place."""
        product = _outer(self.rows.weight, self.columns.weight)
        return (product if self.mask is None else product * self.mask[..., None]).reshape(-1, 4)


def _outer(rows: Tensor, columns: Tensor) -> Tensor:
    """`(..., 2)` and `(..., 2)` to `(..., 4)`."""
    return (rows[..., :, None] * columns[..., None, :]).flatten(-2)


def _samples(
    offset: Tensor, mask: Tensor | None, kernel: Sequence[int], extents: Sequence[int], sizes: Sizes
) -> _Samples:
    """Of one image: offset `(D * K * 2, H', W')` and mask `(D * K, H', W')` in the dtype to compute in."""
    taps, (height, width) = kernel[0] * kernel[1], offset.shape[1:]
    moved = offset.reshape(-1, taps, 2, height * width).permute(2, 3, 1, 0)  # (2, P, K, D)
    groups = moved.shape[3]
    (sy, sx), (py, px), (dy, dx) = sizes

    def arange(count: int, step: int) -> Tensor:
        return torch.arange(count, dtype=offset.dtype) * step

    y = (arange(height, sy) - py).repeat_interleave(width)[:, None]
    x = (arange(width, sx) - px).repeat(height)[:, None]
    y = y + arange(kernel[0], dy).repeat_interleave(kernel[1])
    x = x + arange(kernel[1], dx).repeat(kernel[0])
    rows = _Axis.of(moved[0] + y[..., None], extents[0])
    columns = _Axis.of(moved[1] + x[..., None], extents[1])
    places = (rows.cell[..., :, None] * extents[1] + columns.cell[..., None, :]).flatten(-2)
    cell = places * groups + torch.arange(groups)[:, None]
    factors = None if mask is None else mask.reshape(groups, taps, -1).permute(2, 1, 0)
    return _Samples(rows, columns, factors, cell.reshape(-1, 4))


def _table(x: Tensor, groups: int) -> Tensor:
    """`(C, H, W)` as rows `(H * W * D, C / D)`."""
    return x.permute(1, 2, 0).reshape(-1, x.shape[0] // groups)


def _kernels(weight: Tensor, groups: int) -> Tensor:
    """`(O, C / g, kh, kw)` as `(g, O / g, K * C / g)`."""
    return weight.permute(0, 2, 3, 1).reshape(groups, weight.shape[0] // groups, -1)


def forward(x: Tensor, offset: Tensor, weight: Tensor, mask: Tensor | None, sizes: Sizes) -> Tensor:
    """`(B, O, H', W')` with the channels innermost in memory."""
    batch, channels = x.shape[:2]
    kernel, groups = weight.shape[2:], channels // weight.shape[1]
    offset_groups = offset.shape[1] // (2 * kernel.numel())
    kernels = _kernels(weight.to(x.dtype), groups).transpose(1, 2)
    value = as_float(x)
    output = empty_channels_last(x, weight.shape[0], offset.shape[2:])
    for b in range(batch):
        factors = None if mask is None else mask[b].to(value.dtype)
        samples = _samples(offset[b].to(value.dtype), factors, kernel, x.shape[2:], sizes)
        columns = _sum(samples.cell, _table(value[b], offset_groups), samples.weights())
        columns = _split(columns.to(x.dtype), kernel.numel(), channels, groups)
        rows = torch.bmm(columns, kernels).transpose(0, 1).flatten(1)
        output[b] = rows.t().unflatten(1, output.shape[2:])
    return output


def empty_channels_last(x: Tensor, channels: int, size: Sequence[int]) -> Tensor:
    """`(B, channels, *size)` like `x`, with the channels innermost in memory."""
    shape = (x.shape[0], channels, *size)
    return torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=torch.channels_last)


def _split(columns: Tensor, taps: int, channels: int, groups: int) -> Tensor:
    """Sampled `(P * K * D, C / D)` as `(g, P, K * C / g)`; no copy for one group."""
    return columns.reshape(-1, taps, groups, channels // groups).permute(2, 0, 1, 3).flatten(2)


def _sum(cell: Tensor, table: Tensor, weight: Tensor) -> Tensor:
    if len(cell) == 0:
        return table.new_zeros(0, table.shape[1])
    return F.embedding_bag(cell, table, per_sample_weights=weight, mode="sum")


def backward(
    grad: Tensor, x: Tensor, offset: Tensor, weight: Tensor, mask: Tensor | None, sizes: Sizes
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of `x` (channels innermost in memory), `offset`, `weight` and `mask` (empty without one)."""
    batch, channels, height, width = x.shape
    kernel, groups = weight.shape[2:], channels // weight.shape[1]
    taps, offset_groups = kernel.numel(), offset.shape[1] // (2 * kernel.numel())
    kernels = _kernels(weight.to(x.dtype), groups)
    value = as_float(x)
    grad_x = empty_channels_last(x, channels, (height, width))
    grad_offset, grad_kernels = offset.new_empty(offset.shape), torch.zeros_like(kernels, dtype=value.dtype)
    grad_mask = x.new_empty(0) if mask is None else mask.new_empty(mask.shape)
    for b in range(batch):
        factors = None if mask is None else mask[b].to(value.dtype)
        samples = _samples(offset[b].to(value.dtype), factors, kernel, x.shape[2:], sizes)
        table, weights = _table(value[b], offset_groups), samples.weights()
        columns = _split(_sum(samples.cell, table, weights).to(x.dtype), taps, channels, groups)
        rows = grad[b].to(x.dtype).permute(1, 2, 0).reshape(-1, groups, len(weight) // groups).transpose(0, 1)
        grad_kernels += torch.bmm(rows.transpose(1, 2), columns)
        of_columns = torch.bmm(rows, kernels).unflatten(2, (taps, -1)).permute(1, 2, 0, 3)
        of_columns = of_columns.reshape(-1, channels // offset_groups).to(value.dtype)
        of_map = _scatter(samples.cell, weights, of_columns, len(table)).view(height, width, channels)
        grad_x[b] = of_map.permute(2, 0, 1)
        of_corners = _corner_products(samples.cell, table, of_columns).view(*samples.rows.weight.shape[:3], 4)
        of_offset, of_mask = _chain(samples, of_corners)
        grad_offset[b] = of_offset.permute(2, 1, 3, 0).reshape(offset.shape[1:])
        if mask is not None:
            grad_mask[b] = of_mask.permute(2, 1, 0).reshape(mask.shape[1:])
    grad_weight = grad_kernels.unflatten(2, (*kernel, -1)).flatten(0, 1).permute(0, 3, 1, 2)
    return grad_x, grad_offset, grad_weight.to(weight.dtype).contiguous(), grad_mask


def _scatter(cell: Tensor, weight: Tensor, rows: Tensor, count: int) -> Tensor:
    """The transposed sums `(count, C / D)`: of each cell over the samples it takes part in."""
    flat, order = cell.flatten().to(torch.int32).sort(stable=True)
    start = torch.searchsorted(flat, torch.arange(count, dtype=flat.dtype))
    owner = order.div(4, rounding_mode="floor")
    if len(owner) == 0:
        return rows.new_zeros(count, rows.shape[1])
    return F.embedding_bag(owner, rows, start, per_sample_weights=weight.flatten()[order], mode="sum")


def _corner_products(cell: Tensor, table: Tensor, grad: Tensor) -> Tensor:
    """`(n * 4,)`: the product of each cell's row with the gradient of the sample that it takes part in."""
    sample = torch.arange(len(cell))
    return torch.ops.aten._embedding_bag_per_sample_weights_backward(
        grad, table, cell.flatten(), sample * 4, sample.repeat_interleave(4), 0
    )


def _chain(samples: _Samples, of_corners: Tensor) -> tuple[Tensor, Tensor]:
    """Gradients of offsets `(P, K, D, 2)` and mask `(P, K, D)`, from those of the corners' weights."""
    rows, columns, mask = samples.rows, samples.columns, samples.mask
    of_mask = (of_corners * _outer(rows.weight, columns.weight)).sum(-1)
    of_y = (of_corners * _outer(rows.slope, columns.weight)).sum(-1)
    of_x = (of_corners * _outer(rows.weight, columns.slope)).sum(-1)
    of_offset = torch.stack((of_y, of_x), -1)
    return of_offset if mask is None else of_offset * mask[..., None], of_mask
