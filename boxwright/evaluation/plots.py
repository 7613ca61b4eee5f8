"""Plots as PNG files (extra `plot`). Figures are made without pyplot, so no global state is touched."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import MissingExtraError
from .curves import ConfusionMatrix, Curve

COLORS = ("#2a78d6", "#eb6834", "#1baf7a", "#b98200", "#c4558a", "#4a3aa7", "#d03b3b", "#52514e")
INK, SOFT, GRID = "#1c1c1a", "#5d5c57", "#e4e3de"
LABELLED_CLASSES, SHOWN_CLASSES = 8, 40


def plot_precision_recall(curves: Sequence[Curve], path: str | Path) -> Path:
    """Precision over recall of each class and the mean; up to eight classes have a colour and a name."""
    figure, axes = _figure(6.4, 5.2)
    named = len(curves) <= LABELLED_CLASSES
    for k, curve in enumerate(curves):
        label = f"{curve.name}  {100 * curve.average_precision:.1f}" if named else None
        style = {"color": COLORS[k % len(COLORS)], "lw": 1.6} if named else {"color": "#c3c2bc", "lw": 0.9}
        axes.plot(curve.recall, curve.precision, label=label, **style)
    if len(curves) > 1:
        mean = np.mean([curve.precision for curve in curves], axis=0)
        label = f"mean of {len(curves)}  {100 * mean.mean():.1f}"
        axes.plot(curves[0].recall, mean, color=INK, lw=2.4, ls="--" if named else "-", label=label)
    axes.set(xlim=(0, 1), ylim=(0, 1.02), xlabel="recall", ylabel="precision")
    axes.set_title(f"Precision and recall at overlap {curves[0].overlap:g}", loc="left")
    axes.legend(title="AP, per cent", loc="lower left", frameon=False, alignment="left")
    return _save(figure, path)


def plot_confusion(matrix: ConfusionMatrix, path: str | Path) -> Path:
    """The confusion matrix, tinted by the share of each row; counts are written in up to 25 classes."""
    count = len(matrix.names)
    side = min(14.0, 2.2 + 0.5 * count)
    figure, axes = _figure(side, side)
    shares = matrix.counts / np.maximum(matrix.counts.sum(axis=1, keepdims=True), 1)
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    if count <= 26:
        for r, c in zip(*np.nonzero(matrix.counts), strict=True):
            color = "white" if shares[r, c] > 0.55 else INK
            axes.text(c, r, f"{matrix.counts[r, c]}", ha="center", va="center", color=color, fontsize=8)
    axes.set_xticks(range(count), matrix.names, rotation=90 if count > 6 else 0)
    axes.set_yticks(range(count), matrix.names)
    axes.set(xlabel="found as", ylabel="object")
    axes.grid(False)
    axes.set_title(f"Confusion at overlap {matrix.overlap:g}, score {matrix.score:.2f}", loc="left")
    return _save(figure, path)


def plot_training(
    train: Sequence[Mapping[str, Any]], val: Sequence[Mapping[str, Any]], path: str | Path
) -> Path:
    """Loss with its terms, and the validation's average precision, over epochs.

    Args:
        train: training lines of `metrics.jsonl`.
        val: validation lines.
        path: PNG file.
    """
    figure, (losses, precision) = _figure(11, 4.2, columns=2)
    keys = ["loss", *dict.fromkeys(k for line in train for k in line if k.startswith("loss/"))]
    for k, key in enumerate(keys[: len(COLORS)]):
        losses.plot(*_history(train, key), color=COLORS[k], lw=2.0 if key == "loss" else 1.2, label=key)
    shown = [
        k for k in ("bbox/AP", "bbox/AP50", "bbox/AP75", "segm/AP", "segm/AP50") if any(k in v for v in val)
    ]
    for k, key in enumerate(shown):
        precision.plot(*_history(val, key), color=COLORS[k], lw=1.8, marker="o", ms=3.5, label=key)
    losses.set(xlabel="epoch", ylim=(0, None))
    losses.set_title("Training loss", loc="left")
    precision.set(xlabel="epoch", ylim=(0, 1))
    precision.set_title("Validation", loc="left")
    for axes in (losses, precision):
        if axes.lines:
            axes.legend(frameon=False)
    return _save(figure, path)


def plot_statistics(train: Sequence[Mapping[str, Any]], path: str | Path, columns: int = 3) -> Path:
    """Every statistic that the detector logs ("stat/...") over epochs, each on axes of its own.

    Settings that a method adapts are among them: threshold and beta of Dynamic R-CNN (arXiv:2004.06002, Fig.
    3, 5).

    Args:
        train: training lines of `metrics.jsonl`, with at least one statistic.
        path: PNG file.
        columns: plots beside each other.
    """
    keys = [key for key in dict.fromkeys(k for line in train for k in line) if key.startswith("stat/")]
    columns = min(columns, len(keys))
    rows = -(-len(keys) // columns)
    figure, grid = _figure(4.2 * columns, 3.2 * rows, columns, rows)
    plots = list(np.ravel(grid))
    for key, axes in zip(keys, plots, strict=False):
        axes.plot(*_history(train, key), color=COLORS[0], lw=1.6)
        axes.set(xlabel="epoch")
        axes.set_title(key.removeprefix("stat/").replace("_", " "), loc="left")
    for axes in plots[len(keys) :]:
        axes.set_axis_off()
    return _save(figure, path)


def plot_classes(per_class: Mapping[str, Mapping[str, float]], path: str | Path) -> Path:
    """AP of each class as bars, best first; of more than 40 classes, the 40 worst."""
    key = next((k for k in ("bbox/AP", "segm/AP") if any(k in m for m in per_class.values())), None)
    key = key or next(k for measures in per_class.values() for k in measures)
    values = sorted(((m[key], name) for name, m in per_class.items() if key in m), reverse=True)
    values = values[-SHOWN_CLASSES:]
    figure, axes = _figure(6.4, 1.2 + 0.3 * len(values))
    bars = axes.barh(
        [name for _, name in values], [value for value, _ in values], color=COLORS[0], height=0.62
    )
    axes.bar_label(bars, [f"{100 * value:.1f}" for value, _ in values], padding=4, color=SOFT, fontsize=8)
    axes.invert_yaxis()
    axes.set(xlim=(0, 1.08), xlabel=key)
    axes.set_title("Classes", loc="left")
    axes.grid(axis="y", visible=False)
    return _save(figure, path)


def plot_sizes(metrics: Mapping[str, float], path: str | Path) -> Path:
    """AP of small, medium and large objects as bars, boxes and masks beside each other."""
    kinds = [kind for kind in ("bbox", "segm") if f"{kind}/AP" in metrics]
    sizes = {"all": "AP", "small": "APs", "medium": "APm", "large": "APl"}
    figure, axes = _figure(6.4, 3.6)
    width = 0.7 / max(len(kinds), 1)
    for k, kind in enumerate(kinds):
        heights = [metrics.get(f"{kind}/{key}", math.nan) for key in sizes.values()]
        places = np.arange(len(sizes)) + (k - (len(kinds) - 1) / 2) * width
        bars = axes.bar(places, heights, width * 0.9, color=COLORS[k], label=kind)
        labels = ["-" if math.isnan(h) else f"{100 * h:.1f}" for h in heights]
        axes.bar_label(bars, labels, padding=3, color=SOFT, fontsize=8)
    axes.set_xticks(range(len(sizes)), list(sizes))
    axes.set(ylim=(0, 1.08), ylabel="AP")
    axes.set_title("Object sizes", loc="left")
    axes.grid(axis="x", visible=False)
    if len(kinds) > 1:
        axes.legend(frameon=False)
    return _save(figure, path)


def plot_histories(
    lines: Mapping[str, tuple[Sequence[float], Sequence[float]]], path: str | Path, title: str, ylabel: str
) -> Path:
    """One measure of several trainings over their epochs.

    Args:
        lines: epochs and values by name.
        path: PNG file.
        title: above the figure.
        ylabel: of the measure, which lies in 0..1.
    """
    figure, axes = _figure(9.0, 5.2)
    for k, (name, (epochs, values)) in enumerate(lines.items()):
        style = ("-", "--", ":")[k // len(COLORS) % 3]
        axes.plot(
            epochs, values, style, color=COLORS[k % len(COLORS)], lw=1.6, marker="o", ms=2.5, label=name
        )
    axes.set(xlabel="epoch", ylabel=ylabel, ylim=(0, None))
    axes.set_title(title, loc="left")
    figure.legend(loc="outside right upper", frameon=False, fontsize=8)
    return _save(figure, path)


def plot_tradeoff(
    points: Mapping[str, tuple[float, float]], path: str | Path, title: str, xlabel: str, ylabel: str
) -> Path:
    """Named points, such as accuracy against time.

    Args:
        points: x and y by name.
        path: PNG file.
        title: above the figure.
        xlabel: of the horizontal axis, which begins at 0.
        ylabel: of the vertical axis.
    """
    figure, axes = _figure(9.0, 5.6)
    for x, y in points.values():
        axes.plot(x, y, "o", color=COLORS[0], ms=5)
    axes.set(xlabel=xlabel, ylabel=ylabel, xlim=(0, 1.15 * max(x for x, _ in points.values())))
    axes.margins(y=0.1)
    axes.set_title(title, loc="left")
    _name_points(figure, axes, points)
    return _save(figure, path)


def _name_points(figure: Any, axes: Any, points: Mapping[str, tuple[float, float]]) -> None:
    """Write each name on the side of its point where it covers least of the others."""
    from matplotlib.transforms import Bbox

    figure.draw_without_rendering()  # from here on places on the page are known
    figure.set_layout_engine("none")
    taken = [Bbox.from_bounds(x - 4, y - 4, 8, 8) for x, y in map(axes.transData.transform, points.values())]
    sides = ((7, -3, "left"), (-7, -3, "right"), (0, 7, "center"), (0, -13, "center"), (5, 6, "left"))
    for name, place in points.items():
        tried = []
        for x, y, side in sides:
            style = {"textcoords": "offset points", "ha": side, "fontsize": 8, "color": SOFT}
            text = axes.annotate(name, place, xytext=(x, y), **style)
            box = text.get_window_extent()
            shared = [Bbox.intersection(box, other) for other in [*taken, figure.bbox]]
            covered = sum(one.width * one.height for one in shared[:-1] if one is not None)
            outside = box.width * box.height - (shared[-1].width * shared[-1].height if shared[-1] else 0.0)
            tried.append((covered + 2 * outside, len(tried), text, box))
        _, _, kept, box = min(tried, key=lambda one: one[:2])
        taken.append(box)
        for *_, text, _ in tried:
            if text is not kept:
                text.remove()


def _figure(width: float, height: float, columns: int = 1, rows: int = 1) -> tuple[Any, Any]:
    """A figure with bare axes; it belongs to no window and no list of figures."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingExtraError("matplotlib", "plot", "writing plots as PNG files") from error
    figure = Figure(figsize=(width, height), layout="constrained")
    axes = figure.subplots(rows, columns)
    for one in np.ravel(axes):
        one.grid(color=GRID, lw=0.8)
        one.set_axisbelow(True)
        one.tick_params(colors=SOFT, length=0, labelsize=9)
        one.spines[["top", "right"]].set_visible(False)
        one.spines[["left", "bottom"]].set_color("#b9b8b2")
    return figure, axes


def _history(lines: Sequence[Mapping[str, Any]], key: str) -> tuple[list[float], list[float]]:
    present = [line for line in lines if line.get(key) is not None and "epoch" in line]
    return [float(line["epoch"]) for line in present], [float(line[key]) for line in present]


def _save(figure: Any, path: str | Path) -> Path:
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=144, facecolor="white")
    return path
