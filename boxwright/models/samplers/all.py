"""Train every prior that is not ignored (RetinaNet and other heads with a balanced loss)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from ...structures import Assignment, Priors
from ..targets import Sample


@dataclass(frozen=True)
class AllSampler:
    """Every prior, in its own slot."""

    def __call__(
        self,
        assignment: Assignment,
        losses: Callable[[], Tensor] | None = None,
        priors: Priors | None = None,
    ) -> Sample:
        """Sample with S = A."""
        a = assignment
        return Sample(None, a.gt_index, a.positive, a.negative, a.score)
