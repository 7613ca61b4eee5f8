"""The two losses of GFL (Li et al., Generalized Focal Loss, arXiv:2006.04388, Sec. 3)."""

from __future__ import annotations

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor

from .classification import SigmoidLoss, at_label
from .towards_no import towards_no


@dataclass(frozen=True)
class QualityFocalLoss(SigmoidLoss):
    """Cross entropy towards a score in 0..1, weighted by the distance from it (Eq. 2), summed over classes.

    The score is that of the label, such as the IoU of the predicted box; all other classes have 0.

    Args:
        weight: of the loss.
        beta: how strongly scores that are nearly right are weighed down.
    """

    beta: float = 2.0

    def __call__(self, logits: Tensor, labels: Tensor, scores: Tensor) -> Tensor:
        """Logits `(..., C)`, labels `(...)`, scores `(...)` in 0..1 to losses `(...)`.

        As in `FocalLoss`, the form towards 0 is summed over all classes and exchanged at the label.
        """
        costs, label_logits = towards_no(logits, labels, self.beta)
        exchanged = self._towards(label_logits, scores) - self._towards(label_logits, 0.0)
        return (costs + exchanged) * self.weight

    def _towards(self, logits: Tensor, scores: Tensor | float) -> Tensor:
        distance = (logits.sigmoid() - scores).abs()
        return distance.pow(self.beta) * (F.softplus(logits) - scores * logits)


@dataclass(frozen=True)
class DistributionFocalLoss:
    """Cross entropy of a side's distribution at the two whole distances around its target (Eq. 6).

    Each side counts a quarter, so the sum over the sides is the paper's mean over four directions.

    Args:
        weight: of that mean; the paper's lambda_1.
    """

    weight: float = 0.25

    def __call__(self, codes: Tensor, targets: Tensor) -> Tensor:
        """Codes `(..., 4 * (n + 1))` and targets `(..., 4)` in 0 <= target < n to losses `(..., 4)`."""
        logarithms = codes.float().unflatten(-1, (4, -1)).log_softmax(-1)
        below = targets.floor()
        share_above = targets - below
        index = below.long()
        at_below, at_above = at_label(logarithms, index), at_label(logarithms, index + 1)
        return -((1 - share_above) * at_below + share_above * at_above) * (self.weight / 4)
