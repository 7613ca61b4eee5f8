"""What an evaluation gives: a mapping of metrics that prints itself as the COCO table."""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.table import Table

ROWS = ("AP", "AP50", "AP60", "AP70", "AP75", "AP80", "AP90", "APs", "APm", "APl")
RECALLS = ("AR1", "AR10", "AR100", "ARs", "ARm", "ARl")
TITLES = {
    "AP": "IoU 0.50:0.95",
    "APs": "small, below 32^2 px",
    "APm": "medium, to 96^2 px",
    "APl": "large, above 96^2 px",
    "AR1": "1 detection an image",
    "AR10": "10 detections an image",
    "AR100": "100 detections an image",
    "ARs": "small",
    "ARm": "medium",
    "ARl": "large",
}


@dataclass(frozen=True)
class Metrics(Mapping[str, float]):
    """Metrics by key: "bbox/AP", "bbox/AP50", "segm/AP", ...; printing it gives the COCO AP table.

    Args:
        measured: metrics in 0..1 by key; what has nothing to be measured on (no small object) is absent.
        per_class: the same measures by class name.
        split: what was evaluated, for the title.
    """

    measured: Mapping[str, float]
    per_class: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    split: str = ""

    def __getitem__(self, key: str) -> float:
        try:
            return self.measured[key]
        except KeyError:
            raise KeyError(f"{key!r} was not measured; there are: {', '.join(self.measured)}") from None

    def __iter__(self) -> Iterator[str]:
        return iter(self.measured)

    def __len__(self) -> int:
        return len(self.measured)

    def __str__(self) -> str:
        from rich.console import Console

        buffer = io.StringIO()
        console = Console(file=buffer, width=100, no_color=True, force_terminal=False)
        for table in self.tables():
            console.print(table)
        return buffer.getvalue().rstrip()

    def __repr__(self) -> str:
        return f"Metrics({dict(self.measured)})"

    def __rich_console__(self, console: object, options: object) -> Iterator[Table]:
        yield from self.tables()

    def tables(self) -> list[Table]:
        """The summary and, where there are several classes, the AP of each, as rich tables."""
        kinds = list(dict.fromkeys(key.partition("/")[0] for key in self.measured))
        tables = [self._summary(kinds)]
        if len(self.per_class) > 1:
            tables.append(self._classes(kinds))
        return tables

    def _summary(self, kinds: list[str]) -> Table:
        from rich.table import Table

        table = Table(title=f"COCO metrics{f' on {self.split}' if self.split else ''}", title_justify="left")
        table.add_column("metric")
        table.add_column("of")
        for kind in kinds:
            table.add_column(kind, justify="right")
        known = [key.partition("/")[2] for key in self.measured]
        rows = [*ROWS, *RECALLS, *known]
        for name in dict.fromkeys(row for row in rows if row in known):
            title = TITLES.get(name) or (f"IoU 0.{name[2:]}" if name in ROWS else "")
            cells = (self.measured.get(f"{kind}/{name}") for kind in kinds)
            table.add_row(name, title, *("-" if cell is None else f"{cell:.3f}" for cell in cells))
        return table

    def _classes(self, kinds: list[str]) -> Table:
        from rich.table import Table

        table = Table(title="AP of each class", title_justify="left")
        table.add_column("class")
        for kind in kinds:
            table.add_column(f"{kind} AP", justify="right")
            table.add_column(f"{kind} AP50", justify="right")
        for name, measures in self.per_class.items():
            cells = (measures.get(f"{kind}/{key}") for kind in kinds for key in ("AP", "AP50"))
            table.add_row(name, *("-" if cell is None else f"{cell:.3f}" for cell in cells))
        return table
