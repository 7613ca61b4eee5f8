"""Losses: functions of prediction and target that give one value per element, never a mean."""

from .box import BoundedIoULoss, GIoULoss, IoULoss
from .classification import BinaryCrossEntropy, CrossEntropy, FocalLoss
from .regression import BalancedL1, GridCodeLoss, SmoothL1

__all__ = [
    "BalancedL1",
    "BinaryCrossEntropy",
    "BoundedIoULoss",
    "CrossEntropy",
    "FocalLoss",
    "GIoULoss",
    "GridCodeLoss",
    "IoULoss",
    "SmoothL1",
]
