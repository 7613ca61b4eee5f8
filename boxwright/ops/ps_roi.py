"""Position-sensitive pooling of regions (R-FCN, arXiv:1605.06409, Sec. 2), in three variants.

A region is cut into k x k bins, and each bin reads maps of its own: of maps with `D * k * k` channels, number
`(d * k + i) * k + j` gives output d of the bin in row i and column j. The variants differ in what of a map a
bin takes the mean of: whole cells, bilinear samples inside the bin, or bilinear samples from edge to edge.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
import torchvision  # registers torch.ops.torchvision.ps_roi_pool  # noqa: F401
from torch import Tensor

from boxwright.ops.boxes import as_float
from boxwright.ops.roi_align import NOWHERE, batch_rois, roi_align


def ps_roi_pool(maps: Tensor, boxes: Tensor, valid: Tensor, stride: int, bins: int) -> Tensor:
    """The mean of the cells in each bin (Eq. 1); differentiable in the maps only.

    The region is rounded to whole cells, at least one. Of its w cells in a row, those of bin j are
    `floor(j w / k) <= x < ceil((j + 1) w / k)`. A bin outside the map is 0.

    Args:
        maps: `(B, D * k * k, H, W)`.
        boxes: `(B, R, 4)` pixels of the network input.
        valid: `(B, R)` bool; other slots give zeros.
        stride: pixels between neighbouring cells.
        bins: k, bins along each side.

    Returns:
        `(B, R, D, k, k)` in the dtype of the maps; computed in float32 (float64 stays float64).

    Raises:
        ValueError: the channels are no multiple of k * k.
    """
    _check(maps, bins)
    return _ps_roi_pool_op(maps, boxes.detach(), valid, stride, bins)


def ps_roi_align(
    maps: Tensor, boxes: Tensor, valid: Tensor, stride: int, bins: int, sampling_ratio: int = 2
) -> Tensor:
    """The mean of bilinear samples in each bin, placed as by RoIAlign (arXiv:1703.06870, Sec. 3).

    Args:
        maps: `(B, D * k * k, H, W)`.
        boxes: `(B, R, 4)` pixels of the network input.
        valid: `(B, R)` bool; other slots give zeros.
        stride: pixels between neighbouring cells.
        bins: k, bins along each side.
        sampling_ratio: samples along each side of a bin; 0 for one a cell.

    Returns:
        `(B, R, D, k, k)`, as `ps_roi_pool`.

    Raises:
        ValueError: the channels are no multiple of k * k.
    """
    _check(maps, bins)
    return _sample_bins(maps, _split(boxes, bins), valid, stride, bins, sampling_ratio)


def ps_crop_and_resize(
    maps: Tensor, boxes: Tensor, valid: Tensor, stride: int, bins: int, points: int = 6
) -> Tensor:
    """The mean of bilinear samples that reach from edge to edge of each bin (arXiv:1611.10012, Sec. 3.1).

    "Crop and resize" of a bin to points x points takes the first and the last sample on the bin's edges, so
    neighbouring bins share samples; the mean over the crop is the bin's value. Coordinates are those of
    RoIAlign, half a cell from the authors', whose cells are points.

    Args:
        maps: `(B, D * k * k, H, W)`.
        boxes: `(B, R, 4)` pixels of the network input.
        valid: `(B, R)` bool; other slots give zeros.
        stride: pixels between neighbouring cells.
        bins: k, bins along each side.
        points: samples along each side of a bin; the authors have 18 / k with k = 3.

    Returns:
        `(B, R, D, k, k)`, as `ps_roi_pool`.

    Raises:
        ValueError: the channels are no multiple of k * k, or there are less than two points.
    """
    _check(maps, bins)
    if points < 2:
        raise ValueError(f"points is {points}; samples from edge to edge of a bin are at least 2")
    # RoIAlign's samples stand in the middle of equal parts: in a box that is wider by half a part at each
    # side, the first and the last of them stand on the edges of the bin.
    parts = _split(boxes, bins)
    margin = (parts[..., 2:] - parts[..., :2]) / (2 * (points - 1))
    parts = torch.cat((parts[..., :2] - margin, parts[..., 2:] + margin), -1)
    return _sample_bins(maps, parts, valid, stride, bins, points)


def _check(maps: Tensor, bins: int) -> None:
    if maps.shape[1] % bins**2:
        raise ValueError(f"position-sensitive maps have a multiple of {bins}^2 channels, not {maps.shape[1]}")


def _split(boxes: Tensor, bins: int) -> Tensor:
    """`(B, R, 4)` to the boxes of their bins, `(B, bins, bins, R, 4)`, row by row."""
    boxes = as_float(boxes.detach())
    side = torch.arange(bins, device=boxes.device, dtype=boxes.dtype)[:, None]
    x1, y1, x2, y2 = boxes[:, None].unbind(-1)  # each (B, 1, R)
    width, height = (x2 - x1) / bins, (y2 - y1) / bins
    left, top = x1 + side * width, y1 + side * height  # (B, bins, R)
    horizontal, vertical = (left, left + width), (top, top + height)
    shape = (boxes.shape[0], bins, bins, boxes.shape[1])
    return torch.stack(
        [
            edge.expand(shape)
            for x, y in zip(horizontal, vertical, strict=True)
            for edge in (x[:, None], y[:, :, None])
        ],
        -1,
    )


def _sample_bins(
    maps: Tensor, parts: Tensor, valid: Tensor, stride: int, bins: int, sampling_ratio: int
) -> Tensor:
    """RoIAlign of single bins: the maps of each bin are an image of their own, and the bin is its region."""
    batch, regions = valid.shape
    count = bins * bins
    images = maps.unflatten(1, (-1, count)).transpose(1, 2).flatten(0, 1)  # (B * k * k, D, H, W)
    level = torch.where(valid, 0, -1)[:, None].expand(batch, count, regions).flatten(0, 1)
    pooled = roi_align([images], parts.flatten(1, 2).flatten(0, 1), level, [stride], 1, sampling_ratio)
    return pooled[..., 0, 0].unflatten(0, (batch, bins, bins)).permute(0, 3, 4, 1, 2)


def ps_roi_pool_reference(maps: Tensor, boxes: Tensor, valid: Tensor, stride: int, bins: int) -> Tensor:
    """The definition of `ps_roi_pool`, region by region."""

    def weights(start: Tensor, end: Tensor, extent: int) -> Tensor:
        first, last = (torch.sign(v) * (v.abs() / stride + 0.5).floor() for v in (start, end))
        cells = torch.arange(extent, device=maps.device)
        number = torch.arange(bins, device=maps.device, dtype=start.dtype)[:, None]
        length = (last - first).clamp(min=1) / bins
        from_cell, to_cell = first + (number * length).floor(), first + ((number + 1) * length).ceil()
        inside = ((cells >= from_cell) & (cells < to_cell)).to(start.dtype)
        return inside / inside.sum(1, keepdim=True).clamp(min=1)

    return _by_weights(maps, boxes, valid, bins, weights)


def ps_roi_align_reference(
    maps: Tensor, boxes: Tensor, valid: Tensor, stride: int, bins: int, sampling_ratio: int = 2
) -> Tensor:
    """The definition of `ps_roi_align`, region by region."""

    def weights(start: Tensor, end: Tensor, extent: int) -> Tensor:
        length = (end - start) / stride / bins
        samples = sampling_ratio or max(math.ceil(float(length)), 0)
        within = (torch.arange(samples, device=maps.device, dtype=start.dtype) + 0.5) / max(samples, 1)
        return _bilinear(start / stride, length, within, extent, bins)

    return _by_weights(maps, boxes, valid, bins, weights)


def ps_crop_and_resize_reference(
    maps: Tensor, boxes: Tensor, valid: Tensor, stride: int, bins: int, points: int = 6
) -> Tensor:
    """The definition of `ps_crop_and_resize`, region by region."""

    def weights(start: Tensor, end: Tensor, extent: int) -> Tensor:
        within = torch.linspace(0, 1, points, device=maps.device, dtype=start.dtype)
        return _bilinear(start / stride, (end - start) / stride / bins, within, extent, bins)

    return _by_weights(maps, boxes, valid, bins, weights)


def _bilinear(start: Tensor, length: Tensor, within: Tensor, extent: int, bins: int) -> Tensor:
    """`(bins, extent)`: the mean interpolation weights of samples at shares `within (n,)` of each bin."""
    number = torch.arange(bins, device=within.device, dtype=within.dtype)[:, None]
    position = start + (number + within) * length - 0.5  # (bins, n)
    counts = (position >= -1) & (position <= extent)
    cells = torch.arange(extent, device=within.device)
    taps = (1 - (position.clamp(0, extent - 1)[..., None] - cells).abs()).clamp(min=0)
    return (taps * counts[..., None]).sum(1) / max(len(within), 1)


def _by_weights(
    maps: Tensor,
    boxes: Tensor,
    valid: Tensor,
    bins: int,
    weights: Callable[[Tensor, Tensor, int], Tensor],
) -> Tensor:
    """Each bin as a weighted sum of its map's cells, given weights `(bins, extent)` along each axis."""
    grouped = as_float(maps).unflatten(1, (-1, bins, bins))
    height, width = maps.shape[2:]
    outputs = []
    for b in range(valid.shape[0]):
        for r in range(valid.shape[1]):
            if not valid[b, r]:
                outputs.append(grouped.new_zeros(grouped.shape[1:4]))
                continue
            x1, y1, x2, y2 = boxes[b, r].to(grouped.dtype)
            rows, columns = weights(y1, y2, height), weights(x1, x2, width)
            outputs.append(torch.einsum("iy,dijyx,jx->dij", rows, grouped[b], columns))
    return torch.stack(outputs).unflatten(0, valid.shape).to(maps.dtype)


