"""Dynamic smooth L1 (Dynamic R-CNN, arXiv:2004.06002, Sec. 4.2)."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...distributed import gather_over_ranks, world_size
from ..adaptive import AdaptiveValue, nan_median
from .regression import smooth_l1

SMALLEST_BETA = 1e-15
"""A median below this, of regions that are all ground truths, is not taken for beta."""


class DynamicSmoothL1(nn.Module):
    """Smooth L1 whose beta shrinks with the regression targets (Eq. 5, 6), so that small errors still count.

    In each step the (K_beta * B)-th smallest regression target of B images is recorded, a region's target
    being the mean of `|dx|` and `|dy|`. After every C steps beta is the median of what was recorded
    (Algorithm 1, line 9). B counts the images with positives, and both they and the targets are those of all
    ranks.

    Args:
        beta: until the first update; later ones do not exceed it.
        bottom: K_beta.
        interval: C, in steps.
        weight: of the loss.
    """

    def __init__(self, beta: float = 1.0, bottom: int = 10, interval: int = 100, weight: float = 1.0) -> None:
        super().__init__()
        self.bottom, self.weight = bottom, weight
        self.beta = AdaptiveValue(beta, interval, positive_median, highest=beta)

    def forward(self, codes: Tensor, targets: Tensor) -> Tensor:
        """Codes and targets `(..., 4)` to losses `(..., 4)`."""
        # A copy, since the backward pass needs the beta that an update in this step overwrites.
        return smooth_l1(codes, targets, self.beta.value.clone()) * self.weight

    @torch.no_grad()
    def observe(self, targets: Tensor, positive: Tensor) -> None:
        """Record one step, in training mode: code targets `(B, S, 4)`, of which `positive (B, S)` count."""
        if not self.training:
            return
        size = torch.where(positive, targets[..., :2].abs().mean(-1), math.inf).flatten()
        # The regions that can matter, as many on each rank: its smallest, filled up with infinity.
        most = self.bottom * positive.shape[0] * world_size()
        size = size.topk(min(most, size.shape[0]), largest=False).values
        size = F.pad(size, (0, most - size.shape[0]), value=math.inf)
        counts = torch.stack((positive.any(1).sum(), positive.sum())).float()
        gathered = gather_over_ranks(torch.cat((counts, size))[None])
        images, positives = gathered[:, :2].sum(0).unbind()
        place = torch.minimum(images * self.bottom, positives).long() - 1
        smallest = gathered[:, 2:].flatten().sort().values
        self.beta.record(smallest.gather(0, place.clamp(min=0)[None])[0], positives > 0)

    def statistics(self) -> dict[str, Tensor]:
        """Beta as the next step will have it."""
        return {"beta": self.beta.value.clone()}


def positive_median(values: Tensor) -> Tensor:
    """The median of the values that are not NaN; NaN where it is as good as 0."""
    median = nan_median(values)
    return torch.where(median >= SMALLEST_BETA, median, math.nan)
