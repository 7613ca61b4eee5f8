"""RoIAlign on a GPU: one program for each region and row of bins, its channels side by side.

Each level is one launch in which the regions of other levels return at once, so nothing waits for the host
to count them. Features lie with their channels innermost, so a tap is one wide read, and in the gradient one
wide atomic addition in float32.
"""

# Kernels are written in a language of their own, whose types a checker of Python does not know.
# pyright: reportArgumentType=false, reportOperatorIssue=false, reportCallIssue=false, reportIndexIssue=false
# pyright: reportAttributeAccessIssue=false, reportGeneralTypeIssues=false, reportReturnType=false

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from boxwright.ops._roi_align_bags import Layout
from boxwright.ops.boxes import as_float

FUSED = {"enable_fp_fusion": True}
"""Means may differ in the last bit; Triton warns where this is left to it."""


def forward(features: Sequence[Tensor], boxes: Tensor, level: Tensor, layout: Layout) -> Tensor:
    """`(B, R, C, S, S)` with the channels innermost in memory."""
    channels, size = features[0].shape[1], layout.size
    output = features[0].new_zeros(*level.shape, size, size, channels)
    for number, feature in enumerate(features):
        cells = feature.permute(0, 2, 3, 1).contiguous()
        _launch(cells, output, boxes, level, layout, number, backward=False)
    return output.permute(0, 1, 4, 2, 3)


def backward(grad: Tensor, boxes: Tensor, level: Tensor, layout: Layout) -> list[Tensor]:
    """Gradient of each level's features, `(B, C, H_l, W_l)` with the channels innermost in memory."""
    batch, _, channels = grad.shape[:3]
    rows = grad.permute(0, 1, 3, 4, 2).contiguous()
    grads = []
    for number, (height, width) in enumerate(zip(layout.heights, layout.widths, strict=True)):
        cells = torch.zeros(
            batch, height, width, channels, dtype=as_float(grad[:0]).dtype, device=grad.device
        )
        _launch(cells, rows, boxes, level, layout, number, backward=True)
        grads.append(cells.to(grad.dtype).permute(0, 3, 1, 2))
    return grads


def _launch(
    cells: Tensor, pooled: Tensor, boxes: Tensor, level: Tensor, layout: Layout, number: int, backward: bool
) -> None:
    regions, channels = level.shape[1], cells.shape[3]
    if not level.numel():
        return
    block = min(triton.next_power_of_2(channels), 256)
    grid = (level.numel(), layout.size, triton.cdiv(channels, block))
    _pool[grid](
        cells,
        pooled,
        boxes.float().contiguous(),
        level.contiguous(),
        *(
            number,
            regions,
            layout.heights[number],
            layout.widths[number],
            channels,
            1 / layout.strides[number],
        ),
        SIZE=layout.size,
        RATIO=layout.sampling_ratio,
        SHIFT=0.5 if layout.aligned else 0.0,
        ALIGNED=layout.aligned,
        BACKWARD=backward,
        BLOCK=block,
        **FUSED,
    )


@triton.jit
def _taps(position, extent):
    """The lower cell, the upper cell, the upper one's share, and whether the sample counts."""
    counted = (position >= -1.0) & (position <= extent)
    position = tl.minimum(tl.maximum(position, 0.0), extent - 1.0)
    low = tl.floor(position)
    high = tl.minimum(low + 1.0, extent - 1.0)
    return low.to(tl.int32), high.to(tl.int32), position - low, counted


@triton.jit
def _pool(
    cells,
    pooled,
    boxes,
    levels,
    number,
    regions,
    height,
    width,
    channels,
    scale,
    SIZE: tl.constexpr,
    RATIO: tl.constexpr,
    SHIFT: tl.constexpr,
    ALIGNED: tl.constexpr,
    BACKWARD: tl.constexpr,
    BLOCK: tl.constexpr,
):
    region, row = tl.program_id(0), tl.program_id(1)
    if tl.load(levels + region) == number:
        channel = tl.program_id(2) * BLOCK + tl.arange(0, BLOCK)
        x1 = tl.load(boxes + region * 4) * scale - SHIFT
        y1 = tl.load(boxes + region * 4 + 1) * scale - SHIFT
        x_length = tl.load(boxes + region * 4 + 2) * scale - SHIFT - x1
        y_length = tl.load(boxes + region * 4 + 3) * scale - SHIFT - y1
        if not ALIGNED:
            x_length, y_length = tl.maximum(x_length, 1.0), tl.maximum(y_length, 1.0)
        # Rounded as on a CPU: a whole quotient that came out a bit larger would take one more sample.
        x_bin, y_bin = tl.div_rn(x_length, 1.0 * SIZE), tl.div_rn(y_length, 1.0 * SIZE)
        if RATIO > 0:
            x_samples, y_samples = RATIO, RATIO
        else:
            x_samples = tl.maximum(tl.ceil(x_bin), 0.0).to(tl.int32)
            y_samples = tl.maximum(tl.ceil(y_bin), 0.0).to(tl.int32)
        count = tl.maximum(x_samples * y_samples, 1)
        image = cells + (region // regions).to(tl.int64) * height * width * channels
        for column in range(SIZE):
            place = pooled + ((region.to(tl.int64) * SIZE + row) * SIZE + column) * channels + channel
            total = tl.zeros((BLOCK,), tl.float32)
            grad = tl.zeros((BLOCK,), tl.float32)
            if BACKWARD:
                grad = tl.load(place, mask=channel < channels, other=0.0).to(tl.float32) / count
            for j in range(y_samples):
                y = y1 + y_bin * (row + (j + 0.5) / y_samples)
                y_low, y_high, y_share, y_counted = _taps(y, height)
                for i in range(x_samples):
                    x = x1 + x_bin * (column + (i + 0.5) / x_samples)
                    x_low, x_high, x_share, x_counted = _taps(x, width)
                    # A sample that does not count reads nothing: its place may be no number.
                    used = channel < tl.where(y_counted & x_counted, channels, 0)
                    upper_left = image + (y_low * width + x_low) * channels + channel
                    upper_right = image + (y_low * width + x_high) * channels + channel
                    lower_left = image + (y_high * width + x_low) * channels + channel
                    lower_right = image + (y_high * width + x_high) * channels + channel
                    a, b = (1 - y_share) * (1 - x_share), (1 - y_share) * x_share
                    c, d = y_share * (1 - x_share), y_share * x_share
                    if BACKWARD:
                        tl.atomic_add(upper_left, grad * a, mask=used, sem="relaxed")
                        tl.atomic_add(upper_right, grad * b, mask=used, sem="relaxed")
                        tl.atomic_add(lower_left, grad * c, mask=used, sem="relaxed")
                        tl.atomic_add(lower_right, grad * d, mask=used, sem="relaxed")
                    else:
                        total += a * tl.load(upper_left, mask=used, other=0.0).to(tl.float32)
                        total += b * tl.load(upper_right, mask=used, other=0.0).to(tl.float32)
                        total += c * tl.load(lower_left, mask=used, other=0.0).to(tl.float32)
                        total += d * tl.load(lower_right, mask=used, other=0.0).to(tl.float32)
            if not BACKWARD:
                tl.store(place, (total / count).to(pooled.dtype.element_ty), mask=channel < channels)
