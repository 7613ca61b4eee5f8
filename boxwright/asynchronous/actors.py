"""Workers as Ray actors: processes on this machine or, with a Ray cluster, on many."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from ..errors import BoxwrightError, ConfigError, MissingExtraError, TrainingError, first_line
from .server import Lost
from .worker import Arrival, Task


def require_ray() -> Any:
    """The module `ray`.

    Raises:
        MissingExtraError: it is not installed.
    """
    try:
        import ray  # pyright: ignore[reportMissingImports]
    except ImportError:
        raise MissingExtraError("ray", "ray", "asynchronous training") from None
    return ray


class RemoteWorker:
    """What runs in an actor's process.

    Args:
        config: the run's configuration as JSON.
        trust: modules of your own that it may name.
        index: number of the worker.
        count: number of workers.
        device: where it computes.
        position: where it goes on, or None.
    """

    def __init__(
        self,
        config: str,
        trust: Sequence[str],
        index: int,
        count: int,
        device: str,
        position: Mapping[str, Any] | None,
    ) -> None:
        from .run import build_worker

        self.worker = build_worker(config, trust, index, count, device, position)

    def compute(self, version: int, weights: Mapping[str, Tensor], again: bool) -> Arrival:
        """Answer a task."""
        return self.worker.compute(Task(version, weights, again))


class RayWorkers:
    """Carries tasks to Ray actors, one for each worker.

    A cluster is joined where `RAY_ADDRESS` names one, else Ray is started on this machine and stopped at the
    end. Every actor takes one GPU of those that Ray knows, or one processor where `device` is "cpu" or there
    are none.

    Args:
        count: number of workers.
        config: the run's configuration as JSON.
        trust: modules of your own that it may name.
        device: "auto", "cpu" or "cuda", as the worker sees it.

    Raises:
        MissingExtraError: Ray is not installed.
        ConfigError: there are fewer devices than workers.
    """

    def __init__(self, count: int, config: str, trust: Sequence[str], device: str) -> None:
        self._ray = require_ray()
        self.count, self._arguments = count, (config, tuple(trust))
        self._joined = not self._ray.is_initialized()
        if self._joined:
            os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nothing is reported to anyone
            self._ray.init(
                log_to_driver=True, **({} if "RAY_ADDRESS" in os.environ else {"include_dashboard": False})
            )
        has = self._ray.cluster_resources()
        gpus = has.get("GPU", 0) if device != "cpu" else 0
        self._device = device if gpus else "cpu"
        kind, available = ("GPU", gpus) if gpus else ("CPU", has.get("CPU", 0))
        if available < count:
            self.stop()
            raise ConfigError(
                f"replicas={count}, but Ray has {available:g} {kind}s: ask for fewer, set --device cpu, or "
                "join a larger cluster (RAY_ADDRESS)"
            )
        self._options = {"num_gpus": 1} if gpus else {"num_cpus": 1}
        self._actors: dict[int, Any] = {}
        self._pending: dict[Any, int] = {}
        self._weights: tuple[int, Any] = (-1, None)

    def start(self, worker: int, position: dict[str, Any] | None) -> None:
        """Start an actor."""
        made = self._ray.remote(**self._options)(RemoteWorker)
        self._actors[worker] = made.remote(*self._arguments, worker, self.count, self._device, position)

    def send(self, worker: int, task: Task) -> None:
        """Give an actor a task; weights of one version lie in Ray's store once."""
        if self._weights[0] != task.version:
            self._weights = (task.version, self._ray.put(dict(task.weights)))
        answer = self._actors[worker].compute.remote(task.version, self._weights[1], task.again)
        self._pending[answer] = worker

    def receive(self) -> Arrival | Lost:
        """Wait for the first answer.

        Raises:
            BoxwrightError: what a worker raised of this family.
            TrainingError: a worker raised something else.
        """
        (done,), _ = self._ray.wait(list(self._pending), num_returns=1)
        worker = self._pending.pop(done)
        try:
            return self._ray.get(done)
        except self._ray.exceptions.RayTaskError as error:
            cause = getattr(error, "cause", None) or error
            if isinstance(cause, BoxwrightError):
                raise type(cause)(f"worker {worker}: {cause}") from error
            raise TrainingError(f"worker {worker} failed: {type(cause).__name__}: {cause}") from error
        except self._ray.exceptions.RayError as error:
            return Lost(worker, f"{type(error).__name__}: {first_line(error)}")

    def stop(self) -> None:
        """End all actors, and Ray where it was started here."""
        for actor in getattr(self, "_actors", {}).values():
            self._ray.kill(actor)
        if self._joined:
            self._ray.shutdown()
