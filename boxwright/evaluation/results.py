"""Reading and checking what is measured: COCO data sets and COCO results, record by record."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from itertools import chain
from numbers import Real
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import DataError, some_of
from .columns import Found, Record

BAD_RLE = "its 'segmentation' is not a run-length encoding ({'size': [height, width], 'counts': ...})"


def read_results(path: str | Path, ground_truth: Mapping[str, Any] | None = None) -> list[Record]:
    """The detections of a COCO results file: a JSON list, one record for each detection.

    Args:
        path: file with records `{"image_id", "category_id", "bbox": [x, y, w, h], "score"}`, a mask as
            RLE under "segmentation". A COCO data set whose annotations have scores is taken as well.
        ground_truth: COCO data set; where given, image and category ids must be known to it.

    Raises:
        DataError: the file cannot be read, is not such a list, or a record is wrong (see `check_results`).
    """
    path = Path(path)
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise DataError(
            f"{path}: cannot be read ({error.strerror}); give the path of a COCO results file"
        ) from error
    except ValueError as error:  # bad JSON or bad UTF-8
        raise DataError(f"{path}: is not JSON ({error}); write it again, or give another file") from error
    if isinstance(content, dict) and "annotations" in content:
        content = content["annotations"]
    return check_results(content, ground_truth, source=str(path))


def check_results(
    results: object, ground_truth: Mapping[str, Any] | None = None, source: str = "results"
) -> list[Record]:
    """The same records, checked; a record with a mask but no box gets the box of its mask, in a copy.

    Args:
        results: a list of COCO result records.
        ground_truth: COCO data set that says which image and category ids exist.
        source: name of the file, for messages.

    Raises:
        DataError: not a list, or a record lacks a field, has a value of the wrong type, a number that is not
            finite, a negative size, a damaged mask, or an unknown image or category; the message names
            `source`, the index of the first such record, and the remedy.
    """
    if not isinstance(results, Sequence) or isinstance(results, str | bytes):
        raise DataError(
            f"{source}: holds a {type(results).__name__} where COCO results are a list of detections; "
            'write [{"image_id": ..., "category_id": ..., "bbox": [x, y, w, h], "score": ...}, ...]'
        )
    sizes = categories = None
    if ground_truth is not None:
        sizes = {i["id"]: (i.get("height"), i.get("width")) for i in ground_truth["images"]}
        categories = {category["id"] for category in ground_truth["categories"]}
    if _plain_columns(results, sizes, categories) is not None:
        return list(results)
    return [
        _check_record(record, f"{source}: record {i}", sizes, categories) for i, record in enumerate(results)
    ]


def columns_of(results: object, ground_truth: Mapping[str, Any], source: str = "results") -> Found:
    """The detections of COCO result records without their masks, checked as `check_results` does."""
    sizes = {image["id"]: None for image in ground_truth["images"]}
    categories = {category["id"] for category in ground_truth["categories"]}
    plain = None
    if isinstance(results, Sequence) and not isinstance(results, str | bytes):
        plain = _plain_columns(results, sizes, categories)
    return plain if plain is not None else Found.of(check_results(results, ground_truth, source))


def check_ground_truth(ground_truth: object, iou_type: str = "bbox", source: str = "ground truth") -> None:
    """Whether a COCO data set can be measured against.

    Raises:
        DataError: a list is missing, an id stands twice, an annotation names an unknown image or category,
            has no box (or, for "segm", no mask), or there is no object to be found at all.
    """
    if not isinstance(ground_truth, Mapping):
        raise DataError(
            f"{source}: is a {type(ground_truth).__name__}, not a COCO data set; give its annotation file"
        )
    for key in ("images", "annotations", "categories"):
        if not isinstance(ground_truth.get(key), list):
            raise DataError(
                f"{source}: has no list '{key}'; a COCO data set has images, annotations and categories"
            )
    images = _unique_ids(ground_truth["images"], "image", source)
    categories = _unique_ids(ground_truth["categories"], "category", source)
    for index, annotation in enumerate(ground_truth["annotations"]):
        where = f"{source}: annotation {annotation.get('id', f'number {index}')}"
        if annotation.get("image_id") not in images:
            raise DataError(
                f"{where} is on image {annotation.get('image_id')!r}, which 'images' does not list"
            )
        if annotation.get("category_id") not in categories:
            raise DataError(
                f"{where} has category {annotation.get('category_id')!r}; known are "
                f"{some_of(sorted(categories))}: add it to 'categories' or correct the annotation"
            )
        _check_box(annotation.get("bbox"), where)
        if iou_type == "segm" and not annotation.get("segmentation") and not annotation.get("iscrowd", 0):
            raise DataError(
                f"{where} has no mask; measure boxes only (metrics=('bbox',)), or mark it iscrowd"
            )
    if all(annotation.get("iscrowd", 0) for annotation in ground_truth["annotations"]):
        raise DataError(
            f"{source}: holds no object to be found, so precision and recall are undefined; "
            "evaluate on a split that has annotated objects"
        )


def _plain_columns(
    results: Sequence[Any], sizes: Mapping[int, Any] | None, categories: set[int] | None
) -> Found | None:
    """Records of plain numbers without masks, checked all at once, as columns.

    None where one is anything else: it may be wrong, and `_check_record` can say what and where.
    """
    try:
        if not results or any("segmentation" in record for record in results):
            return None
        keys = ("image_id", "category_id", "score", "bbox")
        images, labels, scores, boxes = ([record[key] for record in results] for key in keys)
        values = list(chain.from_iterable(boxes))
        plain = (
            set(map(type, images)) | set(map(type, labels)) == {int}
            and set(map(type, scores)) | set(map(type, values)) <= {int, float}
            and set(map(type, boxes)) <= {list, tuple}
            and set(map(len, boxes)) == {4}
            and (sizes is None or set(images) <= sizes.keys())
            and (categories is None or set(labels) <= categories)
        )
        found = Found(
            images=np.array(images, dtype=np.int64),
            categories=np.array(labels, dtype=np.int64),
            boxes=np.array(values, dtype=np.float64).reshape(-1, 4),
            scores=np.array(scores, dtype=np.float64),
        )
    except (KeyError, TypeError, ValueError, OverflowError):
        return None
    finite = np.isfinite(found.boxes).all() and np.isfinite(found.scores).all()
    return found if plain and finite and (found.boxes[:, 2:] >= 0).all() else None


def _check_record(
    record: object, where: str, sizes: Mapping[int, tuple] | None, categories: set[int] | None
) -> Record:
    if not isinstance(record, Mapping):
        raise DataError(
            f"{where} is a {type(record).__name__}, not an object with image_id, category_id, bbox, score"
        )
    image_id, category_id = (_integer(record, key, where) for key in ("image_id", "category_id"))
    if sizes is not None and image_id not in sizes:
        raise DataError(
            f"{where} is for image {image_id}, which the ground truth does not list "
            f"({some_of(sorted(sizes))}); evaluate against the data set that the results were made on"
        )
    if categories is not None and category_id not in categories:
        raise DataError(
            f"{where} has category {category_id}; the ground truth knows {some_of(sorted(categories))}: "
            "results hold the data set's own category ids, not labels counted from 0"
        )
    score = record.get("score")
    if not _finite(score):
        raise DataError(f"{where} has score {score!r}; it must be a finite number")
    checked: Record = {**record, "image_id": image_id, "category_id": category_id, "score": float(score)}  # pyright: ignore
    if "segmentation" in record:
        checked["segmentation"] = _check_rle(record["segmentation"], where, (sizes or {}).get(image_id))
        if "bbox" not in record:
            from faster_coco_eval.core import mask

            checked["bbox"] = [float(v) for v in mask.toBbox(checked["segmentation"])]
    checked["bbox"] = _check_box(checked.get("bbox"), where)
    return checked


def _check_box(box: Any, where: str) -> list[float]:
    is_four = isinstance(box, Sequence) and not isinstance(box, str) and len(box) == 4
    if not is_four or not all(_finite(value) for value in box):
        raise DataError(
            f"{where} has bbox {box!r}; it must be four finite numbers [x, y, width, height] in pixels"
        )
    if float(box[2]) < 0 or float(box[3]) < 0:
        raise DataError(
            f"{where} has bbox {list(box)} of negative size; boxes are [x, y, width, height], not two corners"
        )
    return [float(value) for value in box]


def _check_rle(rle: object, where: str, size: tuple | None) -> Record:
    from faster_coco_eval.core import mask

    if not isinstance(rle, Mapping) or not {"size", "counts"} <= set(rle):
        raise DataError(f"{where}: {BAD_RLE}; results files hold no polygons, encode the mask")
    height_width = tuple(rle["size"]) if isinstance(rle["size"], Sequence) else ()
    if size is not None and None not in size and height_width != size:
        raise DataError(
            f"{where}: its mask is {list(height_width)} but its image {list(size)} (height, width)"
        )
    checked: Any = {"size": list(height_width), "counts": rle["counts"]}
    try:
        if not isinstance(checked["counts"], str | bytes):  # runs as a list of numbers
            checked = mask.frPyObjects(checked, *height_width)
        if isinstance(checked["counts"], bytes):
            checked["counts"] = checked["counts"].decode("ascii")
        mask.decode(checked)  # the one call that follows every run and compares their sum with the size
    except (ValueError, RuntimeError, TypeError) as error:
        raise DataError(f"{where}: {BAD_RLE}: {error}; write the mask again") from error
    return checked


def _integer(record: Mapping, key: str, where: str) -> int:
    value = record.get(key)
    if isinstance(value, bool) or not _finite(value) or int(value) != value:  # pyright: ignore
        what = f"lacks '{key}'" if key not in record else f"has {key} {value!r}"
        raise DataError(f"{where} {what}; it must be a whole number from the data set")
    return int(value)  # pyright: ignore[reportArgumentType]


def _finite(value: object) -> bool:
    # Asking for the exact type first spares nearly all values the slow question about the abstract one.
    number = type(value) in (float, int) or (isinstance(value, Real) and not isinstance(value, bool))
    return number and math.isfinite(value)  # pyright: ignore[reportArgumentType]


def _unique_ids(entries: list, what: str, source: str) -> set:
    ids = [entry.get("id") for entry in entries]
    unique = set(ids)
    if len(unique) != len(ids):
        twice = next(i for i in unique if ids.count(i) > 1)
        raise DataError(f"{source}: {what} id {twice} stands twice; give each {what} an id of its own")
    return unique
