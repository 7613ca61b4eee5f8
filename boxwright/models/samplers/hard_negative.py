"""Hard negative mining (SSD, arXiv:1512.02325, Sec. 2.2)."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ...structures import Assignment, Priors
from ..targets import Sample


@dataclass(frozen=True)
class HardNegativeSampler:
    """All positives of an image, and of its negatives those of the highest class loss.

    Every prior keeps its slot, so shapes do not depend on how many are taken.

    Args:
        negatives_per_positive: at most this many negatives for each positive, or for one in an image without
            positives, which so trains, too.
    """

    negatives_per_positive: float = 3.0

    def __call__(
        self,
        assignment: Assignment,
        losses: Callable[[], Tensor] | None = None,
        priors: Priors | None = None,
    ) -> Sample:
        """Sample with S = A; of equal losses the earlier prior is taken.

        Raises:
            ValueError: no losses to rank by.
        """
        if losses is None:
            raise ValueError("HardNegativeSampler ranks by loss; the criterion has to give the class losses")
        a = assignment
        hardness = torch.where(a.negative, losses().detach().float(), -math.inf)
        order = hardness.argsort(dim=1, descending=True, stable=True)
        place = torch.arange(order.shape[1], device=order.device).expand_as(order)
        rank = torch.empty_like(order).scatter(1, order, place)
        quota = (a.positive.sum(1, keepdim=True).clamp(min=1) * self.negatives_per_positive).long()
        return Sample(None, a.gt_index, a.positive, a.negative & (rank < quota), a.score)
