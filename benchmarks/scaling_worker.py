"""One process of `python -m benchmarks scaling`: trains a recipe on images that are there already.

torchrun --standalone --nproc-per-node=2 -m benchmarks.scaling_worker JOB FOLDER
"""

from __future__ import annotations

import dataclasses
import json
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import fiddle as fdl
import torch
from torch import Tensor, nn

import boxwright as bw
from boxwright import distributed
from boxwright.engine import Hook, TrainState, train
from boxwright.engine.schedule import Schedule
from boxwright.structures import Batch

from .detectors import make_input

WARMUP = 2
LR_SHARE = 0.1
"""Of the recipe's learning rate: all of it would magnify the last digit from step to step."""


@dataclass(frozen=True)
class Job:
    """What is trained.

    Args:
        recipe: its name.
        size: height and width of the images.
        images: of each process in a step.
        steps: that count.
        precision: number format.
    """

    recipe: str
    size: tuple[int, int]
    images: int
    steps: int
    precision: str

    def to_json(self) -> str:
        """As one word of a command line."""
        return json.dumps(dataclasses.asdict(self))

    @staticmethod
    def from_json(text: str) -> Job:
        """What `to_json` wrote."""
        values = json.loads(text)
        return Job(**{**values, "size": tuple(values["size"])})


class Repeated:
    """A loader that hands out this process's share of one batch, again and again."""

    def __init__(self, batch: Batch, steps: int) -> None:
        self.batch, self.steps = batch, steps

    def __len__(self) -> int:
        return self.steps

    def __iter__(self) -> Iterator[Batch]:
        return iter([self.batch] * self.steps)

    def set_epoch(self, epoch: int) -> None:
        """Every epoch is the same."""

    def state_dict(self) -> dict[str, Any]:
        """No position."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """No position."""


class Watch(Hook):
    """Notes the time and the loss, the mean over the processes, after each step."""

    key = "watch"

    def __init__(self) -> None:
        self.times: list[float] = []
        self.losses: list[float] = []

    def after_train_iter(self, state: TrainState) -> None:
        """Note both."""
        total = torch.stack([v.float() for k, v in state.losses.items() if k.startswith("loss/")]).sum()
        self.losses.append(float(distributed.mean_over_ranks(total)))
        self.times.append(time.perf_counter())


def recipe_parts(name: str) -> tuple[nn.Module, torch.optim.Optimizer, Any]:
    """A recipe's model with random weights, the same in every process, its optimiser, and the recipe."""
    torch.manual_seed(0)
    recipe = bw.recipe(name)
    model = bw.build(recipe, pretrained=False)
    return model, fdl.build(recipe.optimizer)(model), recipe


def share(structure: Any, rank: int, count: int) -> Any:
    """The images of one process out of a batch for all."""

    def cut(value: Any) -> Any:
        if isinstance(value, Tensor):
            return value[rank * count : (rank + 1) * count]
        return share(value, rank, count) if dataclasses.is_dataclass(value) else value

    fields = {f.name: cut(getattr(structure, f.name)) for f in dataclasses.fields(structure)}
    return dataclasses.replace(structure, **fields)


def main() -> None:
    """Train, and write `result.json`: seconds and losses of the steps."""
    job, out = Job.from_json(sys.argv[1]), Path(sys.argv[2])
    torch.set_num_threads(1)
    device = torch.device("cpu")
    distributed.start(device)
    model, optimizer, recipe = recipe_parts(job.recipe)
    whole = make_input(job.images * distributed.world_size(), *job.size, masks=False)[2]
    batch = share(whole, distributed.rank(), job.images)
    for group in optimizer.param_groups:
        group["lr"] *= LR_SHARE
    watch = Watch()
    train(
        model,
        Repeated(batch, job.steps + WARMUP),
        optimizer,
        Schedule(warmup=0),
        epochs=1,
        out=out / "run",
        hooks=[watch],
        device=device,
        precision=job.precision,
        clip_norm=recipe.clip_norm,
    )
    if distributed.is_main():
        seconds = [b - a for a, b in pairwise(watch.times)][WARMUP - 1 :]
        (out / "result.json").write_text(json.dumps({"seconds": seconds, "losses": watch.losses}))
    distributed.stop()


if __name__ == "__main__":
    main()
