"""Online hard example mining (OHEM, arXiv:1604.03540): train what the network does worst on now."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ...ops.nms import nms
from ...structures import Assignment, Priors
from ...values import Count, Share
from ..targets import Sample
from .priority import ShareSampler, chosen, highest


@dataclass(frozen=True)
class OHEMSampler(ShareSampler):
    """The positives and the negatives of the highest loss, by a share as in `RandomSampler`.

    MMDetection's form of the method, which keeps the share of positives that the paper does without; for the
    paper's see `HardestSampler`.

    Args:
        number: slots an image.
        positive_share: largest share of positives; what they do not fill, negatives do.
        negatives_per_positive: see `ShareSampler`.
    """

    number: Count = 512
    positive_share: Share = 0.25

    def __call__(
        self,
        assignment: Assignment,
        losses: Callable[[], Tensor] | None = None,
        priors: Priors | None = None,
    ) -> Sample:
        """Sample with S = `number`, or A if there are fewer priors.

        Raises:
            ValueError: there are no losses to rank by.
        """
        if losses is None:
            raise ValueError("OHEMSampler ranks by loss, and this criterion gives none")
        return self.by_priority(assignment, losses())


@dataclass(frozen=True)
class HardestSampler:
    """The priors of the highest loss, whether positive or negative, none of them like another (Sec. 4.1).

    Of regions that overlap much the losses are alike, so they would be counted several times: before the
    hardest are taken, duplicates are removed by greedy suppression with the loss as the score. Positives
    come first in the slots.

    Args:
        number: slots an image; the paper has 64 (128 for two images).
        duplicate_iou: a prior that overlaps one of higher loss more than this is left out; the paper has 0.7.
            None leaves none out (R-FCN, arXiv:1605.06409, Sec. 2).
    """

    number: Count = 64
    duplicate_iou: float | None = 0.7

    def max_positives(self, num_priors: int) -> int:
        """The first slots that can hold positives: all of them."""
        return min(self.number, num_priors)

    def __call__(
        self,
        assignment: Assignment,
        losses: Callable[[], Tensor] | None = None,
        priors: Priors | None = None,
    ) -> Sample:
        """Sample with S = `number`, or A if there are fewer priors.

        Raises:
            ValueError: there are no losses to rank by, or no priors to compare.
        """
        if losses is None or priors is None:
            raise ValueError("HardestSampler ranks priors by loss, and this criterion gives none")
        eligible, loss = ~assignment.ignore, losses()
        slots = self.max_positives(loss.shape[1])
        if self.duplicate_iou is None:
            return chosen(assignment, *highest(loss, eligible, slots), slots)
        boxes = priors.boxes.expand(*loss.shape, 4)
        one_group = torch.zeros_like(assignment.gt_index)
        return chosen(assignment, *nms(boxes, loss, one_group, eligible, self.duplicate_iou, slots), slots)
