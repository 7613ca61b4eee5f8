"""`boxwright evaluate`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from .options import NMS, Device, Trust, Workers
from .words import only, refuse_options


def evaluate(
    source: Annotated[
        Path,
        typer.Argument(
            help="A run folder, a checkpoint, or a COCO results file (.json).", show_default=False
        ),
    ],
    words: Annotated[
        list[str] | None, typer.Argument(metavar="[data=FOLDER|FILE] [split=NAME]", show_default=False)
    ] = None,
    metrics: Annotated[
        str | None, typer.Option(help="bbox, segm or bbox,segm; by default what the run measures.")
    ] = None,
    device: Device = "auto",
    batch_size: Annotated[int, typer.Option(help="Images of one pass.")] = 8,
    workers: Workers = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder for evaluation.json and predictions.json.", show_default=False)
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of the table.")] = False,
    nms: NMS = None,
    trust: Trust = None,
) -> None:
    """Measure average precision and recall the COCO way.

    The best checkpoint of a run, on the run's own data:

        boxwright evaluate runs/bccd

    On another split or data set:

        boxwright evaluate runs/bccd data=datasets/bccd split=test

    A results file of any detector, against a COCO annotation file:

        boxwright evaluate results.json data=instances_val2017.json

    With another suppression of duplicates than the run's:

        boxwright evaluate runs/bccd --nms 'SoftNMS(method=gaussian)'
    """
    refuse_options([str(source), *(words or ())])
    values = only(words or (), ("data", "split"))
    from .. import api

    measured = api.evaluate(
        source,
        values.get("data"),
        values.get("split"),
        metrics=None if metrics is None else metrics.split(","),
        device=device,
        batch_size=batch_size,
        workers=workers,
        out=out,
        trust=trust or (),
        nms=nms,
    )
    if as_json:
        typer.echo(json.dumps({**measured, "per_class": dict(measured.per_class)}, indent=1))
    else:
        typer.echo(str(measured))
