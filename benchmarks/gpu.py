"""What wants a CUDA device, in order of importance, within ten minutes.

    python -m benchmarks gpu
    python -m benchmarks --rows "$OUT" gpu --minutes 9

Each line of the plan is a process of its own: one that fails, or runs out of memory or of time, ends alone,
and rows are appended as they are made. `--rows` names another folder for them, from which they can be copied
back; `--minutes` says when to stop, a line that is running included.

It needs no network and no installation: a checkout as the working directory, PyTorch from 2.11 on with its
Triton and a C compiler, torchvision, NumPy, Pillow, safetensors and rich. Nothing that is measured uses
fiddle, timm, pyarrow or faster-coco-eval; `python -m pytest -m gpu`, the tests that need a GPU, does.
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import torch

from . import harness


@dataclass(frozen=True)
class Line:
    """One process of the plan.

    Args:
        options: what stands behind `python -m benchmarks`.
        seconds: after which it is stopped.
    """

    options: str
    seconds: float = 150.0


LEAST = 10.0
"""Seconds that a line must have left to be begun: imports take nearly as long."""

BF16 = "--precisions bf16 --repeats 5"
PLAN = (
    Line(f"training --models mask_rcnn_r50_fpn retinanet_r50_fpn --batch 16 {BF16}"),
    Line(f"training --models mask_rcnn_r50_fpn --batch 16 {BF16} --compile default", 180),
    Line("operators", 90),
    Line(f"training --models retinanet_r50_fpn --batch 16 {BF16} --compile default", 180),
    Line(f"training --models mask_rcnn_r50_fpn retinanet_r50_fpn --batch 2 8 32 {BF16}"),
    Line(f"training --models faster_rcnn_r50_fpn fcos_r50_fpn --batch 16 {BF16}", 90),
    Line("inference --models mask_rcnn_r50_fpn retinanet_r50_fpn --batch 1 16 --precisions fp32 bf16", 120),
    Line("memory --models mask_rcnn_r50_fpn retinanet_r50_fpn --batch 16 --precisions bf16", 120),
    Line(f"training --models mask_rcnn_r50_fpn --batch 2 {BF16} --compile reduce-overhead", 180),
    Line("training --models mask_rcnn_r50_fpn retinanet_r50_fpn --batch 8 --precisions fp32 --repeats 5"),
)


def main() -> None:
    """Run the plan until the time is up."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--minutes", type=float, default=9.0)
    arguments = parser.parse_args()
    if not torch.cuda.is_available():
        sys.exit("this benchmark needs a CUDA device; on a CPU run `python -m benchmarks training`")
    end = time.perf_counter() + arguments.minutes * 60
    results = [run(line, end) for line in PLAN]
    done = sum(result == "done" for result in results)
    print(f"{done} of {len(PLAN)} lines were done; rows are in {harness.ROWS}", flush=True)
    sys.exit(0 if done else "nothing was measured")


def run(line: Line, end: float) -> str:
    """Run one line of the plan, no longer than until `end`; returns what became of it, which is printed."""
    start = time.perf_counter()
    seconds = min(line.seconds, end - start)
    if seconds < LEAST:
        print(f"== {line.options}: left out, the time is up", flush=True)
        return "left out"
    print(f"== {line.options}", flush=True)
    command = [sys.executable, "-m", "benchmarks", "--rows", str(harness.ROWS), *line.options.split()]
    process = subprocess.Popen(command, cwd=Path(__file__).parents[1], start_new_session=True)
    try:
        code = process.wait(seconds)
        result = "failed" if code else "done"
    except subprocess.TimeoutExpired:
        result = "stopped, its time was up"
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)  # its own children, too
            process.wait()
    print(f"== {result} after {time.perf_counter() - start:.0f} s", flush=True)
    return result
