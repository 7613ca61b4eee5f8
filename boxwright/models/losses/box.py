"""Losses on decoded boxes, one value a box."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from ...ops.boxes import ciou, diou, giou, iou, to_cxcywh


@dataclass(frozen=True)
class IoULoss:
    """`-log(IoU)` (UnitBox, arXiv:1608.01471, Sec. 3), `1 - IoU` or `1 - IoU^2`.

    Args:
        weight: of the loss.
        mode: "log", "linear" or "square".
        eps: the IoU is held above this, so that the logarithm is finite.
    """

    weight: float = 1.0
    mode: Literal["log", "linear", "square"] = "log"
    eps: float = 1e-6

    def __call__(self, boxes: Tensor, targets: Tensor) -> Tensor:
        """Boxes and targets `(..., 4)` xyxy to losses `(...)`."""
        overlap = iou(boxes, targets).clamp(min=self.eps)
        losses = {"log": lambda x: -x.log(), "linear": lambda x: 1 - x, "square": lambda x: 1 - x.square()}
        return losses[self.mode](overlap) * self.weight


@dataclass(frozen=True)
class _FromOverlap(ABC):
    """One minus a measure of overlap that also says how far boxes without any are from each other."""

    weight: float = 1.0
    eps: float = 1e-7

    @abstractmethod
    def overlap(self, boxes: Tensor, targets: Tensor) -> Tensor:
        """The measure `(...)` of boxes and targets `(..., 4)`, 1 for equal ones."""

    def __call__(self, boxes: Tensor, targets: Tensor) -> Tensor:
        """Boxes and targets `(..., 4)` xyxy to losses `(...)`."""
        return (1 - self.overlap(boxes, targets)) * self.weight


@dataclass(frozen=True)
class GIoULoss(_FromOverlap):
    """`1 - GIoU` (arXiv:1902.09630, Alg. 1).

    Args:
        weight: of the loss.
        eps: lower bound of the divisors.
    """

    def overlap(self, boxes: Tensor, targets: Tensor) -> Tensor:
        """GIoU."""
        return giou(boxes, targets, eps=self.eps)


@dataclass(frozen=True)
class DIoULoss(_FromOverlap):
    """`1 - DIoU`: the distance of the centres counts, too (arXiv:1911.08287, Eq. 7).

    Args:
        weight: of the loss.
        eps: lower bound of the divisors.
    """

    def overlap(self, boxes: Tensor, targets: Tensor) -> Tensor:
        """DIoU."""
        return diou(boxes, targets, eps=self.eps)


@dataclass(frozen=True)
class CIoULoss(_FromOverlap):
    """`1 - CIoU`: the aspect ratio as well (arXiv:1911.08287, Eq. 8-11).

    Args:
        weight: of the loss.
        eps: lower bound of the divisors.
        aspect_from: boxes of a lower IoU are not trained for their aspect ratio (arXiv:2005.03572, Sec. 3.2);
            with 0 all are, as in the first paper.
    """

    aspect_from: float = 0.5

    def overlap(self, boxes: Tensor, targets: Tensor) -> Tensor:
        """CIoU."""
        return ciou(boxes, targets, eps=self.eps, aspect_from=self.aspect_from)


@dataclass(frozen=True)
class BoundedIoULoss:
    """Smooth L1 of upper bounds of the IoU in each coordinate (arXiv:1711.00164, Eq. 6-10).

    Args:
        weight: of the loss.
        beta: where the smooth L1 turns linear.
        eps: added to the divisors.
    """

    weight: float = 1.0
    beta: float = 0.2
    eps: float = 1e-3

    def __call__(self, boxes: Tensor, targets: Tensor) -> Tensor:
        """Boxes and targets `(..., 4)` xyxy to losses `(...)`, summed over the coordinates."""
        centre, size = to_cxcywh(boxes.float()).split(2, dim=-1)
        target_centre, target_size = to_cxcywh(targets.detach()).split(2, dim=-1)
        shift = (centre - target_centre).abs()
        of_shift = 1 - ((target_size - 2 * shift) / (target_size + 2 * shift + self.eps)).clamp(min=0)
        ratio = torch.minimum(target_size / (size + self.eps), size / (target_size + self.eps))
        bound = torch.cat((of_shift, 1 - ratio), dim=-1)
        smooth = torch.where(bound < self.beta, 0.5 * bound * bound / self.beta, bound - 0.5 * self.beta)
        return smooth.sum(-1) * self.weight
