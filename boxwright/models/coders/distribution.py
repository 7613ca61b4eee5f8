"""Distances to the sides as distributions over whole strides (GFL, arXiv:2006.04388, Sec. 3)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .distance import DistanceCoder

MARGIN = 0.1
"""Targets stay this far below the last value, so that there is one on either side of each; in strides."""


def _as_they_are(distances: Tensor) -> Tensor:
    return distances


_DISTANCES = DistanceCoder(activation=_as_they_are, in_strides=True)


@dataclass(frozen=True)
class DistributionCoder:
    """`left, top, right, bottom` from the prior's centre in strides, each the mean of a distribution.

    A code holds `last + 1` logits for the left side, then as many for the top, the right and the bottom:
    those of the distances 0, 1, ..., `last` (the paper's n).

    Args:
        last: the largest distance, in strides.
    """

    last: int = 16

    @property
    def size(self) -> int:
        """Numbers in a code."""
        return 4 * (self.last + 1)

    def encode(self, boxes: Tensor, priors: Tensor, strides: Tensor) -> Tensor:
        """Distances `(..., 4)` in strides, what the means should become; held within 0 and `last` - 0.1."""
        return _DISTANCES.encode(boxes, priors, strides).clamp(0, self.last - MARGIN)

    def decode(self, codes: Tensor, priors: Tensor, strides: Tensor) -> Tensor:
        """Boxes `(..., 4)` of codes `(..., size)`, in float32."""
        return _DISTANCES.decode(self.distances(codes), priors, strides)

    def distances(self, codes: Tensor) -> Tensor:
        """Means `(..., 4)` of the distributions of codes `(..., size)`, in strides (Eq. 5)."""
        probabilities = codes.float().unflatten(-1, (4, self.last + 1)).softmax(-1)
        values = torch.arange(self.last + 1, dtype=torch.float32, device=codes.device)
        return (probabilities * values).sum(-1)
