"""`boxwright data check|stats|browse|convert`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from .words import only

if TYPE_CHECKING:
    from ..data import Data

app = typer.Typer(
    no_args_is_help=True, help="Look at an annotated folder, check it, write it in another format."
)

CHOICES = ("format", "train", "val", "test", "annotations", "images", "semantic")
Root = Annotated[Path, typer.Argument(metavar="FOLDER", help="The data set.", show_default=False)]
Choices = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="[format=coco|voc|yolo|light] [train=... val=... test=... annotations=... images=... "
        "semantic=...]",
        help="What is not said is found by looking.",
        show_default=False,
    ),
]


@app.command("check")
def check(
    root: Root,
    choices: Choices = None,
    decode: Annotated[bool, typer.Option("--decode", help="Decode every image; takes longer.")] = False,
) -> None:
    """Say what is wrong with a data set, where, and how to mend it.

        boxwright data check datasets/bccd

        boxwright data check datasets/mine format=coco train=annotations/all.json images=photos

    The exit code is 1 if something would spoil a training. Each training makes this check first.
    """  # fmt: skip
    from ..data import check as check_data

    data = _open(root, choices)
    report = check_data(data, decode=decode)
    typer.echo(data.found)
    _print(report)
    if report.errors:
        raise typer.Exit(1)


@app.command("stats")
def stats(root: Root, choices: Choices = None) -> None:
    """Count images, objects and classes, and show how large and how wide the objects are.

    boxwright data stats datasets/bccd
    """  # fmt: skip
    from ..data import statistics

    _print(statistics(_open(root, choices)))


@app.command("browse")
def browse(
    root: Root,
    choices: Choices = None,
    out: Annotated[Path, typer.Option(help="The PNG file to write.")] = Path("contact_sheet.png"),
    split: Annotated[
        str, typer.Option(help="Which split; by default the one to train on, or the first.")
    ] = "",
    count: Annotated[int, typer.Option(help="How many images.")] = 24,
    seed: Annotated[int | None, typer.Option(help="Take images at random instead of the first ones.")] = None,
) -> None:
    """Write a contact sheet: images with their boxes, masks and class names.

    boxwright data browse datasets/bccd --out sheet.png --count 12 --seed 1
    """  # fmt: skip
    from ..data import contact_sheets

    data = _open(root, choices)
    table = data.split(
        split or next(name for name in ("train", "trainval", *data.splits) if name in data.splits)
    )
    for file in contact_sheets(table, out, count=count, seed=seed):
        typer.echo(file)


@app.command("convert")
def convert(
    root: Root,
    out: Annotated[Path, typer.Argument(metavar="OUT", help="The folder to make.", show_default=False)],
    choices: Choices = None,
    to: Annotated[str, typer.Option("--to", help="coco, voc, yolo or light.")] = "coco",
    lossy: Annotated[
        bool, typer.Option("--lossy", help="Write even what the format cannot hold completely.")
    ] = False,
    link: Annotated[
        bool, typer.Option("--link", help="Hard-link the images instead of copying them.")
    ] = False,
) -> None:
    """Write a data set in another format, images included.

    boxwright data convert datasets/bccd datasets/bccd_yolo --to yolo
    """  # fmt: skip
    from ..data import convert as convert_data

    typer.echo(convert_data(_open(root, choices), out, to, lossy=lossy, link=link))


def _open(root: Path, choices: list[str] | None) -> Data:
    from ..data import folder

    return folder(root, **only(choices or (), CHOICES))


def _print(content: object) -> None:
    from rich.console import Console

    Console().print(content)
