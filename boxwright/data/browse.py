"""Contact sheets: images with their boxes, masks and labels drawn on them."""

from __future__ import annotations

import colorsys
import math
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from ..errors import DataError
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
        DataError: an image cannot be decoded, or the numbers ask for nothing.
    """
    if min(count, per_sheet, columns, cell) < 1:
        raise DataError("count, per_sheet, columns and cell must be at least 1")
    if indices is None:
        order = np.arange(len(table)) if seed is None else np.random.default_rng(seed).permutation(len(table))
        indices = [int(i) for i in order[:count]]
    chosen = list(indices)
    parts = [chosen[i : i + per_sheet] for i in range(0, len(chosen), per_sheet)]
    path = Path(out)
    path.parent.mkdir(parents=True, exist_ok=True)
    suffix = path.suffix or ".png"
    files = []
    for number, part in enumerate(parts, 1):
        file = (
            path.with_suffix(suffix)
            if len(parts) == 1
            else path.with_name(f"{path.stem}_{number:02d}{suffix}")
        )
        _sheet(table, part, columns, cell).save(file)
        files.append(file)
    return files


def _sheet(table: Table, indices: Sequence[int], columns: int, cell: int) -> Image.Image:
    columns = min(columns, len(indices))
    rows = math.ceil(len(indices) / columns)
    step_x, step_y = cell + _GAP, cell + _CAPTION + _GAP
    sheet = Image.new("RGB", (columns * step_x + _GAP, rows * step_y + _GAP), "white")
    draw = ImageDraw.Draw(sheet)
    for place, index in enumerate(indices):
        record = table[index]
        x, y = _GAP + place % columns * step_x, _GAP + place // columns * step_y
        picture = draw_record(decode_image(record.file), record, table.label_map.names, cell)
        sheet.paste(picture, (x, y + _CAPTION))
        caption = f"{record.file.name} (id {record.image_id}, {len(record.labels)} objects)"
        draw.text((x, y), caption[: cell // 6], fill="black", font=ImageFont.load_default(12))
    return sheet


def draw_record(
    image: Image.Image, record: Record, names: Sequence[str], longest: int | None = None
) -> Image.Image:
    """The image with its objects drawn; ignore regions are grey and named so.

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
    picture = image.resize(size, Image.Resampling.BILINEAR) if size != image.size else image.copy()
    for i in range(len(record.labels) if record.masks is not None else 0):
        assert record.masks is not None
        bitmap = Image.fromarray(to_bitmap(record.masks[i], record.height, record.width) * 110)
        picture.paste(_colour(record, i), (0, 0), bitmap.resize(size, Image.Resampling.NEAREST))
    draw = ImageDraw.Draw(picture)
    font = ImageFont.load_default(11)
    for i, (x1, y1, x2, y2) in enumerate((record.boxes * scale).tolist()):
        draw.rectangle((x1, y1, max(x1, x2 - 1), max(y1, y2 - 1)), outline=_colour(record, i), width=2)
    for i, (x1, y1, _, _) in enumerate((record.boxes * scale).tolist()):
        text = names[int(record.labels[i])] + (" (ignore)" if record.ignore[i] else "")
        place = (x1 + 2, max(0.0, y1 - 12))
        draw.rectangle(draw.textbbox(place, text, font=font), fill=_colour(record, i))
        draw.text(place, text, fill="black", font=font)
    return picture


def _colour(record: Record, index: int) -> tuple[int, int, int]:
    """A bright colour of the class: hues a golden section apart, so that neighbouring labels differ."""
    if record.ignore[index]:
        return (150, 150, 150)
    r, g, b = colorsys.hsv_to_rgb(float(record.labels[index]) * 0.618034 % 1.0, 0.75, 1.0)
    return round(255 * r), round(255 * g), round(255 * b)
