"""The pictures of a study: `study.html`, one file that needs no other, and PNG files beside it."""

from __future__ import annotations

import importlib.util
import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from ..evaluation import plots
from ..evaluation.files import write_text
from ..metrics import ROWS
from ..report import read_metrics
from ..report.charts import Axis, Point, Series, appearance, line_chart, scatter_chart
from ..report.elements import Section, document, table, text
from ..report.elements import cell as share_cell
from .request import Request
from .rows import KINDS, Cell, Column, Row, cell, columns, groups, state, summary

PAGE, PLOTS = "study.html", "plots"
TITLES = {"bbox": "AP", "segm": "mask AP"}
WIDE, HIGH = 760, 420
History = dict[str, tuple[list[float], list[float]]]


def write_page(out: Path, request: Request, rows: Sequence[Row]) -> Path:
    """Write `study.html` and, where matplotlib is installed, its pictures into `plots/`.

    Args:
        out: the study's folder, whose runs' `metrics.jsonl` hold the curves.
        request: what was asked for.
        rows: of all runs.
    """
    curves = {kind: histories(out, rows, f"{kind}/AP") for kind in KINDS}
    trades = {kind: trade_offs(rows, kind) for kind in KINDS}
    notes: list[str] = []
    if importlib.util.find_spec("matplotlib") is None:
        notes.append("No pictures were written as PNG files: that needs `pip install 'boxwright[plot]'`.")
    else:
        _write_pictures(out / PLOTS, curves, trades)
    sections: list[Section] = [
        ("results", "Results", _results(out, rows)),
        ("trade", "Accuracy and time", _trades(trades)),
        ("curves", "Learning curves", _curves(curves)),
        ("overlap", "Precision of the boxes", _overlaps(rows)),
        ("errors", "What is missing", _errors(rows)),
        ("request", "How this was made", _request(out, request)),
    ]
    name, lead = out.resolve().name, text(summary(rows))
    page = document(name, "study", lead, "", sections, notes, "the files of the study's folder")
    write_text(out / PAGE, page)
    return out / PAGE


def histories(out: Path, rows: Sequence[Row], key: str) -> History:
    """Epochs and a measure of the validations of each variant, the mean over its seeds."""
    found: History = {}
    for name, group in groups(rows).items():
        values: dict[float, list[float]] = {}
        for row in group:
            for line in read_metrics(out / row.folder / "metrics.jsonl"):
                if line.get("kind") == "val" and line.get(key) is not None:
                    values.setdefault(float(line["epoch"]), []).append(float(line[key]))
        epochs = sorted(values)
        if epochs:
            found[name] = epochs, [statistics.fmean(values[epoch]) for epoch in epochs]
    return found


def trade_offs(rows: Sequence[Row], kind: str) -> dict[str, dict[str, tuple[float, float]]]:
    """Cost and AP of each finished variant, by what the cost is."""
    accuracy = Column("", lambda row: row.metrics.get(f"{kind}/AP"), 3)
    costs: dict[str, Callable[[Row], float | None]] = {
        "minutes of training": lambda row: row.minutes,
        "ms an image at inference": lambda row: row.seconds_per_image and 1000 * row.seconds_per_image,
    }
    found: dict[str, dict[str, tuple[float, float]]] = {}
    for title, value in costs.items():
        points: dict[str, tuple[float, float]] = {}
        for name, group in groups(rows).items():
            x, y = cell(group, Column("", value, 3)), cell(group, accuracy)
            if x is not None and y is not None:
                points[name] = x.mean, y.mean
        if points:
            found[title] = points
    return found


def _write_pictures(
    folder: Path,
    curves: Mapping[str, History],
    trades: Mapping[str, Mapping[str, Mapping[str, tuple[float, float]]]],
) -> None:
    for kind, title in TITLES.items():
        if curves[kind]:
            plots.plot_histories(curves[kind], folder / f"{kind}_curves.png", "Validation", title)
        for cost, points in trades[kind].items():
            name = "training" if "training" in cost else "inference"
            heading = f"Accuracy and time of {name}"
            plots.plot_tradeoff(points, folder / f"{kind}_{name}.png", heading, cost, title)


