"""`boxwright demo`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def demo(
    out: Annotated[Path, typer.Option(help="Folder for the data set and the run.")] = Path("runs/demo"),
) -> None:
    """Make a small data set of handwritten digits, train a detector on it, and write the report.

        boxwright demo --out runs/demo

    Takes a few minutes on two CPU cores, needs no network and no GPU. The data set that it writes is an
    ordinary COCO folder; look at it to see how your own should be.
    """  # fmt: skip
    from ..demo import run

    run(out)
