"""Boxes repeated over the places of feature maps: what anchors and points have in common."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ...structures import Priors


def repeat_over_grid(
    base: Sequence[Tensor],
    shapes: Sequence[tuple[int, int]],
    steps: Sequence[tuple[float, float]],
    strides: Sequence[float],
    offset: float,
) -> Priors:
    """Put each level's base boxes at every place of its feature map.

    The order within a level is row, column, base box: that of a head's output `(B, A*K, H, W)` when
    permuted to `(B, H, W, A, K)`.

    Args:
        base: one tensor `(N, 4)` a level, boxes around the origin, px.
        shapes: height and width of each feature map.
        steps: vertical and horizontal distance between neighbouring places, px.
        strides: nominal stride of each level.
        offset: place of a box within its cell, in cells: 0 the upper left corner, 0.5 the centre.
    """
    boxes, levels = [], []
    for base_boxes, (height, width), (step_y, step_x), stride in zip(
        base, shapes, steps, strides, strict=True
    ):
        device = base_boxes.device
        ys = (torch.arange(height, device=device, dtype=torch.float32) + offset) * step_y
        xs = (torch.arange(width, device=device, dtype=torch.float32) + offset) * step_x
        shift = torch.stack(
            (xs.expand(height, width), ys[:, None].expand(height, width)) * 2, dim=-1
        )  # (H, W, 4): x, y, x, y
        boxes.append((shift[:, :, None] + base_boxes).reshape(-1, 4))
        levels.append(torch.full((boxes[-1].shape[0],), float(stride), device=device))
    per_level = tuple(h * w * b.shape[0] for (h, w), b in zip(shapes, base, strict=True))
    per_place = base[0].shape[0] if len({b.shape[0] for b in base}) == 1 else 0
    return Priors(torch.cat(boxes), torch.cat(levels), per_level, num_per_place=per_place)


def grid_steps(
    shapes: Sequence[tuple[int, int]], strides: Sequence[int], canvas: tuple[int, int] | None
) -> list[tuple[float, float]]:
    """Distance between places: the stride, or with a canvas what torchvision takes, size // places."""
    if canvas is None:
        return [(float(stride), float(stride)) for stride in strides]
    return [(float(canvas[0] // height), float(canvas[1] // width)) for height, width in shapes]