@torch.library.custom_op("boxwright::ps_roi_pool", mutates_args=())
def _ps_roi_pool_op(maps: Tensor, boxes: Tensor, valid: Tensor, stride: int, bins: int) -> Tensor:
    # torchvision's forward never reads the last row and the last column of a map, though its backward gives
    # them a gradient: with one more of each, the two belong together and the map is whole.
    padded = F.pad(as_float(maps), (0, 1, 0, 1))
    rois = _rois(boxes, valid, padded.dtype)
    pooled = torch.ops.torchvision.ps_roi_pool(padded, rois, 1 / stride, bins, bins)[0]
    return pooled.unflatten(0, valid.shape).to(maps.dtype)


@_ps_roi_pool_op.register_fake
def _ps_roi_pool_fake(maps: Tensor, boxes: Tensor, valid: Tensor, stride: int, bins: int) -> Tensor:
    return maps.new_empty(*valid.shape, maps.shape[1] // bins**2, bins, bins)


@torch.library.custom_op("boxwright::ps_roi_pool_backward", mutates_args=())
def _ps_roi_pool_backward_op(
    grad: Tensor, boxes: Tensor, valid: Tensor, stride: int, height: int, width: int
) -> Tensor:
    batch, _, depth, bins, _ = grad.shape
    flat = as_float(grad.flatten(0, 1)).contiguous()
    rois = _rois(boxes, valid, flat.dtype)
    channel = torch.arange(depth * bins**2, device=grad.device, dtype=torch.int32)
    channel = channel.expand(len(flat), -1).reshape(flat.shape).contiguous()
    size = (batch, depth * bins**2, height, width)
    maps = torch.ops.torchvision._ps_roi_pool_backward(flat, rois, channel, 1 / stride, bins, bins, *size)
    return maps.to(grad.dtype)


@_ps_roi_pool_backward_op.register_fake
def _ps_roi_pool_backward_fake(
    grad: Tensor, boxes: Tensor, valid: Tensor, stride: int, height: int, width: int
) -> Tensor:
    batch, _, depth, bins, _ = grad.shape
    return grad.new_empty(batch, depth * bins**2, height, width)


def _setup_context(ctx, inputs, output) -> None:
    maps, boxes, valid, ctx.stride, _ = inputs
    ctx.save_for_backward(boxes, valid)
    ctx.height, ctx.width = maps.shape[2:]


def _backward(ctx, grad: Tensor):
    boxes, valid = ctx.saved_tensors
    maps = _ps_roi_pool_backward_op(grad, boxes, valid, ctx.stride, ctx.height, ctx.width)
    return maps, None, None, None, None


_ps_roi_pool_op.register_autograd(_backward, setup_context=_setup_context)


def _rois(boxes: Tensor, valid: Tensor, dtype: torch.dtype) -> Tensor:
    """`(B * R, 5)`, as torchvision wants them; empty slots lie far outside the map, clipped to nothing."""
    return batch_rois(torch.where(valid[..., None], boxes.to(dtype), NOWHERE), dtype)
