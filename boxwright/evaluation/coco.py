"""COCO average precision and recall of boxes and masks (Lin et al., arXiv:1405.0312).

The counting is that of `counting`; tests hold it to pycocotools and to faster-coco-eval. A measure that
has nothing to be measured on (COCO writes -1 there: no large object in the data set, say) is left out of the
mapping, so that every value in it is a number in 0..1.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..errors import ConfigError, DataError
from ..labels import LabelMap
from .collect import ResultCollector
from .columns import Found, Truth
from .counting import OVERLAPS, count_detections
from .results import Record, check_ground_truth, check_results, columns_of

AREAS = {"": "all", "s": "small", "m": "medium", "l": "large"}
SINGLE_OVERLAPS = (0.50, 0.60, 0.70, 0.75, 0.80, 0.90)  # those of the MMDetection paper's tables
IOU_TYPES = ("bbox", "segm")


@dataclass(frozen=True)
class Evaluation:
    """What one measurement gives.

    Args:
        metrics: by key: AP (mean over overlaps 0.50:0.05:0.95), AP50 ... AP90, APs, APm, APl (area below
            32^2, up to 96^2, above, in pixels), AR1, AR10, AR100 (recall with that many detections an image),
            ARs, ARm, ARl; each behind its kind, as in "bbox/AP50".
        per_class: by class name, the same measures of that class alone.
        overlaps: `(T,)` IoU thresholds.
        precision: `(T, 101, C)` precision at recall 0, 0.01, ... 1; -1 for a class without ground truth.
        scores: `(T, 101, C)` score of the detection that reaches that recall.
        names: C class names.
    """

    metrics: dict[str, float]
    per_class: dict[str, dict[str, float]]
    overlaps: np.ndarray
    precision: np.ndarray
    scores: np.ndarray
    names: tuple[str, ...]


def evaluate_results(
    ground_truth: Mapping[str, Any],
    results: Sequence[Record],
    iou_type: str = "bbox",
    max_detections: Sequence[int] = (1, 10, 100),
    source: str = "results",
) -> Evaluation:
    """Measure COCO results against a COCO data set.

    Args:
        ground_truth: images, annotations, categories; `iscrowd` regions count neither way. Not changed.
        results: COCO result records; images without any are images where nothing was found. Not changed.
        iou_type: overlap of boxes ("bbox") or of masks ("segm"). Masks are sized by their own area, as in the
            COCO protocol; a box that a mask record may also have is not looked at.
        max_detections: detections counted for each image and class; the last is the limit for AP.
        source: name of the results in messages.

    Raises:
        DataError: ground truth or results are wrong; see `check_ground_truth` and `check_results`.
        ConfigError: unknown `iou_type`.
    """
    if iou_type not in IOU_TYPES:
        raise ConfigError(f"metric {iou_type!r} does not exist; choose from {', '.join(IOU_TYPES)}")
    check_ground_truth(ground_truth, iou_type)
    if iou_type == "bbox":
        return _measure(ground_truth, columns_of(results, ground_truth, source), iou_type, max_detections)
    records = check_results(results, ground_truth, source)
    if lacking := [i for i, record in enumerate(records) if "segmentation" not in record]:
        raise DataError(
            f"{source}: record {lacking[0]} has no mask; 'segm' needs one in every record, measure 'bbox'"
        )
    return _measure(ground_truth, Found.of(records, masks=True), iou_type, max_detections)


def _measure(
    ground_truth: Mapping[str, Any], found: Found, iou_type: str, max_detections: Sequence[int]
) -> Evaluation:
    masks = iou_type == "segm"
    found = found if masks else dataclasses.replace(found, masks=None)
    counts = count_detections(Truth.of(ground_truth, masks), found, sorted(max_detections))
    categories = sorted(ground_truth["categories"], key=lambda category: category["id"])
    names = tuple(str(category.get("name", category["id"])) for category in categories)
    precision, recall = counts.precision, counts.recall
    keys = {"iou_type": iou_type, "max_detections": max_detections}
    per_class = {n: _summary(precision[:, :, [k]], recall[:, [k]], **keys) for k, n in enumerate(names)}
    return Evaluation(
        metrics=_summary(precision, recall, **keys),
        per_class={name: measures for name, measures in per_class.items() if measures},
        overlaps=OVERLAPS.copy(),
        precision=precision[:, :, :, 0, -1],
        scores=counts.scores[:, :, :, 0, -1],
        names=names,
    )


def proposal_recall(
    ground_truth: Mapping[str, Any],
    proposals: Sequence[Record],
    max_detections: Sequence[int] = (100, 300, 1000),
) -> dict[str, float]:
    """Average recall of proposals whatever their class (Hosang et al., arXiv:1502.05082), overlaps 0.50:0.95.

    Args:
        ground_truth: COCO data set.
        proposals: COCO result records; "category_id" may be missing, it is not looked at.
        max_detections: proposals taken from each image, best scores first.

    Returns:
        "proposals/AR100", ... for all objects, and "proposals/AR100s", "m", "l" by size.
    """
    check_ground_truth(ground_truth)
    category = ground_truth["categories"][0]["id"]
    proposals = [{**record, "category_id": category} for record in proposals]
    found, limits = columns_of(proposals, ground_truth, source="proposals"), sorted(max_detections)
    recall = count_detections(Truth.of(ground_truth), found, limits, by_class=False).recall
    measures = {
        f"proposals/AR{limit}{area}": _mean(recall[:, :, a, m])
        for m, limit in enumerate(limits)
        for a, area in enumerate(AREAS)
    }
    return {key: value for key, value in measures.items() if value is not None}


class CocoEvaluator(ResultCollector):
    """Collects a detector's predictions and measures them the COCO way.

    Args:
        ground_truth: COCO data set of the images that will be seen; category ids are `label_map.source_ids`.
        label_map: what the detector's labels mean.
        metrics: "bbox", "segm" or both.
        max_detections: as in `evaluate_results`.

    `compute` fills `evaluations` (by metric) and `per_class` besides returning the flat metrics.

    Raises:
        DataError: ground truth that cannot be measured against, or whose classes are not the label map's.
        ConfigError: unknown metric.
    """

    def __init__(
        self,
        ground_truth: Mapping[str, Any],
        label_map: LabelMap,
        metrics: Sequence[str] = ("bbox",),
        max_detections: Sequence[int] = (1, 10, 100),
    ) -> None:
        unknown = [metric for metric in metrics if metric not in IOU_TYPES]
        if unknown or not metrics:
            raise ConfigError(f"metrics {tuple(metrics)}: choose from {', '.join(IOU_TYPES)}")
        for metric in metrics:
            check_ground_truth(ground_truth, metric)
        super().__init__(ground_truth, label_map, masks="segm" in metrics)
        self.metrics = tuple(metrics)
        self.max_detections = tuple(max_detections)
        self.evaluations: dict[str, Evaluation] = {}
        self.per_class: dict[str, dict[str, float]] = {}

    def compute(self) -> dict[str, float]:
        """Flat metrics ("bbox/AP", "bbox/AP50", "segm/AP", ...) over the results of all ranks.

        Every rank must call it, and gets the same. Images that were never seen count as images where nothing
        was found.
        """
        found = self.gather()
        self.evaluations = {
            metric: _measure(self.ground_truth, found, metric, self.max_detections) for metric in self.metrics
        }
        self.per_class = {}
        for evaluation in self.evaluations.values():
            for name, measures in evaluation.per_class.items():
                self.per_class.setdefault(name, {}).update(measures)
        return {k: v for evaluation in self.evaluations.values() for k, v in evaluation.metrics.items()}


def _summary(
    precision: np.ndarray, recall: np.ndarray, iou_type: str, max_detections: Sequence[int]
) -> dict[str, float]:
    limits = sorted(max_detections)
    measures: dict[str, float | None] = {"AP": _mean(precision[..., 0, -1])}
    for overlap in SINGLE_OVERLAPS:
        (index,) = np.flatnonzero(np.isclose(OVERLAPS, overlap))
        measures[f"AP{round(100 * overlap)}"] = _mean(precision[index, :, :, 0, -1])
    for a, area in list(enumerate(AREAS))[1:]:
        measures[f"AP{area}"] = _mean(precision[:, :, :, a, -1])
    for m, limit in enumerate(limits):
        measures[f"AR{limit}"] = _mean(recall[:, :, 0, m])
    for a, area in list(enumerate(AREAS))[1:]:
        measures[f"AR{area}"] = _mean(recall[:, :, a, -1])
    return {f"{iou_type}/{key}": value for key, value in measures.items() if value is not None}


def _mean(values: np.ndarray) -> float | None:
    counted = values[values > -1]
    return float(counted.mean()) if counted.size else None
