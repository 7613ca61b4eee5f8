"""What a study found: one row for each run, kept as JSON and CSV, and the table made of them."""

from __future__ import annotations

import csv
import io
import json
import math
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Literal

from ..errors import DataError
from ..evaluation.files import write_json, write_text
from ..metrics import ROWS
from .request import Request, read_request

STUDY, CSV, TABLE = "study.json", "rows.csv", "table.md"
KINDS = {"bbox": "", "segm": "mask "}


@dataclass(frozen=True)
class Row:
    """One run of a study.

    Args:
        variant: name of its row in the table.
        recipe: what it was made from; empty for a description given in Python.
        overrides: assignments.
        seed: of the run.
        digest: stands for all settings.
        folder: of the run, below the study's.
        status: "begun", "finished", "failed", or "left out" because the data lack what it needs.
        error: why it failed or was left out.
        split: what was measured on; empty where the data has no such split.
        metrics: by key, such as "bbox/AP", in 0..1.
        parameters: of the detector.
        epochs: trained.
        steps: of the optimiser.
        minutes: of training steps, at their median pace.
        images_per_second: in training, the median.
        memory_mb: peak while training, in MiB, of the device or else of the process.
        seconds_per_image: of prediction, see `protocol.seconds_per_image`.
        about: machine, versions and date.
    """

    variant: str
    recipe: str
    overrides: tuple[str, ...]
    seed: int
    digest: str
    folder: str
    status: Literal["begun", "finished", "failed", "left out"]
    error: str = ""
    split: str = ""
    metrics: Mapping[str, float] = field(default_factory=dict)
    parameters: int | None = None
    epochs: float | None = None
    steps: int | None = None
    minutes: float | None = None
    images_per_second: float | None = None
    memory_mb: float | None = None
    seconds_per_image: float | None = None
    about: Mapping[str, str] = field(default_factory=dict)

    @property
    def key(self) -> tuple[str, int]:
        """What is one run of a study: the variant and the seed."""
        return self.variant, self.seed


@dataclass(frozen=True)
class Column:
    """One column of figures.

    Args:
        title: above it.
        value: of a row; None where it has none.
        digits: behind the point.
        share: whether the values are shares, of which the largest is the best.
    """

    title: str
    value: Callable[[Row], float | None]
    digits: int
    share: bool = False


@dataclass(frozen=True)
class Cell:
    """Mean of a column over the seeds of a variant, and, of two or more, their sample standard deviation."""

    mean: float
    deviation: float | None = None

    def show(self, digits: int) -> str:
        """As text."""
        told = f"{self.mean:.{digits}f}"
        return told if self.deviation is None else f"{told} ± {self.deviation:.{digits}f}"


COSTS = (
    Column("parameters, M", lambda r: None if r.parameters is None else r.parameters / 1e6, 2),
    Column("steps", lambda r: r.steps, 0),
    Column("minutes", lambda r: r.minutes, 1),
    Column("images/s", lambda r: r.images_per_second, 1),
    Column("memory, MiB", lambda r: r.memory_mb, 0),
    Column("ms an image", lambda r: None if r.seconds_per_image is None else 1000 * r.seconds_per_image, 1),
)


def columns(rows: Iterable[Row]) -> list[Column]:
    """The measured metrics in COCO's order, boxes before masks, then the costs."""
    measured = {key for row in rows for key in row.metrics}
    chosen = [
        Column(f"{KINDS[kind]}{name}", _metric(f"{kind}/{name}"), 3, share=True)
        for kind in KINDS
        for name in ROWS
        if f"{kind}/{name}" in measured
    ]
    return [*chosen, *COSTS]


def groups(rows: Iterable[Row]) -> dict[str, list[Row]]:
    """The rows of each variant, in order."""
    grouped: dict[str, list[Row]] = {}
    for row in rows:
        grouped.setdefault(row.variant, []).append(row)
    return grouped


def cell(rows: Sequence[Row], column: Column) -> Cell | None:
    """A column's value over the finished runs of a variant; None where no run has one."""
    values = [column.value(row) for row in rows if row.status == "finished"]
    known = [float(value) for value in values if value is not None and math.isfinite(value)]
    if not known:
        return None
    return Cell(statistics.fmean(known), statistics.stdev(known) if len(known) > 1 else None)


def state(rows: Sequence[Row]) -> str:
    """How the runs of a variant stand; empty where all are finished."""
    counted = [row.status for row in rows if row.status != "finished"]
    if not counted:
        return ""
    told = next(s for s in ("failed", "left out", "begun") if s in counted)
    return told if len(rows) == 1 else f"{counted.count(told)} of {len(rows)} {told}"


