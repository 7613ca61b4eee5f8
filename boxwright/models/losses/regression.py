"""Losses on box codes, one value for each number of a code."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor


def smooth_l1(codes: Tensor, targets: Tensor, beta: float | Tensor) -> Tensor:
    """Quadratic below a positive `beta`, linear above: codes and targets `(..., 4)` to losses `(..., 4)`."""
    distance = (codes.float() - targets).abs()
    return torch.where(distance < beta, 0.5 * distance * distance / beta, distance - 0.5 * beta)


@dataclass(frozen=True)
class SmoothL1:
    """Quadratic below `beta`, linear above (Fast R-CNN, arXiv:1504.08083, Eq. 3).

    Args:
        beta: the paper has 1; 0 is L1.
        weight: of the loss.
    """

    beta: float = 1.0
    weight: float = 1.0

    def __call__(self, codes: Tensor, targets: Tensor) -> Tensor:
        """Codes and targets `(..., 4)` to losses `(..., 4)`."""
        if self.beta > 0:
            return smooth_l1(codes, targets, self.beta) * self.weight
        return (codes.float() - targets).abs() * self.weight


@dataclass(frozen=True)
class BalancedL1:
    """Balanced L1 loss: more gradient from accurate samples (Libra R-CNN, arXiv:1904.02701, Eq. 6-9).

    Args:
        alpha: smaller gives more gradient to inliers.
        gamma: upper bound of the gradient.
        beta: distance at which inliers end.
        weight: of the loss.
    """

    alpha: float = 0.5
    gamma: float = 1.5
    beta: float = 1.0
    weight: float = 1.0

    def __call__(self, codes: Tensor, targets: Tensor) -> Tensor:
        """Codes and targets `(..., 4)` to losses `(..., 4)`."""
        distance = (codes.float() - targets).abs()
        b = math.exp(self.gamma / self.alpha) - 1
        inlier = (
            self.alpha / b * (b * distance + 1) * (b * distance / self.beta + 1).log() - self.alpha * distance
        )
        outlier = self.gamma * distance + self.gamma / b - self.alpha * self.beta
        return torch.where(distance < self.beta, inlier, outlier) * self.weight


@dataclass(frozen=True)
class GridCodeLoss:
    """Binary cross entropy of a place within a cell and squared error of a log size, for `GridCoder`'s codes.

    YOLOv3 (arXiv:1804.02767, Sec. 2.1) has squared errors for both; MMDetection, whose weights these are,
    takes the place as a probability.

    Args:
        place_weight: of the two numbers of the centre.
        size_weight: of the two numbers of the size.
    """

    place_weight: float = 2.0
    size_weight: float = 2.0

    def __call__(self, codes: Tensor, targets: Tensor) -> Tensor:
        """Raw codes and targets `(..., 4)` to losses `(..., 4)`."""
        place, size = codes.float().split(2, dim=-1)
        target_place, target_size = targets.split(2, dim=-1)
        place_loss = F.binary_cross_entropy_with_logits(place, target_place, reduction="none")
        size_loss = (size - target_size).square()
        return torch.cat((place_loss * self.place_weight, size_loss * self.size_weight), dim=-1)
