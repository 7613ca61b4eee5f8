"""How a study measures time and memory: the same for every variant."""

from __future__ import annotations

import ctypes
import gc
import itertools
import platform
import statistics
import time
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import fiddle as fdl
import torch

from .. import __version__
from ..api import train
from ..config import clone
from ..config.describe import MISSING, argument
from ..data import Table
from ..data.loader import Loader
from ..distributed import gather_objects
from ..engine.state import Hook, TrainState
from ..inference import Detector

PACE_WARMUP, PACE_STEPS = 3, 10
TIMED_IMAGES, TIMED_WARMUP = 20, 3
NEVER = 10**6


class Paced(Exception):
    """Ends a trial run: its pace is known.

    Args:
        seconds: of one step, the median.
        steps_per_epoch: of the run.
    """

    def __init__(self, seconds: float, steps_per_epoch: int) -> None:
        super().__init__(f"{seconds:.4g} s a step")
        self.seconds, self.steps_per_epoch = seconds, steps_per_epoch


class PaceHook(Hook):
    """Ends the run after a few steps by raising `Paced`."""

    key = "pace"
    priority = 15

    def __init__(self) -> None:
        self._ends: list[float] = []

    def after_train_iter(self, state: TrainState) -> None:
        """Note the time; enough of them end the run."""
        wait(state.device)
        self._ends.append(time.perf_counter())
        if len(self._ends) > PACE_WARMUP + PACE_STEPS:
            steps = [b - a for a, b in itertools.pairwise(self._ends[PACE_WARMUP:])]
            raise Paced(statistics.median(steps), state.steps_per_epoch)


def epochs_within(config: fdl.Buildable, minutes: float, out: Path, device: torch.device) -> int:
    """How many epochs of training steps fit into a time, by the pace of a short trial; at least one.

    Args:
        config: the experiment's description.
        minutes: for the steps; validations and the start come on top.
        out: folder for the trial's own, which is deleted.
        device: where to train.
    """
    trial = clone(config)
    trial.epochs = trial.evaluate_every = NEVER
    with TemporaryDirectory(dir=out, prefix=".pace-", ignore_cleanup_errors=True) as folder:
        # Every rank has a folder of its own made, but all train into that of the first.
        place = gather_objects(folder)[0]
        try:
            train(
                trial,  # pyright: ignore[reportArgumentType]
                Path(place) / "run",
                device=device,
                console=False,
                check=False,
                report=False,
                hooks=(PaceHook(),),
            )
        except Paced as pace:
            epochs = round(60 * minutes / (pace.seconds * pace.steps_per_epoch))
            return max(1, gather_objects(epochs)[0])
    raise AssertionError("the trial run ended by itself")


def with_epochs(config: fdl.Buildable, epochs: int) -> fdl.Buildable:
    """The same training in another number of epochs, milestones of its schedule in proportion."""
    changed = clone(config)
    milestones = argument(changed.schedule, "milestones")
    if milestones is not MISSING:
        changed.schedule.milestones = tuple(round(m * epochs / config.epochs, 4) for m in milestones)
    changed.epochs = epochs
    return changed


def seconds_per_image(detector: Detector, table: Table) -> float:
    """Median time of one image through network and post-processing, in a batch of its own.

    Decoding and resizing come before, pasting of masks after; neither is counted.

    Args:
        detector: on its device, in its precision.
        table: its first images are taken, after some that are not timed.
    """
    loader = Loader(table, detector.transforms, detector.canvas, 1, 0, shuffle=False, with_masks=False)
    batches = list(itertools.islice(loader, TIMED_IMAGES))
    for batch in batches[:TIMED_WARMUP]:
        detector.predict(batch)
    seconds = []
    for batch in batches:
        wait(detector.device)
        start = time.perf_counter()
        detector.predict(batch)
        wait(detector.device)
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds)


def training_time(lines: Sequence[Mapping[str, Any]], batch_size: int) -> dict[str, float]:
    """Steps, epochs, minutes, images a second and peak memory of a run, of its `metrics.jsonl`.

    The minutes are those of all steps at their median pace: neither validations nor a pause of the machine
    nor a resumption count.
    """
    records = [line for line in lines if line.get("kind") == "train"]
    paces = [line["images_per_second"] for line in records if line.get("images_per_second")]
    if not paces:
        return {}
    pace, last = statistics.median(paces), records[-1]
    return {
        "steps": last["step"],
        "epochs": last["epoch"],
        "minutes": last["step"] * batch_size / pace / 60,
        "images_per_second": pace,
        "memory_mb": max(line.get("memory_mb") or 0.0 for line in records),
    }


def forget_peak(device: torch.device) -> bool:
    """Let the peak of memory begin anew; whether this system can do so."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
        return True
    # glibc keeps what former runs have freed, which would count as this one's.
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if platform.system() == "Linux" else None
    if trim is not None:
        trim(0)
    try:
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # Linux: resets the peak alone
    except OSError:
        return False
    return True


def wait(device: torch.device) -> None:
    """Wait until the device has done its work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def about(device: torch.device, precision: str) -> dict[str, str]:
    """Machine, versions and date: what a measured time belongs to."""
    if device.type == "cuda":
        machine = torch.cuda.get_device_name(device)
    else:
        machine = f"{_processor()}, {torch.get_num_threads()} threads"
    return {
        "machine": machine,
        "precision": precision,
        "boxwright": __version__,
        "torch": torch.__version__,
        "date": datetime.now(UTC).date().isoformat(),
    }


def _processor() -> str:
    path = Path("/proc/cpuinfo")
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(named, platform.processor() or platform.machine())