def table(rows: Sequence[Row]) -> tuple[list[str], list[list[str]]]:
    """Titles and lines of text: one line for each variant, the best share of a column in bold."""
    shown, grouped = columns(rows), groups(rows)
    cells = {name: [cell(group, column) for column in shown] for name, group in grouped.items()}
    best = [
        max((value.mean for c in cells.values() if (value := c[k]) is not None), default=None)
        if column.share
        else None
        for k, column in enumerate(shown)
    ]
    lines = []
    for name, group in grouped.items():
        told = state(group)
        texts = []
        for column, value, top in zip(shown, cells[name], best, strict=True):
            text = "-" if value is None else value.show(column.digits)
            texts.append(f"**{text}**" if value is not None and top and value.mean == top else text)
        lines.append([f"{name} ({told})" if told else name, *texts])
    return ["variant", *(column.title for column in shown)], lines


def markdown(rows: Sequence[Row], title: str, command: str = "") -> str:
    """The table as Markdown, with what it was measured on, and the errors below."""
    titles, lines = table(rows)
    parts = [f"# {title}", "", summary(rows), ""]
    parts += ["```", command, "```", ""] if command else []
    parts += [
        "| " + " | ".join(titles) + " |",
        "| --- |" + " ---: |" * (len(titles) - 1),
        *("| " + " | ".join(text.replace("|", "\\|") for text in line) + " |" for line in lines),
    ]
    for status, heading in (("failed", "Failed"), ("left out", "Left out")):
        told = [
            f"- {r.variant}, seed {r.seed}: {' '.join(r.error.split())}" for r in rows if r.status == status
        ]
        parts += ["", f"## {heading}", "", *told] if told else []
    return "\n".join(parts) + "\n"


def summary(rows: Sequence[Row]) -> str:
    """One or two sentences: what was measured, with how many seeds, on what machine."""
    finished = [row for row in rows if row.status == "finished"]
    if not finished:
        return "No run has finished."
    splits = " and ".join(dict.fromkeys(row.split for row in finished if row.split))
    seeds = sorted({row.seed for row in finished})
    told = [f"{len(finished)} finished runs"]
    told += [f"measured on the split {splits}"] if splits else ["the data has no split to measure on"]
    told += [f"mean and standard deviation over the seeds {seeds}"] if len(seeds) > 1 else []
    machines = "; ".join(dict.fromkeys(_about(row) for row in finished if row.about))
    return f"{', '.join(told)}. {f'{machines}.' if machines else ''}".strip()


def _about(row: Row) -> str:
    versions = ("boxwright", "torch")
    return ", ".join(f"{key} {value}" if key in versions else value for key, value in row.about.items())


def read_study(folder: Path) -> tuple[Request | None, list[Row]]:
    """The request and the rows of a study's folder; None and no rows where there is no study yet.

    Raises:
        DataError: `study.json` is damaged.
    """
    path = folder / STUDY
    if not path.is_file():
        return None, []
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        known = {f.name for f in fields(Row)}
        rows = [
            Row(**{**{k: v for k, v in row.items() if k in known}, "overrides": tuple(row["overrides"])})
            for row in content["rows"]
        ]
        return read_request(content["request"], path), rows
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(
            f"{path} cannot be read ({type(error).__name__}: {error}); delete it: the runs beside it are "
            "kept, and measured anew"
        ) from error


def write_study(folder: Path, request: Request, rows: Sequence[Row]) -> None:
    """Write `study.json`, `rows.csv` and `table.md`."""
    content = {"version": 1, "request": asdict(request), "rows": [asdict(row) for row in rows]}
    write_json(folder / STUDY, content, indent=1)
    write_text(folder / CSV, csv_text(rows))
    write_text(folder / TABLE, markdown(rows, folder.resolve().name, request.command(folder)))


def csv_text(rows: Sequence[Row]) -> str:
    """One line for each run, with every metric."""
    keys = list(dict.fromkeys(key for row in rows for key in row.metrics))
    machine = list(dict.fromkeys(key for row in rows for key in row.about))
    plain = [f.name for f in fields(Row) if f.name not in ("metrics", "about", "overrides", "digest")]
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, [*plain, "overrides", *keys, *machine], lineterminator="\n")
    writer.writeheader()
    for row in rows:
        values = {name: getattr(row, name) for name in plain}
        values |= {"overrides": " ".join(row.overrides), **row.metrics, **row.about}
        writer.writerow({name: _plain(value) for name, value in values.items()})
    return buffer.getvalue()


def _plain(value: object) -> object:
    if value is None:
        return ""
    return f"{value:.6g}" if isinstance(value, float) else value


def _metric(key: str) -> Callable[[Row], float | None]:
    return lambda row: row.metrics.get(key)
