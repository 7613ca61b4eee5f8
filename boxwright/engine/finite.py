"""Finding the first loss that is not finite, without making a device wait at every step."""

from __future__ import annotations

import torch
from torch import Tensor

from ..distributed import gather_objects
from ..errors import TrainingError
from .messages import any_over_ranks
from .state import TrainState
from .step import GRADIENT_NORM


def verify_finite(state: TrainState) -> None:
    """Look at the losses of all steps since the last look; every rank must call it.

    Raises:
        TrainingError: on every rank, if a loss on any of them is NaN or infinite. It names the iteration, the
            images and the first such term.
    """
    steps = list(state.unchecked)
    state.unchecked.clear()
    terms = [losses[key].float() for _, _, losses in steps for key in _watched(state, losses)]
    finite = torch.stack(terms).isfinite().all().item() if terms else True
    if not any_over_ranks(not finite, state.device):
        return
    mine = None if finite else _describe(state, steps)
    found = min(f for f in gather_objects(mine) if f is not None)
    raise TrainingError(found[1])


def _watched(state: TrainState, losses: dict[str, Tensor]) -> list[str]:
    # Under loss scaling an infinite gradient is an ordinary event: the step is skipped.
    extra = () if state.scaler.is_enabled() else (GRADIENT_NORM,)
    return [key for key in losses if key.startswith("loss/") or key in extra]


def _describe(
    state: TrainState, steps: list[tuple[int, tuple[int, ...], dict[str, Tensor]]]
) -> tuple[int, str]:
    step, ids, losses, term = next(
        (step, ids, losses, key)
        for step, ids, losses in steps
        for key in _watched(state, losses)
        if not losses[key].isfinite()
    )
    all_terms = ", ".join(f"{key}={losses[key].item():.4g}" for key in losses)
    kept = f"; the last good checkpoint is {state.saved}" if state.saved else ""
    return step, (
        f"iteration {step} (epoch {(step - 1) // state.steps_per_epoch + 1}): {term} is "
        f"{losses[term].item()} for image ids {list(ids)} ({all_terms}). Lower the learning rate, "
        f"lengthen the warm-up or set clip_norm, and look at these images' annotations{kept}"
    )
