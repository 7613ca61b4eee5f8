"""The page: one HTML text with style, script, charts and pictures in it."""

from __future__ import annotations

import base64
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .charts import SERIES_COLORS, Axis, Series, line_chart
from .elements import cell, document, table, text

SIZES = (("s", "small", "below 32² px"), ("m", "medium", "32² to 96² px"), ("l", "large", "above 96² px"))
KINDS = {"bbox": "boxes", "segm": "masks", "voc": "VOC"}
MATRIX_CLASSES, CURVE_CLASSES, LOSS_POINTS = 20, 24, 400
VALIDATED = {"bbox/AP": 1, "bbox/AP50": 2, "bbox/AP75": 3, "segm/AP": 6, "segm/AP50": 5, "voc/AP50": 4}


@dataclass(frozen=True)
class RunContent:
    """What the files of a run folder say.

    Args:
        name: of the folder.
        folder: where it is; pictures are read from `plots/`.
        settings: (path, value) of the configuration, values as text; a call has the value's name and "(...)".
        train: training lines of `metrics.jsonl`.
        val: validation lines of `metrics.jsonl`.
        metrics: flat metrics of `evaluation.json`.
        per_class: metrics by class name.
        figures: content of `plots/figures.json`, or empty.
        notes: what could not be shown, and why.
    """

    name: str
    folder: Path
    settings: Sequence[tuple[str, str]]
    train: Sequence[Mapping[str, Any]]
    val: Sequence[Mapping[str, Any]]
    metrics: Mapping[str, float]
    per_class: Mapping[str, Mapping[str, float]]
    figures: Mapping[str, Any]
    notes: Sequence[str] = ()


def render(run: RunContent) -> str:
    """The whole page. Sections without content are left out."""
    sections = [
        ("results", "Results", _results(run)),
        ("classes", "Classes", _classes(run.per_class)),
        ("learning", "Learning curves", _learning(run)),
        ("curves", "Precision and recall", _precision_recall(run.figures)),
        ("confusion", "Confusion", _confusion(run.figures)),
        ("worst", "Worst images", _pictures(run, "worst")),
        ("best", "Best images", _pictures(run, "best")),
        ("settings", "Settings", _settings(run.settings)),
    ]
    return document(
        run.name, "report", _lead(run), _tiles(run), sections, run.notes, "the files of the run folder"
    )


def _lead(run: RunContent) -> str:
    parts = []
    if run.figures:
        images, objects, split = (run.figures[key] for key in ("images", "objects", "split"))
        parts.append(f"Measured on {images:,} images of split “{text(split)}” with {objects:,} objects")
    if run.train:
        last = run.train[-1]
        parts.append(f"trained for {last['step']:,} steps, {float(last.get('epoch', 0)):.3g} epochs")
    line = "; ".join(parts)
    return f"{line[:1].upper()}{line[1:]}." if line else ""


def _tiles(run: RunContent) -> str:
    tiles = []
    for kind in ("bbox", "segm"):
        for key in ("AP", "AP50", "AP75"):
            if (value := run.metrics.get(f"{kind}/{key}")) is not None:
                tiles.append(
                    f"<div class='tile{'' if tiles else ' first'}'><b>{100 * value:.1f}</b>"
                    f"<span>{key} of {KINDS[kind]}</span></div>"
                )
    return f"<div class='tiles'>{''.join(tiles)}</div>" if tiles else ""


def _results(run: RunContent) -> str:
    kinds = [kind for kind in KINDS if any(key.startswith(f"{kind}/") for key in run.metrics)]
    if not kinds:
        return ""
    parts = [
        "<p class='hint'>Average precision (AP) in per cent. AP is the mean over overlaps 0.50 to 0.95, AP50 "
        "that at overlap 0.50, and so on. AR is the recall with at most that many detections an image. A "
        "dash: the data has no such objects.</p>"
    ]
    sized = {f"A{c}{size}" for c in "PR" for size, _, _ in SIZES}
    for kind in kinds:
        measures = {k.partition("/")[2]: v for k, v in run.metrics.items() if k.startswith(f"{kind}/")}
        plain = {key: value for key, value in measures.items() if key not in sized}
        title = KINDS[kind][:1].upper() + KINDS[kind][1:]
        parts.append(f"<h3>{title}</h3>")
        parts.append(table(list(plain), [[cell(value) for value in plain.values()]]))
        if sized & measures.keys():
            rows = [
                [
                    f"<td>{name} <small class='none'>{extent}</small></td>",
                    *(cell(measures.get(f"A{c}{size}"), bar=True) for c in "PR"),
                ]
                for size, name, extent in SIZES
            ]
            parts.append(table(["object size", "AP", "AR"], rows))
    return "".join(parts)


