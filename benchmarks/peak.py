"""How memory is measured: bytes of tensors at the worst moment of a training step."""

from __future__ import annotations

import gc
import json
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import torch
from torch import nn

STATUS, CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


@dataclass(frozen=True)
class Peak:
    """Memory of one training step.

    Args:
        tensors: bytes of all tensors at the worst moment: weights, gradients, the optimiser's state,
            activations, and what operators allocate while they compute.
        standing: of these, what is there before the step: weights, buffers, the optimiser's state, images.
        resident: the tensors before the first step plus what the process's resident memory grew by in it at
            most, which includes what libraries allocate by themselves; 0 where the system does not say.
    """

    tensors: int
    standing: int
    resident: int


def peak_of(step: Callable[[], object], model: nn.Module, device: torch.device) -> Peak:
    """Measure the second of two steps, from the moment before it, when there are no gradients.

    On a CPU the allocator's own events are counted, as PyTorch's profiler records them; on CUDA it is
    `max_memory_allocated`.

    Args:
        step: a whole training step, which drops the gradients of the step before it first.
        model: the model that it trains.
        device: where it computes.
    """
    resident = living_bytes(device)
    growth = resident_growth(step)
    for parameter in model.parameters():
        parameter.grad = None
    gc.collect()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        standing = torch.cuda.memory_allocated(device)
        step()
        return Peak(torch.cuda.max_memory_allocated(device), standing, 0)
    standing = living_bytes(device)
    with torch.profiler.profile(
        activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True
    ) as profiler:
        step()
    grown = max(running_totals(profiler), default=0)
    return Peak(standing + grown, standing, resident + growth if growth else 0)


def running_totals(profiler: torch.profiler.profile) -> list[int]:
    """Bytes allocated since profiling began and not yet freed, after each event of the CPU's allocator."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "trace.json"
        profiler.export_chrome_trace(str(path))
        events = json.loads(path.read_text())["traceEvents"]
    changes = [event for event in events if event.get("name") == "[memory]"]
    total, totals = 0, []
    for event in sorted(changes, key=lambda event: event["ts"]):
        total += int(event["args"]["Bytes"])
        totals.append(total)
    return totals


def living_bytes(device: torch.device) -> int:
    """Bytes of the storages of all tensors that there are on a device."""
    storages = {}
    for thing in gc.get_objects():
        # Other types are wrappers; those that a compiler left behind have no memory.
        if type(thing) in (torch.Tensor, nn.Parameter) and thing.device.type == device.type:
            if thing.layout is torch.strided:
                storages[thing.untyped_storage().data_ptr()] = thing.untyped_storage().nbytes()
            else:  # oneDNN's own order shows no storage
                storages[-id(thing)] = thing.numel() * thing.element_size()
    return sum(storages.values())


def resident_growth(run: Callable[[], object]) -> int:
    """By how many bytes the process's resident memory exceeds, at its peak, that before the run."""
    try:
        CLEAR.write_text("5")  # the kernel forgets the peak
        before = _status("VmRSS")
    except OSError:
        run()
        return 0
    run()
    return _status("VmHWM") - before


def _status(key: str) -> int:
    line = next(line for line in STATUS.read_text().splitlines() if line.startswith(f"{key}:"))
    return int(line.split()[1]) * 1024


def in_processes(script: str, cases: Sequence[Sequence[object]], jobs: int = 1) -> Iterator[dict[str, float]]:
    """What `python -m benchmarks SCRIPT --one CASE` prints as JSON, each case in a process of its own.

    Args:
        script: its name.
        cases: arguments of each.
        jobs: how many run at a time. Bytes do not depend on it, times would; each has as many threads as it
            would have alone, since PyTorch chooses its kernels by that.
    """
    with ThreadPoolExecutor(jobs) as pool:
        yield from pool.map(partial(_in_process, script), cases)


def _in_process(script: str, case: Sequence[object]) -> dict[str, float]:
    command = [sys.executable, "-m", "benchmarks", script, "--one", *map(str, case)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} failed:\n{done.stderr[-4000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def say(peak: Peak, seconds: Sequence[float] = ()) -> None:
    """Print a measurement as JSON, for `in_processes`."""
    print(json.dumps(asdict(peak) | {"seconds": list(seconds)}))
