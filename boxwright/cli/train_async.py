"""`boxwright train-async`."""

from __future__ import annotations

from typing import Annotated

import typer

from ..errors import ConfigError
from .options import NoCheck, NoReport, Quiet, Resume, Trust
from .train import chosen, show

OWN = ("replicas", "max_staleness")


def train_async(
    words: Annotated[
        list[str],
        typer.Argument(
            metavar="RECIPE replicas=N [max_staleness=N] out=FOLDER [data.root=FOLDER] [a.b.c=value ...]",
            show_default=False,
        ),
    ],
    resume: Resume = False,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda, of server and workers")] = "auto",
    no_check: NoCheck = False,
    no_report: NoReport = False,
    quiet: Quiet = False,
    trust: Trust = None,
) -> None:
    """Train with workers that do not wait for each other (extra `ray`).

    Each worker computes gradients at its own pace; a server applies them as they come, up to a few updates
    late, and logs how late:

        boxwright train-async fcos_mnv2_320 replicas=4 data.root=datasets/bccd out=runs/bccd

    With a Ray cluster on several machines, name it in RAY_ADDRESS. Everything else, resuming included, is
    as in `boxwright train`.
    """
    experiment, out, own = chosen(words, resume, trust, OWN)
    for name, value in own.items():
        if not value.isdecimal():
            raise ConfigError(f"{name}={value}: a whole number is needed")
    from ..asynchronous import train

    show(
        train(
            experiment,
            out,
            int(own["replicas"]) if "replicas" in own else None,
            int(own["max_staleness"]) if "max_staleness" in own else None,
            resume,
            device=device,
            console=not quiet,
            check=not no_check,
            report=not no_report,
            trust=trust or (),
        )
    )
