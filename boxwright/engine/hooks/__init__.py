"""Hooks that schedule and observe a run, and the usual set of them."""

from __future__ import annotations

from ..state import Hook
from ..validation import Evaluate
from .checkpoint import CheckpointHook
from .console import ConsoleHook
from .evaluate import EvaluateHook
from .learning_rate import LearningRateHook
from .metrics import MetricsHook
from .nonfinite import NonFiniteHook
from .precise_norm import PreciseNormHook
from .profile import ProfileHook
from .tensorboard import TensorBoardHook

__all__ = [
    "CheckpointHook",
    "ConsoleHook",
    "EvaluateHook",
    "Hook",
    "LearningRateHook",
    "MetricsHook",
    "NonFiniteHook",
    "PreciseNormHook",
    "ProfileHook",
    "TensorBoardHook",
    "default_hooks",
]


def default_hooks(
    evaluate: Evaluate | None = None,
    evaluate_every: int = 1,
    best_metric: str | None = None,
    checkpoint_every: int = 1,
    checkpoint_iterations: int | None = None,
    checkpoint_minutes: float | None = 10.0,
    keep: int = 2,
    log_every: int = 10,
    console: bool = True,
) -> list[Hook]:
    """The hooks of an ordinary run; add more to the list.

    Args:
        evaluate: returns metrics, as `Validation` does; None not to validate.
        evaluate_every: epochs between validations; there is always one at the end.
        best_metric: key of the metric (larger is better) whose best checkpoint is kept; None: the first key.
        checkpoint_every: epochs between checkpoints.
        checkpoint_iterations: also after so many iterations.
        checkpoint_minutes: also after so many minutes.
        keep: checkpoints kept besides the best.
        log_every: iterations between records.
        console: whether to show progress.
    """
    hooks: list[Hook] = [
        LearningRateHook(),
        NonFiniteHook(),
        CheckpointHook(checkpoint_every, checkpoint_iterations, checkpoint_minutes, keep, best_metric),
        MetricsHook(log_every),
    ]
    if evaluate is not None:
        hooks.append(EvaluateHook(evaluate, evaluate_every))
    if console:
        hooks.append(ConsoleHook(log_every))
    return hooks
