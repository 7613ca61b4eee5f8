"""Drawing detections and annotations into images, with Pillow alone."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

RGB = tuple[int, int, int]
Rectangle = tuple[int, int, int, int]

# Told apart with the common colour vision deficiencies: the colours of Okabe and Ito (2008) without black and
# white, then four of Paul Tol's (2021) "muted" set. They repeat after eleven classes; names tell those apart.
PALETTE: tuple[RGB, ...] = (
    (230, 159, 0),
    (86, 180, 233),
    (0, 158, 115),
    (213, 94, 0),
    (204, 121, 167),
    (240, 228, 66),
    (0, 114, 178),
    (68, 170, 153),
    (136, 34, 85),
    (153, 153, 51),
    (170, 136, 255),
)
IGNORED: RGB = (150, 150, 150)
INK: RGB = (20, 20, 22)
PAPER: RGB = (255, 255, 255)


def color_of(label: int) -> RGB:
    """Colour of a class, the same in every picture."""
    return PALETTE[label % len(PALETTE)]


def draw_detections(
    image: Image.Image | np.ndarray | Tensor,
    boxes: Any,
    labels: Any,
    *,
    scores: Any = None,
    masks: Any = None,
    names: Sequence[str] | None = None,
    ignore: Any = None,
    opacity: float = 0.45,
    scale: float = 1.0,
) -> Image.Image:
    """A copy of an image with boxes, masks, class names and scores drawn into it.

    Line width and type size follow the image's size. A name stands above its box, or where there is room. If
    the names would cover more than a third of the image, only boxes and masks are drawn.

    Args:
        image: PIL image, `(H, W, 3)` uint8 array or `(3, H, W)` uint8 tensor, RGB.
        boxes: `(n, 4)` xyxy in pixels of the image; array, tensor or list.
        labels: `(n,)` contiguous labels, which choose the colours.
        scores: `(n,)` scores in 0..1, written behind the names; the best is drawn last, on top.
        masks: `(n, H, W)` bool.
        names: class name of each label; without names and scores no text is drawn.
        ignore: `(n,)` bool, regions that count neither way, drawn in grey.
        opacity: of masks, 0..1.
        scale: of lines and type: above 1 for a picture that will be shown smaller.

    Raises:
        ValueError: the lengths of boxes, labels, scores, masks and ignore differ.
    """
    canvas = to_image(image)
    corners = _array(boxes, np.float64).reshape(-1, 4)
    classes = _array(labels, np.int64).reshape(-1)
    values = None if scores is None else _array(scores, np.float64).reshape(-1)
    grey = np.zeros(len(corners), bool) if ignore is None else _array(ignore, bool).reshape(-1)
    bitmaps = None if masks is None else _array(masks, bool)
    for what, part in (("labels", classes), ("scores", values), ("masks", bitmaps), ("ignore", grey)):
        if part is not None and len(part) != len(corners):
            raise ValueError(f"{len(corners)} boxes but {len(part)} {what}; give one for each box")
    order = list(range(len(corners))) if values is None else list(np.argsort(values, kind="stable"))
    colors = [IGNORED if grey[i] else color_of(int(classes[i])) for i in range(len(corners))]
    if bitmaps is not None:
        canvas = _blend(canvas, [(bitmaps[i], colors[i]) for i in order], opacity)
    draw = ImageDraw.Draw(canvas)
    width = max(1, round(line_width(canvas.size) * scale))
    for i in order:
        _outline(draw, tuple(corners[i]), colors[i], width)
    texts = [_text(i, classes, values, names) for i in range(len(corners))]
    if any(texts):
        entries = [(tuple(corners[i]), texts[i], colors[i]) for i in reversed(order)]
        _write_names(draw, entries, round(_type_size(canvas.size) * scale))
    return canvas


def side_by_side(
    left: Image.Image,
    right: Image.Image,
    captions: tuple[str, str] | None = ("ground truth", "prediction"),
) -> Image.Image:
    """Two pictures side by side, each with a caption above; the right is scaled to the left's height."""
    if right.height != left.height:
        right = right.resize((max(1, round(right.width * left.height / right.height)), left.height))
    gap, font = max(2, line_width(left.size) * 2), _font(_type_size(left.size) + 2)
    head = 0 if captions is None else round(font.size * 1.7)
    sheet = Image.new("RGB", (left.width + gap + right.width, head + left.height), PAPER)
    sheet.paste(left, (0, head))
    sheet.paste(right, (left.width + gap, head))
    if captions is not None:
        draw = ImageDraw.Draw(sheet)
        for x, caption in zip((0, left.width + gap), captions, strict=True):
            draw.text((x + gap, head // 2), caption, fill=INK, font=font, anchor="lm")
    return sheet


def contact_sheet(
    images: Sequence[Image.Image],
    captions: Sequence[str] | None = None,
    columns: int | None = None,
    cell: tuple[int, int] = (320, 240),
) -> Image.Image:
    """Pictures in rows and columns, each shrunk to fit its cell, on white.

    Args:
        images: at least one.
        captions: a line below each.
        columns: pictures in a row; by default about as many as rows.
        cell: width and height for each picture.

    Raises:
        ValueError: no images, or not one caption for each.
    """
    if not images or (captions is not None and len(captions) != len(images)):
        raise ValueError("a contact sheet needs at least one image, and one caption for each if any")
    columns = columns or math.ceil(math.sqrt(len(images)))
    gap, font = 8, _font(13)
    step = (cell[0] + gap, cell[1] + gap + (0 if captions is None else 18))
    rows = math.ceil(len(images) / columns)
    sheet = Image.new("RGB", (min(columns, len(images)) * step[0] + gap, rows * step[1] + gap), PAPER)
    draw = ImageDraw.Draw(sheet)
    for number, image in enumerate(images):
        small = image.convert("RGB")
        small.thumbnail(cell)
        x, y = (gap + (number % columns) * step[0], gap + (number // columns) * step[1])
        sheet.paste(small, (x + (cell[0] - small.width) // 2, y + (cell[1] - small.height) // 2))
        if captions is not None:
            text = shorten(draw, captions[number], font, cell[0])
            draw.text((x + cell[0] / 2, y + cell[1] + 3), text, fill=INK, font=font, anchor="ma")
    return sheet


def to_image(image: Image.Image | np.ndarray | Tensor) -> Image.Image:
    """A new RGB image of the same pixels.

    Raises:
        ValueError: an array that is not `(H, W, 3)` uint8, or a tensor that is not `(3, H, W)` uint8.
    """
    if isinstance(image, Image.Image):
        return image.copy() if image.mode == "RGB" else image.convert("RGB")
    pixels = image.detach().cpu().permute(1, 2, 0).numpy() if isinstance(image, Tensor) else np.asarray(image)
    if pixels.ndim != 3 or pixels.shape[2] != 3 or pixels.dtype != np.uint8:
        raise ValueError(
            f"cannot draw on pixels of shape {pixels.shape} and type {pixels.dtype}; give uint8 RGB"
        )
    return Image.fromarray(np.ascontiguousarray(pixels))


def line_width(size: tuple[int, int]) -> int:
    """Width of a box's line for an image of this size, in px: 1 at 300 px, 3 at 1000 px."""
    return max(1, round(math.sqrt(size[0] * size[1]) * 0.003))


def _type_size(size: tuple[int, int]) -> int:
    return min(64, max(11, round(math.sqrt(size[0] * size[1]) * 0.022)))


def _font(size: int) -> Any:
    return ImageFont.load_default(size=size)


def _array(values: Any, kind: Any) -> np.ndarray:
    return np.asarray(values.detach().cpu() if isinstance(values, Tensor) else values, dtype=kind)


def _blend(image: Image.Image, masks: list[tuple[np.ndarray, RGB]], opacity: float) -> Image.Image:
    """The image with each mask tinted and its edge drawn in full colour."""
    pixels = np.array(image, dtype=np.float32)
    for mask, color in masks:
        ys, xs = (np.flatnonzero(mask.any(axis=axis)) for axis in (1, 0))
        if not len(ys):
            continue
        window = (slice(ys[0], ys[-1] + 1), slice(xs[0], xs[-1] + 1))  # only its extent is touched
        inside = np.pad(mask[window], 1)
        core = inside[1:-1, :-2] & inside[1:-1, 2:] & inside[:-2, 1:-1] & inside[2:, 1:-1]
        part, body = pixels[window], inside[1:-1, 1:-1]
        part[body] += (np.array(color, np.float32) - part[body]) * opacity
        part[body & ~core] = color
    return Image.fromarray(pixels.round().astype(np.uint8))


def _outline(draw: ImageDraw.ImageDraw, box: tuple[float, ...], color: RGB, width: int) -> None:
    """The box's line inside a dark one of a pixel, which shows on any ground."""
    x1, y1, x2, y2 = (round(value) for value in box)
    x2, y2 = max(x1, x2 - 1), max(y1, y2 - 1)  # Pillow's corners are inclusive
    draw.rectangle((x1 - 1, y1 - 1, x2 + 1, y2 + 1), outline=INK)
    limit = max(1, min(width, (min(x2 - x1, y2 - y1) + 1) // 2))
    draw.rectangle((x1, y1, x2, y2), outline=color, width=limit)


def _text(i: int, labels: np.ndarray, scores: np.ndarray | None, names: Sequence[str] | None) -> str:
    name = "" if names is None else names[int(labels[i])]
    return f"{name} {scores[i]:.2f}".strip() if scores is not None else name


@dataclass(frozen=True)
class _Chip:
    """A name to be written: its text, the places it may stand, most wanted first, and its colour."""

    text: str
    places: list[Rectangle]
    color: RGB


def _write_names(
    draw: ImageDraw.ImageDraw, entries: list[tuple[tuple[float, ...], str, RGB]], type_size: int
) -> None:
    """Names on chips of the box's colour; the first entries choose their place first and lie on top."""
    picture = draw.im.size
    font = _font(type_size)
    pad = max(1, round(font.size * 0.2))
    chips = [_chip(box, text, color, picture, font, pad) for box, text, color in entries]
    covered = sum((r[2] - r[0]) * (r[3] - r[1]) for r in (chip.places[0] for chip in chips))
    if covered > picture[0] * picture[1] / 3:
        return
    placed: list[tuple[_Chip, Rectangle]] = []
    for chip in chips:
        free = (p for p in chip.places if not any(_overlap(p, other) for _, other in placed))
        placed.append((chip, next(free, chip.places[0])))
    for chip, (x1, y1, x2, y2) in reversed(placed):
        draw.rectangle((x1, y1, x2 - 1, y2 - 1), fill=chip.color)
        draw.text((x1 + pad, (y1 + y2) / 2), chip.text, fill=_readable(chip.color), font=font, anchor="lm")


def _chip(
    box: tuple[float, ...], text: str, color: RGB, picture: tuple[int, int], font: Any, pad: int
) -> _Chip:
    wide, high = math.ceil(font.getlength(text)) + 2 * pad, round(font.size * 1.15) + pad
    x1, y1, x2, y2 = (round(value) for value in box)
    corners = [(x1, y1 - high), (x1, y1), (x1, y2), (x2 - wide, y1 - high), (x2 - wide, y2 - high)]
    inside = [(x, y) for x, y in corners if y >= 0 and y + high <= picture[1]] or [(x1, 0)]
    clamped = [(max(0, min(x, picture[0] - wide)), y) for x, y in inside]
    return _Chip(text, [(x, y, x + wide, y + high) for x, y in clamped], color)


def _overlap(one: Rectangle, other: Rectangle) -> bool:
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]


def _readable(color: RGB) -> RGB:
    """Dark or light text, whichever stands out more on a colour (relative luminance of WCAG 2)."""
    linear = [(c / 255 / 12.92 if c <= 10 else ((c / 255 + 0.055) / 1.055) ** 2.4) for c in color]
    luminance = 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
    return INK if luminance > 0.18 else PAPER


def shorten(draw: ImageDraw.ImageDraw, text: str, font: Any, width: float) -> str:
    """The text, or its beginning and three dots where it is wider than `width` px."""
    if draw.textlength(text, font) <= width:
        return text
    while text and draw.textlength(text + "…", font) > width:
        text = text[:-1]
    return text + "…"
