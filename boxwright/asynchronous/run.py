"""A training run whose gradients come from workers; what else belongs to a run is as in `boxwright.api`."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import fiddle as fdl
import torch

from ..api import Run, finish, look_through
from ..assembly import Parts, assemble, fit, resolve, training_loader
from ..config import Pretrained, from_json, set_tagged, to_json
from ..engine.hooks import PreciseNormHook
from ..engine.placing import place_model, resolve_device
from ..engine.precision import resolve_precision
from ..errors import ConfigError
from ..recipes.experiment import Experiment
from .actors import RayWorkers, require_ray
from .server import SETTINGS, Server, StalenessHook
from .worker import Computing, Worker


def train(
    experiment: fdl.Config[Experiment] | None,
    out: str | os.PathLike[str],
    replicas: int | None = None,
    max_staleness: int | None = None,
    resume: bool = False,
    *,
    device: str = "auto",
    console: bool = True,
    check: bool = True,
    report: bool = True,
    trust: Sequence[str] = (),
) -> Run:
    """Train what a recipe describes with asynchronous workers, evaluate and write the report.

    Every update is of the gradient of one worker, over `batch_size` images, as one step of the recipe is; so
    the recipe's learning rate and number of epochs mean the same. One process calls this.

    Args:
        experiment: what a recipe returns. It is not changed. None, with `resume`, for what the folder says.
        out: the run folder.
        replicas: number of workers; None, with `resume`, for what the folder says.
        max_staleness: updates that a gradient may be behind when it is applied; None for any.
        resume: go on from the newest whole checkpoint in `out`.
        device: "auto", "cpu" or "cuda", of the server and, as they see it, of the workers.
        console: show progress.
        check: look through the data set before training.
        report: write plots and `report.html` at the end.
        trust: modules of your own that the configuration may name.

    Raises:
        MissingExtraError: Ray is not installed.
        ConfigError: the configuration cannot be built, or asks for what this mode does not do.
        DataError: the data set cannot be trained on.
        TrainingError: a worker failed or was lost again and again, or as in `boxwright.train`.
    """
    require_ray()
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise ConfigError("asynchronous training starts its workers itself: call it without torchrun")
    out, place = Path(out), resolve_device(device)
    replicas, max_staleness = _settings(out, replicas, max_staleness, resume)
    config = resolve(experiment, out, resume, trust)
    parts = assemble(config, out, resume, console)
    refuse(parts, place)
    if check:
        look_through(parts.data)
    workers = RayWorkers(replicas, to_json(parts.config), trust, device)
    try:
        server = Server(parts.experiment.model, workers, steps_of(parts, replicas), max_staleness)
        hooks = (*parts.hooks, StalenessHook(server))
        fit(parts, out, place, resume, hooks=hooks, loader=server, accumulate=1, step=server.step)
    finally:
        workers.stop()
    return finish(parts, out, place, console, report)


def steps_of(parts: Parts, replicas: int) -> int:
    """Updates of an epoch: the steps of all shares."""
    made = parts.experiment
    return replicas * -(-len(training_loader(made, parts.data, (0, replicas))) // made.accumulate)


def refuse(parts: Parts, device: torch.device) -> None:
    """Stop what this mode does not do.

    Raises:
        ConfigError: it is named.
    """
    made = parts.experiment
    if resolve_precision(made.precision, device).name == "fp16":
        raise ConfigError("precision=fp16 needs loss scaling, which workers do not share: use bf16 or fp32")
    if any(isinstance(hook, PreciseNormHook) for hook in parts.hooks):
        raise ConfigError(
            "precise_norm looks at training images, which the server does not have: set it to 0"
        )
    if made.memory.compile_budget is not None:
        raise ConfigError("memory.compile_budget is not for asynchronous training: leave it out")


def build_worker(
    config: str,
    trust: Sequence[str],
    index: int,
    count: int,
    device: str,
    position: Mapping[str, Any] | None,
) -> Worker:
    """Make a worker from a run's configuration.

    Args:
        config: as JSON.
        trust: modules of your own that it may name.
        index: number of the worker.
        count: number of workers.
        device: "auto", "cpu" or "cuda".
        position: of the worker whose place it takes; None to begin.
    """
    described = from_json(config, trust)
    set_tagged(described, Pretrained, None)  # all weights come from the server
    described.start_from = None  # pyright: ignore[reportAttributeAccessIssue]
    parts = assemble(described, Path(), False, console=False)  # pyright: ignore[reportArgumentType]
    made, place = parts.experiment, resolve_device(device)
    precision = resolve_precision(made.precision, place)
    place_model(made.model, place, channels_last=precision.channels_last)
    if made.compile:
        made.model.compile()
    loader = training_loader(made, parts.data, (index, count))
    return Worker(
        index, made.model, loader, Computing(place, precision, made.accumulate, made.seed), position
    )


def _settings(
    out: Path, replicas: int | None, max_staleness: int | None, resume: bool
) -> tuple[int, int | None]:
    """Number of workers and bound: as given, else as the run that is resumed has them."""
    path = out / SETTINGS
    if resume and replicas is None and path.is_file():
        try:
            kept = json.loads(path.read_text(encoding="utf-8"))
            return int(kept["replicas"]), kept["max_staleness"] if max_staleness is None else max_staleness
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ConfigError(f"{path} cannot be read ({error}): say replicas= again") from error
    if replicas is None or replicas < 1:
        raise ConfigError(f"replicas={replicas}: say how many workers compute gradients, at least 1")
    return replicas, max_staleness
