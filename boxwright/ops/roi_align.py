"""RoIAlign over the levels of a feature pyramid (Mask R-CNN, arXiv:1703.06870 sec. 3).

With `aligned` the half-pixel shift of Detectron2: pixel i of a feature map has its centre at i + 0.5.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from types import ModuleType
from typing import Any

import torch
import torchvision  # registers torch.ops.torchvision.roi_align  # noqa: F401
from torch import Tensor

from boxwright.ops import _roi_align_bags
from boxwright.ops._roi_align_bags import Layout
from boxwright.ops.backends import use_triton
from boxwright.ops.boxes import area, as_float

NOWHERE = -1e6
"""Samples more than a cell outside a feature map are 0 and read nothing: a box out here is nearly free."""


def assign_levels(
    boxes: Tensor,
    valid: Tensor,
    num_levels: int,
    finest_scale: float = 56.0,
    eps: float = 1e-6,
) -> Tensor:
    """Which feature level each region is pooled from: FPN eq. 1 (arXiv:1612.03144).

    The level is floor(log2(sqrt(area) / finest_scale + eps)) clamped to the levels there are, as in
    MMDetection; the canonical 224 pixels of the paper at its level 4 (of 2 to 5) are a finest scale of 56.

    Args:
        boxes: `(B, R, 4)` pixels.
        valid: `(B, R)` bool.
        num_levels: how many levels there are.
        finest_scale: regions of less than twice this many pixels (square root of the area) go to level 0.
        eps: keeps regions of exactly a power of two on the larger level.

    Returns:
        `(B, R)` int64, 0 for the finest level, -1 where not valid.
    """
    scale = area(boxes).sqrt() / finest_scale + eps
    level = scale.log2().floor().clamp(0, num_levels - 1).long()
    return torch.where(valid, level, -1)


def roi_align(
    features: Sequence[Tensor],
    boxes: Tensor,
    level: Tensor,
    strides: Sequence[int],
    output_size: int,
    sampling_ratio: int = 0,
    aligned: bool = True,
) -> Tensor:
    """Pool each region from its feature level; differentiable in the features only.

    Args:
        features: one `(B, C, H_l, W_l)` per level, of one dtype.
        boxes: `(B, R, 4)` pixels of the network input.
        level: `(B, R)` int64; a slot with -1 is empty and gives zeros.
        strides: pixels between neighbouring cells, per level.
        output_size: S, bins along each side.
        sampling_ratio: samples along each side of a bin; 0 for ceil(region / S), cell by cell.
        aligned: shift by half a cell, so that coordinates are those of cell centres.

    Returns:
        `(B, R, C, S, S)` in the dtype of the features; computed in float32 (float64 stays float64).
    """
    return _roi_align_op(
        list(features), boxes.detach(), level, list(strides), output_size, sampling_ratio, aligned
    )


def roi_align_reference(
    features: Sequence[Tensor],
    boxes: Tensor,
    level: Tensor,
    strides: Sequence[int],
    output_size: int,
    sampling_ratio: int = 0,
    aligned: bool = True,
) -> Tensor:
    """The definition of `roi_align`, region by region.

    Bilinear sampling is separable, so a region's mean over samples is `rows @ feature @ columns`, where
    each matrix holds the mean interpolation weights of one axis.
    """
    batch, regions = level.shape
    shape = (features[0].shape[1], output_size, output_size)
    outputs = []
    for b in range(batch):
        for r in range(regions):
            i = int(level[b, r])
            if i < 0:
                outputs.append(as_float(features[0]).new_zeros(shape))
                continue
            feature = as_float(features[i][b])
            box = boxes[b, r].to(feature.dtype) / strides[i] - (0.5 if aligned else 0.0)
            columns, rows = (
                _axis_weights(box[k], box[k + 2], extent, output_size, sampling_ratio, aligned)
                for k, extent in ((0, feature.shape[2]), (1, feature.shape[1]))
            )
            outputs.append(torch.einsum("ph,chw,qw->cpq", rows, feature, columns))
    return torch.stack(outputs).reshape(batch, regions, *shape).to(features[0].dtype)


def _axis_weights(
    start: Tensor, end: Tensor, extent: int, bins: int, sampling_ratio: int, aligned: bool
) -> Tensor:
    """`(bins, extent)`: how much each cell along one axis weighs in each bin."""
    length = end - start if aligned else (end - start).clamp(min=1)
    samples = sampling_ratio or math.ceil(float(length / bins))
    if samples <= 0:
        return start.new_zeros(bins, extent)
    place = (torch.arange(bins * samples, device=start.device, dtype=start.dtype) + 0.5) / samples
    position = start + place * (length / bins)
    inside = (position >= -1) & (position <= extent)
    position = position.clamp(0, extent - 1)
    cells = torch.arange(extent, device=start.device, dtype=start.dtype)
    weights = (1 - (position[:, None] - cells).abs()).clamp(min=0) * inside[:, None]
    return weights.reshape(bins, samples, extent).mean(1)


def pools_channels_last(features: Tensor) -> bool:
    """Whether regions of these features are pooled with the channels innermost in memory.

    On a CPU that is so in low precision, and where the features lie so in memory. Float32 features that do
    not are pooled by torchvision's kernel, so that values and what follows from them (which ReLUs are open)
    are those of its detectors.
    """
    if features.device.type != "cpu":
        return use_triton(features.device, features.dtype)
    last = features.is_contiguous(memory_format=torch.channels_last) and not features.is_contiguous()
    return last or features.dtype.itemsize < 4


def gives_channels_last(grad: Tensor) -> bool:
    """Whether the features' gradients have the channels innermost in memory."""
    return grad.device.type == "cpu" or use_triton(grad.device, grad.dtype)


