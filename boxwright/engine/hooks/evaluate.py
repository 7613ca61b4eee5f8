"""Validates every few epochs and at the end."""

from __future__ import annotations

from ...errors import ConfigError
from ..state import Hook, TrainState
from ..validation import Evaluate, validate


class EvaluateHook(Hook):
    """Calls `evaluate` after epochs, once the checkpoint is saved: a kill meanwhile costs only this.

    A run that is resumed at the end of an epoch validates it anew, since the kill may have come before.

    Args:
        evaluate: returns metrics by key, as `Validation` does.
        every: epochs between validations; 0 for the end of the run alone.
    """

    key = "evaluate"
    priority = 95  # after the checkpoint

    def __init__(self, evaluate: Evaluate, every: int = 1) -> None:
        if every < 0:
            raise ConfigError(f"evaluate_every={every} must be 0 (only at the end) or more")
        self.evaluate = evaluate
        self.every = every

    def before_run(self, state: TrainState) -> None:
        """Make up for a validation that a kill prevented."""
        if state.first_step and state.first_step % state.steps_per_epoch == 0:
            self.after_train_epoch(state)

    def after_train_epoch(self, state: TrainState) -> None:
        """Validate, where it is time."""
        due = self.every and state.epoch % self.every == 0
        if due or state.epoch == state.epochs:
            validate(state, self.evaluate)
