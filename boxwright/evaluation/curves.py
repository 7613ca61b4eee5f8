"""What stands behind one number: precision-recall curves, the confusion matrix, the score of each image."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..errors import ConfigError
from .coco import Evaluation
from .matching import pair_images
from .results import Record

BACKGROUND = "background"


@dataclass(frozen=True)
class Curve:
    """Precision over recall of one class at one overlap, at the 101 recalls that COCO's AP is the mean of.

    Args:
        name: of the class.
        overlap: IoU threshold.
        recall: `(101,)` 0, 0.01, ... 1.
        precision: `(101,)`, never rising; 0 beyond the recall that is reached.
        scores: `(101,)` score down to which detections must be kept to reach each recall.
        average_precision: mean of `precision`.
        best_f1: largest harmonic mean of precision and recall on the curve.
        best_score: score threshold that gives it.
    """

    name: str
    overlap: float
    recall: np.ndarray
    precision: np.ndarray
    scores: np.ndarray
    average_precision: float
    best_f1: float
    best_score: float


@dataclass(frozen=True)
class ConfusionMatrix:
    """How often an object of one class (row) was found as another (column).

    Args:
        counts: `(C + 1, C + 1)` int64. The last column counts missed objects, the last row false alarms.
        names: C class names and "background".
        score: detections below it were left out.
        overlap: IoU from which a detection and an object are a pair.
    """

    counts: np.ndarray
    names: tuple[str, ...]
    score: float
    overlap: float


@dataclass(frozen=True)
class ImageScore:
    """How well one image was solved: right detections, false alarms and wrong classes, missed objects, F1.

    F1 is 1 for an image without objects and without detections.
    """

    image_id: int
    right: int
    wrong: int
    missed: int

    @property
    def f1(self) -> float:
        """2 right / (2 right + wrong + missed)."""
        total = 2 * self.right + self.wrong + self.missed
        return 2 * self.right / total if total else 1.0


def precision_recall(evaluation: Evaluation, overlap: float = 0.5) -> list[Curve]:
    """The curve of each class that has ground truth.

    Args:
        evaluation: from `evaluate_results` or `CocoEvaluator.evaluations`.
        overlap: one of 0.50, 0.55, ... 0.95.

    Raises:
        ConfigError: the overlap was not measured.
    """
    (rows,) = np.nonzero(np.isclose(evaluation.overlaps, overlap))
    if not len(rows):
        raise ConfigError(
            f"no curve at overlap {overlap}; measured are {np.round(evaluation.overlaps, 2).tolist()}"
        )
    precision, scores = evaluation.precision[rows[0]], evaluation.scores[rows[0]]
    recall = np.linspace(0.0, 1.0, len(precision))
    curves = []
    for k, name in enumerate(evaluation.names):
        if precision[0, k] < 0:  # no ground truth of this class
            continue
        p = precision[:, k]
        f1 = 2 * p * recall / np.maximum(p + recall, 1e-12)
        best = int(f1.argmax())
        curve = Curve(
            name, overlap, recall, p, scores[:, k], float(p.mean()), float(f1[best]), float(scores[best, k])
        )
        curves.append(curve)
    return curves


def best_threshold(curves: Sequence[Curve], default: float = 0.5) -> float:
    """The score threshold with the largest mean F1 over the classes; `default` where nothing was found."""
    candidates = np.unique(np.concatenate([c.scores[c.precision > 0] for c in curves] or [np.zeros(0)]))
    if not len(candidates):
        return default
    total = np.zeros(len(candidates))
    for curve in curves:
        reached = curve.precision > 0
        # Scores fall along the curve: how many of its points lie at or above each candidate.
        points = np.searchsorted(-curve.scores[reached], -candidates, side="right")
        f1 = 2 * curve.precision * curve.recall / np.maximum(curve.precision + curve.recall, 1e-12)
        total += np.concatenate([[0.0], f1[reached]])[points]
    return float(candidates[total.argmax()])


def confusion_matrix(
    ground_truth: Mapping[str, Any], results: Sequence[Record], score: float = 0.5, overlap: float = 0.5
) -> ConfusionMatrix:
    """Count which class objects were found as; a region to be ignored swallows the false alarms in it.

    Args:
        ground_truth: COCO data set.
        results: COCO result records with boxes.
        score: lowest score that counts.
        overlap: IoU from which a detection and an object are a pair; each is used once, best overlap first.
    """
    categories = sorted(ground_truth["categories"], key=lambda category: category["id"])
    index = {category["id"]: k for k, category in enumerate(categories)}
    counts = np.zeros((len(categories) + 1, len(categories) + 1), dtype=np.int64)
    for image in pair_images(ground_truth, results, score, overlap).values():
        for i, j in image.pairs:
            counts[index[image.objects[j]["category_id"]], index[image.found[i]["category_id"]]] += 1
        paired_found, paired_objects = {i for i, _ in image.pairs}, {j for _, j in image.pairs}
        for i, record in enumerate(image.found):
            if i not in paired_found and not image.ignored[i]:
                counts[-1, index[record["category_id"]]] += 1
        for j, annotation in enumerate(image.objects):
            if j not in paired_objects:
                counts[index[annotation["category_id"]], -1] += 1
    names = tuple(str(category.get("name", category["id"])) for category in categories)
    return ConfusionMatrix(counts, (*names, BACKGROUND), score, overlap)


def image_scores(
    ground_truth: Mapping[str, Any], results: Sequence[Record], score: float = 0.5, overlap: float = 0.5
) -> list[ImageScore]:
    """Score of each image of the ground truth, worst first (among equals: more mistakes, then lower id)."""
    scores = []
    for image_id, image in pair_images(ground_truth, results, score, overlap).items():
        pairs = [(image.found[i]["category_id"], image.objects[j]["category_id"]) for i, j in image.pairs]
        right = sum(one == other for one, other in pairs)
        wrong = len(image.found) - int(image.ignored.sum()) - right
        scores.append(ImageScore(image_id, right, wrong, len(image.objects) - right))
    return sorted(scores, key=lambda s: (s.f1, -(s.wrong + s.missed), s.image_id))
