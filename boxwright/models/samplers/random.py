"""Random sampling with a share of positives (Fast R-CNN, arXiv:1504.08083, Sec. 2.3)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ...structures import Assignment
from ..targets import Sample, gather_slots


@dataclass(frozen=True)
class RandomSampler:
    """Up to `number` priors an image, at most `positive_share` of them positive.

    What positives do not fill, negatives do. Chosen are the largest of random priorities, so shapes are
    fixed and nothing waits for a count. Positives come first in the slots.

    Args:
        number: slots an image.
        positive_share: largest share of positives.
        negatives_per_positive: at most this many negatives for each positive (for one, if there are none);
            None for no bound. MMDetection's `neg_pos_ub`.
    """

    number: int = 256
    positive_share: float = 0.5
    negatives_per_positive: float | None = None

    def max_positives(self, num_priors: int) -> int:
        """The first slots that can hold positives."""
        return min(int(self.number * self.positive_share), num_priors)

    def __call__(self, assignment: Assignment, losses: Callable[[], Tensor] | None = None) -> Sample:
        """Sample with S = `number`, or A if there are fewer priors."""
        a, num_priors = assignment, assignment.positive.shape[1]
        priority = torch.rand(a.positive.shape, device=a.positive.device)
        positives, is_positive = _highest(priority, a.positive, self.max_positives(num_priors))
        slots = min(self.number, num_priors)
        negatives, is_negative = _highest(priority, a.negative, slots)
        count = is_positive.sum(1, keepdim=True)
        quota = slots - count
        if self.negatives_per_positive is not None:
            quota = torch.minimum(quota, (count.clamp(min=1) * self.negatives_per_positive).long())
        is_negative = is_negative & (torch.arange(slots, device=quota.device) < quota)
        index = torch.cat((positives, negatives), dim=1)
        filled = torch.cat((is_positive, is_negative), dim=1)
        first = torch.sort(filled.byte(), dim=1, descending=True, stable=True).indices[:, :slots]
        index, filled = index.gather(1, first), filled.gather(1, first)
        positive = a.positive.gather(1, index) & filled
        score = None if a.score is None else gather_slots(a.score, index)
        return Sample(index, a.gt_index.gather(1, index), positive, filled & ~positive, score)


def _highest(priority: Tensor, eligible: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Indices `(B, count)` of the eligible entries with the highest priority, and which of them exist."""
    value, index = torch.where(eligible, priority, -1.0).topk(count, dim=1)
    return index, value >= 0
