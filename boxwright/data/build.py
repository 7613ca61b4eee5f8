"""Gathering annotations into an Arrow table, and cleaning them by the rules of docs/data_formats.md."""

from __future__ import annotations

import json
import math
from array import array
from collections.abc import Sequence

import numpy as np
import pyarrow as pa

from ..errors import DataError
from ..labels import LabelMap
from .masks import Mask, mask_area, mask_box
from .records import Issue
from .table import OBJECT_TYPE, SCHEMA

# float32 coordinates of images up to 100 000 px are about 0.008 px apart: a thinner box could vanish.
MIN_SIDE = 0.01
MAX_SIDE = 1_000_000
_EXAMPLES = 5


class TableBuilder:
    """Collects images and objects, then makes the cleaned Arrow table.

    Args:
        noun: what a record is called in messages, "annotation id", "object", "line".
        label_map: the declared classes; None to collect the names as they come (sorted at the end).
    """

    def __init__(self, noun: str, label_map: LabelMap | None = None) -> None:
        self.noun, self.label_map = noun, label_map
        self.names: dict[str, int] = {}
        self.image_ids, self.widths, self.heights = array("q"), array("q"), array("q")
        self.files: list[str] = []
        self.sources: list[str] = []
        self.rows, self.records, self.labels, self.ids = array("q"), array("q"), array("q"), array("q")
        self.ignore, self.boxes, self.areas = array("b"), array("d"), array("d")
        self.rings, self.points, self.coordinates = array("q", [0]), array("q", [0]), array("d")
        self.rle: dict[int, bytes] = {}
        self.notes: dict[str, Issue] = {}

    def image(self, image_id: int, file: str, width: int, height: int, source: str) -> int:
        """Add an image and return its row; `source` is the file that messages about its objects name.

        Raises:
            DataError: the file's name is not UTF-8, so that no annotation could be written of it.
        """
        if not file.isascii():
            try:
                file.encode("utf-8")
            except UnicodeEncodeError:
                raise DataError(
                    f"{source}: the name of the image {file!r} is not UTF-8; rename the file"
                ) from None
        self.image_ids.append(image_id)
        self.files.append(file)
        self.widths.append(width)
        self.heights.append(height)
        self.sources.append(source)
        return len(self.files) - 1

    def label(self, name: str) -> int:
        """Label of a class name that is collected as it comes."""
        return self.names.setdefault(name, len(self.names))

    def object(
        self,
        row: int,
        record: int,
        label: int,
        box: Sequence[float] | None,
        ignore: bool = False,
        mask: Mask | None = None,
        area: float | None = None,
        ident: int = 0,
    ) -> None:
        """Add an object of an image; with no box, it is the extent of the mask.

        Polygons with fewer than three points, an odd count or a value that is not finite or far outside
        of the image are left out and counted here; boxes are cleaned in `finish`.
        """
        if isinstance(mask, list):
            mask = self._usable_rings(row, record, mask)
        if box is None:
            box = mask_box(mask) if mask else (math.nan,) * 4
        if area is None or not 0 <= area < math.inf:
            area = mask_area(mask) if mask else math.nan
        self.rows.append(row)
        self.records.append(record)
        self.labels.append(label)
        self.ids.append(ident)
        self.ignore.append(ignore)
        self.areas.append(area)
        self.boxes.extend(box)
        if isinstance(mask, dict):
            counts = mask["counts"]
            self.rle[len(self.rows) - 1] = counts if isinstance(counts, bytes) else counts.encode("ascii")
        else:
            for ring in mask or ():
                self.coordinates.extend(ring)
                self.points.append(len(self.coordinates))
        self.rings.append(len(self.points) - 1)

    def _usable_rings(self, row: int, record: int, rings: list[list[float]]) -> list[list[float]]:
        width, height = self.widths[row], self.heights[row]
        low, high = -max(width, height), 2 * max(width, height)
        good = [r for r in rings if len(r) >= 6 and len(r) % 2 == 0 and _within(r, low, high)]
        if len(good) < len(rings):
            self.note(
                "polygon_dropped",
                "warning",
                "polygons with fewer than 3 points, an odd count of numbers, or points that are not finite "
                "or farther outside than one image size were left out",
                f"{self.sources[row]}: {self.noun} {record}",
                len(rings) - len(good),
            )
        return good

    def note(self, code: str, severity: str, message: str, example: str, count: int = 1) -> None:
        """Count something that was mended or left out."""
        old = self.notes.get(code, Issue(code, severity, message, 0))
        examples = (*old.examples, example) if len(old.examples) < _EXAMPLES else old.examples
        self.notes[code] = Issue(code, severity, message, old.count + count, examples)

    def finish(
        self, sources: Sequence[str], size_files: bool = False, unresolved: Sequence[str] = ()
    ) -> pa.Table:
        """Clean and make the Arrow table.

        Args:
            sources: the annotation files, for messages.
            size_files: image sizes were read from the files, so the cache must watch them.
            unresolved: where no image was found, names that the cache looks for again on each opening.

        Raises:
            DataError: there is no image, or the classes cannot be made a label map.
        """
        if not self.files:
            raise DataError(
                f"{', '.join(sources) or 'annotations'}: no image is listed; add images or another split"
            )
        label_map, labels = self._label_map()
        boxes, keep, moved = self._clean_boxes()
        order = np.flatnonzero(keep)
        rows = np.array(self.rows, dtype=np.int64)
        order = order[np.argsort(rows[order], kind="stable")]
        objects = pa.StructArray.from_arrays(
            [
                pa.array(self._ids(order)),
                pa.FixedSizeListArray.from_arrays(pa.array(boxes[order].ravel()), 4),
                pa.array(labels[order], pa.int32()),
                pa.array(np.array(self.ignore, dtype=np.uint8)[order]),
                pa.array(self._areas(boxes, moved)[order]),
                self._polygons().take(pa.array(order)),
                pa.array([self.rle.get(int(i)) for i in order], pa.large_binary()),
            ],
            fields=list(OBJECT_TYPE),
        )
        offsets = np.concatenate(([0], np.cumsum(np.bincount(rows[order], minlength=len(self.files)))))
        has_masks = self._note_masks(order)
        metadata = {
            "label_map": {"names": label_map.names, "source_ids": label_map.source_ids},
            "issues": [vars(issue) for issue in self.notes.values()],
            "sources": list(sources)[:_EXAMPLES],
            "has_masks": has_masks,
            "declared": self.label_map is not None,
            "size_files": size_files,
            "unresolved": list(unresolved),
        }
        columns = [
            pa.array(np.array(self.image_ids, dtype=np.int64)),
            pa.array(self.files, pa.string()),
            pa.array(np.array(self.widths, dtype=np.int32)),
            pa.array(np.array(self.heights, dtype=np.int32)),
            pa.LargeListArray.from_arrays(pa.array(offsets.astype(np.int64)), objects),
        ]
        schema = SCHEMA.with_metadata({"boxwright": json.dumps(metadata)})
        return pa.Table.from_arrays(columns, schema=schema)

    def _label_map(self) -> tuple[LabelMap, np.ndarray]:
        labels = np.array(self.labels, dtype=np.int64)
        if self.label_map is not None:
            return self.label_map, labels
        names = sorted(self.names)
        place = {name: i for i, name in enumerate(names)}
        lut = np.array([place[name] for name in self.names], dtype=np.int64)
        return LabelMap(tuple(names)), lut[labels] if len(labels) else labels

    def _clean_boxes(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Boxes clipped to their images, `(n, 4)`; which of them stay, `(n,)`; which were moved, `(n,)`."""
        boxes = np.array(self.boxes, dtype=np.float64).reshape(-1, 4)
        rows = np.array(self.rows, dtype=np.int64)
        limit = np.stack([np.array(self.widths), np.array(self.heights)], axis=1).astype(np.float64)[rows]
        finite = np.all(np.isfinite(boxes), axis=1)
        safe = np.where(finite[:, None], boxes, 0.0)
        positive = np.all(safe[:, 2:] - safe[:, :2] >= MIN_SIDE, axis=1)
        clipped = np.clip(safe, 0.0, np.concatenate((limit, limit), axis=1))
        inside = np.all(clipped[:, 2:] - clipped[:, :2] >= MIN_SIDE, axis=1)
        excess = np.abs(clipped - safe).max(axis=1, initial=0.0)
        keep = finite & positive & inside
        self._note_boxes(
            "box_not_finite", "boxes with a NaN or infinite value, or none at all, were dropped", ~finite
        )
        thin = f"boxes narrower or lower than {MIN_SIDE} px (zero or negative size) were dropped"
        self._note_boxes("box_degenerate", thin, finite & ~positive)
        self._note_boxes(
            "box_outside", "boxes wholly outside of their image were dropped", finite & positive & ~inside
        )
        moved = keep & (excess > 0)
        worst = float(excess[moved].max(initial=0.0))
        text = f"boxes that pass the edge of their image (by up to {worst:.4g} px) were clipped to it"
        self._note_boxes("box_clipped", text, moved, "warning" if worst >= 1 else "info")
        return clipped, keep, moved

    def _note_boxes(self, code: str, message: str, which: np.ndarray, severity: str = "warning") -> None:
        places = np.flatnonzero(which)
        if not len(places):
            return
        examples = tuple(
            f"{self.sources[self.rows[i]]}: {self.noun} {self.records[i]}: "
            f"[{', '.join(f'{v:.6g}' for v in self.boxes[4 * i : 4 * i + 4])}]"
            for i in places[:_EXAMPLES].tolist()
        )
        self.notes[code] = Issue(code, severity, message, len(places), examples)

    def _areas(self, boxes: np.ndarray, moved: np.ndarray) -> np.ndarray:
        """Areas as stated; of the box where none is stated, or where a box without mask was clipped."""
        areas = np.array(self.areas, dtype=np.float64)
        has_mask = np.diff(np.array(self.rings)) > 0
        has_mask[list(self.rle)] = True
        of_box = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
        return np.where(np.isnan(areas) | (moved & ~has_mask), of_box, areas)

    def _ids(self, order: np.ndarray) -> np.ndarray:
        """Annotation ids as stated, or 1 .. n for all where any is missing, below 1, or stands twice."""
        ids = np.array(self.ids, dtype=np.int64)
        numbered = np.arange(1, len(order) + 1)
        if not ids.any():
            return numbered
        values, first, counts = np.unique(ids, return_index=True, return_counts=True)
        for code, severity, bad, text in (
            ("annotation_id_twice", "warning", counts > 1, "annotation ids stand twice"),
            (
                "annotation_id_zero",
                "info",
                values < 1,
                "annotation ids are missing or below 1 (COCO takes 0 for no match)",
            ),
        ):
            if bad.any():
                for place, count in zip(first[bad].tolist(), counts[bad].tolist(), strict=True):
                    example = f"{self.sources[self.rows[place]]}: {self.noun} {self.records[place]}"
                    self.note(code, severity, f"{text}; all were numbered anew", example, count)
                return numbered
        return ids[order]

    def _polygons(self) -> pa.Array:
        rings = pa.LargeListArray.from_arrays(
            pa.array(np.array(self.points, dtype=np.int64)),
            pa.array(np.array(self.coordinates, dtype=np.float64)),
        )
        return pa.LargeListArray.from_arrays(pa.array(np.array(self.rings, dtype=np.int64)), rings)

    def _note_masks(self, order: np.ndarray) -> bool:
        """Whether any kept object has a mask; the objects that lack one are counted then."""
        has_mask = np.diff(np.array(self.rings)) > 0
        has_mask[list(self.rle)] = True
        if not has_mask[order].any():
            return False
        lacking = np.zeros(len(has_mask), dtype=bool)
        lacking[order] = ~has_mask[order] & (np.array(self.ignore)[order] == 0)
        text = "objects without a mask where others have one: mask loss and mask AP leave them out"
        self._note_boxes("mask_missing", text, lacking)
        return True


def _within(ring: list[float], low: float, high: float) -> bool:
    return all(low <= value <= high for value in ring)  # false for NaN, which min and max may not see
