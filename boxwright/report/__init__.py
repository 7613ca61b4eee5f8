"""The report of a run: one self-contained `report.html`, and the plots as PNG files beside it."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..config import Call, flatten, read_config
from ..data.table import Table
from ..errors import ConfigError, DataError, MissingExtraError
from ..evaluation import read_evaluation
from ..evaluation.curves import BACKGROUND, ConfusionMatrix, Curve
from ..evaluation.files import EVALUATION, write_text
from .figures import read_figures, write_figures
from .page import RunContent, render

REPORT, CONFIG, METRICS = "report.html", "config.json", "metrics.jsonl"

__all__ = ["write_plots", "write_report"]


def write_report(
    run_dir: str | Path, table: Table | None = None, *, examples: int = 6, trust: Sequence[str] = ()
) -> Path:
    """Write `report.html` of a run: settings, curves, tables, confusion, best and worst images, in one file.

    The page needs nothing but a browser. It is made from the files of the run folder alone: with `table`, the
    curves, the confusion and the pictures are first worked out from `predictions.json` and kept in `plots/`;
    without, what is in `plots/` is shown. Sections whose files are missing are left out. Where matplotlib is
    installed the plots are written as PNG files too (see `write_plots`); where not, the page says so.

    Args:
        run_dir: the run folder.
        table: the split that `predictions.json` was made on.
        examples: how many best and how many worst images.
        trust: modules of your own that the run's configuration may name.

    Returns:
        Path of the page.

    Raises:
        DataError: the folder does not exist, holds nothing to report, or one of its files is damaged.
    """
    folder = Path(run_dir)
    if not any((folder / name).is_file() for name in (METRICS, EVALUATION)):
        raise DataError(
            f"{folder} is no run folder: it has neither {METRICS} nor {EVALUATION}; train or evaluate"
        )
    if table is not None:
        write_figures(folder, table, examples)
    content = read_run(folder, trust)
    if importlib.util.find_spec("matplotlib") is None:
        note = "Plots were not written as PNG files: that needs matplotlib, pip install 'boxwright[plot]'."
        content = RunContent(**{**vars(content), "notes": (*content.notes, note)})
    else:
        write_plots(folder)
    write_text(folder / REPORT, render(content))
    return folder / REPORT


def write_plots(run_dir: str | Path) -> list[Path]:
    """Write what the run folder's files hold as PNG files into `plots/`.

    `training.png`, `statistics.png`, `classes.png`, `sizes.png`, `precision_recall.png` and `confusion.png`,
    each where its data are there.

    Raises:
        MissingExtraError: matplotlib is not installed.
        DataError: a file is damaged.
    """
    if importlib.util.find_spec("matplotlib") is None:
        raise MissingExtraError("matplotlib", "plot", "writing plots as PNG files")
    from ..evaluation import plots

    run = read_run(Path(run_dir))
    folder = run.folder / "plots"
    figures = run.figures
    written = []
    if run.train or run.val:
        written.append(plots.plot_training(run.train, run.val, folder / "training.png"))
    if any(key.startswith("stat/") for line in run.train for key in line):
        written.append(plots.plot_statistics(run.train, folder / "statistics.png"))
    if run.per_class:
        written.append(plots.plot_classes(run.per_class, folder / "classes.png"))
    if any(key.endswith(("/APs", "/APm", "/APl")) for key in run.metrics):
        written.append(plots.plot_sizes(run.metrics, folder / "sizes.png"))
    if figures.get("curves"):
        written.append(plots.plot_precision_recall(stored_curves(figures), folder / "precision_recall.png"))
        written.append(plots.plot_confusion(stored_matrix(figures), folder / "confusion.png"))
    return written


def read_run(folder: Path, trust: Sequence[str] = ()) -> RunContent:
    """What the files of a run folder say; a file that is missing leaves its part empty.

    Raises:
        DataError: a file is damaged.
    """
    metrics, per_class = read_evaluation(folder) if (folder / EVALUATION).is_file() else ({}, {})
    lines = read_metrics(folder / METRICS)
    settings, notes = read_settings(folder / CONFIG, trust)
    return RunContent(
        name=folder.resolve().name,
        folder=folder,
        settings=settings,
        train=[line for line in lines if line.get("kind") == "train"],
        val=[line for line in lines if line.get("kind") == "val"],
        metrics=metrics,
        per_class=per_class,
        figures=read_figures(folder),
        notes=notes,
    )


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The lines of `metrics.jsonl`; none where there is no file. A last line torn by a kill is left out.

    Raises:
        DataError: another line is not JSON.
    """
    if not path.is_file():
        return []
    texts = path.read_text(encoding="utf-8", errors="replace").splitlines()
    records = []
    for number, text in enumerate(texts, start=1):
        try:
            record = json.loads(text)
            if not isinstance(record, dict):
                raise ValueError("not an object")
        except ValueError as error:
            if number == len(texts):
                break
            raise DataError(f"{path}: line {number} is not a record ({error}); delete the line") from error
        records.append(record)
    return records


def read_settings(path: Path, trust: Sequence[str] = ()) -> tuple[list[tuple[str, str]], tuple[str, ...]]:
    """(path, value) of each setting of `config.json` as text, and a note where they cannot be read."""
    if not path.is_file():
        return [], ()
    try:
        values = flatten(read_config(path, trust))
    except ConfigError as error:
        return [], (f"The settings are not listed: {error}",)
    return [(name, _short(value)) for name, value in values.items()], ()


def stored_curves(figures: Mapping[str, Any]) -> list[Curve]:
    """The curves of `plots/figures.json`."""
    import numpy as np

    recall = np.linspace(0.0, 1.0, 101)
    return [
        Curve(
            name=c["name"],
            overlap=figures["overlap"],
            recall=recall,
            precision=np.array(c["precision"]),
            scores=np.array(c["scores"]),
            average_precision=c["average_precision"],
            best_f1=c["best_f1"],
            best_score=c["best_score"],
        )
        for c in figures["curves"]
    ]


def stored_matrix(figures: Mapping[str, Any]) -> ConfusionMatrix:
    """The confusion matrix of `plots/figures.json`."""
    import numpy as np

    names, counts = figures["confusion"]["names"], figures["confusion"]["counts"]
    assert names[-1] == BACKGROUND
    return ConfusionMatrix(np.array(counts), tuple(names), figures["score"], figures["overlap"])


def _short(value: object) -> str:
    if isinstance(value, Call):
        name = value.name.rpartition(".")[2]
        return f"{'partial ' if value.partial else ''}{name}(...)"
    text = str(value) if isinstance(value, str | Path) else repr(value)
    return text if len(text) <= 300 else f"{text[:300]}…"
