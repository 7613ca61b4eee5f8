"""Stops a run whose loss is not finite."""

from __future__ import annotations

from ..finite import verify_finite
from ..state import Hook, TrainState


class NonFiniteHook(Hook):
    """Looks at the losses after each iteration on a CPU, after every 20th on a GPU.

    Saving a checkpoint looks too, so that none ever holds the weights of a diverged run.
    """

    key = "nonfinite"
    priority = 20

    def after_train_iter(self, state: TrainState) -> None:
        """Look, where it is time.

        Raises:
            TrainingError: a loss is NaN or infinite.
        """
        if state.at_check:
            verify_finite(state)
