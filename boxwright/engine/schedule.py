"""Learning rate schedules as pure functions of the step, so that resuming needs no state."""

from __future__ import annotations

import math
from dataclasses import dataclass

from ..errors import ConfigError


@dataclass(frozen=True)
class Schedule:
    """A constant learning rate after a linear warm-up; the base of the others.

    The warm-up multiplies the schedule by `warmup_ratio + (1 - warmup_ratio) * step / warmup`, which grows by
    the same amount with every iteration (gradual warm-up: Goyal et al., arXiv:1706.02677, section 2.2;
    MegDet, arXiv:1711.07240, section 3.2; MMDetection starts at 0.001 over 500 iterations).

    Args:
        warmup: iterations (optimiser steps) of the warm-up, 0 for none. A number is meant as it is: one
            beyond the run is an error when the run starts. None takes `usual_warmup`.
        warmup_ratio: factor at step 0.
        usual_warmup: iterations of the warm-up where `warmup` does not say, but at most a quarter of the
            run, so that a short run still reaches its learning rate. Recipes set this one.

    Raises:
        ConfigError: a value that makes no schedule.
    """

    warmup: int | None = None
    warmup_ratio: float = 0.001
    usual_warmup: int = 500

    def __post_init__(self) -> None:
        if min(self.warmup or 0, self.usual_warmup) < 0 or not 0 <= self.warmup_ratio <= 1:
            raise ConfigError(
                f"schedule: warmup={self.warmup} and usual_warmup={self.usual_warmup} must be >= 0 and "
                f"warmup_ratio={self.warmup_ratio} in 0..1"
            )

    def warmup_steps(self, total_steps: int) -> int:
        """Iterations that the warm-up takes in a run of `total_steps`.

        Raises:
            ConfigError: `warmup` is longer than the run.
        """
        if self.warmup is None:
            return min(self.usual_warmup, total_steps // 4)
        if self.warmup > total_steps:
            raise ConfigError(
                f"schedule: warmup={self.warmup} iterations is longer than the run of {total_steps}, "
                "which would never reach its learning rate. Train for more epochs, or set warmup=None, which "
                f"takes {min(self.usual_warmup, total_steps // 4)} here"
            )
        return self.warmup

    def factor(self, step: int, total_steps: int, steps_per_epoch: int) -> float:
        """What the initial learning rate is multiplied by.

        Args:
            step: optimiser steps done before this one, from 0.
            total_steps: optimiser steps of the whole run.
            steps_per_epoch: optimiser steps of one epoch.
        """
        warmup = self.warmup_steps(total_steps)
        gain = self.warmup_ratio + (1 - self.warmup_ratio) * step / warmup if step < warmup else 1.0
        return gain * self.decay(step, total_steps, steps_per_epoch)

    def decay(self, step: int, total_steps: int, steps_per_epoch: int) -> float:
        """The factor without warm-up."""
        return 1.0


@dataclass(frozen=True)
class StepSchedule(Schedule):
    """Multiply by `gamma` at each milestone (the "1x" schedule is 12 epochs with milestones 8 and 11).

    Args:
        milestones: epochs, counted from the start, increasing; fractions are allowed.
        gamma: factor of each milestone, or one for each.

    Raises:
        ConfigError: milestones that do not increase, or another number of factors.
    """

    milestones: tuple[float, ...] = (8, 11)
    gamma: float | tuple[float, ...] = 0.1

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "milestones", tuple(self.milestones))
        if not isinstance(self.gamma, int | float):
            object.__setattr__(self, "gamma", tuple(self.gamma))
        if list(self.milestones) != sorted(self.milestones):
            raise ConfigError(f"schedule: milestones={self.milestones} must increase")
        if len(self.gammas) != len(self.milestones):
            raise ConfigError(
                f"schedule: gamma={self.gamma} has {len(self.gammas)} factors for the "
                f"{len(self.milestones)} milestones {self.milestones}"
            )

    @property
    def gammas(self) -> tuple[float, ...]:
        """The factor of each milestone."""
        return self.gamma if isinstance(self.gamma, tuple) else (self.gamma,) * len(self.milestones)

    def decay(self, step: int, total_steps: int, steps_per_epoch: int) -> float:
        """The product of the factors of the milestones passed."""
        passed = (
            gamma
            for gamma, milestone in zip(self.gammas, self.milestones, strict=True)
            if step >= round(milestone * steps_per_epoch)
        )
        return math.prod(passed)


@dataclass(frozen=True)
class CosineSchedule(Schedule):
    """Half a cosine from 1 to `final` (SGDR, arXiv 1608.03983, equation 5, without restarts).

    Args:
        final: factor at the end of the run.
    """

    final: float = 0.0

    def decay(self, step: int, total_steps: int, steps_per_epoch: int) -> float:
        """`final + (1 - final) (1 + cos(pi step / total)) / 2`."""
        return (
            self.final + (1 - self.final) * (1 + math.cos(math.pi * min(1.0, step / max(1, total_steps)))) / 2
        )


@dataclass(frozen=True)
class PolySchedule(Schedule):
    """From 1 to `final` by a power of what is left of the run; the power 1 is the linear schedule.

    Args:
        power: exponent of the fraction of the run that is left.
        final: factor at the end of the run.
    """

    power: float = 1.0
    final: float = 0.0

    def decay(self, step: int, total_steps: int, steps_per_epoch: int) -> float:
        """`final + (1 - final) (1 - step / total) ** power`."""
        return self.final + (1 - self.final) * max(0.0, 1 - step / max(1, total_steps)) ** self.power
