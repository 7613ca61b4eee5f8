"""Contact sheets: images with their boxes, masks and labels drawn on them."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from ..errors import DataError
from ..visualize import draw_detections, shorten
from .images import decode_image
from .masks import to_bitmap
from .records import Record
from .table import Table

_GAP, _CAPTION = 6, 18


def contact_sheets(
    table: Table,
    out: str | os.PathLike[str],
    *,
    count: int = 24,
    per_sheet: int = 24,
    columns: int = 4,
    cell: int = 320,
    seed: int | None = None,
    indices: Sequence[int] | None = None,
) -> list[Path]:
    """Write PNG files with images of a split and what is annotated on them.

    Args:
        table: the split.
        out: the PNG file; with several sheets, a number is put before its suffix.
        count: how many images.
        per_sheet: how many on one sheet.
        columns: how many side by side.
        cell: longest side of one image, in px.
        seed: draw the images at random; None takes the first ones.
        indices: the places of the images, instead of `count` and `seed`.

    Returns:
        The files written.

    Raises:
        DataError: an image cannot be decoded, the file cannot be written, or the numbers ask for nothing.
    """
    if min(count, per_sheet, columns, cell) < 1:
        raise DataError("count, per_sheet, columns and cell must be at least 1")
    if indices is None:
        order = np.arange(len(table)) if seed is None else np.random.default_rng(seed).permutation(len(table))
        indices = [int(i) for i in order[:count]]
    chosen = list(indices)
    parts = [chosen[i : i + per_sheet] for i in range(0, len(chosen), per_sheet)]
    path = Path(out)
    suffix = path.suffix or ".png"
    files = []
    for number, part in enumerate(parts, 1):
        file = (
            path.with_suffix(suffix)
            if len(parts) == 1
            else path.with_name(f"{path.stem}_{number:02d}{suffix}")
        )
        _save(_sheet(table, part, columns, cell), file)
        files.append(file)
    return files


def _save(sheet: Image.Image, file: Path) -> None:
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        sheet.save(file)
    except (OSError, ValueError) as error:  # Pillow raises ValueError for a suffix that it does not know
        raise DataError(
            f"{file}: the contact sheet cannot be written ({error}); name a .png or .jpg file in a folder "
            "that can be written"
        ) from error


def _sheet(table: Table, indices: Sequence[int], columns: int, cell: int) -> Image.Image:
    columns = min(columns, len(indices))
    rows = math.ceil(len(indices) / columns)
    step_x, step_y = cell + _GAP, cell + _CAPTION + _GAP
    sheet = Image.new("RGB", (columns * step_x + _GAP, rows * step_y + _GAP), "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(12)
    for place, index in enumerate(indices):
        record = table[index]
        x, y = _GAP + place % columns * step_x, _GAP + place // columns * step_y
        picture = draw_record(decode_image(record.file), record, table.label_map.names, cell)
        sheet.paste(picture, (x, y + _CAPTION))
        name = " ".join(record.file.name.split())
        rest = f" ({len(record.labels)} objects, id {record.image_id})"
        caption = shorten(draw, name, font, cell - draw.textlength(rest, font)) + rest
        draw.text((x, y), shorten(draw, caption, font, cell), fill="black", font=font)
    return sheet


def draw_record(
    image: Image.Image, record: Record, names: Sequence[str], longest: int | None = None
) -> Image.Image:
    """The image with its objects drawn as detections are; ignore regions are grey and named so.

    Args:
        image: RGB, of the record's size.
        record: its annotations.
        names: class names.
        longest: scale the picture so that its longest side is this, in px; None keeps its size.
    """
    if image.size != (record.width, record.height):
        raise DataError(
            f"{record.file}: the file is {image.size[0]} x {image.size[1]}, the annotations say "
            f"{record.width} x {record.height}; correct the annotations"
        )
    scale = 1.0 if longest is None else longest / max(image.size)
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    picture = image.resize(size, Image.Resampling.BILINEAR) if size != image.size else image
    masks = None
    if record.masks is not None and len(record.masks):
        bitmaps = (Image.fromarray(to_bitmap(m, record.height, record.width)) for m in record.masks)
        masks = np.stack([np.asarray(b.resize(size, Image.Resampling.NEAREST)) for b in bitmaps])
    told = [*names, *(f"{name} (ignore)" for name in names)]
    labels = record.labels + len(names) * record.ignore
    return draw_detections(
        picture, record.boxes * scale, labels, masks=masks, names=told, ignore=record.ignore
    )
