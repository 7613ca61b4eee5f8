"""Mask targets on a GPU: one program for each region and row of bins, which reads the object's crop."""

# Kernels are written in a language of their own, whose types a checker of Python does not know.
# pyright: reportArgumentType=false, reportOperatorIssue=false, reportCallIssue=false, reportIndexIssue=false
# pyright: reportAttributeAccessIssue=false, reportGeneralTypeIssues=false, reportReturnType=false

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from boxwright.ops._roi_align_triton import FUSED, _taps
from boxwright.structures import MaskCrops


def mask_targets(
    crops: MaskCrops,
    boxes: Tensor,
    gt_index: Tensor,
    positive: Tensor,
    canvas: tuple[int, int],
    size: int,
    aligned: bool,
) -> Tensor:
    """`(B, R, S, S)` float32; see `ops.masks.mask_targets`."""
    targets = torch.zeros(*gt_index.shape, size, size, device=boxes.device)
    if not gt_index.numel() or not crops.offset.shape[1]:
        return targets
    _sample[(gt_index.numel(), size)](
        *(crops.pixels, crops.boxes.contiguous(), crops.offset.contiguous()),
        *(boxes.float().contiguous(), gt_index.contiguous(), positive.to(torch.int8).contiguous(), targets),
        *(gt_index.shape[1], crops.offset.shape[1], canvas[0], canvas[1]),
        SIZE=size,
        SHIFT=0.5 if aligned else 0.0,
        ALIGNED=aligned,
        BLOCK=triton.next_power_of_2(size),
        **FUSED,
    )
    return targets


@triton.jit
def _pixel(pixels, start, y, x, x1, y1, x2, y2, used):
    """Pixels of the bitmap at a row and some columns: the crop's, or 0 outside of it."""
    end = tl.where((y >= y1) & (y < y2), x2, x1)  # a row above or below the crop has no pixels
    inside = used & (x >= x1) & (x < end)
    return tl.load(pixels + start + (y - y1) * (x2 - x1) + (x - x1), inside, 0).to(tl.float32)


@triton.jit
def _sample(
    pixels,
    crop_boxes,
    offset,
    boxes,
    gt_index,
    positive,
    targets,
    regions,
    slots,
    height,
    width,
    SIZE: tl.constexpr,
    SHIFT: tl.constexpr,
    ALIGNED: tl.constexpr,
    BLOCK: tl.constexpr,
):
    region, row = tl.program_id(0), tl.program_id(1)
    if tl.load(positive + region) != 0:
        owner = (region // regions) * slots + tl.load(gt_index + region)
        start = tl.load(offset + owner)
        left, top = tl.load(crop_boxes + owner * 4), tl.load(crop_boxes + owner * 4 + 1)
        right, bottom = tl.load(crop_boxes + owner * 4 + 2), tl.load(crop_boxes + owner * 4 + 3)
        x1, y1 = tl.load(boxes + region * 4) - SHIFT, tl.load(boxes + region * 4 + 1) - SHIFT
        x_length = tl.load(boxes + region * 4 + 2) - SHIFT - x1
        y_length = tl.load(boxes + region * 4 + 3) - SHIFT - y1
        if not ALIGNED:
            x_length, y_length = tl.maximum(x_length, 1.0), tl.maximum(y_length, 1.0)
        # Rounded as on a CPU: a whole quotient that came out a bit larger would take one more sample.
        x_bin, y_bin = tl.div_rn(x_length, 1.0 * SIZE), tl.div_rn(y_length, 1.0 * SIZE)
        x_samples = tl.maximum(tl.ceil(x_bin), 0.0).to(tl.int32)
        y_samples = tl.maximum(tl.ceil(y_bin), 0.0).to(tl.int32)
        column = tl.arange(0, BLOCK)
        total = tl.zeros((BLOCK,), tl.float32)
        for j in range(y_samples):
            y_low, y_high, y_share, y_counted = _taps(y1 + y_bin * (row + (j + 0.5) / y_samples), height)
            for i in range(x_samples):
                x = x1 + x_bin * (column + (i + 0.5) / x_samples)
                x_low, x_high, x_share, x_counted = _taps(x, width)
                used = x_counted & (column < tl.where(y_counted, SIZE, 0))
                a = _pixel(pixels, start, y_low, x_low, left, top, right, bottom, used)
                b = _pixel(pixels, start, y_low, x_high, left, top, right, bottom, used)
                c = _pixel(pixels, start, y_high, x_low, left, top, right, bottom, used)
                d = _pixel(pixels, start, y_high, x_high, left, top, right, bottom, used)
                upper, lower = a * (1 - x_share) + b * x_share, c * (1 - x_share) + d * x_share
                total += upper * (1 - y_share) + lower * y_share
        count = tl.maximum(x_samples * y_samples, 1)
        tl.store(targets + (region * SIZE + row) * SIZE + column, total / count, column < SIZE)
