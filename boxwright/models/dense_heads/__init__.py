"""Heads that predict at every place: the head predicts, a criterion trains, a post-process decodes."""

from .criterion import Centreness, DenseCriterion, PerImage, Positives, Samples
from .head import DenseHead
from .postprocess import DensePostprocess

__all__ = [
    "Centreness",
    "DenseCriterion",
    "DenseHead",
    "DensePostprocess",
    "PerImage",
    "Positives",
    "Samples",
]
