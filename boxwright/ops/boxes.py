"""Arithmetic on boxes: `xyxy`, continuous pixels, no "+1"; and the IoU family, written once.

Everything is computed in float32 whatever the dtype that comes in (float64 stays float64).
`sizes` hold one entry per image: where boxes are `(B, N, 4)`, sizes are `(B, 2)`; where boxes are `(N, 4)`,
sizes are `(2,)`.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

EPS = 1e-7


def as_float(boxes: Tensor) -> Tensor:
    """`boxes` in float32, unless they are float64 already."""
    return boxes if boxes.dtype == torch.float64 else boxes.float()


def area(boxes: Tensor) -> Tensor:
    """Areas `(...)` of boxes `(..., 4)` in square pixels; 0 for boxes turned inside out."""
    width, height = _sides(as_float(boxes))
    return width * height


def centres(boxes: Tensor) -> Tensor:
    """Centres `(..., 2)` of boxes `(..., 4)`, x before y."""
    boxes = as_float(boxes)
    return (boxes[..., :2] + boxes[..., 2:]) / 2


def to_cxcywh(boxes: Tensor) -> Tensor:
    """Boxes `(..., 4)` from corners to centre x, centre y, width, height."""
    x1, y1, x2, y2 = as_float(boxes).unbind(-1)
    return torch.stack(((x1 + x2) / 2, (y1 + y2) / 2, x2 - x1, y2 - y1), -1)


def from_cxcywh(boxes: Tensor) -> Tensor:
    """Boxes `(..., 4)` from centre x, centre y, width, height to corners."""
    cx, cy, width, height = as_float(boxes).unbind(-1)
    return torch.stack((cx - width / 2, cy - height / 2, cx + width / 2, cy + height / 2), -1)


def clip(boxes: Tensor, sizes: Tensor) -> Tensor:
    """Boxes cut off at the image.

    Args:
        boxes: `(B, N, 4)`.
        sizes: `(B, 2)` height and width of each image in pixels.

    Returns:
        `(B, N, 4)`; a box wholly outside becomes one without area at the border.
    """
    boxes = as_float(boxes)
    height, width = sizes.to(boxes.dtype).unbind(-1)
    limits = torch.stack((width, height, width, height), -1)[..., None, :]
    return torch.minimum(boxes.clamp(min=0), limits)


def pairwise_intersection(boxes1: Tensor, boxes2: Tensor) -> Tensor:
    """Intersection areas `(..., N, M)` of boxes `(..., N, 4)` and `(..., M, 4)`; leading dims broadcast."""
    first, second = _pairs(boxes1, boxes2)
    return _intersection(first, second)


def pairwise_iou(boxes1: Tensor, boxes2: Tensor) -> Tensor:
    """IoU `(..., N, M)` of boxes `(..., N, 4)` and `(..., M, 4)`; leading dims broadcast."""
    first, second = _pairs(boxes1, boxes2)
    return _overlap(first, second, EPS).iou


def pairwise_iof(boxes1: Tensor, boxes2: Tensor) -> Tensor:
    """Intersection over the first's area, `(..., N, M)`: how much of each of `boxes1` lies in `boxes2`."""
    first, second = _pairs(boxes1, boxes2)
    return _intersection(first, second) / area(first).clamp(min=EPS)


def iou(boxes1: Tensor, boxes2: Tensor, eps: float = EPS) -> Tensor:
    """IoU `(...)` of box pairs `(..., 4)`, `(..., 4)`; 0 where a box has no area.

    Args:
        boxes1: `(..., 4)`.
        boxes2: `(..., 4)`, broadcast against `boxes1`.
        eps: lower bound of every divisor, in this function and in those below. Published code has 1e-7
            (torchvision) or 1e-6 (MMDetection); boxes larger than that are not affected by it.
    """
    return _overlap(as_float(boxes1), as_float(boxes2), eps).iou


def giou(boxes1: Tensor, boxes2: Tensor, eps: float = EPS) -> Tensor:
    """Generalised IoU in [-1, 1], arXiv:1902.09630 algorithm 1; arguments as for `iou`."""
    boxes1, boxes2 = as_float(boxes1), as_float(boxes2)
    overlap = _overlap(boxes1, boxes2, eps)
    width, height = _enclosing_sides(boxes1, boxes2)
    enclosing = width * height
    return overlap.iou - (enclosing - overlap.union) / enclosing.clamp(min=eps)


