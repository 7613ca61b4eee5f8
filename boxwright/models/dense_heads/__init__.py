"""Heads that predict at every place: the head predicts, a criterion trains, a post-process decodes."""

from .criterion import Centreness, DenseCriterion, PerImage, Positives, Samples, quality_target
from .head import DenseHead, PriorHead, by_prior
from .postprocess import DensePostprocess

__all__ = [
    "Centreness",
    "DenseCriterion",
    "DenseHead",
    "DensePostprocess",
    "PerImage",
    "Positives",
    "PriorHead",
    "Samples",
    "by_prior",
    "quality_target",
]
