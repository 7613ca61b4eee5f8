"""`boxwright train`."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..errors import ConfigError
from .options import Device, NoCheck, NoReport, Quiet, Resume, Trust
from .words import is_assignment, refuse_options, take

if TYPE_CHECKING:
    from fiddle import Config

    from ..api import Run
    from ..recipes.experiment import Experiment

OPTIONS = {
    "resume": "--resume",
    "device": "--device cpu",
    "quiet": "--quiet",
    "check": "--no-check",
    "no_check": "--no-check",
    "report": "--no-report",
    "no_report": "--no-report",
    "trust": "--trust MODULE",
}
"""How the command's options are written, by the names that they would have as values."""


def train(
    words: Annotated[
        list[str],
        typer.Argument(metavar="RECIPE out=FOLDER [data.root=FOLDER] [a.b.c=value ...]", show_default=False),
    ],
    resume: Resume = False,
    device: Device = "auto",
    no_check: NoCheck = False,
    no_report: NoReport = False,
    quiet: Quiet = False,
    trust: Trust = None,
) -> None:
    """Train a detector, evaluate it and write a report.

    Every value of the recipe can be set; `boxwright config RECIPE` lists them:

        boxwright train faster_rcnn_r50_fpn_1x data.root=datasets/bccd out=runs/bccd model.backbone.depth=101

    The norm of all layers, or of `norm.backbone`, `norm.neck` or `norm.heads`, is set in one word:

        boxwright train faster_rcnn_r50_fpn_1x data.root=datasets/bccd out=runs/bccd norm=CrossBatchNorm2d

    So is the suppression of duplicates among the detections (GreedyNMS, SoftNMS, WeightedNMS):

        boxwright train fcos_mnv2_320 data.root=datasets/bccd out=runs/bccd nms='SoftNMS(method=gaussian)'

    Go on after an interruption (the recipe may be left out, the run folder knows it):

        boxwright train out=runs/bccd --resume

    On several GPUs or processes of one machine:

        torchrun --nproc_per_node 2 -m boxwright train fcos_mnv2_320 data.root=datasets/bccd out=runs/bccd

    A recipe of your own is given as `my_recipe.py:function`.
    """
    with ranks(device) as on_every_rank:
        experiment, out, _ = on_every_rank(lambda: chosen(words, resume, trust))
        from .. import api

        run = api.train(
            experiment,
            out,
            resume,
            device=device,
            console=not quiet,
            check=not no_check,
            report=not no_report,
            trust=trust or (),
        )
    if os.environ.get("RANK", "0") == "0":  # the group is left by now: ask the launcher who is first
        show(run)


@contextmanager
def ranks(device: str) -> Iterator[Callable[[Callable[[], Any]], Any]]:
    """Inside, the processes of `torchrun` have met; gives what calls a function on each of them.

    What one alone stumbles over, such as a recipe's file that its machine lacks, the main one then tells.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) < 2:
        yield lambda function: function()
        return
    from ..distributed import start, stop
    from ..engine.messages import on_every_rank
    from ..engine.placing import resolve_device

    start(resolve_device(device))
    try:
        yield on_every_rank
    finally:
        stop()


def chosen(
    words: list[str], resume: bool, trust: list[str] | None, known: tuple[str, ...] = ()
) -> tuple[Config[Experiment], Path, dict[str, str]]:
    """What the words of a training command say.

    Args:
        words: a recipe's name, unless a run is resumed, and assignments.
        resume: whether the run folder may say what the recipe is.
        trust: modules that it may name.
        known: the command's own words, besides `out`.

    Returns:
        The experiment, the run folder, and the command's own words.

    Raises:
        ConfigError: a word is missing or means nothing.
    """
    refuse_options(words)
    name = next((word for word in words if not is_assignment(word)), None)
    first = len(words) if name is None else words.index(name)
    own, overrides = take([*words[:first], *words[first + 1 :]], ("out", *known))
    if "out" not in own:
        raise ConfigError("say where the run goes: out=runs/NAME")
    for word in overrides:
        if (option := word.partition("=")[0]) in OPTIONS:
            raise ConfigError(f"{option} is no value of the recipe but an option: {OPTIONS[option]}")
    out = Path(own.pop("out"))
    from ..config import read_config
    from ..recipes import recipe
    from ..recipes.norms import override

    if name is not None:
        experiment = recipe(name)
    elif resume and (out / "config.json").is_file():
        experiment = read_config(out / "config.json", trust or ())
    else:
        begun = (out / "config.json").is_file()
        there = f"there is no {out / 'config.json'} to go on with; " if resume else ""
        resuming = f", or give --resume to go on with the run in {out}" if begun else ""
        raise ConfigError(f"{there}name a recipe first; `boxwright recipes` lists them{resuming}")
    override(experiment, overrides)  # pyright: ignore[reportArgumentType]
    return experiment, out, own  # pyright: ignore[reportReturnType]


def show(run: Run) -> None:
    """Print what came out."""
    if run.metrics:
        typer.echo(str(run.metrics))
    typer.echo(f"run folder: {run.path}")
