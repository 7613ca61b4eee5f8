"""Heads that predict at every place: the head predicts, a criterion trains, a post-process decodes."""

from .criterion import (
    Centreness,
    DenseCriterion,
    Objectness,
    PerImage,
    Positives,
    Samples,
    Summed,
    best_score,
    quality_target,
)
from .guided_anchoring import Guidance, GuidedAnchorHead, GuidedPostprocess, GuidedPredictions
from .head import DenseHead, PriorHead, by_prior
from .per_level import PerLevelHead
from .postprocess import DensePostprocess
from .yolo import YOLOHead

__all__ = [
    "Centreness",
    "DenseCriterion",
    "DenseHead",
    "DensePostprocess",
    "Guidance",
    "GuidedAnchorHead",
    "GuidedPostprocess",
    "GuidedPredictions",
    "Objectness",
    "PerImage",
    "PerLevelHead",
    "Positives",
    "PriorHead",
    "Samples",
    "Summed",
    "YOLOHead",
    "best_score",
    "by_prior",
    "quality_target",
]
