"""Class losses. A target is a label and a score: the score is 0 where there is no object.

Each loss also says how many columns of logits it wants and how they become scores, so that training
and prediction cannot disagree and a head need not know whether its classifier is a softmax.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from .towards_no import towards_no


@dataclass(frozen=True)
class SigmoidLoss:
    """One independent yes or no for each class.

    Args:
        weight: of the loss.
    """

    weight: float = 1.0

    def columns(self, num_classes: int) -> int:
        """Logits a prior has."""
        return num_classes

    def scores(self, logits: Tensor) -> Tensor:
        """`(..., C)` logits to `(..., C)` scores."""
        return logits.float().sigmoid()

    def best(self, logits: Tensor) -> Tensor:
        """`(..., C)` logits to the highest score `(...)`."""
        return self.scores(logits.amax(-1))


@dataclass(frozen=True)
class BinaryCrossEntropy(SigmoidLoss):
    """Binary cross entropy of each class, summed over the classes.

    Args:
        weight: of the loss.
    """

    def __call__(self, logits: Tensor, labels: Tensor, scores: Tensor) -> Tensor:
        """Logits `(..., C)`, labels `(...)`, scores `(...)` in 0..1 to losses `(...)`."""
        # -log(1-p) for every class, and -score*log(p/(1-p)) more at the label.
        costs, label_logits = towards_no(logits, labels, 0.0)
        return (costs - scores * label_logits) * self.weight


@dataclass(frozen=True)
class FocalLoss(SigmoidLoss):
    """Focal loss (arXiv:1708.02002, Eq. 5), summed over the classes.

    Args:
        weight: of the loss.
        alpha: weight of positives; negatives have `1 - alpha`.
        gamma: how strongly easy examples are weighed down.
    """

    alpha: float = 0.25
    gamma: float = 2.0

    def __call__(self, logits: Tensor, labels: Tensor, scores: Tensor) -> Tensor:
        """Logits `(..., C)`, labels `(...)`, scores `(...)` of 0 or 1 to losses `(...)`.

        The negative form is summed over all classes and exchanged for the positive one at the label,
        so no one-hot target of the logits' size is made.
        """
        costs, label_logits = towards_no(logits, labels, self.gamma)
        exchanged = self._positive(label_logits) - self._negative(label_logits)
        return ((1 - self.alpha) * costs + torch.where(scores > 0, exchanged, 0.0)) * self.weight

    def _negative(self, logits: Tensor) -> Tensor:
        return (1 - self.alpha) * logits.sigmoid().pow(self.gamma) * F.softplus(logits)

    def _positive(self, logits: Tensor) -> Tensor:
        return self.alpha * (-logits).sigmoid().pow(self.gamma) * F.softplus(-logits)


@dataclass(frozen=True)
class CrossEntropy:
    """Softmax over the classes and the background, which is the last column (arXiv:1504.08083, Eq. 1).

    Args:
        weight: of the loss.
    """

    weight: float = 1.0

    def columns(self, num_classes: int) -> int:
        """Logits a prior has: one more, for the background."""
        return num_classes + 1

    def scores(self, logits: Tensor) -> Tensor:
        """`(..., C + 1)` logits to `(..., C)` scores."""
        return logits.float().softmax(-1)[..., :-1]

    def best(self, logits: Tensor) -> Tensor:
        """`(..., C + 1)` logits to the highest score `(...)`."""
        return self.scores(logits).amax(-1)

    def __call__(self, logits: Tensor, labels: Tensor, scores: Tensor) -> Tensor:
        """Logits `(..., C + 1)`, labels `(...)`, scores `(...)` of 0 or 1 to losses `(...)`."""
        column = torch.where(scores > 0, labels, logits.shape[-1] - 1)
        return -at_label(logits.float().log_softmax(-1), column) * self.weight


def at_label(values: Tensor, index: Tensor) -> Tensor:
    """The entry `(...)` of values `(..., C)` at each index `(...)`."""
    return values.gather(-1, index[..., None])[..., 0]
