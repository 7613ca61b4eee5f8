"""A share of positives and of negatives, those of the highest priority: what samplers have in common."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ...structures import Assignment
from ..targets import Sample, gather_slots


@dataclass(frozen=True)
class ShareSampler:
    """Up to `number` priors an image, at most `positive_share` of them positive.

    What positives do not fill, negatives do. Shapes are fixed and nothing waits for a count. Positives come
    first in the slots. A subclass says by `__call__` what the priority is.

    Args:
        number: slots an image.
        positive_share: largest share of positives.
        negatives_per_positive: at most this many negatives for each positive (for one, if there are none);
            None for no bound. MMDetection's `neg_pos_ub`.
    """

    number: int
    positive_share: float
    negatives_per_positive: float | None = None

    def max_positives(self, num_priors: int) -> int:
        """The first slots that can hold positives."""
        return min(int(self.number * self.positive_share), num_priors)

    def by_priority(self, assignment: Assignment, priority: Tensor) -> Sample:
        """Sample of those with the highest priority `(B, A)`; S is `number`, or A if there are fewer."""
        num_priors = priority.shape[1]
        slots = min(self.number, num_priors)
        positives, is_positive = highest(priority, assignment.positive, self.max_positives(num_priors))
        negatives, is_negative = highest(priority, assignment.negative, slots)
        count = is_positive.sum(1, keepdim=True)
        quota = slots - count
        if self.negatives_per_positive is not None:
            quota = torch.minimum(quota, (count.clamp(min=1) * self.negatives_per_positive).long())
        is_negative = is_negative & (torch.arange(slots, device=quota.device) < quota)
        index = torch.cat((positives, negatives), dim=1)
        return chosen(assignment, index, torch.cat((is_positive, is_negative), dim=1), slots)


def highest(priority: Tensor, eligible: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Indices `(B, count)` of the eligible entries with the highest priority, and which of them exist."""
    index = torch.where(eligible, priority, -torch.inf).topk(count, dim=1).indices
    return index, eligible.gather(1, index)


def chosen(assignment: Assignment, index: Tensor, filled: Tensor, slots: int) -> Sample:
    """Sample of the priors `index (B, N)` that are `filled (B, N)`, in `slots` slots, positives first."""
    positive = assignment.positive.gather(1, index) & filled
    order = positive.byte() + filled.byte()
    first = torch.sort(order, dim=1, descending=True, stable=True).indices[:, :slots]
    index, filled, positive = (values.gather(1, first) for values in (index, filled, positive))
    score = None if assignment.score is None else gather_slots(assignment.score, index)
    return Sample(index, assignment.gt_index.gather(1, index), positive, filled & ~positive, score)
