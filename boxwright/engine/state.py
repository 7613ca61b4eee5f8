"""What a training run is at a moment, and the hooks that look at it at ten points of the loop."""

from __future__ import annotations

import dataclasses
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from ..errors import ConfigError
from ..structures import Batch, Detections
from .ema import ModelEMA
from .exchange import Exchange
from .precision import Precision
from .schedule import Schedule

TIMEPOINTS = (
    "before_run",
    "before_train_epoch",
    "before_train_iter",
    "after_train_iter",
    "after_train_epoch",
    "before_val_epoch",
    "before_val_iter",
    "after_val_iter",
    "after_val_epoch",
    "after_run",
)


class Loader(Protocol):
    """What the loop asks of training data."""

    def __iter__(self) -> Iterator[Batch]: ...

    def __len__(self) -> int:
        """Batches of one epoch on this rank."""
        ...

    def set_epoch(self, epoch: int) -> None:
        """Choose the order of the coming epoch."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """Position inside the epoch: how many batches have been handed out.

        A loader whose steps are of the same images with any number of ranks and accumulated batches says how
        many these are by the key `batch_size`, and takes the state of any rank. Only with such a one can a
        run go on with another number of ranks.
        """
        ...

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Make the next `iter` go on at a recorded position."""
        ...


class Hook:
    """Schedules or observes a run at the timepoints of the MMDetection paper (section 4.3).

    Subclasses override what they need. Hooks are called in the order of `priority`, lower numbers first,
    equal ones in the order in which they were given. What changes a gradient does not belong here but into
    the training step, where its order is visible. Every rank calls every hook; only the main one may write.
    `before_train_epoch` is called again when a run resumes inside an epoch, and `after_run` however a run
    ends: `state.failure` then says why, and a hook must not wait for other ranks if it is set.

    Attributes:
        key: name of the hook's state in the checkpoint, unique among the hooks of a run.
        priority: place in the order. Ours: learning rate 10, non-finite 20, logs 60 to 85, checkpoint 90 (it
            saves the states of those before it), evaluate 95.
    """

    key: str = ""
    priority: int = 50

    def before_run(self, state: TrainState) -> None:
        """All is built and, where resumed, restored."""

    def before_train_epoch(self, state: TrainState) -> None:
        """`state.epoch` is the index of the epoch that begins."""

    def before_train_iter(self, state: TrainState) -> None:
        """`state.batches` are about to be trained on, as step number `state.step` (from 0)."""

    def after_train_iter(self, state: TrainState) -> None:
        """`state.losses` are the step's; `state.step` counts it already."""

    def after_train_epoch(self, state: TrainState) -> None:
        """`state.epoch` counts the finished epoch already."""

    def before_val_epoch(self, state: TrainState) -> None:
        """Validation begins."""

    def before_val_iter(self, state: TrainState) -> None:
        """`state.batches` holds the one batch to be predicted."""

    def after_val_iter(self, state: TrainState) -> None:
        """`state.detections` are the batch's."""

    def after_val_epoch(self, state: TrainState) -> None:
        """`state.metrics` are the validation's."""

    def after_run(self, state: TrainState) -> None:
        """The run has ended, well or badly."""

    def state_dict(self) -> dict[str, Any]:
        """What the hook needs to go on after a restart: plain values and tensors."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over what `state_dict` returned."""

    def merge_state_dicts(self, states: Sequence[dict[str, Any]]) -> dict[str, Any]:
        """The state of every rank of a run that goes on with another number of ranks.

        Args:
            states: of the ranks that there were.

        Returns:
            The main one's, unless a hook whose state differs between ranks says otherwise.
        """
        return states[0]


