"""The pictures that these pages draw themselves: `python docs/figures.py` makes them anew in `docs/images`.

`pipeline.svg` is the way of an image through a detector, `assignment.png` what three recipes train for the
same objects. The other pictures of the folder come from `boxwright demo` and `python -m benchmarks scaling`.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import torch
from PIL import Image, ImageDraw, ImageFont

import boxwright as bw
from boxwright.config import build
from boxwright.structures import Priors, Targets

FOLDER = Path(__file__).parent / "images"
RULES = {
    "RetinaNet: overlap from 0.5 on": "retinanet_r50_fpn_1x",
    "FCOS: inside, by size to levels": "fcos_r50_fpn_1x",
    "ATSS: mean + deviation of overlaps": "atss_r50_fpn_1x",
}
STRIDES = (8, 16, 32, 64, 128)
COLOURS = ("#0072b2", "#009e73", "#e69f00", "#d55e00", "#cc79a7")
"""Of the levels P3 to P7, told apart with the common colour vision deficiencies (Okabe and Ito, 2008)."""
SIDE = 512
OBJECTS = ((40.0, 90.0, 300.0, 470.0), (300.0, 60.0, 480.0, 170.0), (388.0, 330.0, 452.0, 394.0))


def positives(recipe: str) -> Iterator[tuple[int, float, float]]:
    """Level and centre, px, of the places that a recipe trains for `OBJECTS`."""
    head = bw.recipe(recipe).model.head
    shapes = [(-(-SIDE // stride), -(-SIDE // stride)) for stride in STRIDES]
    priors: Priors = build(head.priors)(shapes, STRIDES, (SIDE, SIDE))
    boxes = torch.tensor([OBJECTS])
    valid = torch.ones(1, len(OBJECTS), dtype=torch.bool)
    targets = Targets(boxes, torch.zeros(1, len(OBJECTS), dtype=torch.int64), valid, ~valid)
    positive = build(head.criterion.assigner)(priors, targets).positive[0]
    centres = (priors.boxes[:, :2] + priors.boxes[:, 2:]) / 2
    start = 0
    for level, count in enumerate(priors.num_per_level):
        chosen = centres[start : start + count][positive[start : start + count]]
        yield from ((level, x, y) for x, y in sorted({(float(x), float(y)) for x, y in chosen}))
        start += count


def assignment(scale: int = 2) -> Image.Image:
    """A panel for each rule of `RULES`, drawn `scale` times larger and made smaller again."""
    gap, above, below = 16, 34, 40
    width, height = len(RULES) * (SIDE + gap) + gap, SIDE + above + below
    sheet = Image.new("RGB", (width * scale, height * scale), "white")
    draw = ImageDraw.Draw(sheet)
    font = ImageFont.load_default(20 * scale)
    for panel, (title, recipe) in enumerate(RULES.items()):
        left = gap + panel * (SIDE + gap)
        draw.text((left * scale, 6 * scale), title, "black", font)

        def at(x: float, y: float, left: int = left) -> tuple[float, float]:
            return (left + x) * scale, (above + y) * scale

        draw.rectangle((at(0, 0), at(SIDE, SIDE)), "#f3f3f3")
        for x1, y1, x2, y2 in OBJECTS:
            draw.ellipse((at(x1, y1), at(x2, y2)), "#d9d9d9")
            draw.rectangle((at(x1, y1), at(x2, y2)), outline="#444444", width=2 * scale)
        for level, x, y in positives(recipe):
            r = 2.5 + 1.5 * level
            draw.ellipse((at(x - r, y - r), at(x + r, y + r)), COLOURS[level])
    for level, stride in enumerate(STRIDES):
        x, y = gap + level * 210, above + SIDE + 20
        r = 2.5 + 1.5 * level
        draw.ellipse(
            ((x - r + 8) * scale, (y - r) * scale, (x + r + 8) * scale, (y + r) * scale), COLOURS[level]
        )
        draw.text(((x + 26) * scale, (y - 12) * scale), f"P{level + 3}, stride {stride}", "black", font)
    return sheet.resize((width * 3 // 4, height * 3 // 4), Image.Resampling.LANCZOS)


BOX = '<rect x="{x}" y="{y}" width="{w}" height="{h}" rx="5" fill="{fill}" stroke="#444"/>'
TEXT = '<text x="{x}" y="{y}" font-size="{size}" text-anchor="middle" fill="{fill}">{text}</text>'
LAYERS, WEIGHTLESS, DATA = "#cfe3f5", "#fde3c4", "#ffffff"


def box(x: int, y: int, w: int, h: int, title: str, lines: tuple[str, ...] = (), fill: str = LAYERS) -> str:
    """A labelled box of the pipeline; `lines` stand smaller below the title."""
    top = y + h / 2 - 8 * len(lines) + 5
    words = [TEXT.format(x=x + w / 2, y=top, size=15, fill="#111", text=title)]
    for i, line in enumerate(lines):
        words.append(TEXT.format(x=x + w / 2, y=top + 17 * (i + 1), size=12, fill="#333", text=line))
    return BOX.format(x=x, y=y, w=w, h=h, fill=fill) + "".join(words)


def arrow(*points: tuple[int, int], dashed: bool = False) -> str:
    """A line through some points that ends with a head."""
    path = " ".join(f"{x},{y}" for x, y in points)
    style = 'fill="none" stroke="#444" stroke-width="1.5"' + (' stroke-dasharray="5 4"' if dashed else "")
    return f'<polyline points="{path}" {style} marker-end="url(#a)"/>'


def pipeline() -> str:
    """The parts of one-stage and two-stage detectors, as SVG."""
    slots = ("priors, assigner, sampler", "class, box, code loss", "quality, divisor")
    after = ("threshold, decode", "suppression")
    parts = [
        box(10, 80, 90, 50, "image", ("uint8 RGB",), DATA),
        box(130, 80, 100, 50, "normalise", ("mean, deviation",)),
        box(260, 80, 110, 50, "backbone", ("C2 to C5",)),
        box(400, 80, 100, 50, "neck", ("P3 to P7",)),
        box(530, 80, 120, 50, "dense head", ("codes, scores",)),
        box(690, 20, 180, 78, "criterion", slots, WEIGHTLESS),
        box(690, 118, 180, 60, "post-process", after, WEIGHTLESS),
        box(910, 34, 110, 50, "losses", (), DATA),
        box(910, 123, 110, 50, "detections", ("or proposals",), DATA),
        box(400, 250, 100, 50, "RoIAlign", ("7 x 7 a region",), WEIGHTLESS),
        box(530, 250, 120, 50, "box head", ("one, or a cascade",)),
        box(530, 330, 120, 50, "mask head", ("14 x 14 a region",)),
        box(690, 250, 180, 50, "criterion, post-process", ("the same slots",), WEIGHTLESS),
        box(910, 250, 110, 50, "detections", ("with masks",), DATA),
        arrow((100, 105), (128, 105)),
        arrow((230, 105), (258, 105)),
        arrow((370, 105), (398, 105)),
        arrow((500, 105), (528, 105)),
        arrow((650, 100), (670, 100), (670, 59), (688, 59)),
        arrow((650, 110), (670, 110), (670, 148), (688, 148)),
        arrow((870, 59), (908, 59)),
        arrow((870, 148), (908, 148)),
        arrow((965, 173), (965, 215), (380, 215), (380, 265), (398, 265), dashed=True),
        arrow((450, 130), (450, 248)),
        arrow((500, 275), (528, 275)),
        arrow((650, 275), (688, 275)),
        arrow((870, 275), (908, 275)),
        arrow((515, 275), (515, 355), (528, 355)),
        arrow((650, 355), (965, 355), (965, 302)),
        TEXT.format(x=780, y=12, size=12, fill="#333", text="training"),
        TEXT.format(x=780, y=193, size=12, fill="#333", text="prediction"),
        TEXT.format(
            x=690, y=209, size=12, fill="#333", text="proposals: the second stage of a two-stage detector"
        ),
    ]
    head = (
        '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 1030 395" font-family="sans-serif">'
        '<defs><marker id="a" viewBox="0 0 8 8" refX="7" refY="4" '
        'markerWidth="8" markerHeight="8" orient="auto">'
        '<path d="M0,0 L8,4 L0,8 z" fill="#444"/></marker></defs>'
        '<rect width="1030" height="395" fill="#fafafa"/>'
    )
    return "\n".join([head, *parts, "</svg>", ""])


def main() -> None:
    """Write both."""
    (FOLDER / "pipeline.svg").write_text(pipeline(), encoding="utf-8")
    assignment().save(FOLDER / "assignment.png", optimize=True)


if __name__ == "__main__":
    main()
