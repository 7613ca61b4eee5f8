"""`boxwright study`."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..errors import ConfigError
from .options import Device, NoCheck, Quiet
from .words import is_assignment, refuse_options, take

if TYPE_CHECKING:
    from rich.table import Table

    from ..study import Row

SHOWN = ("AP", "AP50", "AP75", "mask AP", "minutes", "ms an image")


def study(
    words: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[RECIPE[:a.b=value ...] ...] out=FOLDER [data.root=FOLDER] [weights=FILE] [a.b=value]",
            show_default=False,
        ),
    ] = None,
    named: Annotated[
        str | None, typer.Option("--study", help="A ready-made list: methods, dynamic_rcnn.", metavar="NAME")
    ] = None,
    file: Annotated[
        Path | None, typer.Option(help="Text file with variants and assignments, one on a line.")
    ] = None,
    vary: Annotated[
        list[str] | None,
        typer.Option(metavar="a.b.c=VALUE,VALUE", help="A variant for each value; several make a grid."),
    ] = None,
    seeds: Annotated[int, typer.Option(help="Runs of each variant.")] = 1,
    minutes: Annotated[
        float | None, typer.Option(help="Time for the training steps of each run, instead of epochs.")
    ] = None,
    split: Annotated[
        str | None, typer.Option(help="What to measure on; by default test, or else val.")
    ] = None,
    device: Device = "auto",
    no_check: NoCheck = False,
    no_report: Annotated[
        bool, typer.Option("--no-report", help="Write no report.html of the single runs.")
    ] = False,
    quiet: Quiet = False,
) -> None:
    r"""Train several recipes with one budget, measure each, and make a table and pictures of it.

    Assignments hold for all; those behind a colon for one variant alone:

        boxwright study fcos_mnv2_320 atss_mnv2_320 'fcos_mnv2_320:optimizer.lr=0.01 name=slow' \
            data.root=datasets/bccd epochs=6 out=runs/study

    Every small recipe, from the weights of one file:

        boxwright study --study methods data.root=datasets/bccd weights=mobilenet_v2.pth \
            epochs=6 out=runs/methods

    A grid of values, three seeds each:

        boxwright study retinanet_r50_fpn_1x --vary model.backbone.depth=50,101 --seeds 3 \
            data.root=datasets/bccd out=runs/depth

    The same command goes on with a study that was stopped; so does `boxwright study out=runs/depth`.
    """  # fmt: skip
    listed, grid = ([], []) if file is None else read_words(file)
    refuse_options(words or ())
    given = [*listed, *(words or ())]
    variants = [word for word in given if not is_assignment(word)]
    own, overrides = take([word for word in given if is_assignment(word)], ("out", "weights"))
    if "out" not in own:
        raise ConfigError("say where the study goes: out=runs/NAME")
    from ..study import study as run_study

    rows = run_study(
        variants,
        out=own["out"],
        named=named,
        overrides=overrides,
        vary=[*grid, *(vary or ())],
        weights=own.get("weights"),
        seeds=seeds,
        minutes=minutes,
        split=split,
        device=device,
        console=not quiet,
        check=not no_check,
        report=not no_report,
    )
    failed = [row for row in rows if row.status == "failed"]
    if os.environ.get("RANK", "0") == "0":
        _print(rows, failed, Path(own["out"]))
    if failed:
        raise typer.Exit(1)


def read_words(path: Path) -> tuple[list[str], list[str]]:
    """Variants and assignments of a text file, one on a line, and the values of its lines `--vary ...`.

    Empty lines and what follows a `#` are left out.

    Raises:
        ConfigError: the file cannot be read, or has another option.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read ({error}); give a text file of variants") from error
    texts = [line.split("#")[0].strip() for line in lines]
    grid = [text.removeprefix("--vary").strip() for text in texts if text.startswith("--vary")]
    words = [text for text in texts if text and not text.startswith("--vary")]
    if option := next((word for word in words if word.startswith("-")), None):
        raise ConfigError(f"{path}: {option!r} belongs on the command line; the one option here is --vary")
    return words, grid


def _print(rows: list[Row], failed: list[Row], out: Path) -> None:
    """The narrow table, the errors, and where the rest is."""
    from rich.console import Console

    Console().print(_table(rows))
    for row in failed:
        typer.echo(f"boxwright: {row.variant}, seed {row.seed} failed: {row.error}", err=True)
    typer.echo(f"study: {out / 'study.html'}, {out / 'table.md'}")


def _table(rows: list[Row]) -> Table:
    from rich.table import Table

    from ..study.rows import table

    titles, lines = table(rows)
    chosen = [0, *(titles.index(name) for name in SHOWN if name in titles)]
    made = Table()
    for place in chosen:
        made.add_column(titles[place], justify="right" if place else "left", overflow="fold")
    for line in lines:
        made.add_row(*(line[place].replace("**", "") for place in chosen))
    return made
