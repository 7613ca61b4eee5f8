"""Charts as SVG text: lines over a common axis, and named points, drawn in the page's own colours."""

from __future__ import annotations

import html
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass

WIDTH, HEIGHT = 520, 260
LEFT, RIGHT, TOP, BOTTOM = 62, 12, 10, 38
SERIES_COLORS = 8  # --series-1 ... --series-8 of the style sheet
DASHES = ("", "7 3", "2 2.5")
CHARACTER, LETTER_HEIGHT = 6.3, 13.0  # of a point's name, in px


@dataclass(frozen=True)
class Series:
    """One line of a chart.

    Args:
        name: for the legend and the value under the pointer.
        x: increasing.
        y: as many values.
        color: 1 .. 8, the place in the palette.
        dash: lengths of stroke and gap in px, as SVG has them; a whole line where empty.
    """

    name: str
    x: Sequence[float]
    y: Sequence[float]
    color: int = 1
    dash: str = ""


@dataclass(frozen=True)
class Point:
    """One named point of a scatter chart.

    Args:
        name: beside the point.
        x: finite.
        y: finite.
        color: 1 .. 8, the place in the palette.
    """

    name: str
    x: float
    y: float
    color: int = 1


def appearance(number: int) -> tuple[int, str]:
    """Color and dash of the line with that number, from 0; 21 of them differ."""
    return number % (SERIES_COLORS - 1) + 1, DASHES[number // (SERIES_COLORS - 1) % len(DASHES)]


@dataclass(frozen=True)
class Axis:
    """An axis: its title, and its ends where they are not to follow the data."""

    title: str
    low: float | None = None
    high: float | None = None


def line_chart(
    title: str,
    series: Sequence[Series],
    x: Axis,
    y: Axis,
    size: tuple[int, int] = (WIDTH, HEIGHT),
    note: str = "",
    legend: bool = True,
) -> str:
    """A figure with title, legend and lines, as HTML with inline SVG.

    Points that are not finite leave a gap. The pointer shows the values of all lines there (`script.js`).

    Args:
        title: above the figure.
        series: at least one line with at least one point; a line with one point is drawn as a dot.
        x: horizontal axis.
        y: vertical axis.
        size: width and height in px.
        note: behind the title, in smaller type.
        legend: name the lines (there is none for a single line).
    """
    xs = [value for s in series for value in s.x]
    ys = [value for s in series for value in s.y if math.isfinite(value)]
    if not xs or not ys:
        return ""
    plot = _Plot(*size, _range(xs, x, widen=False), _range(ys, y, widen=True))
    lines = "".join(_line(plot, s) for s in series)
    points = [
        {"name": s.name, "color": s.color, "x": _rounded(s.x), "y": _rounded(s.y)} for s in series
    ]  # fmt: skip
    frame = {
        "left": LEFT,
        "right": size[0] - RIGHT,
        "top": TOP,
        "bottom": size[1] - BOTTOM,
        "x": plot.x_range,
    }
    data = html.escape(json.dumps({"series": points, "frame": frame, "title": x.title}), quote=True)
    small = f" <small>{html.escape(note)}</small>" if note else ""
    return (
        f"<figure class='chart'><figcaption>{html.escape(title)}{small}</figcaption>"
        + (_legend(series) if legend and len(series) > 1 else "")
        + f"<svg viewBox='0 0 {size[0]} {size[1]}' role='img' aria-label='{html.escape(title, quote=True)}' "
        f'data-chart="{data}">{_axes(plot, x, y)}{lines}<g class="cursor"></g></svg></figure>'
    )


def scatter_chart(
    title: str,
    points: Sequence[Point],
    x: Axis,
    y: Axis,
    size: tuple[int, int] = (WIDTH, HEIGHT),
    frontier: bool = False,
) -> str:
    """A figure of named points, as HTML with inline SVG; nothing where there is no point.

    Args:
        title: above the figure.
        points: their names are placed so that they do not cover each other, where there is room.
        x: horizontal axis.
        y: vertical axis.
        size: width and height in px.
        frontier: draw a line through the points that no other beats in both a smaller x and a larger y.
    """
    if not points:
        return ""
    plot = _Plot(
        *size, _range([p.x for p in points], x, widen=True), _range([p.y for p in points], y, widen=True)
    )
    best = best_points(points) if frontier else []
    path = " ".join(f"{'L' if i else 'M'}{plot.x(p.x):.1f} {plot.y(p.y):.1f}" for i, p in enumerate(best))
    line = f"<path class='frontier' d='{path}'/>" if len(best) > 1 else ""
    dots = "".join(
        f"<circle class='dot' style='--line:var(--series-{p.color})' cx='{plot.x(p.x):.1f}' "
        f"cy='{plot.y(p.y):.1f}' r='4'><title>{html.escape(p.name)}: {number(p.x)}, {number(p.y)}</title>"
        "</circle>"
        for p in points
    )
    return (
        f"<figure class='chart'><figcaption>{html.escape(title)}</figcaption>"
        f"<svg viewBox='0 0 {size[0]} {size[1]}' role='img' aria-label='{html.escape(title, quote=True)}'>"
        f"{_axes(plot, x, y)}{line}{dots}{_names(plot, points)}</svg></figure>"
    )


def best_points(points: Sequence[Point]) -> list[Point]:
    """The points that no other beats in both a smaller x and a larger y, from left to right."""
    kept: list[Point] = []
    for point in sorted(points, key=lambda p: (p.x, -p.y)):
        if not kept or point.y > kept[-1].y:
            kept.append(point)
    return kept


def _names(plot: _Plot, points: Sequence[Point]) -> str:
    """Each point's name on the side where it covers least of what is there already."""
    taken = [(plot.x(p.x) - 4, plot.y(p.y) - 4, plot.x(p.x) + 4, plot.y(p.y) + 4) for p in points]
    parts = []
    for point in points:
        at_x, at_y, width = plot.x(point.x), plot.y(point.y), CHARACTER * len(point.name)
        places = [
            (at_x + 8, at_y + 4),
            (at_x - 8 - width, at_y + 4),
            (at_x - width / 2, at_y - 8),
            (at_x - width / 2, at_y + 17),
            (at_x + 6, at_y - 7),
            (at_x + 6, at_y + 15),
        ]
        boxes = [(left, base - LETTER_HEIGHT + 2, left + width, base + 2) for left, base in places]
        costs = [
            sum(_common(box, other) for other in taken) + _outside(plot, box) + 0.01 * k
            for k, box in enumerate(boxes)
        ]
        chosen = costs.index(min(costs))
        taken.append(boxes[chosen])
        left, base = places[chosen]
        parts.append(f"<text class='name' x='{left:.1f}' y='{base:.1f}'>{html.escape(point.name)}</text>")
    return "".join(parts)


def _common(a: tuple[float, ...], b: tuple[float, ...]) -> float:
    """Area that two boxes share."""
    return max(0.0, min(a[2], b[2]) - max(a[0], b[0])) * max(0.0, min(a[3], b[3]) - max(a[1], b[1]))


def _outside(plot: _Plot, box: tuple[float, ...]) -> float:
    """Area of a box that lies outside of the axes."""
    frame = (LEFT, 0.0, plot.width, plot.height - BOTTOM)
    return 2.0 * ((box[2] - box[0]) * (box[3] - box[1]) - _common(box, frame))


@dataclass(frozen=True)
class _Plot:
    width: int
    height: int
    x_range: tuple[float, float]
    y_range: tuple[float, float]

    def x(self, value: float) -> float:
        low, high = self.x_range
        return LEFT + (value - low) / (high - low) * (self.width - LEFT - RIGHT)

    def y(self, value: float) -> float:
        low, high = self.y_range
        return self.height - BOTTOM - (value - low) / (high - low) * (self.height - TOP - BOTTOM)


def ticks(low: float, high: float, count: int = 5) -> list[float]:
    """About `count` round numbers (1, 2 or 5 times a power of ten apart) within low .. high."""
    raw = (high - low) / max(count, 1)
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= raw * 0.999)
    first = math.ceil(low / step - 1e-9)
    return [k * step for k in range(first, math.floor(high / step + 1e-9) + 1)]