def _backend(boxes: Tensor) -> ModuleType:
    if boxes.device.type == "cpu":
        return _roi_align_bags
    from boxwright.ops import _roi_align_triton

    return _roi_align_triton


@torch.library.custom_op("boxwright::roi_align", mutates_args=())
def _roi_align_op(
    features: Sequence[Tensor],
    boxes: Tensor,
    level: Tensor,
    strides: Sequence[int],
    output_size: int,
    sampling_ratio: int,
    aligned: bool,
) -> Tensor:
    heights, widths = [f.shape[2] for f in features], [f.shape[3] for f in features]
    layout = Layout(strides, heights, widths, output_size, sampling_ratio, aligned)
    if pools_channels_last(features[0]):
        return _backend(boxes).forward(features, boxes, level, layout)
    run = _forward_selected if boxes.device.type == "cpu" else _forward_masked
    return run(features, boxes, level, layout)


@_roi_align_op.register_fake
def _roi_align_fake(
    features: Sequence[Tensor],
    boxes: Tensor,
    level: Tensor,
    strides: Sequence[int],
    output_size: int,
    *_: Any,
) -> Tensor:
    shape = (features[0].shape[1], output_size, output_size)
    if not pools_channels_last(features[0]):
        return features[0].new_empty(*level.shape, *shape)
    return features[0].new_empty(*level.shape, *shape[1:], shape[0]).permute(0, 1, 4, 2, 3)


@torch.library.custom_op("boxwright::roi_align_backward", mutates_args=())
def _roi_align_backward_op(
    grad: Tensor,
    boxes: Tensor,
    level: Tensor,
    strides: Sequence[int],
    heights: Sequence[int],
    widths: Sequence[int],
    sampling_ratio: int,
    aligned: bool,
) -> list[Tensor]:
    layout = Layout(strides, heights, widths, grad.shape[-1], sampling_ratio, aligned)
    run = _backend(boxes).backward if gives_channels_last(grad) else _backward_masked
    return run(grad, boxes, level, layout)


@_roi_align_backward_op.register_fake
def _roi_align_backward_fake(
    grad: Tensor,
    boxes: Tensor,
    level: Tensor,
    strides: Sequence[int],
    heights: Sequence[int],
    widths: Sequence[int],
    *_: Any,
) -> list[Tensor]:
    batch, channels = grad.shape[0], grad.shape[2]
    if not gives_channels_last(grad):
        return [grad.new_empty(batch, channels, h, w) for h, w in zip(heights, widths, strict=True)]
    shapes = [(batch, h, w, channels) for h, w in zip(heights, widths, strict=True)]
    return [grad.new_empty(shape).permute(0, 3, 1, 2) for shape in shapes]


