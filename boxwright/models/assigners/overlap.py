"""What rules by overlap have in common: IoU of ground truth and priors, ignored regions, who wins a prior."""

from __future__ import annotations

from dataclasses import replace

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
    intersection, prior_area = _intersections(priors, targets)
    iou = _iou(priors, targets, intersection, prior_area)
    return iou, _in_ignored(targets, intersection, prior_area, ignore_iof)


def iou_with_priors(priors: Priors, targets: Targets, all_valid: bool = False) -> Tensor:
    """The first of `prior_overlaps`; `all_valid` says that no slot is empty and no prior invalid."""
    shared = _intersections(priors, targets)
    return _ratio(targets, *shared) if all_valid else _iou(priors, targets, *shared)


def in_ignored_regions(priors: Priors, targets: Targets, ignore_iof: float) -> Tensor:
    """The second of `prior_overlaps`."""
    return _in_ignored(targets, *_intersections(priors, targets), ignore_iof)


def _intersections(priors: Priors, targets: Targets) -> tuple[Tensor, Tensor]:
    """Shared areas `(B, G, A)` and the areas of the priors `(1 or B, 1, A)`."""
    boxes = priors.boxes if priors.boxes.dim() == 3 else priors.boxes[None]
    return pairwise_intersection(targets.boxes, boxes), area(boxes)[:, None]


def _ratio(targets: Targets, intersection: Tensor, prior_area: Tensor) -> Tensor:
    union = area(targets.boxes)[..., None] + prior_area - intersection
    return intersection / union.clamp(min=1e-6)


def _iou(priors: Priors, targets: Targets, intersection: Tensor, prior_area: Tensor) -> Tensor:
    taking_part = targets.valid[..., None]
    if priors.valid is not None:
        taking_part = taking_part & priors.valid[:, None]
    return torch.where(taking_part, _ratio(targets, intersection, prior_area), -1.0)


def _in_ignored(targets: Targets, intersection: Tensor, prior_area: Tensor, ignore_iof: float) -> Tensor:
    share = torch.where(targets.ignore[..., None], intersection / prior_area.clamp(min=1e-6), 0.0)
    return (share >= ignore_iof).any(1)


def slice_priors(priors: Priors, part: slice) -> Priors:
    """Some of the priors, as if they were of one level."""
    boxes, strides = priors.boxes[..., part, :], priors.strides[part]
    valid = None if priors.valid is None else priors.valid[:, part]
    return replace(priors, boxes=boxes, strides=strides, num_per_level=(len(strides),), valid=valid)


def take_slots(targets: Targets, slots: Tensor) -> Targets:
    """Boxes, labels and what they count as of some of the slots, `(g,)` int64, of all images."""
    return Targets(
        targets.boxes[:, slots], targets.labels[:, slots], targets.valid[:, slots], targets.ignore[:, slots]
    )


def last_finder(finds: Tensor) -> Tensor:
    """Slot `(B, A)` of the last ground truth that finds a prior, -1 if none; `finds (B, G, A)` is bool."""
    order = torch.arange(1, finds.shape[1] + 1, device=finds.device)[:, None]
    return (finds * order).amax(1) - 1