def number(value: float) -> str:
    """A tick's label: four significant digits, no trailing zeros."""
    return "0" if abs(value) < 1e-12 else f"{value:.4g}"


def _range(values: Sequence[float], axis: Axis, widen: bool) -> tuple[float, float]:
    low = min(values) if axis.low is None else axis.low
    high = max(values) if axis.high is None else axis.high
    if high <= low:
        high = low + (abs(low) or 1.0) * 0.1
    if widen and axis.high is None:
        high += (high - low) * 0.05
    return float(low), float(high)


def _axes(plot: _Plot, x: Axis, y: Axis) -> str:
    bottom, right = plot.height - BOTTOM, plot.width - RIGHT
    parts = []
    for value in ticks(*plot.y_range):
        at = f"{plot.y(value):.1f}"
        parts.append(f"<line class='grid' x1='{LEFT}' x2='{right}' y1='{at}' y2='{at}'/>")
        parts.append(f"<text class='tick end' x='{LEFT - 8}' y='{at}' dy='.32em'>{number(value)}</text>")
    for value in ticks(*plot.x_range, count=6):
        parts.append(
            f"<text class='tick mid' x='{plot.x(value):.1f}' y='{bottom + 16}'>{number(value)}</text>"
        )
    parts.append(f"<line class='axis' x1='{LEFT}' x2='{right}' y1='{bottom}' y2='{bottom}'/>")
    along = f"x='{(LEFT + right) / 2}' y='{plot.height - 4}'"
    parts.append(f"<text class='title mid' {along}>{html.escape(x.title)}</text>")
    middle = (TOP + bottom) / 2
    parts.append(
        f"<text class='title mid' transform='translate(11 {middle}) rotate(-90)'>"
        f"{html.escape(y.title)}</text>"
    )
    return "".join(parts)


