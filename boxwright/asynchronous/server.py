"""The server: holds the weights and applies gradients in the order in which they arrive."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import nn

from ..engine.hooks.window import due
from ..engine.messages import notify
from ..engine.state import Hook, TrainState
from ..engine.step import apply_gradients
from ..errors import CheckpointError, ConfigError, TrainingError
from ..structures import Batch
from .worker import Arrival, Task

STALENESS = "stat/staleness"
SETTINGS = "asynchronous.json"
"""What the run folder keeps of this mode, beside `config.json`."""


@dataclass(frozen=True)
class Lost:
    """A worker is gone.

    Args:
        worker: its number.
        reason: in words.
    """

    worker: int
    reason: str


class Workers(Protocol):
    """What carries tasks to the workers and their answers back."""

    count: int

    def start(self, worker: int, position: dict[str, Any] | None) -> None:
        """Start a worker, or another one in the place of a lost one, behind a recorded position."""
        ...

    def send(self, worker: int, task: Task) -> None:
        """Give a worker that has nothing to do a task."""
        ...

    def receive(self) -> Arrival | Lost:
        """Wait for the next answer."""
        ...


class Server:
    """A parameter server (Dean et al., NIPS 2012, Sec. 4.1, with one server and one fetch for each push).

    To the training loop it is the loader, which yields a stand-in for the images of each arriving gradient,
    and the step, which applies that gradient. So schedule, clipping, moving average, checkpoints and
    validation are those of any run. One version of the weights is one update; an epoch is as many updates
    as there are batches in all shares. Buffers (running statistics) become those of the last arrival.

    The *staleness* of a gradient is the number of updates between the weights that it was computed with and
    those that it is applied to. One that is too stale is refused: the worker computes anew on the same
    images with fresh weights, so that no image is left out.

    Args:
        model: the weights, on the server's device.
        workers: who computes.
        steps_per_epoch: batches of all shares.
        max_staleness: largest staleness of an applied gradient; None for any.
        restarts: how often in a row a worker may be lost without an answer in between.

    Attributes:
        version: updates of this process.
        positions: of each worker, behind its last applied answer.
        counts: applied gradients by staleness, since `take_counts`.
        refused: gradients refused, since `take_counts`.
    """

    def __init__(
        self,
        model: nn.Module,
        workers: Workers,
        steps_per_epoch: int,
        max_staleness: int | None = None,
        restarts: int = 3,
    ) -> None:
        if max_staleness is not None and max_staleness < 0:
            raise ConfigError(f"max_staleness={max_staleness} must be at least 0, or None for any")
        self.model, self.workers, self.max_staleness, self.restarts = model, workers, max_staleness, restarts
        self.version, self.refused = 0, 0
        self.counts: Counter[int] = Counter()
        self.positions: list[dict[str, Any] | None] = [None] * workers.count
        self._losses = [0] * workers.count
        self._steps_per_epoch, self._position, self._begun = steps_per_epoch, 0, False
        self._arrival: Arrival | None = None
        self._snapshot: Task | None = None

    def __len__(self) -> int:
        """Updates of one epoch."""
        return self._steps_per_epoch

    def set_epoch(self, epoch: int) -> None:
        """The coming iteration is a whole epoch."""
        self._position = 0

    def state_dict(self) -> dict[str, Any]:
        """How many updates of the epoch are done."""
        return {"position": self._position}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on behind them."""
        self._position = state["position"]

    def __iter__(self) -> Iterator[Batch]:
        """A stand-in for the images of each gradient, as they arrive."""
        if not self._begun:
            self._begun = True
            for worker, position in enumerate(self.positions):
                self.workers.start(worker, position)
                self._send(worker)
        while self._position < len(self):
            self._arrival = self._receive()
            self._position += 1
            yield stand_in(self._arrival.image_ids)

    def step(self, state: TrainState) -> None:
        """Apply the gradient that has arrived, and give its worker the next task."""
        arrival = self._arrival
        assert arrival is not None
        staleness = self.version - arrival.version
        for name, parameter in self.model.named_parameters():
            gradient = arrival.gradients.get(name)
            # Copied into the parameter's own memory layout, which fused optimisers rely on.
            parameter.grad = None if gradient is None else torch.empty_like(parameter).copy_(gradient)
        for name, buffer in self.model.named_buffers():
            buffer.copy_(arrival.buffers[name])
        losses = {key: value.to(state.device) for key, value in arrival.losses.items()}
        apply_gradients(state, losses | {STALENESS: torch.tensor(float(staleness), device=state.device)})
        self.version += 1
        self.counts[staleness] += 1
        self.positions[arrival.worker] = arrival.position
        self._losses[arrival.worker] = 0
        self._arrival = None
        if state.step < state.total_steps:
            self._send(arrival.worker)

    def take_counts(self) -> tuple[Counter[int], int]:
        """Applied gradients by staleness, and refused ones, since the last call."""
        counts, refused = self.counts, self.refused
        self.counts, self.refused = Counter(), 0
        return counts, refused

    def _receive(self) -> Arrival:
        """The next gradient that is fresh enough."""
        while True:
            answer = self.workers.receive()
            if isinstance(answer, Lost):
                self._replace(answer)
            elif self.max_staleness is not None and self.version - answer.version > self.max_staleness:
                self.refused += 1
                self._send(answer.worker, again=True)
            else:
                return answer

    def _send(self, worker: int, again: bool = False) -> None:
        if self._snapshot is None or self._snapshot.version != self.version:
            weights = {name: value.detach().cpu().clone() for name, value in self.model.state_dict().items()}
            self._snapshot = Task(self.version, weights)
        self.workers.send(worker, Task(self.version, self._snapshot.weights, again))

    def _replace(self, lost: Lost) -> None:
        self._losses[lost.worker] += 1
        if self._losses[lost.worker] > self.restarts:
            raise TrainingError(
                f"worker {lost.worker} was lost {self._losses[lost.worker]} times in a row without an "
                f"answer: {lost.reason}. Look at its log, mend the cause and resume"
            )
        notify(f"worker {lost.worker} is lost ({lost.reason}); another one takes its place")
        self.workers.start(lost.worker, self.positions[lost.worker])
        self._send(lost.worker)


