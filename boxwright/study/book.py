"""The rows of a study's folder: read at the start, written after each run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from ..assembly import open_data
from ..config.describe import argument
from ..engine.folder import TRACES
from ..engine.messages import on_main
from ..errors import ConfigError
from .page import write_page
from .plan import Planned
from .request import Request
from .rows import Row, read_study, write_study

RUNS = "runs"
ENDED = ("finished", "left out")


class Book:
    """What is known of each run; every rank holds it, the main process writes it.

    Args:
        out: the study's folder.
        request: what it was asked for.
        planned: the runs of this call.

    Raises:
        ConfigError: the folder holds a run of the same name with other settings.
        DataError: its `study.json` is damaged.
    """

    def __init__(self, out: Path, request: Request, planned: Sequence[Planned]) -> None:
        self.out, self.request = out, request
        self._planned = [(run.variant, run.seed) for run in planned]
        _, rows = on_main(lambda: read_study(out))
        kept = [row for row in rows if row.status != "left out" or row.key not in self._planned]
        self._rows = {row.key: row for row in kept}
        for run in planned:
            self._refuse_other_settings(run)

    @property
    def rows(self) -> list[Row]:
        """Those of this call first, then what was finished here before."""
        mine = [self._rows[key] for key in self._planned if key in self._rows]
        others = [row for key, row in self._rows.items() if key not in self._planned and row.status in ENDED]
        return [*mine, *others]

    def ended(self, run: Planned) -> bool:
        """Whether nothing is left to do for a run."""
        row = self._rows.get((run.variant, run.seed))
        return row is not None and row.status in ENDED and row.digest == run.digest

    def put(self, row: Row) -> None:
        """Keep a row."""
        self._rows[row.key] = row
        on_main(lambda: write_study(self.out, self.request, self.rows))

    def publish(self) -> None:
        """Write the tables, the page and the pictures."""

        def write() -> None:
            write_study(self.out, self.request, self.rows)
            write_page(self.out, self.request, self.rows)

        on_main(write)

    def leave_out_masks(self, planned: Sequence[Planned]) -> None:
        """Mark the runs that need masks where the data has none."""
        needy = [run for run in planned if "segm" in argument(run.config, "metrics")]
        if not needy or on_main(lambda: open_data(needy[0].config.data).train.has_masks):
            return
        for run in needy:
            self._rows[run.variant, run.seed] = replace(
                begun(run), status="left out", error="the data has no masks"
            )

    def _refuse_other_settings(self, run: Planned) -> None:
        row = self._rows.get((run.variant, run.seed))
        folder = self.out / RUNS / run.folder
        if row is None or row.digest == run.digest or not any((folder / n).exists() for n in TRACES):
            return
        changed = sorted(set(row.overrides) ^ set(run.overrides))
        what = f"these differ: {', '.join(changed)}" if changed else "its recipe, data or budget differ"
        raise ConfigError(
            f"{folder} holds a run of {run.variant!r} with other settings ({what}): delete that folder to "
            "begin it anew, give this variant another name=, or choose another out="
        )


def begun(run: Planned) -> Row:
    """The row of a run of which nothing is known yet."""
    return Row(run.variant, run.recipe, run.overrides, run.seed, run.digest, f"{RUNS}/{run.folder}", "begun")
