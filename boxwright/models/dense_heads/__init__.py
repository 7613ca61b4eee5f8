"""Heads that predict at every place: the head predicts, a criterion trains, a post-process decodes."""

from .criterion import (
    Centreness,
    DenseCriterion,
    Objectness,
    PerImage,
    Positives,
    Samples,
    Summed,
    quality_target,
)
from .head import DenseHead, PriorHead, by_prior
from .postprocess import DensePostprocess
from .yolo import YOLOHead

__all__ = [
    "Centreness",
    "DenseCriterion",
    "DenseHead",
    "DensePostprocess",
    "Objectness",
    "PerImage",
    "Positives",
    "PriorHead",
    "Samples",
    "Summed",
    "YOLOHead",
    "by_prior",
    "quality_target",
]
