"""What rules by overlap have in common: IoU of ground truth and priors, ignored regions, who wins a prior."""

from __future__ import annotations

import torch
from torch import Tensor

from ...ops.boxes import area, pairwise_intersection
from ...structures import Priors, Targets


def prior_overlaps(priors: Priors, targets: Targets, ignore_iof: float) -> tuple[Tensor, Tensor]:
    """IoU of each ground truth with each prior, and which priors lie in ignored regions.

    Args:
        priors: A priors, shared by the images or not.
        targets: G slots of ground truth an image.
        ignore_iof: a prior with this share of its area in an ignored region lies in it.

    Returns:
        IoU `(B, G, A)`, -1 where the slot holds no object or the prior is not valid, and `(B, A)` bool.
    """
    boxes = priors.boxes if priors.boxes.dim() == 3 else priors.boxes[None]
    intersection = pairwise_intersection(targets.boxes, boxes)  # (B, G, A)
    prior_area = area(boxes)[:, None]
    union = area(targets.boxes)[..., None] + prior_area - intersection
    taking_part = targets.valid[..., None]
    if priors.valid is not None:
        taking_part = taking_part & priors.valid[:, None]
    iou = torch.where(taking_part, intersection / union.clamp(min=1e-6), -1.0)
    share = torch.where(targets.ignore[..., None], intersection / prior_area.clamp(min=1e-6), 0.0)
    return iou, (share >= ignore_iof).any(1)


def last_finder(finds: Tensor) -> Tensor:
    """Slot `(B, A)` of the last ground truth that finds a prior, -1 if none; `finds (B, G, A)` is bool."""
    order = torch.arange(1, finds.shape[1] + 1, device=finds.device)[:, None]
    return (finds * order).amax(1) - 1
