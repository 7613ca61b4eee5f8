"""Annotations that are well-formed but can hardly be meant: what makes a training learn wrong things."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from .findings import Finding
from .table import Table

_EXAMPLES = 5
# A mask's extent and the box of the same object: drawn by hand they differ by some pixels, not by half.
_LEAST_IOU = 0.5


def doubtful(split: str, table: Table) -> Iterator[Finding]:
    """What can hardly be meant in a split."""
    yield from _repeated_images(split, table)
    yield from _divided_boxes(split, table)
    yield from _masks_apart(split, table)


def _repeated_images(split: str, table: Table) -> Iterator[Finding]:
    """Images with several entries whose objects differ; the same entry again is seen more often, no more."""
    rows: dict[str, list[int]] = {}
    for row, name in enumerate(table.file_names):
        rows.setdefault(name, []).append(row)
    twice = [name for name, entries in rows.items() if len(entries) > 1 and _differ(table, entries)]
    if twice:
        text = (
            "images that stand more than once, with other objects: "
            "in each entry the objects of the others train as background"
        )
        remedy = "make one entry of each image, with all its objects"
        first, more = twice[0], "; ".join(twice[1:_EXAMPLES])
        yield Finding("error", "image_twice", text, first, more, remedy, len(twice), split)


def _differ(table: Table, rows: list[int]) -> bool:
    first, *others = (table[row] for row in rows)
    return not all(
        np.array_equal(first.boxes, other.boxes) and np.array_equal(first.labels, other.labels)
        for other in others
    )


def _divided_boxes(split: str, table: Table) -> Iterator[Finding]:
    """Boxes within the first pixel of every image: coordinates that were divided by the image's size."""
    boxes = table.objects().boxes
    sides = min(table.widths.min(), table.heights.min())
    if len(boxes) and boxes.max() <= 1 < sides:
        text = "all boxes lie within the first pixel of their images: the coordinates are divided by its size"
        remedy = "multiply x by the image's width and y by its height"
        source = table.sources[0] if table.sources else ""
        yield Finding("error", "box_divided", text, source, "", remedy, len(boxes), split)


def _masks_apart(split: str, table: Table) -> Iterator[Finding]:
    """Objects whose polygons lie elsewhere than their box, as where only one of them was scaled."""
    if not table.has_masks:
        return
    places, extents = table.polygon_extents()
    flat, names = table.objects(), table.file_names
    boxes = flat.boxes[places]
    limit = np.stack((table.widths, table.heights), axis=1)[flat.row[places]]
    extents = extents.clip(0, np.concatenate((limit, limit), axis=1))
    inter = np.minimum(boxes[:, 2:], extents[:, 2:]) - np.maximum(boxes[:, :2], extents[:, :2])
    inter = inter.clip(min=0).prod(axis=1)
    areas = [(b[:, 2:] - b[:, :2]).prod(axis=1) for b in (boxes, extents)]
    union = areas[0] + areas[1] - inter
    # Slivers of a few pixels are rounded to anything.
    apart = places[(inter < _LEAST_IOU * union) & (np.minimum(*areas) > 16)]
    if len(apart):
        text = f"objects whose polygons and box overlap by less than IoU {_LEAST_IOU}"
        shown = [f"{names[flat.row[i]]}: annotation id {flat.ids[i]}" for i in apart[:_EXAMPLES]]
        file, _, record = shown[0].partition(": ")
        record = "; ".join([record, *shown[1:]])
        remedy = "look at them with `boxwright data browse`: one of the two may be of another image size"
        yield Finding("warning", "mask_not_box", text, file, record, remedy, len(apart), split)
