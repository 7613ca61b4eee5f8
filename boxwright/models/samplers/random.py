"""Random sampling with a share of positives (Fast R-CNN, arXiv:1504.08083, Sec. 2.3)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ...structures import Assignment, Priors
from ..targets import Sample
from .priority import max_positives, sample_by_priority


@dataclass(frozen=True)
class RandomSampler:
    """Up to `number` priors an image, at most `positive_share` of them positive.

    What positives do not fill, negatives do. Chosen are the largest of random priorities. Positives come
    first in the slots.

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
        return max_positives(self.number, self.positive_share, num_priors)

    def __call__(
        self,
        assignment: Assignment,
        losses: Callable[[], Tensor] | None = None,
        priors: Priors | None = None,
    ) -> Sample:
        """Sample with S = `number`, or A if there are fewer priors."""
        priority = torch.rand(assignment.positive.shape, device=assignment.positive.device)
        return sample_by_priority(
            assignment, priority, self.number, self.positive_share, self.negatives_per_positive
        )