class StalenessHook(Hook):
    """Writes how stale the applied gradients were into `metrics.jsonl`, and keeps the workers' positions.

    A line has `kind` "staleness", `step`, `epoch`, and since the last line: `mean`, `max`, `histogram`
    (applied gradients by staleness) and `refused`.

    Args:
        server: of the run.
        every: updates between two lines.
    """

    key = "asynchronous"
    priority = 65

    def __init__(self, server: Server, every: int = 10) -> None:
        self.server, self.every = server, every

    def before_run(self, state: TrainState) -> None:
        """Keep what `config.json` does not say."""
        kept = {"replicas": self.server.workers.count, "max_staleness": self.server.max_staleness}
        (state.out / SETTINGS).write_text(json.dumps(kept) + "\n", encoding="utf-8")

    def after_train_iter(self, state: TrainState) -> None:
        """Write, where it is time."""
        if not due(state, self.every):
            return
        counts, refused = self.server.take_counts()
        applied = counts.total()
        record = {
            "kind": "staleness",
            "step": state.step,
            "epoch": round(state.step / state.steps_per_epoch, 4),
            "mean": sum(value * count for value, count in counts.items()) / max(1, applied),
            "max": max(counts, default=0),
            "histogram": {str(value): counts[value] for value in sorted(counts)},
            "refused": refused,
        }
        with (state.out / "metrics.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")

    def state_dict(self) -> dict[str, Any]:
        """Where each worker is, and what is not written yet."""
        server = self.server
        counts = {str(value): count for value, count in server.counts.items()}
        return {"workers": list(server.positions), "counts": counts, "refused": server.refused}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take it over.

        Raises:
            CheckpointError: the run had another number of workers, whose shares were others.
        """
        server = self.server
        if len(state["workers"]) != len(server.positions):
            raise CheckpointError(
                f"this run was trained by {len(state['workers'])} workers, not {len(server.positions)}: "
                f"resume with replicas={len(state['workers'])}, or start in another folder"
            )
        server.positions = list(state["workers"])
        server.counts = Counter({int(value): count for value, count in state["counts"].items()})
        server.refused = state["refused"]


def stand_in(image_ids: tuple[int, ...]) -> Batch:
    """A batch whose images stayed with the worker."""
    count = len(image_ids)
    return Batch(torch.empty(count, 3, 0, 0), torch.zeros(count, 2, dtype=torch.long), image_ids=image_ids)