def diou(boxes1: Tensor, boxes2: Tensor, eps: float = EPS) -> Tensor:
    """Distance IoU in [-1, 1], arXiv:1911.08287 eq. 7; arguments as for `iou`."""
    boxes1, boxes2 = as_float(boxes1), as_float(boxes2)
    return _overlap(boxes1, boxes2, eps).iou - _centre_distance(boxes1, boxes2, eps)


def ciou(boxes1: Tensor, boxes2: Tensor, eps: float = EPS, aspect_from: float = 0.0) -> Tensor:
    """Complete IoU, arXiv:1911.08287 eq. 8 to 11; arguments as for `iou`, and one more.

    The weight alpha of the aspect ratio's term (eq. 11) is constant for the gradient, as in the paper's code.

    Args:
        boxes1: `(..., 4)`.
        boxes2: `(..., 4)`, broadcast against `boxes1`.
        eps: lower bound of every divisor.
        aspect_from: the aspect ratio counts from this IoU on; the later paper (arXiv:2005.03572, Sec. 3.2)
            has 0.5.
    """
    boxes1, boxes2 = as_float(boxes1), as_float(boxes2)
    overlap = _overlap(boxes1, boxes2, eps).iou
    (width1, height1), (width2, height2) = _sides(boxes1), _sides(boxes2)
    angle = torch.atan(width1 / height1.clamp(min=eps)) - torch.atan(width2 / height2.clamp(min=eps))
    v = (4 / math.pi**2) * angle**2
    fixed_v = v.detach()
    alpha = fixed_v / (1 - overlap.detach() + fixed_v).clamp(min=eps) * (overlap >= aspect_from)
    return overlap - _centre_distance(boxes1, boxes2, eps) - alpha * v


class _Overlap(NamedTuple):
    iou: Tensor
    union: Tensor


def _pairs(boxes1: Tensor, boxes2: Tensor) -> tuple[Tensor, Tensor]:
    return as_float(boxes1)[..., :, None, :], as_float(boxes2)[..., None, :, :]


def _sides(boxes: Tensor) -> tuple[Tensor, Tensor]:
    x1, y1, x2, y2 = boxes.unbind(-1)
    return (x2 - x1).clamp(min=0), (y2 - y1).clamp(min=0)


# One coordinate at a time: half the memory of stacked corners, and contiguous, which eager CPU runs faster.
def _intersection(boxes1: Tensor, boxes2: Tensor) -> Tensor:
    ax1, ay1, ax2, ay2 = boxes1.unbind(-1)
    bx1, by1, bx2, by2 = boxes2.unbind(-1)
    width = (torch.minimum(ax2, bx2) - torch.maximum(ax1, bx1)).clamp(min=0)
    return width * (torch.minimum(ay2, by2) - torch.maximum(ay1, by1)).clamp(min=0)


def _overlap(boxes1: Tensor, boxes2: Tensor, eps: float) -> _Overlap:
    intersection = _intersection(boxes1, boxes2)
    union = area(boxes1) + area(boxes2) - intersection
    return _Overlap(intersection / union.clamp(min=eps), union)


def _enclosing_sides(boxes1: Tensor, boxes2: Tensor) -> tuple[Tensor, Tensor]:
    ax1, ay1, ax2, ay2 = boxes1.unbind(-1)
    bx1, by1, bx2, by2 = boxes2.unbind(-1)
    width = (torch.maximum(ax2, bx2) - torch.minimum(ax1, bx1)).clamp(min=0)
    return width, (torch.maximum(ay2, by2) - torch.minimum(ay1, by1)).clamp(min=0)


def _centre_distance(boxes1: Tensor, boxes2: Tensor, eps: float) -> Tensor:
    """Squared distance of the centres over the squared diagonal of the enclosing box."""
    ax1, ay1, ax2, ay2 = boxes1.unbind(-1)
    bx1, by1, bx2, by2 = boxes2.unbind(-1)
    dx, dy = (ax1 + ax2 - bx1 - bx2) / 2, (ay1 + ay2 - by1 - by2) / 2
    width, height = _enclosing_sides(boxes1, boxes2)
    return (dx**2 + dy**2) / (width**2 + height**2).clamp(min=eps)