def _results(out: Path, rows: Sequence[Row]) -> str:
    if not rows:
        return ""
    shown = columns(rows)
    lines = []
    for name, group in groups(rows).items():
        told = state(group)
        label = text(name)
        if (out / group[0].folder / "report.html").is_file():
            label = f"<a href='{text(group[0].folder)}/report.html'>{label}</a>"
        label += f" <b>{text(told)}</b>" if told else ""
        cells = [_cell(cell(group, column), column) for column in shown]
        lines.append([f"<td{' class=failed' if told else ''}>{label}</td>", *cells])
    hint = (
        "<p class='hint'>Average precision (AP) in per cent. Minutes are those of the training steps at "
        "their median pace, without validations. An image at inference is alone in its batch, decoding and "
        "resizing not counted. A click on a heading sorts.</p>"
    )
    return hint + table(["variant", *(column.title for column in shown)], lines, kind="sortable")


def _cell(value: Cell | None, column: Column) -> str:
    if value is None:
        return share_cell(None)
    if not column.share:
        return f"<td data-value='{value.mean:.6f}'>{value.show(column.digits)}</td>"
    deviation = None if value.deviation is None else 100 * value.deviation
    return f"<td data-value='{value.mean:.6f}'>{Cell(100 * value.mean, deviation).show(1)}</td>"


def _trades(trades: Mapping[str, Mapping[str, Mapping[str, tuple[float, float]]]]) -> str:
    charts = []
    for kind, title in TITLES.items():
        for cost, named in trades[kind].items():
            points = [Point(name, x, y) for name, (x, y) in named.items()]
            low = max(0.0, math.floor(10 * (min(p.y for p in points) - 0.02)) / 10)
            axes = Axis(cost, 0.0), Axis(title, low)
            heading = f"{title} against {cost}"
            charts.append(scatter_chart(heading, points, *axes, size=(WIDE, HIGH), frontier=True))
    if not charts:
        return ""
    hint = "<p class='hint'>No variant is both faster and better than those on the dashed line.</p>"
    return hint + "".join(charts)


def _curves(curves: Mapping[str, History]) -> str:
    charts = []
    for kind, title in TITLES.items():
        series = []
        for number, (name, (epochs, values)) in enumerate(curves[kind].items()):
            color, dash = appearance(number)
            series.append(Series(name, epochs, values, color, dash))
        axes = Axis("epoch", 0.0), Axis(title, 0.0)
        charts.append(line_chart(f"{title} on the validation split", series, *axes, size=(WIDE, HIGH)))
    return "".join(charts)


def _overlaps(rows: Sequence[Row]) -> str:
    """AP over the overlap that is asked for: what methods for precise boxes change."""
    names = [name for name in ROWS if name[2:].isdecimal()]
    series = []
    for number, (variant, group) in enumerate(groups(rows).items()):
        found = {
            int(name[2:]) / 100: value.mean
            for name in names
            if (value := cell(group, _of(f"bbox/{name}"))) is not None
        }
        if found:
            color, dash = appearance(number)
            series.append(Series(variant, list(found), list(found.values()), color, dash))
    return line_chart("AP of boxes", series, Axis("overlap (IoU)"), Axis("AP", 0.0), size=(WIDE, HIGH))


def _of(key: str) -> Column:
    return Column(key, lambda row: row.metrics.get(key), 3)


def _errors(rows: Sequence[Row]) -> str:
    told = [row for row in rows if row.status != "finished"]
    return "".join(
        f"<h3>{text(row.variant)}, seed {row.seed}: {text(row.status)}</h3>"
        f"<p class='code error'>{text(row.error)}</p>"
        for row in told
    )


def _request(out: Path, request: Request) -> str:
    command = request.command(out)
    told = f"<p class='code error'>{text(command)}</p>" if command else ""
    return (
        f"{told}<p class='hint'>The same command goes on with a study that was stopped; finished runs are "
        "not repeated. Beside this page: <code>table.md</code>, <code>rows.csv</code>, "
        "<code>study.json</code>, <code>plots/</code>, and the run folders in <code>runs/</code>.</p>"
    )
