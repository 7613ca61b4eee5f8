"""The commands and where each lives; one file per command or group."""

from __future__ import annotations

from typing import Annotated

import typer

from .. import __version__
from . import configure, convert, data, demo, doctor, evaluate, predict, study, train, train_async, variance

CONTEXT = {"help_option_names": ["-h", "--help"]}
WORDS = {"ignore_unknown_options": True}
"""Of commands that take `name=value`: they get `--epochs 3` as words, and say how it is written."""

app = typer.Typer(
    name="boxwright",
    no_args_is_help=True,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
    context_settings=CONTEXT,
    add_completion=False,
)


def _version(asked: bool) -> None:
    if asked:
        typer.echo(__version__)
        raise typer.Exit


@app.callback()
def boxwright(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and stop.")
    ] = False,
) -> None:
    """Object detection and instance segmentation: train, measure and use detectors.

    Begin with `boxwright demo`, then train on your own folder:

        boxwright data check datasets/bccd

        boxwright train faster_rcnn_mnv2_320 data.root=datasets/bccd out=runs/bccd

        boxwright predict runs/bccd photo.jpg

    `--debug` after any command adds the traceback to an error message.
    """


app.command("train", context_settings=WORDS)(train.train)
app.command("train-async", context_settings=WORDS)(train_async.train_async)
app.command("evaluate", context_settings=WORDS)(evaluate.evaluate)
app.command("predict")(predict.predict)
app.command("variance", context_settings=WORDS)(variance.variance)
app.command("study", context_settings=WORDS)(study.study)
app.command("recipes")(configure.recipes)
app.command("config", context_settings=WORDS)(configure.config)
app.add_typer(data.app, name="data")
app.command("convert", context_settings=WORDS)(convert.convert)
app.command("doctor")(doctor.doctor)
app.command("demo")(demo.demo)
