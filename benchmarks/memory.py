"""Peak memory of a training step: what tensors take at the worst moment, weights and gradients included.

Each run is a process of its own. Ours is measured as it is and with settings of `memory`, beside
torchvision's detector with the same weights. `python -m benchmarks savings` shows what each setting saves.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping

import torch

from boxwright.engine.memory import Memory, save_memory

from . import harness
from .detectors import BUILDERS, make_pair
from .peak import Peak, in_processes, peak_of, say
from .training import input_size

SETTINGS = {
    "ours": Memory(),
    "ours, checkpoint=auto": Memory(checkpoint="auto"),
}
THEIRS = "torchvision"


def main() -> None:
    """Measure each detector in each precision."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--models", nargs="*", default=list(BUILDERS), choices=list(BUILDERS))
    parser.add_argument("--size", nargs=2, type=int, metavar=("HEIGHT", "WIDTH"))
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--precisions", nargs="*", default=["fp32", "bf16"])
    parser.add_argument("--jobs", type=int, default=1, help="processes at a time; bytes do not depend on it")
    parser.add_argument("--one", nargs=6, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        name, who, precision, *numbers = arguments.one
        say(measure(name, who, precision, *map(int, numbers)))
        return
    device = harness.the_device()
    sizes = {name: tuple(arguments.size or input_size(name, device)) for name in arguments.models}
    cases = [(name, precision) for name in arguments.models for precision in arguments.precisions]
    who = (*SETTINGS, THEIRS)
    runs = [(name, one, kind, arguments.batch, *sizes[name]) for name, kind in cases for one in who]
    found = in_processes("memory", runs, arguments.jobs)
    for name, precision in cases:
        peaks = {one: next(found) for one in who}
        compare(name, precision, arguments.batch, sizes[name], peaks, device)


def compare(
    name: str,
    precision: str,
    batch: int,
    size: tuple[int, ...],
    peaks: Mapping[str, Mapping[str, float]],
    device: torch.device,
) -> None:
    """Record the peaks of all in one case."""
    rows = [
        harness.Row(
            *(name, who, precision, batch, "x".join(map(str, size)), 0.0, 0.0),
            ratio=peak["tensors"] / peaks["ours"]["tensors"],
            value=peak["tensors"] / 2**20,
            note="MiB at the peak",
        )
        for who, peak in peaks.items()
    ]
    harness.record("memory", rows, device)
    for who, peak in peaks.items():
        share = peak["tensors"] / peaks[THEIRS]["tensors"]
        words = ", ".join(f"{key} {peak[key] / 2**20:.0f}" for key in ("standing", "resident"))
        print(f"  {who:24} {share:.2f} of torchvision's; {words} MiB")


def measure(name: str, who: str, precision: str, batch: int, height: int, width: int) -> Peak:
    """Memory of the second step."""
    device = harness.the_device()
    pair = make_pair(name, batch, height, width, device)
    ours = who != THEIRS
    setattr(pair, "theirs" if ours else "ours", None)
    model = pair.ours if ours else pair.theirs
    if ours:
        save_memory(model, SETTINGS[who])
    return peak_of(pair.step("ours" if ours else who, precision), model, device)