def _classes(per_class: Mapping[str, Mapping[str, float]]) -> str:
    if not per_class:
        return ""
    order = ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR100")
    present = {key for measures in per_class.values() for key in measures}
    kinds = [kind for kind in KINDS if any(key.startswith(f"{kind}/") for key in present)]
    columns = [f"{kind}/{name}" for kind in kinds for name in order if f"{kind}/{name}" in present]
    columns += sorted(key for key in present - set(columns) if key.startswith("voc/"))
    titles = [c if len(kinds) > 1 else c.partition("/")[2] for c in columns]
    rows = [
        [f"<td>{text(name)}</td>", *(cell(measures.get(c), bar=i == 0) for i, c in enumerate(columns))]
        for name, measures in per_class.items()
    ]
    hint = "<p class='hint'>In per cent. A click on a heading sorts.</p>"
    return hint + table(["class", *titles], rows, kind="sortable")


def _learning(run: RunContent) -> str:
    train = run.train[:: max(1, math.ceil(len(run.train) / LOSS_POINTS))]
    epoch, from_zero = Axis("epoch", low=0.0), Axis("", low=0.0)
    terms = [key for key in dict.fromkeys(k for line in train for k in line) if key.startswith("loss/")]
    total = [_history(train, "loss", "loss")] if any("loss" in line for line in train) else []
    parts = [_history(train, key, key[5:], n + 1) for n, key in enumerate(terms[:SERIES_COLORS])]
    measured = [
        _history(run.val, key, key, color)
        for key, color in VALIDATED.items()
        if any(key in line for line in run.val)
    ]
    rest = {
        title: [_history(train, key, title)]
        for key, title in (("lr", "Learning rate"), ("images_per_second", "Images per second"))
        if any(line.get(key) is not None for line in train)
    }
    charts = [
        line_chart("Loss", total, epoch, from_zero),
        line_chart("Loss terms", parts if len(parts) > 1 else [], epoch, from_zero),
        line_chart("Validation", measured, epoch, Axis("", 0.0, 1.0)),
        *(line_chart(title, series, epoch, from_zero) for title, series in rest.items()),
    ]
    return f"<div class='grid'>{''.join(charts)}</div>{_statistics(train)}" if any(charts) else ""


def _statistics(train: Sequence[Mapping[str, Any]]) -> str:
    """A small chart for each statistic that the detector logs, whatever the method."""
    keys = [key for key in dict.fromkeys(k for line in train for k in line) if key.startswith("stat/")]
    charts = []
    for key in keys:
        title = key.removeprefix("stat/").replace("_", " ")
        series = _history(train, key, title)
        charts.append(line_chart(title, [series], Axis("epoch", low=0.0), Axis(""), size=(300, 210)))
    if not any(charts):
        return ""
    hint = (
        "<p class='hint'>What the detector tells of its training, as means between two records: counts an "
        "image, and settings that follow the training.</p>"
    )
    return f"<h3>Statistics</h3>{hint}<div class='grid small'>{''.join(charts)}</div>"


def _history(lines: Sequence[Mapping[str, Any]], key: str, name: str, color: int = 1) -> Series:
    present = [line for line in lines if key in line and "epoch" in line]
    values = [math.nan if line[key] is None else float(line[key]) for line in present]
    return Series(name, [float(line["epoch"]) for line in present], values, color)


def _precision_recall(figures: Mapping[str, Any]) -> str:
    curves = figures.get("curves")
    if not curves:
        return ""
    axes = Axis("recall", 0.0, 1.0), Axis("precision", 0.0, 1.0)
    recall = [k / 100 for k in range(101)]
    means = [
        Series(f"overlap {curve['overlap']:g}", recall, curve["precision"], color)
        for curve, color in zip(figures["mean_curves"], (1, 3, 2), strict=True)
    ]
    summary = (
        "<p class='hint'>Precision over recall, at the 101 recalls of which COCO's average precision is the "
        f"mean. The score threshold with the largest F1 over all classes is <b>{figures['score']:.2f}</b>; "
        "confusion and pictures below use it.</p>"
        f"<div class='grid'>{line_chart('Mean of the classes', means, *axes)}</div>"
    )
    if len(curves) == 1:
        return summary
    chosen, title = curves, "Each class at overlap 0.5; in grey the mean"
    if len(curves) > CURVE_CLASSES:
        chosen = sorted(curves, key=lambda curve: curve["average_precision"])[:CURVE_CLASSES]
        title = f"The {CURVE_CLASSES} classes of {len(curves)} with the lowest AP50; in grey the mean"
    charts = []
    for curve in chosen:
        series = [
            Series("mean", recall, means[0].y, SERIES_COLORS),
            Series(curve["name"], recall, curve["precision"]),
        ]
        best = f"F1 {curve['best_f1']:.2f} at {curve['best_score']:.2f}"
        note = f"AP50 {100 * curve['average_precision']:.1f} · {best}"
        charts.append(line_chart(curve["name"], series, *axes, size=(300, 210), note=note, legend=False))
    return f"{summary}<h3>{title}</h3><div class='grid small'>{''.join(charts)}</div>"


