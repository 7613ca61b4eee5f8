"""What a table gives out: an image with its objects, all objects at once, and notes on how they were read."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from .masks import Mask


@dataclass(frozen=True)
class Issue:
    """Something that reading mended or left out, by a stated rule (docs/data_formats.md).

    Args:
        code: short name of the rule, such as "box_clipped".
        severity: "warning" where something was lost, else "info".
        message: what was done and why.
        count: how many records.
        examples: file and record of the first few.
    """

    code: str
    severity: str
    message: str
    count: int
    examples: tuple[str, ...] = ()


@dataclass(frozen=True)
class Record:
    """One image and its objects.

    Args:
        image_id: identity of the image within its split.
        file: path of the image file.
        width: in pixels, after EXIF orientation.
        height: in pixels, after EXIF orientation.
        boxes: `(n, 4)` float32, xyxy in pixels of the image, inside of it.
        labels: `(n,)` int64, contiguous labels of the table's label map.
        ignore: `(n,)` bool, regions (crowd, difficult) that count neither way.
        masks: a mask for each object, polygons or an RLE dict with text `counts` (an empty list for an
            object without one); None where no object of the whole split has a mask.
        semantic: path of the image's map of semantic classes; None where the split has no maps.
    """

    image_id: int
    file: Path
    width: int
    height: int
    boxes: np.ndarray
    labels: np.ndarray
    ignore: np.ndarray
    masks: list[Mask] | None
    semantic: Path | None = None


@dataclass(frozen=True)
class Objects:
    """All objects of a table as flat arrays, in the order of the images.

    Args:
        row: `(N,)` int64, index of the object's image in the table.
        boxes: `(N, 4)` float64, xyxy in pixels.
        labels: `(N,)` int64.
        ignore: `(N,)` bool.
        areas: `(N,)` float64, square pixels; of the mask where there is one.
        ids: `(N,)` int64, the annotation ids.
    """

    row: np.ndarray
    boxes: np.ndarray
    labels: np.ndarray
    ignore: np.ndarray
    areas: np.ndarray
    ids: np.ndarray

    def __len__(self) -> int:
        return len(self.row)
