"""Detections and annotated objects as columns: what evaluators keep, and what COCO's counting works on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..errors import DataError

Record = dict[str, Any]


@dataclass(frozen=True)
class Found:
    """Detections, in the order of the results.

    Args:
        images: `(N,)` int64, image ids.
        categories: `(N,)` int64, category ids.
        boxes: `(N, 4)` float64, x, y, width and height in pixels of the file.
        scores: `(N,)` float64.
        masks: run-length encodings of the N masks, as in result records; None without masks.
    """

    images: np.ndarray
    categories: np.ndarray
    boxes: np.ndarray
    scores: np.ndarray
    masks: tuple[Record, ...] | None = None

    @classmethod
    def of(cls, records: Sequence[Record], masks: bool = False) -> Found:
        """The columns of checked result records; with `masks`, each must have one."""
        return cls(
            images=np.array([r["image_id"] for r in records], dtype=np.int64),
            categories=np.array([r["category_id"] for r in records], dtype=np.int64),
            boxes=np.array([r["bbox"] for r in records], dtype=np.float64).reshape(-1, 4),
            scores=np.array([r["score"] for r in records], dtype=np.float64),
            masks=tuple(r["segmentation"] for r in records) if masks else None,
        )

    @classmethod
    def join(cls, parts: Sequence[Found]) -> Found:
        """The detections of all parts, one behind the other; all have masks or none has."""
        if not parts:
            return cls.of([])
        return cls(
            images=np.concatenate([part.images for part in parts]),
            categories=np.concatenate([part.categories for part in parts]),
            boxes=np.concatenate([part.boxes for part in parts]),
            scores=np.concatenate([part.scores for part in parts]),
            masks=None if parts[0].masks is None else tuple(m for part in parts for m in part.masks or ()),
        )

    def __len__(self) -> int:
        return len(self.scores)

    def records(self) -> list[Record]:
        """COCO result records, ready for JSON."""
        columns = (self.images, self.categories, self.boxes, self.scores)
        records = [
            {"image_id": image, "category_id": category, "bbox": box, "score": score}
            for image, category, box, score in zip(*(column.tolist() for column in columns), strict=True)
        ]
        for record, mask in zip(records, self.masks or (), strict=self.masks is not None):
            record["segmentation"] = mask
        return records


@dataclass(frozen=True)
class Truth:
    """Annotated objects, in the order of the annotations.

    Args:
        image_ids: `(I,)` int64, all images, in increasing order.
        category_ids: `(C,)` int64, all categories, in increasing order.
        images: `(M,)` int64, image id of each object.
        categories: `(M,)` int64, category id of each object.
        boxes: `(M, 4)` float64, x, y, width and height in pixels of the file.
        areas: `(M,)` float64, square pixels: as annotated, else of the box.
        crowd: `(M,)` bool, regions that count neither way.
        masks: M run-length encodings, None without masks.
    """

    image_ids: np.ndarray
    category_ids: np.ndarray
    images: np.ndarray
    categories: np.ndarray
    boxes: np.ndarray
    areas: np.ndarray
    crowd: np.ndarray
    masks: tuple[Record, ...] | None = None

    @classmethod
    def of(cls, ground_truth: Mapping[str, Any], masks: bool = False) -> Truth:
        """The columns of a checked COCO data set.

        Args:
            ground_truth: images, annotations, categories.
            masks: also encode the masks; of what has only a box, or run lengths of an empty mask in its place
                (`Table.to_coco`), the box, and it is a crowd region then.

        Raises:
            DataError: an id is no whole number, or the size of an image with a polygon is not stated.
        """
        annotations = ground_truth["annotations"]
        boxes = np.array([a["bbox"] for a in annotations], dtype=np.float64).reshape(-1, 4)
        areas = np.array([a.get("area", np.nan) for a in annotations], dtype=np.float64)
        crowd = np.array([bool(a.get("iscrowd", 0)) for a in annotations], dtype=bool)
        encoded = None
        if masks:
            encoded, lacking = _encoded(ground_truth)
            crowd |= lacking  # how well an unknown mask was found cannot be said
        return cls(
            image_ids=np.sort(_ids(ground_truth["images"], "id")),
            category_ids=np.sort(_ids(ground_truth["categories"], "id")),
            images=_ids(annotations, "image_id"),
            categories=_ids(annotations, "category_id"),
            boxes=boxes,
            areas=np.where(np.isnan(areas), boxes[:, 2] * boxes[:, 3], areas),
            crowd=crowd,
            masks=encoded,
        )


def _ids(entries: Sequence[Record], key: str) -> np.ndarray:
    values = [entry[key] for entry in entries]
    try:
        numbers = np.array(values, dtype=np.int64)
        whole = bool((numbers == np.array(values, dtype=np.float64)).all())
    except (TypeError, ValueError, OverflowError):
        whole, numbers = False, np.zeros(0, dtype=np.int64)
    if not whole:
        wrong = next((v for v in values if not isinstance(v, int)), values)
        raise DataError(f"ground truth: {key} {wrong!r} is no whole number; number the entries from 1 on")
    return numbers


def _encoded(ground_truth: Mapping[str, Any]) -> tuple[tuple[Record, ...], np.ndarray]:
    """Run lengths of each annotation, of its box where it has no mask, and which have none, `(M,)` bool."""
    from faster_coco_eval.core import mask

    sizes = {image["id"]: (image.get("width"), image.get("height")) for image in ground_truth["images"]}
    encoded, lacking = [], []
    for annotation in ground_truth["annotations"]:
        x, y, w, h = annotation["bbox"]
        shape = annotation.get("segmentation")
        if isinstance(shape, dict) and isinstance(shape["counts"], list):
            shape = mask.frPyObjects(shape, *shape["size"])
        lacking.append(not shape or (isinstance(shape, dict) and not mask.area(shape)))
        if lacking[-1]:
            shape = [[x, y, x + w, y, x + w, y + h, x, y + h]]
        width, height = sizes[annotation["image_id"]]
        if isinstance(shape, list) and (width is None or height is None):
            raise DataError(
                f"ground truth: image {annotation['image_id']} has polygons but no 'width' and 'height'; "
                "state them to measure masks"
            )
        if isinstance(shape, list):
            rings: Any = mask.frPyObjects(shape, height, width)
            shape = mask.merge(rings)
        encoded.append(shape)
    return tuple(encoded), np.array(lacking, dtype=bool)
