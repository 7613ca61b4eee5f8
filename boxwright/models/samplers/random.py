"""Random sampling with a share of positives (Fast R-CNN, arXiv:1504.08083, Sec. 2.3)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ...structures import Assignment, Priors
from ...values import Count, Share
from ..targets import Sample
from .priority import ShareSampler


@dataclass(frozen=True)
class RandomSampler(ShareSampler):
    """Positives and negatives by chance: those of the largest of random priorities.

    Args:
        number: slots an image.
        positive_share: largest share of positives; what they do not fill, negatives do.
        negatives_per_positive: see `ShareSampler`.
    """

    number: Count = 256
    positive_share: Share = 0.5

    def __call__(
        self,
        assignment: Assignment,
        losses: Callable[[], Tensor] | None = None,
        priors: Priors | None = None,
    ) -> Sample:
        """Sample with S = `number`, or A if there are fewer priors."""
        shape, device = assignment.positive.shape, assignment.positive.device
        return self.by_priority(assignment, torch.rand(shape, device=device))
