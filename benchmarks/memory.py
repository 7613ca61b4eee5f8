"""Peak memory of a training step: what tensors take at the worst moment, weights and gradients included.

On a CPU each run is a process of its own, whose allocator's events the profiler counts; on CUDA it is
`max_memory_allocated`. Images are counted once: both get them ready.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import torch

from . import harness
from .detectors import BUILDERS, make_pair
from .training import input_size


def main() -> None:
    """Measure each detector in each precision."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--models", nargs="*", default=list(BUILDERS), choices=list(BUILDERS))
    parser.add_argument("--size", nargs=2, type=int, metavar=("HEIGHT", "WIDTH"))
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--precisions", nargs="*", default=["fp32", "bf16"])
    parser.add_argument("--one", nargs=6, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        name, who, precision, *numbers = arguments.one
        print(json.dumps(peak(name, who, precision, *map(int, numbers))))
        return
    device = harness.the_device()
    for name in arguments.models:
        for precision in arguments.precisions:
            height, width = arguments.size or input_size(name, device)
            sizes = (arguments.batch, height, width)
            peaks = {who: in_process(name, who, precision, *sizes) for who in ("ours", "torchvision")}
            rows = [
                harness.Row(
                    *(name, who, precision, arguments.batch, f"{height}x{width}", 0.0, 0.0),
                    ratio=value / peaks["ours"],
                    value=value / 2**20,
                    note="MiB at the peak",
                )
                for who, value in peaks.items()
            ]
            harness.record("memory", rows, device)


def in_process(name: str, who: str, precision: str, *numbers: int) -> int:
    """The peak, measured in a fresh process."""
    command = [
        sys.executable,
        "-m",
        "benchmarks",
        "memory",
        "--one",
        name,
        who,
        precision,
        *map(str, numbers),
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def peak(name: str, who: str, precision: str, batch: int, height: int, width: int) -> int:
    """Bytes of tensors at the worst moment of the second step."""
    device = harness.the_device()
    pair = make_pair(name, batch, height, width, device)
    setattr(pair, "theirs" if who == "ours" else "ours", None)
    step = pair.step(who, precision)
    step()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        step()
        return torch.cuda.max_memory_allocated(device)
    activities = [torch.profiler.ProfilerActivity.CPU]
    with torch.profiler.profile(activities=activities, profile_memory=True) as profiler:
        step()
    with tempfile.TemporaryDirectory() as folder:
        trace = Path(folder) / "trace.json"
        profiler.export_chrome_trace(str(trace))
        events = json.loads(trace.read_text())["traceEvents"]
    return max(event["args"]["Total Allocated"] for event in events if event.get("name") == "[memory]")
