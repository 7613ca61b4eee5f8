"""From the description of an experiment to the parts of a run: data, loaders, optimiser, hooks."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import fiddle as fdl
import torch

from . import distributed
from .config import (
    ClassAgnostic,
    NumClasses,
    Pretrained,
    build,
    check_values,
    clone,
    read_config,
    set_tagged,
    to_json,
)
from .config.describe import callable_name
from .data import Data, Table, folder
from .data.fingerprint import contents
from .data.loader import Loader
from .engine.agreement import agree_on_data
from .engine.checkpoint import steps
from .engine.hooks import PreciseNormHook, default_hooks
from .engine.memory import save_memory
from .engine.messages import notify, on_every_rank
from .engine.optim import scale_optimizer
from .engine.randomness import seed_all
from .engine.start import start_from
from .engine.state import Hook, TrainState
from .engine.state import Loader as TrainingLoader
from .engine.step import train_step
from .engine.trainer import train as train_model
from .engine.validation import Validation
from .errors import ConfigError, DataError
from .evaluation import CocoEvaluator
from .labels import LabelMap
from .models.layers import join_norms
from .recipes.experiment import Experiment


@dataclass(frozen=True)
class Parts:
    """What a run is made of.

    Args:
        experiment: the built experiment; its data is `data`.
        config: the description to keep with the run, complete enough to make all of it again.
        data: the opened data set.
        evaluated: split of the evaluations during training, or None.
        loader: this rank's training batches.
        optimizer: with the learning rate scaled to the batch.
        hooks: the usual ones and the experiment's own.
    """

    experiment: Experiment
    config: fdl.Config[Experiment]
    data: Data
    evaluated: Table | None
    loader: Loader
    optimizer: torch.optim.Optimizer
    hooks: tuple[Hook, ...]


def is_experiment(config: Any) -> bool:
    """Whether something is the description of an `Experiment`."""
    if not isinstance(config, fdl.Buildable):
        return False
    target = fdl.get_callable(config)
    return isinstance(target, type) and issubclass(target, Experiment)


def resolve(
    experiment: fdl.Config[Experiment] | None, out: Path, resume: bool, trust: Sequence[str] = ()
) -> fdl.Config[Experiment]:
    """The description to train: a copy of the given one, or what the run folder kept.

    Raises:
        ConfigError: it is no description of an experiment, holds a value of the wrong type, or none is given
            and none was kept.
    """
    if experiment is None:
        path = out / "config.json"
        if not resume or not path.is_file():
            reason = "a recipe is needed" if not resume else f"{path} does not exist, so a recipe is needed"
            raise ConfigError(f"{reason}: pass what boxwright.recipe(...) returns")
        experiment = read_config(path, trust)
    if not is_experiment(experiment):
        what = type(experiment).__name__
        if isinstance(experiment, fdl.Buildable):
            what = f"that of a {callable_name(fdl.get_callable(experiment))}"
        raise ConfigError(f"expected the fiddle.Config of an Experiment that a recipe returns, not {what}")
    check_values(experiment)  # pyright: ignore[reportArgumentType]
    return clone(experiment)  # pyright: ignore[reportArgumentType]


def assemble(config: fdl.Config[Experiment], out: Path, resume: bool, console: bool) -> Parts:
    """Open the data, fit the model to its classes, and build everything; every rank calls it.

    Args:
        config: a description that may be changed.
        out: run folder.
        resume: whether weights come from a checkpoint in `out`, if there is one.
        console: whether the run shows its progress.

    Raises:
        ConfigError: something cannot be built, or the batch cannot be shared evenly.
        DataError: the data set cannot be opened, or lacks what training needs.
    """
    described = config.data if isinstance(config.data, fdl.Buildable) else None
    data = on_every_rank(lambda: reopen_data(config.data, "data.root") if resume else open_data(config.data))
    if distributed.is_distributed():
        agree_on_data(contents(data))
    set_num_classes(config, len(data.label_map))
    kept = clone(config)
    kept.data = describe_data(data, described)
    if config.start_from is not None:
        config.start_from = kept.start_from = os.path.abspath(os.path.expanduser(config.start_from))
    config.data = data
    resumes = resume and bool(steps(out / "checkpoints"))
    start = None if resumes else config.start_from
    if resumes or start is not None:
        set_tagged(config, Pretrained, None)  # nothing is fetched that will be replaced
    seed_all(config.seed)
    made: Experiment = build(config)
    if start is not None:
        notify(on_every_rank(lambda: start_from(made.model, start)))
    saving = save_memory(made.model, made.memory, made.compile)
    share = share_of_batch(made.batch_size, made.accumulate)
    if not made.metrics:
        raise ConfigError("metrics=(): say what is measured, ('bbox',) or ('bbox', 'segm')")
    join_norms(made.model, share)
    evaluated = evaluation_table(data)
    loader = training_loader(made, data)
    optimizer = make_optimizer(made)
    notify(scale_optimizer(optimizer, made.batch_size, made.base_batch_size))
    validation = None
    if evaluated is None:
        notify(f"{data.root} has no split val or test: nothing will be evaluated")
    else:
        batches = Loader(
            evaluated,
            made.eval_transforms,
            made.canvas,
            share,
            made.workers,
            shuffle=False,
            with_masks=False,
            reduced_decoding=made.reduced_decoding,
        )
        validation = Validation(batches, make_evaluator(data, evaluated, data.label_map, made.metrics))
    hooks = default_hooks(validation, made.evaluate_every, f"{made.metrics[0]}/AP", console=console)
    if made.precise_norm:
        hooks.append(PreciseNormHook(made.precise_norm))
    return Parts(made, kept, data, evaluated, loader, optimizer, (*hooks, *saving, *made.hooks))


def make_evaluator(data: Data, table: Table, label_map: LabelMap, metrics: Sequence[str]) -> CocoEvaluator:
    """What measures predictions on a split.

    Raises:
        ConfigError: an unknown metric.
        DataError: the split cannot be measured on; it is named in a note.
    """
    try:
        return CocoEvaluator(table.to_coco(), label_map, metrics)
    except DataError as error:
        error.add_note(f"in the split {table.name} of {data.root}, to be evaluated on")
        raise


def make_optimizer(made: Experiment) -> torch.optim.Optimizer:
    """The optimiser of a built experiment's model.

    Raises:
        ConfigError: PyTorch refuses one of its settings.
    """
    try:
        return made.optimizer(made.model)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"cannot build optimizer: {error}") from error


def training_loader(made: Experiment, data: Data, part: tuple[int, int] | None = None) -> Loader:
    """The batches that an experiment trains on.

    Args:
        made: the built experiment.
        data: its data set.
        part: which share of the data, and of how many; None for that of this rank.
    """
    return Loader(
        data.train,
        made.train_transforms,
        made.canvas,
        share_of_batch(made.batch_size, made.accumulate),
        made.workers,
        made.seed,
        with_masks="segm" in made.metrics,
        reduced_decoding=made.reduced_decoding,
        accumulate=made.accumulate,
        share=part,
    )


def fit(
    parts: Parts,
    out: Path,
    device: torch.device,
    resume: bool,
    *,
    hooks: Iterable[Hook],
    loader: TrainingLoader | None = None,
    accumulate: int | None = None,
    step: Callable[[TrainState], None] = train_step,
) -> TrainState:
    """Train what was assembled; every rank calls it.

    Args:
        parts: of the run.
        out: run folder.
        device: of this rank.
        resume: go on from the newest whole checkpoint in `out`.
        hooks: all of them.
        loader: in place of the parts' own.
        accumulate: batches of `loader` in one step; None for what the experiment says.
        step: what is done with them.
    """
    made = parts.experiment
    return train_model(
        made.model,
        parts.loader if loader is None else loader,
        parts.optimizer,
        made.schedule,
        epochs=made.epochs,
        out=out,
        hooks=hooks,
        device=device,
        precision=made.precision,
        accumulate=made.accumulate if accumulate is None else accumulate,
        clip_norm=made.clip_norm,
        ema_decay=made.ema_decay,
        compile=made.compile,
        seed=made.seed,
        communication=made.communication,
        step=step,
        resume=resume,
        metadata={"config": to_json(parts.config), "label_map": parts.data.label_map.to_json()},
    )


def open_data(data: Data | fdl.Buildable | str | os.PathLike[str]) -> Data:
    """A data set from what describes it: itself, a folder, or the call that opens one.

    Raises:
        ConfigError: a recipe whose data set was never named.
        DataError: the folder is no data set.
    """
    if isinstance(data, Data):
        return data
    if isinstance(data, str | os.PathLike):
        return folder(data)
    if not isinstance(data, fdl.Buildable):
        raise ConfigError(f"data={data!r} is no data set: set data.root=FOLDER, or what boxwright.data opens")
    if fdl.get_callable(data) is folder and "root" not in data.__arguments__:
        raise ConfigError(
            "the recipe does not say what to train on: set data.root=FOLDER on the command line, or "
            'experiment.data = boxwright.data.folder("FOLDER") in Python'
        )
    return build(data)


def reopen_data(data: Data | fdl.Buildable | str | os.PathLike[str], name: str) -> Data:
    """The data set that a run was begun with, which may lie elsewhere by now.

    Args:
        data: what describes it.
        name: of the word or argument that says where it lies.

    Raises:
        ConfigError, DataError: as `open_data`; a note says the remedy.
    """
    try:
        return open_data(data)
    except DataError as error:
        error.add_note(f"the run was trained on it; where it lies elsewhere now, set {name}=FOLDER")
        raise


def describe_data(data: Data, described: fdl.Buildable | None) -> fdl.Buildable:
    """The call that opens a data set again, from any working directory.

    Args:
        data: the opened data set.
        described: the call that opened it, where the experiment holds one.
    """
    if data.arguments is not None:
        return fdl.Config(folder, **data.arguments)
    if described is not None:
        return clone(described)
    notify(
        "config.json cannot say how this data set was made: give `data=` to evaluate, or train with "
        "experiment.data = fiddle.Config(FUNCTION, ...) of a function that makes it"
    )
    return fdl.Config(folder, root=str(data.root))


def set_num_classes(config: fdl.Buildable, count: int) -> None:
    """Fit a model's description to a number of classes, in place.

    Raises:
        ConfigError: nothing in it carries the tag `NumClasses`, nor `ClassAgnostic`.
    """
    if not set_tagged(config, NumClasses, count) and not set_tagged(config, ClassAgnostic, True):
        raise ConfigError(
            "the model cannot be fitted to the classes of the data: none of its arguments carries the tag "
            'NumClasses; mark it with fiddle.add_tag(config.model.head, "num_classes", NumClasses)'
        )


def share_of_batch(batch_size: int, accumulate: int) -> int:
    """Images of one forward pass on one process.

    Raises:
        ConfigError: the batch cannot be divided among processes and accumulated passes.
    """
    parts = distributed.world_size() * accumulate
    for name, value in (("batch_size", batch_size), ("accumulate", accumulate)):
        if value < 1:
            raise ConfigError(f"{name}={value} must be at least 1")
    if batch_size % parts:
        raise ConfigError(
            f"batch_size={batch_size} images a step cannot be shared by {distributed.world_size()} processes "
            f"with accumulate={accumulate}: choose a multiple of {parts}"
        )
    return batch_size // parts


def evaluation_table(data: Data) -> Table | None:
    """The split to evaluate on while training: `val`, else `test`, else None."""
    try:
        return data.evaluation
    except DataError:
        return None
