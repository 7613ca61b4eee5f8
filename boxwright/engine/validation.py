"""Validation: predict each batch of a loader and hand it to an evaluator."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Protocol

import torch

from ..distributed import is_distributed
from ..structures import Batch, Detections
from .placing import place
from .randomness import undisturbed
from .sharding import gathered
from .state import TrainState, call
from .watch import tick

Evaluate = Callable[[TrainState], Mapping[str, float]]


class StopRun(Exception):
    """Leaves the loop at once, because a signal asks for it."""


class Evaluator(Protocol):
    """What validation asks of an evaluator."""

    def reset(self) -> None:
        """Forget all predictions."""
        ...

    def update(self, batch: Batch, detections: Detections) -> None:
        """Take the predictions for one batch."""
        ...

    def compute(self) -> Mapping[str, float]:
        """Metrics by key, over all ranks; called on every rank."""
        ...


def fetch(state: TrainState, batches: Iterator[Batch], count: int) -> list[Batch]:
    """The next `count` batches, fewer at the end.

    A signal to the whole process group ends the loader's workers too; that is then no error but the stop.
    """
    try:
        return list(itertools.islice(batches, count))
    except Exception:
        if state.stop and not is_distributed():  # alone, no other rank waits for this one's next step
            raise StopRun from None
        raise


@dataclass(frozen=True)
class Validation:
    """Predicts a loader's batches with `state.eval_model` and returns an evaluator's metrics.

    Args:
        loader: validation batches of this rank.
        evaluator: takes `(batch, detections)`.
    """

    loader: Iterable[Batch]
    evaluator: Evaluator

    def __call__(self, state: TrainState) -> Mapping[str, float]:
        """Run over the loader, with the two timepoints around each batch."""
        model = state.eval_model
        self.evaluator.reset()
        batches = iter(self.loader)
        while fetched := fetch(state, batches, 1):
            tick()
            batch = place(fetched[0], state.device, state.precision.channels_last)
            state.batches = (batch,)
            call(state, "before_val_iter")
            with torch.inference_mode(), state.precision.autocast(state.device):
                state.detections = model.predict(batch.images, batch.sizes)  # pyright: ignore[reportCallIssue]
            assert state.detections is not None
            self.evaluator.update(batch, state.detections)
            call(state, "after_val_iter")
            if state.stop and not is_distributed():  # ranks may have different numbers of batches
                raise StopRun
        return self.evaluator.compute()


def validate(state: TrainState, evaluate: Evaluate) -> None:
    """Run `evaluate` between its two epoch timepoints; `state.metrics` become what it returns.

    The model is in eval mode meanwhile, and the random states are left as they were.
    """
    training = state.model.training
    state.model.eval()
    try:
        with undisturbed(state.device):
            call(state, "before_val_epoch")
            with gathered(state.eval_model):
                state.metrics = dict(evaluate(state))
            call(state, "after_val_epoch")
    finally:
        state.model.train(training)
