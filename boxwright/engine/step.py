"""The training step: forward, backward, clip, optimiser, moving average. All of it is here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from ..errors import TrainingError
from ..structures import Batch
from .communication import exchanging
from .precision import Precision
from .sharding import clip_gradients
from .state import TrainState, without_ids

GRADIENT_NORM = "stat/gradient_norm"


def train_step(state: TrainState) -> None:
    """One optimiser step on `state.batches`, whose losses are averaged.

    The forward pass runs in the run's precision, everything else in float32. `state.losses` become the
    batches' mean, detached, with the norm of the gradient before clipping where it is clipped.

    Raises:
        TrainingError: the model returned no key that starts with "loss/".
        ConfigError: with several ranks, a parameter had no part in the loss.
    """
    state.optimizer.zero_grad(set_to_none=True)
    losses = compute_gradients(state.forward, state.batches, state.precision, state.device, state.scaler)
    state.exchange.complete()
    apply_gradients(state, losses)


def compute_gradients(
    forward: nn.Module,
    batches: Sequence[Batch],
    precision: Precision,
    device: torch.device,
    scaler: torch.amp.GradScaler,
) -> dict[str, Tensor]:
    """Add the gradients of the batches' mean loss to the parameters' `grad`; returns the terms' means.

    Ranks exchange gradients in the last backward pass only.
    """
    returned: list[Mapping[str, Tensor]] = []
    for index, batch in enumerate(batches):
        with exchanging(forward, last=index + 1 == len(batches)):
            with precision.autocast(device):
                terms = forward(without_ids(batch))
            scaler.scale(total_loss(terms) / len(batches)).backward()
        returned.append({key: value.detach() for key, value in terms.items()})
    return mean_terms(returned)


def apply_gradients(state: TrainState, losses: dict[str, Tensor]) -> None:
    """Clip, let the optimiser step and the average follow; `losses` become the state's, with the norm."""
    state.scaler.unscale_(state.optimizer)
    if state.clip_norm is not None:
        parameters = [p for group in state.optimizer.param_groups for p in group["params"]]
        losses[GRADIENT_NORM] = clip_gradients(parameters, state.clip_norm).detach()
    state.scaler.step(state.optimizer)
    state.scaler.update()
    if state.ema is not None:
        state.ema.update(state.model)
    state.step += 1
    state.losses = losses
    state.unchecked.append((state.step, tuple(i for batch in state.batches for i in batch.image_ids), losses))


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
