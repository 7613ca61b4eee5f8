"""Sets the learning rate of each step."""

from __future__ import annotations

import torch

from ..state import Hook, TrainState


class LearningRateHook(Hook):
    """Multiplies each group's `initial_lr` by the schedule's factor, before every step."""

    key = "learning_rate"
    priority = 10

    def before_run(self, state: TrainState) -> None:
        """Remember the initial rate of groups that do not know it (an optimiser made by hand)."""
        for group in state.optimizer.param_groups:
            group.setdefault("initial_lr", group["lr"])

    def before_train_iter(self, state: TrainState) -> None:
        """Set the rates."""
        factor = state.schedule.factor(state.step, state.total_steps, state.steps_per_epoch)
        for group in state.optimizer.param_groups:
            group["lr"] = group["initial_lr"] * factor


def learning_rate(optimizer: torch.optim.Optimizer) -> float:
    """The rate to log: that of plain weights outside the backbone, else of the first group."""
    groups = optimizer.param_groups
    return float(next((g for g in groups if g.get("name") == "weight"), groups[0])["lr"])
