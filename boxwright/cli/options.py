"""Options that several commands have."""

from __future__ import annotations

from typing import Annotated

import typer

Resume = Annotated[bool, typer.Option("--resume", help="Go on from the newest whole checkpoint in `out`.")]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, ...")]
NoCheck = Annotated[
    bool, typer.Option("--no-check", help="Do not look through the data set before training.")
]
NoReport = Annotated[bool, typer.Option("--no-report", help="Write no report.html, no plots.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Show no progress.")]
NMS = Annotated[
    str | None,
    typer.Option(
        help="Another suppression of duplicates: GreedyNMS, SoftNMS or WeightedNMS, such as "
        "'SoftNMS(method=gaussian, sigma=0.5)'.",
        show_default=False,
    ),
]
Trust = Annotated[
    list[str] | None, typer.Option(help="Module of your own that a run's configuration may name.")
]
Workers = Annotated[int | None, typer.Option(help="Loader processes; by default the recipe's.")]