def _setup_context(ctx, inputs, output) -> None:
    features, boxes, level, strides, _, sampling_ratio, aligned = inputs
    ctx.save_for_backward(boxes, level)
    ctx.heights, ctx.widths = [f.shape[2] for f in features], [f.shape[3] for f in features]
    ctx.strides, ctx.sampling_ratio, ctx.aligned = strides, sampling_ratio, aligned


def _backward(ctx, grad: Tensor):
    boxes, level = ctx.saved_tensors
    grads = _roi_align_backward_op(
        grad, boxes, level, ctx.strides, ctx.heights, ctx.widths, ctx.sampling_ratio, ctx.aligned
    )
    return grads, None, None, None, None, None, None


_roi_align_op.register_autograd(_backward, setup_context=_setup_context)


def batch_rois(boxes: Tensor, dtype: torch.dtype) -> Tensor:
    """Boxes `(B, R, 4)` as `(B * R, 5)`: image index and box, as torchvision wants them."""
    image = torch.arange(boxes.shape[0], device=boxes.device, dtype=dtype)
    image = image[:, None, None].expand(-1, boxes.shape[1], 1)
    return torch.cat((image, boxes.to(dtype)), -1).flatten(0, 1)


def _forward_selected(features: Sequence[Tensor], boxes: Tensor, level: Tensor, layout: Layout) -> Tensor:
    """Torchvision's kernel, each level with just its own regions; rounds as torchvision's detectors do."""
    output = features[0].new_zeros(level.numel(), features[0].shape[1], layout.size, layout.size)
    rois = batch_rois(boxes, as_float(features[0]).dtype)
    for i, feature in enumerate(features):
        index = (level.flatten() == i).nonzero()[:, 0]
        if len(index) > 0:
            output[index] = _pool_level(feature, rois[index], i, layout).to(output.dtype)
    return output.unflatten(0, level.shape)


def _forward_masked(features: Sequence[Tensor], boxes: Tensor, level: Tensor, layout: Layout) -> Tensor:
    """Each level pools all slots, other levels' regions moved out of the map: nothing waits for the host."""
    rois = batch_rois(boxes, as_float(features[0]).dtype)
    output = rois.new_zeros(level.numel(), features[0].shape[1], layout.size, layout.size)
    for i, feature in enumerate(features):
        output += _pool_level(feature, _only(rois, level, i), i, layout)
    return output.unflatten(0, level.shape).to(features[0].dtype)


def _pool_level(feature: Tensor, rois: Tensor, i: int, layout: Layout) -> Tensor:
    return torch.ops.torchvision.roi_align(
        *(as_float(feature), rois, 1 / layout.strides[i], layout.size, layout.size),
        *(layout.sampling_ratio, layout.aligned),
    )


def _backward_masked(grad: Tensor, boxes: Tensor, level: Tensor, layout: Layout) -> list[Tensor]:
    batch, _, channels, size, _ = grad.shape
    flat = as_float(grad.flatten(0, 1)).contiguous()
    rois = batch_rois(boxes, flat.dtype)
    levels = zip(layout.strides, layout.heights, layout.widths, strict=True)
    return [
        torch.ops.torchvision._roi_align_backward(
            *(flat, _only(rois, level, i), 1 / stride, size, size, batch, channels, height, width),
            *(layout.sampling_ratio, layout.aligned),
        ).to(grad.dtype)
        for i, (stride, height, width) in enumerate(levels)
    ]


def _only(rois: Tensor, level: Tensor, i: int) -> Tensor:
    """The regions with those of other levels moved to where there are no features."""
    nowhere = torch.full_like(rois, NOWHERE)
    nowhere[:, 0] = rois[:, 0]
    return torch.where((level.flatten() == i)[:, None], rois, nowhere)
