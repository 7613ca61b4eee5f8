"""`boxwright variance`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .options import Device, Quiet, Trust, Workers
from .words import only, refuse_options


def variance(
    source: Annotated[Path, typer.Argument(help="A run folder or a checkpoint.", show_default=False)],
    words: Annotated[list[str] | None, typer.Argument(metavar="[data=FOLDER]", show_default=False)] = None,
    out: Annotated[
        Path, typer.Option(help="PNG file of the plot; numbers come beside it as .csv and .json.")
    ] = Path("variance.png"),
    batches: Annotated[int, typer.Option(help="Gradients to compute, a power of two.")] = 64,
    images: Annotated[int, typer.Option(help="Images of each gradient, the smallest batch size.")] = 1,
    device: Device = "auto",
    workers: Workers = None,
    seed: Annotated[int, typer.Option(help="Of order, augmentation and samplers.")] = 0,
    quiet: Quiet = False,
    trust: Trust = None,
) -> None:
    """Measure how the variance of the gradient falls with the batch size.

        boxwright variance runs/bccd --out variance.png

    The learning rate may grow with the batch as long as the variance falls as 1 over it (ratio 1). The run is
    only looked at: its own training data, its own weights, no update.
    """  # fmt: skip
    refuse_options([str(source), *(words or ())])
    values = only(words or (), ("data",))
    from ..variance import gradient_variance

    found = gradient_variance(
        source,
        values.get("data"),
        batches=batches,
        images=images,
        device=device,
        workers=workers,
        seed=seed,
        out=out,
        progress=not quiet,
        trust=trust or (),
    )
    typer.echo(str(found))
    typer.echo(f"plot and numbers: {out}, {out.with_suffix('.csv')}, {out.with_suffix('.json')}")
