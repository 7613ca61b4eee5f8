"""The training step: forward, backward, clip, optimiser, moving average. All of it is here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import nullcontext

import torch
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from ..errors import TrainingError
from .state import TrainState, without_ids

GRADIENT_NORM = "stat/gradient_norm"


def train_step(state: TrainState) -> None:
    """One optimiser step on `state.batches`, whose losses are averaged.

    The forward pass runs in the run's precision, everything else in float32. Ranks exchange gradients in
    the last backward pass only. `state.losses` become the batches' mean, detached, with the norm of the
    gradient before clipping where it is clipped.

    Raises:
        TrainingError: the model returned no key that starts with "loss/".
    """
    batches = state.batches
    returned: list[Mapping[str, Tensor]] = []
    state.optimizer.zero_grad(set_to_none=True)
    for index, batch in enumerate(batches):
        alone = isinstance(state.forward, DistributedDataParallel) and index + 1 < len(batches)
        with state.forward.no_sync() if alone else nullcontext():  # pyright: ignore[reportCallIssue]
            with state.precision.autocast(state.device):
                terms = state.forward(without_ids(batch))
            state.scaler.scale(total_loss(terms) / len(batches)).backward()
        returned.append({key: value.detach() for key, value in terms.items()})
    losses = mean_terms(returned)
    state.scaler.unscale_(state.optimizer)
    if state.clip_norm is not None:
        parameters = [p for group in state.optimizer.param_groups for p in group["params"]]
        losses[GRADIENT_NORM] = torch.nn.utils.clip_grad_norm_(parameters, state.clip_norm).detach()
    state.scaler.step(state.optimizer)
    state.scaler.update()
    if state.ema is not None:
        state.ema.update(state.model)
    state.step += 1
    state.losses = losses
    state.unchecked.append((state.step, tuple(i for batch in batches for i in batch.image_ids), losses))


def total_loss(terms: Mapping[str, Tensor]) -> Tensor:
    """Sum of the terms whose key starts with "loss/"; the others are only logged."""
    losses = [value for key, value in terms.items() if key.startswith("loss/")]
    if not losses:
        raise TrainingError(
            f"the model returned {sorted(terms)}: no key starts with 'loss/', so nothing is trained"
        )
    return torch.stack([loss.float() for loss in losses]).sum()


def mean_terms(returned: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """Mean of each term over the batches of a step."""
    if len(returned) == 1:
        return dict(returned[0])
    return {key: torch.stack([terms[key].float() for terms in returned]).mean() for key in returned[0]}
