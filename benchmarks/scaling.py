"""Training on 1, 2, ... processes of this machine, and the parts of a step for the model on paper.

Each process has one thread. The recipe trains through the package's own loop under `torchrun` with gloo, on
images that are there already. Images a second: each process gets as many images whatever the number of
processes, which take turns from round to round. Losses: one batch is shared among the processes, and every
step's loss has to be that of one process. Processes beyond the cores show their losses alone.

    python -m benchmarks scaling            # measures, appends rows
    python -m benchmarks scaling --page     # makes docs/scaling.md and its picture from the rows
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from functools import partial
from itertools import pairwise
from pathlib import Path

import torch
from torch import Tensor, nn

from boxwright.engine.step import total_loss
from boxwright.structures import Batch

from . import harness
from .detectors import make_input
from .scaling_worker import Job, recipe_parts
from .step_model import Assumptions, group

ROOT = Path(__file__).parents[1]
COMPUTE = "mask_rcnn_r50_fpn_1x"
SIZE = (512, 640)
PARTS = ("forward", "backward", "update")


def main() -> None:
    """Measure, or make the page."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--page", action="store_true", help="make the page from the rows; measure nothing")
    parser.add_argument("--recipe", default="fcos_mnv2_320", help="the recipe that trains")
    parser.add_argument("--processes", nargs="*", type=int, default=[1, 2, 4])
    parser.add_argument("--images", type=int, default=4, help="of a process and step, for the speed")
    parser.add_argument("--size", nargs=2, type=int, default=[256, 320], metavar=("HEIGHT", "WIDTH"))
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--compute", default=COMPUTE, help="recipe whose step is taken apart; '' for none")
    arguments = parser.parse_args()
    if arguments.page:
        from . import scaling_page

        scaling_page.main()
        return
    job = Job(arguments.recipe, tuple(arguments.size), arguments.images, arguments.steps, arguments.precision)
    cpu = torch.device("cpu")
    harness.record("scaling", losses_agree(job, arguments.processes), cpu)
    measured = [n for n in arguments.processes if n <= (os.cpu_count() or 1)]
    harness.record("scaling", speed(job, measured, arguments.rounds), cpu)
    if arguments.compute:
        harness.record("scaling_compute", compute(arguments.compute, 2, SIZE, 3, cpu), cpu)


def losses_agree(job: Job, processes: Sequence[int]) -> list[harness.Row]:
    """Largest relative difference from one process's losses, when one batch is shared.

    Raises:
        AssertionError: they differ by more than rounding explains.
    """
    whole = max(processes)
    shared = [launch(Job(job.recipe, job.size, whole // n, 4, "fp32"), n)["losses"] for n in (1, *processes)]
    rows = []
    for n, losses in zip(processes, shared[1:], strict=True):
        difference = max(abs(a / b - 1) for a, b in zip(losses, shared[0], strict=True))
        assert difference < 1e-3, f"{n} processes: losses {losses}, one process: {shared[0]}"
        note = "largest relative difference of a loss from one process's"
        case = f"{job.recipe}, {words(n)}, one batch shared"
        size = "x".join(map(str, job.size))
        rows.append(harness.Row(case, "ours", "fp32", whole, size, 0, 0, 1, value=difference, note=note))
    return rows


def speed(job: Job, processes: Sequence[int], rounds: int) -> list[harness.Row]:
    """Seconds of a step; `value` is the pace of each process as a share of one that runs alone."""
    seconds: dict[int, list[float]] = {n: [] for n in processes}
    for _ in range(rounds):
        for n in processes:
            seconds[n] += launch(job, n)["seconds"]
    timings = {n: harness.Timing(tuple(values)) for n, values in seconds.items()}
    return [
        harness.Row(
            f"{job.recipe}, {words(n)}",
            "ours",
            job.precision,
            n * job.images,
            "x".join(map(str, job.size)),
            timing.median,
            timing.spread,
            1.0,
            value=timings[min(timings)].median / timing.median,
            note="of the pace of a process alone",
        )
        for n, timing in timings.items()
    ]


def words(processes: int) -> str:
    """A number of processes."""
    return f"{processes} process{'es' if processes > 1 else ''}"


def launch(job: Job, processes: int) -> dict[str, list[float]]:
    """Train in that many processes; seconds and losses of the steps."""
    with tempfile.TemporaryDirectory() as folder:
        command = [
            *(sys.executable, "-m", "torch.distributed.run", "--standalone"),
            f"--nproc-per-node={processes}",
            *("-m", "benchmarks.scaling_worker", job.to_json(), folder),
        ]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
        done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(f"{processes} processes failed:\n{done.stderr[-4000:]}")
        return json.loads((Path(folder) / "result.json").read_text())


def compute(
    name: str, images: int, size: tuple[int, int], repeats: int, device: torch.device
) -> list[harness.Row]:
    """The parts of a step: forward, backward, update, and when in the backward pass each bucket is ready."""
    model, optimizer, _ = recipe_parts(name)
    model.to(device).train()
    batch = make_input(images, *size, "mask" in name)[2]
    runs = [take_apart(model, optimizer, batch) for _ in range(repeats + 1)][1:]
    assumed = Assumptions()
    text, rows = "x".join(map(str, size)), []
    for part in PARTS:
        timing = harness.Timing(tuple(run[part] for run in runs))
        case = f"{name} {part}"
        rows.append(harness.Row(case, "ours", "fp32", images, text, timing.median, timing.spread, 1.0))
    order = sorted(runs[0]["ready"], key=lambda n: sum(run["ready"][n] for run in runs))
    sizes = {n: p.numel() for n, p in model.named_parameters()}
    ready = {n: sum(run["ready"][n] / run["backward"] for run in runs) / len(runs) for n in order}
    buckets = group(((sizes[n], ready[n]) for n in order), assumed.first_bucket, assumed.bucket)
    backward = rows[1].seconds
    for number, bucket in enumerate(buckets):
        case, seconds = f"{name} bucket {number}", bucket.ready * backward
        rows.append(
            harness.Row(
                *(case, "ours", "fp32", images, text, seconds, 0.0, 1.0),
                value=bucket.values,
                note="gradients, ready at that time of the backward pass",
            )
        )
    return rows


def take_apart(model: nn.Module, optimizer: torch.optim.Optimizer, batch: Batch) -> dict:
    """Seconds of the parts of one step, and of each gradient since the backward pass began."""
    ready: dict[str, float] = {}

    def note(name: str, _: Tensor) -> None:
        ready[name] = time.perf_counter()

    trained = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    hooks = [p.register_post_accumulate_grad_hook(partial(note, name)) for name, p in trained]
    optimizer.zero_grad(set_to_none=True)
    times = [time.perf_counter()]
    loss = total_loss(model(batch))
    times.append(time.perf_counter())
    loss.backward()
    times.append(time.perf_counter())
    optimizer.step()
    times.append(time.perf_counter())
    for hook in hooks:
        hook.remove()
    parts = {part: b - a for part, (a, b) in zip(PARTS, pairwise(times), strict=True)}
    return {**parts, "ready": {name: at - times[1] for name, at in ready.items()}}