def _line(plot: _Plot, series: Series) -> str:
    pieces, command = [], "M"
    for x, y in zip(series.x, series.y, strict=True):
        if not math.isfinite(y):
            command = "M"
            continue
        pieces.append(f"{command}{plot.x(x):.1f} {plot.y(y):.1f}")
        command = "L"
    style = f"style='--line:var(--series-{series.color})'"
    dashes = f" stroke-dasharray='{series.dash}'" if series.dash else ""
    dots = ""
    if len(series.x) <= 12:
        points = [(plot.x(x), plot.y(y)) for x, y in zip(series.x, series.y, strict=True) if math.isfinite(y)]
        dots = "".join(f"<circle class='dot' {style} cx='{x:.1f}' cy='{y:.1f}' r='3'/>" for x, y in points)
    return f"<path class='line' {style}{dashes} d='{''.join(pieces)}'/>{dots}"


def _legend(series: Sequence[Series]) -> str:
    items = "".join(f"<li><i style='{_stroke(s)}'></i>{html.escape(s.name)}</li>" for s in series)
    return f"<ul class='legend'>{items}</ul>"


def _stroke(series: Series) -> str:
    """The look of a line in the legend."""
    color = f"var(--series-{series.color})"
    if not series.dash:
        return f"background:{color}"
    stroke, gap = (float(length) for length in series.dash.split())
    stripes = f"{color} 0 {stroke:g}px,transparent {stroke:g}px {stroke + gap:g}px"
    return f"background:repeating-linear-gradient(90deg,{stripes})"


def _rounded(values: Sequence[float]) -> list[float | None]:
    return [float(f"{value:.5g}") if math.isfinite(value) else None for value in values]
