"""Charts as SVG text: lines over a common axis, drawn in the page's own colours."""

from __future__ import annotations

import html
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass

WIDTH, HEIGHT = 520, 260
LEFT, RIGHT, TOP, BOTTOM = 62, 12, 10, 38
SERIES_COLORS = 8  # --series-1 ... --series-8 of the style sheet


@dataclass(frozen=True)
class Series:
    """One line of a chart.

    Args:
        name: for the legend and the value under the pointer.
        x: increasing.
        y: as many values.
        color: 1 .. 8, the place in the palette.
    """

    name: str
    x: Sequence[float]
    y: Sequence[float]
    color: int = 1


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
    dots = ""
    if len(series.x) <= 12:
        points = [(plot.x(x), plot.y(y)) for x, y in zip(series.x, series.y, strict=True) if math.isfinite(y)]
        dots = "".join(f"<circle class='dot' {style} cx='{x:.1f}' cy='{y:.1f}' r='3'/>" for x, y in points)
    return f"<path class='line' {style} d='{''.join(pieces)}'/>{dots}"


def _legend(series: Sequence[Series]) -> str:
    items = "".join(
        f"<li><i style='background:var(--series-{s.color})'></i>{html.escape(s.name)}</li>" for s in series
    )
    return f"<ul class='legend'>{items}</ul>"


def _rounded(values: Sequence[float]) -> list[float | None]:
    return [float(f"{value:.5g}") if math.isfinite(value) else None for value in values]
