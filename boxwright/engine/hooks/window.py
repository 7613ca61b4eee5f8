"""What several loggers need: means since the last record, speed, memory."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ...distributed import mean_over_ranks, world_size
from ..state import TrainState, image_count
from .learning_rate import learning_rate


class Window:
    """Gathers iterations and turns them into one record, making the device wait only then."""

    def __init__(self) -> None:
        self._sums: dict[str, Tensor] = {}
        self._steps = 0
        self._images = 0
        self._start = time.perf_counter()

    def start(self) -> None:
        """Begin to count time now: what came before was no training."""
        self._start = time.perf_counter()
        self._images = 0

    def add(self, state: TrainState) -> None:
        """Take in the iteration that has just ended."""
        for key, value in state.losses.items():
            value = value.detach().double() if state.device.type != "mps" else value.detach().float()
            self._sums[key] = self._sums[key] + value if key in self._sums else value
        self._steps += 1
        self._images += image_count(state.batches)

    def record(self, state: TrainState) -> dict[str, float]:
        """Means over the window and all ranks, learning rate, speed and memory; empties the window.

        Every rank must call it. `loss` is the sum of the terms that are trained.
        """
        keys = list(self._sums)
        means = mean_over_ranks(torch.stack([self._sums[key] for key in keys]) / max(1, self._steps)).tolist()
        seconds = time.perf_counter() - self._start
        record = {
            "lr": learning_rate(state.optimizer),
            "loss": sum(mean for key, mean in zip(keys, means, strict=True) if key.startswith("loss/")),
            **dict(zip(keys, means, strict=True)),
            "images_per_second": round(self._images * world_size() / max(seconds, 1e-9), 3),
            "memory_mb": round(memory_mb(state.device), 1),
        }
        self.__init__()
        return record

    def state_dict(self) -> dict[str, Any]:
        """The sums so far, so that a resumed run writes the same records."""
        return {"sums": {key: value.cpu() for key, value in self._sums.items()}, "steps": self._steps}

    def load_state_dict(self, state: dict[str, Any], device: torch.device) -> None:
        """Take them over."""
        self._sums = {key: value.to(device) for key, value in state["sums"].items()}
        self._steps = state["steps"]


def merge(states: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """One state of a window for every rank, of which records come out as of all the given ones together."""
    sums = {key: torch.stack([s["sums"][key] for s in states]).mean(0) for key in states[0]["sums"]}
    return {**states[0], "sums": sums}


def due(state: TrainState, every: int) -> bool:
    """Whether a record is to be written after this iteration: every so many, and at the end of an epoch."""
    return state.step % every == 0 or state.step % state.steps_per_epoch == 0


def memory_mb(device: torch.device) -> float:
    """Peak memory in MiB: of the GPU's allocator, else of this process; 0 where the system does not tell."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    try:
        import resource
    except ImportError:  # Windows
        return 0.0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**20 if sys.platform == "darwin" else 2**10)