@dataclass
class TrainState:
    """One run: its parts, its settings and where it stands. Hooks receive it.

    Args:
        model: the bare model, neither wrapped nor compiled.
        forward: what a step calls: the model, or DistributedDataParallel around it.
        exchange: what a step does itself to make the ranks' gradients one.
        optimizer: its groups hold `initial_lr`, which the schedule multiplies.
        schedule: learning rate factor of each step.
        loader: training batches.
        out: the run folder.
        epochs: epochs of the whole run.
        steps_per_epoch: optimiser steps of an epoch.
        device: where the model is.
        precision: what a step computes in.
        scaler: loss scaling; does nothing outside fp16.
        accumulate: batches of one optimiser step.
        clip_norm: largest norm of the gradient, or None.
        ema: moving average of the weights, or None.
        hooks: in calling order.
        metadata: text that travels with the weights: label_map, config, version.
        seed: of the run.
        check_every: steps between questions to the device that make it wait (1 on a CPU).
        step: optimiser steps done.
        epoch: epochs finished, which is also the index of the one in progress.
        first_step: the step at which this process began (0 unless resumed).
        batches: of the current iteration, on the device.
        losses: what the model returned in the last step, mean over its batches, detached.
        detections: of the last validation batch.
        metrics: of the last validation.
        unchecked: (step, image ids, losses) of the steps whose losses nobody has looked at yet.
        saved: the newest checkpoint of this process, or None.
        stop: name of the signal that asks the run to stop, or None.
        failure: what ended the run before its end, or None.
    """

    model: nn.Module
    forward: nn.Module
    optimizer: torch.optim.Optimizer
    schedule: Schedule
    loader: Loader
    out: Path
    epochs: int
    steps_per_epoch: int
    device: torch.device
    precision: Precision
    scaler: torch.amp.GradScaler
    exchange: Exchange = Exchange()  # noqa: RUF009  frozen
    accumulate: int = 1
    clip_norm: float | None = None
    ema: ModelEMA | None = None
    hooks: tuple[Hook, ...] = ()
    metadata: dict[str, str] = field(default_factory=dict)
    seed: int = 0
    check_every: int = 1
    step: int = 0
    epoch: int = 0
    first_step: int = 0
    batches: tuple[Batch, ...] = ()
    losses: dict[str, Tensor] = field(default_factory=dict)
    detections: Detections | None = None
    metrics: Mapping[str, float] = field(default_factory=dict)
    unchecked: deque[tuple[int, tuple[int, ...], dict[str, Tensor]]] = field(
        default_factory=lambda: deque(maxlen=512)
    )
    saved: Path | None = None
    stop: str | None = None
    failure: BaseException | None = None

    @property
    def total_steps(self) -> int:
        """Optimiser steps of the whole run."""
        return self.epochs * self.steps_per_epoch

    @property
    def eval_model(self) -> nn.Module:
        """The model to predict with: the moving average where there is one."""
        return self.model if self.ema is None else self.ema.model

    @property
    def checkpoints(self) -> Path:
        """Folder of the run's checkpoints."""
        return self.out / "checkpoints"

    @property
    def at_check(self) -> bool:
        """Whether this step may make the device, or another rank, wait for an answer."""
        return self.step % self.check_every == 0 or self.step == self.total_steps


def order_hooks(hooks: Iterable[Hook]) -> tuple[Hook, ...]:
    """Hooks in calling order.

    Raises:
        ConfigError: a hook without a key, or two hooks with one key.
    """
    ordered = tuple(sorted(hooks, key=lambda hook: hook.priority))
    seen: dict[str, Hook] = {}
    for hook in ordered:
        if not hook.key:
            raise ConfigError(f"hook {type(hook).__name__} has no `key`: give it a name of its own")
        if hook.key in seen:
            other = type(seen[hook.key]).__name__
            raise ConfigError(
                f"hooks {other} and {type(hook).__name__} share the key {hook.key!r} and would lose their "
                "state in a checkpoint: give one of them another `key`"
            )
        seen[hook.key] = hook
    return ordered


def call(state: TrainState, timepoint: str) -> None:
    """Call all hooks of a run at one of the `TIMEPOINTS`."""
    assert timepoint in TIMEPOINTS, timepoint
    for hook in state.hooks:
        getattr(hook, timepoint)(state)


def image_count(batches: Sequence[Batch]) -> int:
    """Images in some batches."""
    return sum(batch.images.shape[0] for batch in batches)


def without_ids(batch: Batch) -> Batch:
    """The batch without its image ids, on whose values a compiled model would specialise."""
    return dataclasses.replace(batch, image_ids=())
