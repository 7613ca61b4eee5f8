"""Saves checkpoints, keeps the best and the newest."""

from __future__ import annotations

import math
import time
from typing import Any

from ...distributed import is_distributed, is_main
from ...errors import ConfigError
from ..checkpoint import prune, steps, write_pointer
from ..messages import any_over_ranks
from ..resume import save_checkpoint
from ..state import Hook, TrainState
from ..trainer import TrainingInterrupted


class CheckpointHook(Hook):
    """Saves after epochs, and where asked for after iterations or minutes; always at the end and on a signal.

    It comes before validation at the end of an epoch; after validation it only moves `best`.

    Args:
        every: epochs between checkpoints.
        iterations: also after so many iterations, or None.
        minutes: also after so many minutes, or None. When is up to the clock, the results are not.
        keep: newest checkpoints kept; the best one is kept besides.
        metric: key of the metric that decides what is best, larger is better; None for the first key.
    """

    key = "checkpoint"
    priority = 90  # after all hooks whose states it saves

    def __init__(
        self,
        every: int = 1,
        iterations: int | None = None,
        minutes: float | None = None,
        keep: int = 2,
        metric: str | None = None,
    ) -> None:
        for name, value in (
            ("every", every),
            ("iterations", iterations),
            ("minutes", minutes),
            ("keep", keep),
        ):
            if value is not None and value <= 0:
                raise ConfigError(f"checkpoint {name}={value} must be positive")
        self.every, self.iterations, self.minutes, self.keep, self.metric = (
            every,
            iterations,
            minutes,
            keep,
            metric,
        )
        self.best: dict[str, Any] | None = None
        self._saved_step = -1
        self._due = False
        self._clock = time.monotonic()

    def before_run(self, state: TrainState) -> None:
        """Take the resumed checkpoint for saved, and let `best` say what was best then."""
        self._clock = time.monotonic()
        if state.saved is not None:
            self._saved_step = state.step
        if is_main() and state.first_step:
            names = {path.name for path in steps(state.checkpoints)}
            if self.best is not None and self.best["name"] in names:
                write_pointer(state.checkpoints / "best", self.best)
            else:
                (state.checkpoints / "best").unlink(missing_ok=True)
        if (
            self.best is not None
            and state.first_step
            and not (state.checkpoints / self.best["name"]).exists()
        ):
            self.best = None

    def after_train_iter(self, state: TrainState) -> None:
        """Save by iterations or minutes."""
        due = self.iterations is not None and state.step % self.iterations == 0
        if self.minutes is not None and (state.at_check or not is_distributed()):
            due = due or any_over_ranks(time.monotonic() - self._clock > 60 * self.minutes, state.device)
        if due and state.step % state.steps_per_epoch:
            self._save(state)
        self._due = due  # at the end of an epoch, once its hooks have been called

    def after_train_epoch(self, state: TrainState) -> None:
        """Save by epochs."""
        if self._due or state.epoch % self.every == 0 or state.epoch == state.epochs:
            self._save(state)

    def after_val_epoch(self, state: TrainState) -> None:
        """Let `best` name this moment, if it is."""
        metric = self.metric or next(iter(state.metrics), None)
        if metric is None:
            return
        if metric not in state.metrics:
            raise ConfigError(
                f"best_metric={metric!r} is none of the validation's: {', '.join(state.metrics)}"
            )
        value = float(state.metrics[metric])
        if math.isnan(value) or (self.best is not None and value <= self.best["value"]):
            return
        self._save(state)
        assert state.saved is not None
        self.best = {"name": state.saved.name, "step": state.step, "metric": metric, "value": value}
        if is_main():
            write_pointer(state.checkpoints / "best", self.best)

    def after_run(self, state: TrainState) -> None:
        """Save where the run stops, unless it failed."""
        if state.failure is None or isinstance(state.failure, TrainingInterrupted):
            self._save(state)

    def state_dict(self) -> dict[str, Any]:
        """What was best so far."""
        return {"best": self.best}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take it over."""
        self.best = state["best"]

    def _save(self, state: TrainState) -> None:
        if self._saved_step == state.step:
            return
        save_checkpoint(state)
        self._saved_step = state.step
        self._clock = time.monotonic()
        if is_main():
            prune(state.checkpoints, self.keep, {self.best["name"]} if self.best else set())
