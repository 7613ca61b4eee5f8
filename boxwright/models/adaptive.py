"""Numbers that follow the training: what a slot keeps whose settings change with what it sees.

A slot with such state is an `nn.Module`, and the head that holds the slot registers it (see `RoICriterion`),
so that the state is saved, copied and moved with the weights.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from ..errors import ConfigError


class AdaptiveValue(nn.Module):
    """A number that becomes, every so many steps, a summary of what was recorded since.

    All of its state is buffers of fixed shape, and nothing waits for the device. In evaluation mode nothing
    is recorded. Under DistributedDataParallel record what all ranks agree on.

    Args:
        initial: the number until the first summary.
        interval: steps from summary to summary.
        summary: of `(interval,)` recorded values, NaN where a step had none; NaN leaves the number as it is.
        lowest: summaries are held above this.
        highest: and below this.

    Raises:
        ConfigError: the interval is not positive.
    """

    value: Tensor
    history: Tensor
    steps: Tensor

    def __init__(
        self,
        initial: float,
        interval: int,
        summary: Callable[[Tensor], Tensor],
        lowest: float = -math.inf,
        highest: float = math.inf,
    ) -> None:
        super().__init__()
        if interval < 1:
            raise ConfigError(f"interval is {interval}; it is a positive number of steps")
        self.summary, self.lowest, self.highest = summary, lowest, highest
        self.register_buffer("value", torch.tensor(float(initial)))
        self.register_buffer("history", torch.full((interval,), math.nan))
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))

    @torch.no_grad()
    def record(self, value: Tensor, present: Tensor) -> None:
        """Take in the value of one step, a scalar, where `present`; counts the step in any case."""
        if not self.training:
            return
        slots = torch.arange(self.history.shape[0], device=self.history.device)
        history = torch.where(slots == self.steps, torch.where(present, value, math.nan), self.history)
        steps = self.steps + 1
        due = steps >= self.history.shape[0]
        summary = self.summary(history)
        taken = due & ~summary.isnan()
        self.value.copy_(torch.where(taken, summary.clamp(self.lowest, self.highest), self.value))
        self.history.copy_(torch.where(due, math.nan, history))
        self.steps.copy_(torch.where(due, 0, steps))

    def extra_repr(self) -> str:
        """The interval and the bounds."""
        return f"interval={self.history.shape[0]}, lowest={self.lowest}, highest={self.highest}"


def nan_median(values: Tensor) -> Tensor:
    """Median of those of `(N,)` values that are not NaN: of an even number the mean of the middle two."""
    ordered, count = values.sort().values, (~values.isnan()).sum()  # NaN sorts behind everything
    middle = torch.stack(((count - 1).clamp(min=0) // 2, count // 2))
    return ordered.gather(0, middle).mean()
