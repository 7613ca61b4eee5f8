"""Pairing detections with ground truths at one overlap, for what COCO's accumulated arrays do not tell."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from .results import Record


@dataclass(frozen=True)
class ImagePairs:
    """Which detections of one image are which objects.

    Args:
        found: the image's detections from the score threshold on.
        objects: its ground truths that are to be found.
        pairs: (index into found, index into objects), each used at most once.
        ignored: `(len(found),)` bool, unpaired detections that lie in a region that counts neither way.
    """

    found: list[Record]
    objects: list[Record]
    pairs: list[tuple[int, int]]
    ignored: np.ndarray


def group_by_image(records: Sequence[Record]) -> dict[int, list[Record]]:
    """Records under the id of their image, in the order given."""
    groups: dict[int, list[Record]] = {}
    for record in records:
        groups.setdefault(record["image_id"], []).append(record)
    return groups


def overlaps(
    first: Sequence[Sequence[float]], second: Sequence[Sequence[float]], crowd: bool = False
) -> np.ndarray:
    """IoU `(n, m)` of boxes [x, y, w, h] in float64; with `crowd`, intersection over the first box's area."""
    if not len(first) or not len(second):
        return np.zeros((len(first), len(second)))
    from faster_coco_eval.core import mask

    one, two = (np.asarray(boxes, dtype=np.float64) for boxes in (first, second))
    return np.asarray(mask.iou(one, two, [int(crowd)] * len(two)))  # pyright: ignore[reportArgumentType]


def pair_images(
    ground_truth: Mapping[str, Any], results: Sequence[Record], score: float, overlap: float
) -> dict[int, ImagePairs]:
    """Pairs of each image of the ground truth, best overlap first, whatever the classes.

    Among equal overlaps a pair of the same class goes first, then the higher score. A detection pairs with an
    object of another class only when no better pair takes either: that is a confusion, not a miss.
    """
    found_in, annotated_in = group_by_image(results), group_by_image(ground_truth["annotations"])
    paired = {}
    for image in ground_truth["images"]:
        found = [r for r in found_in.get(image["id"], ()) if r["score"] >= score]
        annotations = annotated_in.get(image["id"], ())
        objects = [a for a in annotations if not a.get("iscrowd", 0)]
        regions = [a["bbox"] for a in annotations if a.get("iscrowd", 0)]
        boxes = [record["bbox"] for record in found]
        pairs = _greedy(found, objects, overlaps(boxes, [o["bbox"] for o in objects]), overlap)
        ignored = np.atleast_1d(np.any(overlaps(boxes, regions, crowd=True) >= overlap, axis=1))
        ignored[[i for i, _ in pairs]] = False
        paired[image["id"]] = ImagePairs(found, objects, pairs, ignored)
    return paired


def _greedy(
    found: list[Record], objects: list[Record], iou: np.ndarray, overlap: float
) -> list[tuple[int, int]]:
    def rank(pair: tuple[int, int]) -> tuple[float, bool, float]:
        i, j = pair
        return -iou[i, j], found[i]["category_id"] != objects[j]["category_id"], -found[i]["score"]

    candidates = [(int(i), int(j)) for i, j in zip(*np.nonzero(iou >= overlap), strict=True)]
    pairs, used_found, used_objects = [], set(), set()
    for i, j in sorted(candidates, key=rank):
        if i not in used_found and j not in used_objects:
            pairs.append((i, j))
            used_found.add(i)
            used_objects.add(j)
    return pairs
