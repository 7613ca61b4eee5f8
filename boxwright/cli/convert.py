"""`boxwright convert`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .words import only


def convert(
    source: Annotated[
        Path,
        typer.Argument(
            help="A checkpoint of MMDetection 2.x or 3.x (.pth), or of Detectron2 (.pkl, .pth).",
            show_default=False,
        ),
    ],
    words: Annotated[
        list[str] | None, typer.Argument(metavar="[out=FILE.safetensors]", show_default=False)
    ] = None,
    config: Annotated[
        Path | None,
        typer.Option(
            help="The configuration, where the file holds none: MMDetection's (.py), Detectron2's (.yaml).",
            show_default=False,
        ),
    ] = None,
    recipe: Annotated[
        str | None, typer.Option(help="Take the model from this recipe instead.", show_default=False)
    ] = None,
    classes: Annotated[
        str | None,
        typer.Option(help="Class names in the order of the labels, a,b,c.", show_default=False),
    ] = None,
) -> None:
    """Make a Boxwright checkpoint of one of MMDetection or Detectron2.

        boxwright convert faster_rcnn_r50_fpn_1x_coco_20200130-047c8118.pth out=faster.safetensors

        boxwright predict faster.safetensors photo.jpg

    The model is built from the configuration in MMDetection's checkpoint, or from the shapes in Detectron2's
    and, for what they do not say, its configuration or the settings of its model zoo. Every weight must find
    its place. Nothing that the file holds is run.
    """
    values = only(words or (), ("out",))
    from ..convert import convert_checkpoint
    from ..recipes import recipe as recipe_named

    out = Path(values.get("out", source.with_suffix(".safetensors").name))
    done = convert_checkpoint(
        source,
        out,
        config=config,
        recipe=None if recipe is None else recipe_named(recipe),
        classes=None if classes is None else classes.split(","),
    )
    typer.echo(f"matched     {len(done.report.names)} entries; none missing, unexpected or reshaped")
    for name in done.report.dropped:
        typer.echo(f"left out    {name} (means nothing here)")
    shown = ", ".join(done.label_map.names[:6]) + (", ..." if len(done.label_map) > 6 else "")
    typer.echo(f"classes     {len(done.label_map)}: {shown}")
    typer.echo(f"wrote       {done.path}")
