"""Losses: functions of prediction and target that give one value per element, never a mean."""

from .box import BoundedIoULoss, CIoULoss, DIoULoss, GIoULoss, IoULoss
from .classification import BinaryCrossEntropy, CrossEntropy, FocalLoss
from .dynamic import DynamicSmoothL1
from .gfl import DistributionFocalLoss, QualityFocalLoss
from .regression import BalancedL1, GridCodeLoss, SmoothL1

__all__ = [
    "BalancedL1",
    "BinaryCrossEntropy",
    "BoundedIoULoss",
    "CIoULoss",
    "CrossEntropy",
    "DIoULoss",
    "DistributionFocalLoss",
    "DynamicSmoothL1",
    "FocalLoss",
    "GIoULoss",
    "GridCodeLoss",
    "IoULoss",
    "QualityFocalLoss",
    "SmoothL1",
]
