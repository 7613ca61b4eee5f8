"""Measuring detectors: COCO and VOC precision and recall, curves, confusion, and the loop over the data."""

from .coco import CocoEvaluator, Evaluation, evaluate_results, proposal_recall
from .collect import ResultCollector
from .curves import (
    ConfusionMatrix,
    Curve,
    ImageScore,
    best_threshold,
    confusion_matrix,
    image_scores,
    precision_recall,
)
from .files import read_evaluation, write_evaluation
from .loop import Evaluator, evaluate
from .results import check_ground_truth, check_results, read_results
from .voc import VocEvaluator, voc_average_precision

__all__ = [
    "CocoEvaluator",
    "ConfusionMatrix",
    "Curve",
    "Evaluation",
    "Evaluator",
    "ImageScore",
    "ResultCollector",
    "VocEvaluator",
    "best_threshold",
    "check_ground_truth",
    "check_results",
    "confusion_matrix",
    "evaluate",
    "evaluate_results",
    "image_scores",
    "precision_recall",
    "proposal_recall",
    "read_evaluation",
    "read_results",
    "voc_average_precision",
    "write_evaluation",
]
