"""A worker: computes the gradient of its next batch with the weights that it is sent."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..engine.placing import place
from ..engine.precision import Precision
from ..engine.randomness import random_state, seed_all, set_random_state, undisturbed
from ..engine.state import Loader
from ..engine.step import compute_gradients
from ..structures import Batch


@dataclass(frozen=True)
class Task:
    """What the server asks of a worker.

    Args:
        version: of the weights: how many updates they have seen.
        weights: the model's state dict, on the CPU.
        again: compute on the images of the task before instead of the next ones.
    """

    version: int
    weights: Mapping[str, Tensor]
    again: bool = False


@dataclass(frozen=True)
class Arrival:
    """What a worker answers; all tensors are on the CPU.

    Args:
        worker: its number.
        version: of the weights that it computed with.
        gradients: of the mean loss, by parameter; without those that had no part in it.
        buffers: after the forward passes.
        losses: what the model returned, mean over the batches.
        image_ids: of the images.
        position: what a worker started anew needs to go on behind this answer.
    """

    worker: int
    version: int
    gradients: dict[str, Tensor]
    buffers: dict[str, Tensor]
    losses: dict[str, Tensor]
    image_ids: tuple[int, ...]
    position: dict[str, Any]


@dataclass(frozen=True)
class Computing:
    """How a worker computes, as the experiment says.

    Args:
        device: where.
        precision: of the forward passes.
        accumulate: batches of one gradient.
        seed: of the run; each worker draws its own numbers from it.
    """

    device: torch.device
    precision: Precision
    accumulate: int
    seed: int


class Worker:
    """One replica of the model and its share of the data.

    It passes over its share epoch after epoch, however far the others are.

    Args:
        index: its number, from 0.
        model: placed on its device; its weights are replaced with each task.
        loader: batches of its share.
        computing: how.
        position: of the last answer of the worker whose place it takes; None to begin.
    """

    def __init__(
        self,
        index: int,
        model: nn.Module,
        loader: Loader,
        computing: Computing,
        position: Mapping[str, Any] | None = None,
    ) -> None:
        self.index, self.model, self.loader, self.computing = index, model.train(), loader, computing
        self._scaler = torch.amp.GradScaler(computing.device.type, enabled=False)
        self._batches: Iterator[Batch] | None = None
        self._group: list[Batch] = []
        self._epoch = 0
        if position is None:
            seed_all(computing.seed, index)
        else:
            self._epoch = position["epoch"]
            loader.set_epoch(self._epoch)
            loader.load_state_dict(position["loader"])
            set_random_state(position["random"], computing.device)
        self._fresh = position is None

    def compute(self, task: Task) -> Arrival:
        """The gradient of the next batches with the task's weights."""
        if not task.again or not self._group:
            self._group = self._fetch()
        self.model.load_state_dict(task.weights)
        self.model.zero_grad(set_to_none=True)
        how = self.computing
        losses = compute_gradients(self.model, self._group, how.precision, how.device, self._scaler)
        named = self.model.named_parameters()
        return Arrival(
            self.index,
            task.version,
            {name: p.grad.cpu() for name, p in named if p.grad is not None},
            {name: buffer.cpu().clone() for name, buffer in self.model.named_buffers()},
            {key: value.cpu() for key, value in losses.items()},
            tuple(i for batch in self._group for i in batch.image_ids),
            {
                "epoch": self._epoch,
                "loader": self.loader.state_dict(),
                "random": random_state(how.device),
            },
        )

    def _fetch(self) -> list[Batch]:
        """The batches of the next gradient, on the device; an epoch's last one has what is left."""
        how = self.computing
        while True:
            with undisturbed(how.device):
                if self._batches is None:
                    if self._fresh:
                        self.loader.set_epoch(self._epoch)
                    self._batches = iter(self.loader)
                group = list(itertools.islice(self._batches, how.accumulate))
            if group:
                return [place(batch, how.device, how.precision.channels_last) for batch in group]
            self._batches, self._epoch, self._fresh = None, self._epoch + 1, True
