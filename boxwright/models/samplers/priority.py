"""A share of positives and of negatives, those of the highest priority: what samplers have in common."""

from __future__ import annotations

import torch
from torch import Tensor

from ...structures import Assignment
from ..targets import Sample, gather_slots


def max_positives(number: int, positive_share: float, num_priors: int) -> int:
    """The first slots that can hold positives."""
    return min(int(number * positive_share), num_priors)


def sample_by_priority(
    assignment: Assignment,
    priority: Tensor,
    number: int,
    positive_share: float,
    negatives_per_positive: float | None = None,
) -> Sample:
    """Up to `number` priors an image, at most `positive_share` of them positive.

    What positives do not fill, negatives do. Shapes are fixed and nothing waits for a count. Positives come
    first in the slots.

    Args:
        assignment: of A priors.
        priority: `(B, A)`, the highest are taken.
        number: slots an image.
        positive_share: largest share of positives.
        negatives_per_positive: at most this many negatives for each positive (for one, if there are none);
            None for no bound.

    Returns:
        Sample with S = `number`, or A if there are fewer priors.
    """
    a, num_priors = assignment, assignment.positive.shape[1]
    most = max_positives(number, positive_share, num_priors)
    positives, is_positive = highest(priority, a.positive, most)
    slots = min(number, num_priors)
    negatives, is_negative = highest(priority, a.negative, slots)
    count = is_positive.sum(1, keepdim=True)
    quota = slots - count
    if negatives_per_positive is not None:
        quota = torch.minimum(quota, (count.clamp(min=1) * negatives_per_positive).long())
    is_negative = is_negative & (torch.arange(slots, device=quota.device) < quota)
    index = torch.cat((positives, negatives), dim=1)
    return chosen(a, index, torch.cat((is_positive, is_negative), dim=1), slots)


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
