"""Instance masks as annotations hold them: polygons or run lengths, checked, measured and rasterised.

Run lengths are COCO's: columns first, beginning with the length of zeros; `counts` is a list
(uncompressed) or text of six-bit groups (compressed).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeAlias

import numpy as np

from ..errors import DataError

Mask: TypeAlias = list[list[float]] | dict[str, Any]
"""Polygons `[[x1, y1, x2, y2, ...], ...]` in pixels, or `{"size": [height, width], "counts": text}`."""


def to_bitmap(mask: Mask, height: int, width: int) -> np.ndarray:
    """Rasterise a mask by COCO's rule.

    Args:
        mask: polygons (an empty list gives an empty bitmap) or run lengths.
        height: of the image, in pixels.
        width: of the image, in pixels.

    Returns:
        `(height, width)` uint8 array of 0 and 1.

    Raises:
        DataError: the run lengths are of another size, or damaged; a polygon has fewer than 3 points.
    """
    from faster_coco_eval.core import mask as api

    if isinstance(mask, dict):
        counts = compress_counts(mask.get("counts"), mask.get("size"), height, width)
        return np.ascontiguousarray(api.decode({"size": [height, width], "counts": counts}))
    if not mask:
        return np.zeros((height, width), dtype=np.uint8)
    if any(len(ring) < 6 or len(ring) % 2 for ring in mask):
        raise DataError("a polygon needs at least 3 points: x and y of each, so an even count of 6 or more")
    rings: Any = api.frPyObjects([[float(v) for v in ring] for ring in mask], height, width)
    return np.ascontiguousarray(api.decode(api.merge(rings)))


def compress_counts(counts: object, size: object, height: int, width: int) -> bytes:
    """Check run lengths against the image and return them compressed.

    Raises:
        DataError: wrong types, another size, negative lengths, or a sum that is not height x width.
    """
    if not (isinstance(size, (list, tuple)) and len(size) == 2 and all(type(v) is int for v in size)):
        raise DataError(f"RLE `size` must be [height, width], found {size!r}")
    if tuple(size) != (height, width):
        raise DataError(
            f"RLE size {list(size)} differs from the image's [height, width] = [{height}, {width}]"
        )
    if isinstance(counts, list):
        if not all(type(v) is int for v in counts):
            raise DataError("RLE `counts` must be whole numbers")
        lengths = np.asarray(counts, dtype=object)
    elif isinstance(counts, (str, bytes)):
        lengths = _expand(counts)
    else:
        raise DataError(f"RLE `counts` must be a list or text, found {type(counts).__name__}")
    if (lengths < 0).any():
        raise DataError("RLE `counts` holds a negative length")
    total = int(lengths.sum()) if len(lengths) else 0
    if total != height * width:
        raise DataError(f"RLE `counts` sum to {total}, not to height x width = {height * width}")
    if isinstance(counts, list):
        from faster_coco_eval.core import mask as api

        packed = api.frPyObjects({"size": [height, width], "counts": counts}, height, width)["counts"]  # pyright: ignore[reportCallIssue, reportArgumentType]
        return packed if isinstance(packed, bytes) else packed.encode("ascii")
    return counts if isinstance(counts, bytes) else counts.encode("ascii")


def _expand(text: str | bytes) -> np.ndarray:
    """Run lengths from their compressed text: five bits a character, differences to two lengths before."""
    try:
        raw = text.encode("ascii") if isinstance(text, str) else text
    except UnicodeEncodeError:
        raise DataError("RLE `counts` holds characters that compressed run lengths never have") from None
    code = np.frombuffer(raw, dtype=np.uint8).astype(np.int64) - 48
    if not len(code):
        return code
    if code.min() < 0 or code.max() > 63 or code[-1] & 32:
        raise DataError("RLE `counts` is damaged: not the text of compressed run lengths")
    last = np.flatnonzero(~code & 32)
    first = np.concatenate(([0], last[:-1] + 1))
    if (last - first).max() > 6:
        raise DataError("RLE `counts` is damaged: a length of more than 35 bits")
    place = np.arange(len(code)) - np.repeat(first, last - first + 1)
    values = np.add.reduceat((code & 31) << (5 * place), first)
    values -= np.where(code[last] & 16, 1 << (5 * (last - first + 1)), 0)
    for start in (1, 2):
        values[start::2] = np.cumsum(values[start::2])
    return values


def mask_box(mask: Mask) -> list[float]:
    """Extent of a mask, `[x1, y1, x2, y2]` in pixels."""
    if isinstance(mask, dict):
        from faster_coco_eval.core import mask as api

        x, y, w, h = (float(v) for v in api.toBbox(mask))
        return [x, y, x + w, y + h]
    xs = [x for ring in mask for x in ring[0::2]]
    ys = [y for ring in mask for y in ring[1::2]]
    return [min(xs), min(ys), max(xs), max(ys)]


def mask_area(mask: Mask) -> float:
    """Area of a mask in square pixels; of polygons, the sum of their parts."""
    if isinstance(mask, dict):
        from faster_coco_eval.core import mask as api

        return float(api.area(mask))
    return float(sum(_ring_area(ring) for ring in mask))


def _ring_area(ring: Sequence[float]) -> float:
    x, y = np.asarray(ring[0::2]), np.asarray(ring[1::2])
    return abs(float(np.dot(x, np.roll(y, -1)) - np.dot(y, np.roll(x, -1)))) / 2
