"""How time is measured: competitors in turn, medians and spread, beside the machine's own matmul rate."""

from __future__ import annotations

import csv
import gc
import os
import platform
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from datetime import UTC, datetime
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import TypeVar

import torch

import boxwright

ROWS = Path(__file__).parent / "rows"
Name = TypeVar("Name")


@dataclass(frozen=True)
class Timing:
    """Seconds of repeated runs."""

    seconds: tuple[float, ...]

    @property
    def median(self) -> float:
        """Half of the runs took less."""
        return statistics.median(self.seconds)

    @property
    def spread(self) -> float:
        """Distance of the quartiles, as a share of the median."""
        if len(self.seconds) < 2:
            return 0.0
        first, _, third = statistics.quantiles(self.seconds, n=4, method="inclusive")
        return (third - first) / self.median


def interleave(
    runs: Mapping[Name, Callable[[], object]], repeats: int, device: torch.device, warmup: int = 2
) -> dict[Name, Timing]:
    """Time competitors in turn, so that what disturbs the machine disturbs all of them.

    Args:
        runs: what to time, by competitor.
        repeats: timed rounds.
        device: it is waited for at the end of each run.
        warmup: rounds before, not timed.
    """
    seconds: dict[Name, list[float]] = {name: [] for name in runs}
    for number in range(warmup + repeats):
        for name, run in runs.items():
            wait(device)
            start = time.perf_counter()
            run()
            wait(device)
            if number >= warmup:
                seconds[name].append(time.perf_counter() - start)
    return {name: Timing(tuple(values)) for name, values in seconds.items()}


def wait(device: torch.device) -> None:
    """Wait until the device has done its work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


@contextmanager
def exactly() -> Iterator[None]:
    """Compute float32 in float32: a GPU's convolutions round their inputs to TF32 otherwise."""
    convolutions, products = torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32 = convolutions
        torch.backends.cuda.matmul.allow_tf32 = products


@contextmanager
def leaving_out(what: str) -> Iterator[None]:
    """Go on where the device has too little memory for one case; says which one is left out."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        print(f"{what} is left out: {str(error).partition('. ')[0]}", flush=True)
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


@cache
def matmul_rate(dtype: torch.dtype, device: torch.device) -> float:
    """Floating-point operations a second of a large matrix product on this machine: its roofline."""
    n = 8192 if device.type == "cuda" else 2048
    a, b = (torch.randn(n, n, device=device).to(dtype) for _ in range(2))
    timing = interleave({"matmul": lambda: a @ b}, 10, device, warmup=3)["matmul"]
    return 2 * n**3 / min(timing.seconds)


@dataclass(frozen=True)
class Row:
    """One line of a table of results.

    Args:
        case: what was done.
        who: which implementation.
        precision: number format.
        batch: images a run, or 0.
        size: of the input, in words.
        seconds: median.
        spread: distance of the quartiles over the median.
        ratio: how many times faster ours is than this one; 1 for ours.
        share: of the machine's matmul rate in that format, or 0 where no operations were counted.
        value: another measured number (memory in bytes, agreement), or 0.
        note: its meaning.
    """

    case: str
    who: str
    precision: str
    batch: int
    size: str
    seconds: float
    spread: float
    ratio: float
    share: float = 0.0
    value: float = 0.0
    note: str = ""


def rows_of(
    timings: Mapping[str, Timing],
    case: str,
    precision: str,
    device: torch.device,
    *,
    batch: int = 0,
    size: str = "",
    operations: float = 0.0,
    dtype: torch.dtype = torch.float32,
    precisions: Mapping[str, str] | None = None,
    note: str = "",
) -> list[Row]:
    """Rows of one case; "ours" is among the competitors."""
    ours, rows = timings["ours"].median, []
    for who, timing in timings.items():
        share = operations / timing.median / matmul_rate(dtype, device) if operations else 0.0
        kind = (precisions or {}).get(who, precision)
        ratio = timing.median / ours
        rows.append(Row(case, who, kind, batch, size, timing.median, timing.spread, ratio, share, note=note))
    return rows


def record(name: str, rows: list[Row], device: torch.device) -> None:
    """Print rows and append them, with date, versions and machine, to `rows/NAME.csv`."""
    ROWS.mkdir(parents=True, exist_ok=True)
    path = ROWS / f"{name}.csv"
    about = {"date": datetime.now(UTC).date().isoformat(), "machine": machine(device), **versions()}
    new = not path.exists()
    with path.open("a", newline="") as file:
        writer = csv.DictWriter(file, [*about, *(f.name for f in fields(Row))], lineterminator="\n")
        if new:
            writer.writeheader()
        for row in rows:
            values = {k: f"{v:.4g}" if isinstance(v, float) else v for k, v in asdict(row).items()}
            writer.writerow(about | values)
            time = f"{row.seconds * 1e3:10.2f} ms (+-{row.spread:.0%})" if row.seconds else ""
            per_second = f", {row.batch / row.seconds:.3g} images/s" if row.batch and row.seconds else ""
            share = f", {row.share:.0%} of the matmul rate" if row.share else ""
            value = f", {row.value:.4g} {row.note}" if row.note else ""
            print(
                f"{row.case:34} {row.who:12} {row.precision:5} {time}{per_second}, "
                f"ours is {row.ratio:.2f}x{share}{value}",
                flush=True,
            )


def machine(device: torch.device) -> str:
    """The device in words."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    model = platform.processor() or platform.machine()
    if Path("/proc/cpuinfo").exists():
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        model = next(
            (line.partition(":")[2].strip() for line in lines if line.startswith("model name")), model
        )
    return f"{model}, {os.cpu_count()} cores"


def versions() -> dict[str, str]:
    """Versions of what takes part."""
    return {
        "torch": torch.__version__,
        "torchvision": version("torchvision"),
        "boxwright": boxwright.__version__,  # a checkout need not be installed
    }


def the_device() -> torch.device:
    """The accelerator if there is one, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")
