"""An exponential moving average of the weights."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from ..errors import ConfigError
from .sharding import load_weights, local


class ModelEMA:
    """The moving average of a model's parameters, as a model of its own to predict with.

    After each step `average = d * average + (1 - d) * weights` with
    `d = min(decay, (1 + n) / (10 + n))` at the n-th update, so that a short run is not held back by its
    random start. Buffers (running statistics, loss normalisers) are copied, not averaged.

    Args:
        model: the model to follow; it is copied.
        decay: weight of the past once the average has warmed up, in 0..1.

    Raises:
        ConfigError: it is not.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        if not 0 <= decay < 1:
            raise ConfigError(f"ema_decay={decay} must be at least 0 and below 1, or None for no average")
        self.model = copy.deepcopy(model).eval().requires_grad_(False)
        self.decay = decay
        self.updates = 0

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Take in the weights of `model`."""
        self.updates += 1
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        averages: list[Tensor] = [local(p) for p in self.model.parameters() if p.is_floating_point()]
        weights: list[Tensor] = [local(p.detach()) for p in model.parameters() if p.is_floating_point()]
        torch._foreach_lerp_(averages, weights, 1 - decay)
        for mine, theirs in zip(self.model.buffers(), model.buffers(), strict=True):
            mine.copy_(theirs)

    def state_dict(self) -> dict[str, int]:
        """What the weights do not tell: the number of updates."""
        return {"updates": self.updates}

    def load_state_dict(self, state: dict[str, int], weights: dict[str, Tensor]) -> None:
        """Go on from a recorded average."""
        self.updates = state["updates"]
        load_weights(self.model, weights)
