"""Adaptive assignment by the statistics of the nearest priors (ATSS, arXiv:1912.02424, Sec. 4.1, Alg. 1)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ...ops.boxes import centres
from ...structures import Assignment, DensePredictions, Priors, Targets
from ..targets import gather_slots
from .overlap import prior_overlaps

MARGIN = 0.01
"""How far inside its box a positive's centre must lie, px; the authors' code has the same."""


@dataclass(frozen=True)
class ATSSAssigner:
    """Positive from the mean plus the deviation of the nearest candidates' IoU on.

    Args:
        topk: candidates of each ground truth on each level, those whose centres are nearest.
        ignore_iof: a prior, not positive, with this share of its area in an ignored region is ignored.

    A level with fewer than `topk` priors offers all of them. The deviation is that of a sample (divisor
    n - 1), as in the authors' code, and 0 of a single candidate. Of several ground truths that choose a
    prior, it is trained for the one that it overlaps most.
    """

    topk: int = 9
    ignore_iof: float = 0.5

    def __call__(
        self, priors: Priors, targets: Targets, predictions: DensePredictions | None = None
    ) -> Assignment:
        """Assignment of A priors of B images; priors that are not `valid` are ignored."""
        boxes = priors.boxes.expand(len(targets.boxes), -1, -1)
        overlap, in_ignored = prior_overlaps(priors, targets, self.ignore_iof)  # (B, G, A)
        candidate = self._nearest(priors, targets)  # (B, G, K)
        of_candidate = gather_slots(boxes, candidate.flatten(1)).unflatten(1, candidate.shape[1:])
        at_candidate = overlap.gather(2, candidate)
        counts = at_candidate >= 0  # ground truth and prior are valid
        chosen = counts & (at_candidate >= _threshold(at_candidate, counts))  # lines 7 to 10
        chosen = chosen & _centre_inside(of_candidate, targets.boxes[:, :, None])  # lines 11 to 15
        of_chosen = torch.where(chosen, at_candidate, -1.0)
        best, gt_index = torch.full_like(overlap, -1.0).scatter(2, candidate, of_chosen).max(1)
        positive = best >= 0
        ignore = in_ignored if priors.valid is None else in_ignored | ~priors.valid
        return Assignment(gt_index, positive, ignore & ~positive)

    def _nearest(self, priors: Priors, targets: Targets) -> Tensor:
        """`(B, G, K)` which priors are candidates of each ground truth, level by level (lines 3 to 6)."""
        x, y = centres(priors.boxes)[..., None, :, :].unbind(-1)
        gt_x, gt_y = centres(targets.boxes)[..., None, :].unbind(-1)
        dx, dy = x - gt_x, y - gt_y
        distance = dx * dx + dy * dy  # (B, G, A)
        if priors.valid is not None:
            distance = torch.where(priors.valid[:, None], distance, torch.inf)
        nearest, start = [], 0
        for count in priors.num_per_level:
            part = distance[..., start : start + count]
            nearest.append(part.topk(min(self.topk, count), dim=-1, largest=False).indices + start)
            start += count
        return torch.cat(nearest, dim=-1)


def _threshold(overlap: Tensor, counts: Tensor) -> Tensor:
    """Mean plus deviation over the last dimension of the entries that count, which remains with size 1."""
    number = counts.sum(-1, keepdim=True)
    mean = (overlap * counts).sum(-1, keepdim=True) / number.clamp(min=1)
    variance = ((overlap - mean).square() * counts).sum(-1, keepdim=True) / (number - 1).clamp(min=1)
    return mean + variance.sqrt()


def _centre_inside(boxes: Tensor, truth: Tensor) -> Tensor:
    """Whether the centres of boxes `(..., 4)` lie inside the others."""
    centre = centres(boxes)
    return torch.cat((centre - truth[..., :2], truth[..., 2:] - centre), dim=-1).amin(-1) > MARGIN