def _confusion(figures: Mapping[str, Any]) -> str:
    confusion = figures.get("confusion")
    if not confusion:
        return ""
    names, counts = confusion["names"], confusion["counts"]
    background = len(names) - 1
    kept, note = list(range(background)), ""
    if background > MATRIX_CLASSES:
        errors = [sum(counts[k]) + sum(row[k] for row in counts) - 2 * counts[k][k] for k in kept]
        kept = sorted(sorted(kept, key=lambda k: -errors[k])[:MATRIX_CLASSES])
        note = f" Shown are the {MATRIX_CLASSES} classes of {background} with the most errors."
    kept.append(background)
    rows = []
    for r in kept:
        cells = [_matrix_cell(counts, names, r, c) for c in kept]
        total = "" if r == background else f"{sum(counts[r]):,}"
        rows.append([f"<th>{text(names[r])}</th>", *cells, f"<td class='total'>{total}</td>"])
    hint = (
        "<p class='hint'>Rows are objects, columns what they were found as, at overlap "
        f"{figures['overlap']:g} and score {figures['score']:.2f}. The last column counts missed objects, "
        f"the last row detections where nothing is.{note} The tint is the share of the row: blue right, "
        "orange wrong.</p>"
    )
    return hint + table(["", *(names[k] for k in kept), ""], rows, kind="matrix")


def _matrix_cell(counts: Sequence[Sequence[int]], names: Sequence[str], r: int, c: int) -> str:
    count, share = counts[r][c], counts[r][c] / max(sum(counts[r]), 1)
    words = f"{names[r]} found as {names[c]}: {count:,} ({100 * share:.1f} %)"
    kinds = ["right"] * (r == c) + ["zero"] * (not count) + ["strong"] * (share > 0.55)
    tint = f"--share:{0.9 * share:.3f}"
    return f"<td class='{' '.join(kinds)}' style='{tint}' title='{text(words)}'>{count or '·'}</td>"


def _pictures(run: RunContent, kind: str) -> str:
    pairs = []
    for entry in run.figures.get("pictures", ()):
        path = run.folder / "plots" / Path(entry["file"]).name
        if entry["kind"] != kind or not path.is_file():
            continue
        source = f"data:image/jpeg;base64,{base64.b64encode(path.read_bytes()).decode('ascii')}"
        alt = text(f"{entry['image']}: ground truth left, prediction right")
        counts = f"{entry['right']} right, {entry['wrong']} wrong, {entry['missed']} missed"
        pairs.append(
            f"<figure class='pair'><img loading='lazy' alt='{alt}' src='{source}'><figcaption>"
            f"<b>F1 {entry['f1']:.2f}</b> · {counts}<br>{text(entry['image'])}</figcaption></figure>"
        )
    if not pairs:
        return ""
    return (
        f"<p class='hint'>Ground truth left, predictions from score {run.figures['score']:.2f} on right; "
        f"regions to be ignored are grey. A click enlarges.</p><div class='grid'>{''.join(pairs)}</div>"
    )


def _settings(settings: Sequence[tuple[str, str]]) -> str:
    if not settings:
        return ""
    brief = [(path, value) for path, value in settings if "." not in path]
    return (
        f"{_setting_table(brief)}<details><summary>All {len(settings)} values</summary>"
        f"{_setting_table(settings, calls=True)}</details>"
    )


def _setting_table(settings: Sequence[tuple[str, str]], calls: bool = False) -> str:
    rows = "".join(
        f"<tr{' class=call' if calls and value.endswith('(...)') else ''}>"
        f"<td class='code'>{text(path)}</td><td class='code'>{text(value)}</td></tr>"
        for path, value in settings
    )
    return f"<table class='settings'><tbody>{rows}</tbody></table>"
