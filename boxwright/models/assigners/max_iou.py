"""Assignment by the largest overlap (Faster R-CNN, arXiv:1506.01497, Sec. 3.1.2)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ...structures import Assignment, DensePredictions, Priors, Targets
from ...values import Share
from .blocks import overlap_blocks, pays
from .overlap import last_finder, prior_overlaps


@dataclass(frozen=True)
class MaxIoUAssigner:
    """Positive from `positive_iou` on, negative below `negative_iou`, ignored between them.

    Thresholds may be tensors of no dimension, so that they can change without a new graph.

    Args:
        positive_iou: rule (ii) of the paper.
        negative_iou: overlap with every ground truth below this makes a negative.
        match_low_quality: rule (i): the priors that overlap a ground truth most are its positives, too.
        min_positive_iou: rule (i) holds only from this overlap on.
        low_quality_keeps_best: a prior found by rule (i) is trained for the ground truth that it overlaps
            most (Detectron2, torchvision), not for the one that found it (the paper, MMDetection).
        low_quality_ties: rule (i) finds every prior of the same highest overlap, not the first alone (SSD;
            MMDetection's `gt_max_assign_all`).
        ignore_iof: a prior, not positive, with this share of its area in an ignored region is ignored.
    """

    positive_iou: Share | Tensor = 0.5
    negative_iou: Share | Tensor = 0.5
    match_low_quality: bool = False
    min_positive_iou: Share | Tensor = 0.0
    low_quality_keeps_best: bool = False
    low_quality_ties: bool = True
    ignore_iof: Share = 0.5

    def __call__(
        self, priors: Priors, targets: Targets, predictions: DensePredictions | None = None
    ) -> Assignment:
        """Assignment of A priors of B images; priors that are not `valid` are ignored."""
        if not pays(priors, targets):
            return self.by_overlap(*prior_overlaps(priors, targets, self.ignore_iof), priors.valid)
        blocks = overlap_blocks(priors, targets, self.ignore_iof)
        finder = blocks.last_finder(self._finds, self.low_quality_ties) if self.match_low_quality else None
        return self._assignment(blocks.best, blocks.gt_index, finder, blocks.in_ignored, priors.valid)

    def by_overlap(self, iou: Tensor, in_ignored: Tensor, valid: Tensor | None) -> Assignment:
        """Assignment by any measure of overlap.

        Args:
            iou: `(B, G, A)`, -1 where the slot holds no object or the prior is not valid.
            in_ignored: `(B, A)` bool, priors that lie in ignored regions.
            valid: `(B, A)` bool, priors that take part; None for all.
        """
        best, gt_index = iou.max(1)
        finder = None
        if self.match_low_quality:
            finder = last_finder(self._finds(iou, iou.amax(2, keepdim=True)))
        return self._assignment(best, gt_index, finder, in_ignored, valid)

    def _finds(self, iou: Tensor, most: Tensor) -> Tensor:
        """Who finds which priors by rule (i), `(B, G, A)`, given the highest overlaps `(B, G, 1)`."""
        finds = (iou == most) & (most >= self.min_positive_iou) & (most > 0)
        if not self.low_quality_ties:
            place = torch.arange(iou.shape[2], device=iou.device)
            finds = finds & (place == iou.argmax(2, keepdim=True))
        return finds

    def _assignment(
        self,
        best: Tensor,
        gt_index: Tensor,
        finder: Tensor | None,
        in_ignored: Tensor,
        valid: Tensor | None,
    ) -> Assignment:
        """The rules, given each prior's highest overlap, its ground truth, and who finds it by rule (i)."""
        positive = best >= self.positive_iou
        negative = best < self.negative_iou
        if finder is not None:
            found = finder >= 0
            if not self.low_quality_keeps_best:
                gt_index = torch.where(found, finder, gt_index)  # as in MMDetection
            positive = positive | found
        ignore = ~positive & (~negative | in_ignored)
        if valid is not None:
            ignore = ignore | ~valid
        return Assignment(gt_index, positive, ignore, overlap=best)
