"""Average precision of the PASCAL VOC challenge (Everingham et al., IJCV 2010, sec. 4.2)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ..errors import ConfigError
from ..labels import LabelMap
from .collect import ResultCollector
from .matching import group_by_image, overlaps
from .results import Record, check_ground_truth, check_results

METHODS = ("area", "11-point")


def voc_average_precision(
    ground_truth: Mapping[str, Any],
    results: Sequence[Record],
    overlap: float = 0.5,
    method: str = "area",
    inclusive: bool = False,
) -> dict[str, float]:
    """Average precision of each class that has objects, by class name.

    Each detection, best score first, is compared with the object of its class that it overlaps most: a hit if
    the overlap reaches the threshold and no better detection had that object, else a false alarm.

    Args:
        ground_truth: COCO data set. Annotations that are `difficult` (or `iscrowd`) count neither way.
        results: COCO result records.
        overlap: IoU that makes a hit.
        method: "area" under the monotone precision-recall curve (VOC 2010 on), or the mean of precision at
            the recalls 0, 0.1, ... 1 ("11-point", VOC 2007).
        inclusive: boxes name first and last pixel, so that an extent is one more than their difference. Boxes
            that a reader of this package has read are continuous and already have their full extent.

    Raises:
        DataError: ground truth or results are wrong.
        ConfigError: unknown method.
    """
    if method not in METHODS:
        raise ConfigError(f"VOC method {method!r} does not exist; choose from {', '.join(METHODS)}")
    check_ground_truth(ground_truth)
    results = check_results(results, ground_truth)
    precision = {}
    for category in ground_truth["categories"]:
        objects = [a for a in ground_truth["annotations"] if a["category_id"] == category["id"]]
        found = [record for record in results if record["category_id"] == category["id"]]
        count = sum(not _left_out(annotation) for annotation in objects)
        if count:
            hits = _hits(objects, found, overlap, inclusive)
            precision[str(category.get("name", category["id"]))] = _average(hits, count, method)
    return precision


class VocEvaluator(ResultCollector):
    """Collects predictions and measures them the VOC way: "voc/AP50" is the mean over classes at IoU 0.5.

    Args:
        ground_truth: COCO data set, see `voc_average_precision`.
        label_map: what the detector's labels mean.
        overlap_thresholds: IoU thresholds, one metric each.
        method: "area" or "11-point".
    """

    def __init__(
        self,
        ground_truth: Mapping[str, Any],
        label_map: LabelMap,
        overlap_thresholds: Sequence[float] = (0.5,),
        method: str = "area",
    ) -> None:
        if method not in METHODS:
            raise ConfigError(f"VOC method {method!r} does not exist; choose from {', '.join(METHODS)}")
        check_ground_truth(ground_truth)
        super().__init__(ground_truth, label_map)
        self.overlap_thresholds = tuple(overlap_thresholds)
        self.method = method
        self.per_class: dict[str, dict[str, float]] = {}

    def compute(self) -> dict[str, float]:
        """Mean average precision at each threshold over the results of all ranks, all of which must call."""
        results = self.gather().records()
        metrics: dict[str, float] = {}
        self.per_class = {}
        for threshold in self.overlap_thresholds:
            key = f"voc/AP{100 * threshold:g}"
            by_class = voc_average_precision(self.ground_truth, results, threshold, self.method)
            metrics[key] = float(np.mean(list(by_class.values())))
            for name, value in by_class.items():
                self.per_class.setdefault(name, {})[key] = value
        return metrics


def _hits(objects: list[Record], found: list[Record], overlap: float, inclusive: bool) -> np.ndarray:
    """Hit or false alarm, best score first, `(n,)` bool; detections on a difficult object are left out."""
    extra = 1.0 if inclusive else 0.0
    objects_in, found_in = group_by_image(objects), group_by_image(found)
    best: dict[int, tuple[float, Record | None]] = {}
    for image_id, records in found_in.items():
        present = objects_in.get(image_id, [])
        first, second = (
            [[x, y, w + extra, h + extra] for x, y, w, h in _boxes(part)] for part in (records, present)
        )
        iou = overlaps(first, second)
        for record, row in zip(records, iou, strict=True):
            nearest = int(row.argmax()) if len(present) else -1
            best[id(record)] = (float(row[nearest]), present[nearest]) if len(present) else (0.0, None)
    hits, taken = [], set()
    for record in sorted(found, key=lambda r: -r["score"]):
        iou_of_best, nearest = best[id(record)]
        if nearest is None or iou_of_best < overlap:
            hits.append(False)
        elif not _left_out(nearest):
            hits.append(id(nearest) not in taken)
            taken.add(id(nearest))
    return np.array(hits, dtype=bool)


def _average(hits: np.ndarray, count: int, method: str) -> float:
    true = np.cumsum(hits)
    recall = true / count
    precision = true / np.arange(1, len(hits) + 1)
    if method == "11-point":
        # Of these eleven floats 0.3, 0.6 and 0.7 are a rounding error above the decimal, as in the published
        # implementations; with exact ones, a recall of just 3/5 would count at 0.6.
        points = [precision[recall >= point].max(initial=0.0) for point in np.linspace(0.0, 1.0, 11)]
        return float(np.mean(points))
    envelope = np.maximum.accumulate(precision[::-1])[::-1]
    return float(np.sum(np.diff(recall, prepend=0.0) * envelope))


def _boxes(records: Sequence[Record]) -> list[Sequence[float]]:
    return [record["bbox"] for record in records]


def _left_out(annotation: Record) -> bool:
    return bool(annotation.get("difficult", 0) or annotation.get("iscrowd", 0))
