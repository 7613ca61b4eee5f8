"""A training step, ours beside torchvision's, in the same and in our own precision.

Weights are torchvision's through the importer, images and objects are the same, the same layers are frozen,
and both sample as many anchors and proposals (which ones is drawn). Operations are those of the peer's step.
Float32 is each device's default: a GPU's convolutions compute in TF32, ours and theirs.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch.utils.flop_counter import FlopCounterMode

from boxwright.engine.precision import resolve_precision

from . import harness
from .detectors import BUILDERS, COMPILED, Pair
from .peers import PEERS, make_pairs


def main() -> None:
    """Measure the chosen detectors."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--models", nargs="*", default=list(BUILDERS), choices=list(BUILDERS))
    parser.add_argument("--peers", nargs="*", default=list(PEERS), choices=list(PEERS))
    parser.add_argument("--size", nargs=2, type=int, metavar=("HEIGHT", "WIDTH"))
    parser.add_argument("--batch", nargs="*", type=int, help="default 2 8 on a CPU, 2 8 16 32 on CUDA")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--precisions", nargs="*", default=["fp32", "bf16"])
    parser.add_argument(
        "--compile", nargs="*", default=[], choices=list(COMPILED.values()), help="ours as one graph, too"
    )
    arguments = parser.parse_args()
    device = harness.the_device()
    ours = ["ours", *(who for who, mode in COMPILED.items() if mode in arguments.compile)]
    for name in arguments.models:
        for batch in arguments.batch or batches(name, device):
            size = arguments.size or input_size(name, device)
            with harness.leaving_out(f"{name}, batch {batch}"):
                for pair in make_pairs(arguments.peers, name, batch, *size, device):
                    measure(pair, name, batch, size, device, arguments.precisions, arguments.repeats, ours)


def input_size(name: str, device: torch.device) -> tuple[int, int]:
    """Height and width of the images."""
    return (256, 320) if "320" in name else (800, 1344) if device.type == "cuda" else (512, 640)


def batches(name: str, device: torch.device) -> list[int]:
    """Images a step."""
    return [8] if "320" in name else [2, 8, 16, 32] if device.type == "cuda" else [2]


def measure(
    pair: Pair,
    name: str,
    batch: int,
    size: tuple[int, int],
    device: torch.device,
    precisions: list[str],
    repeats: int,
    ours: Sequence[str] = ("ours",),
) -> None:
    """Time ours and the peer in each precision, all in turn."""
    steps: dict[tuple[str, str], Callable[[], object]] = {}
    for precision in precisions:
        theirs = pair.step(pair.who, precision)
        if not trains(theirs, f"{name}, {pair.who}", precision):
            continue
        for who in ours:
            step = pair.step(who, precision)
            if who == "ours" or trains(step, f"{name}, {who}", precision):
                steps[who, precision] = step
        steps[pair.who, precision] = theirs
    precisions = [precision for precision in precisions if (pair.who, precision) in steps]
    if not precisions:
        return
    with FlopCounterMode(display=False) as counter:
        steps[pair.who, precisions[0]]()
    timings = harness.interleave(steps, repeats, device)
    for precision in precisions:
        rows = harness.rows_of(
            {who: timings[who, precision] for who in (*ours, pair.who) if (who, precision) in timings},
            name,
            precision,
            device,
            batch=batch,
            size="x".join(map(str, size)),
            operations=counter.get_total_flops(),
            dtype=resolve_precision(precision, device).dtype,
        )
        peer = timings[pair.who, precision].median
        rows = [
            replace(row, value=peer / row.seconds, note=f"times as fast as {pair.who}")
            if row.who in COMPILED
            else row
            for row in rows
        ]
        if precision == "fp32" and "bf16" in precisions:
            across = timings[pair.who, "fp32"].median / timings["ours", "bf16"].median
            rows[-1] = replace(rows[-1], value=across, note="times ours in bf16")
        harness.record("training", rows, device)
    if device.type == "cuda":
        print(f"{name}, batch {batch}: {waiting(steps['ours', precisions[-1]])}", flush=True)


def trains(step: Callable[[], object], who: str, precision: str) -> bool:
    """Whether a step runs in a precision at all; says so if not (mmcv's NMS has no bf16 on a CPU)."""
    try:
        step()
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:
        print(f"{who} is left out, it does not train in {precision}: {error}", flush=True)
        return False
    return True


def waiting(step: Callable[[], object]) -> str:
    """Whether the host waits for a CUDA device anywhere in a step that has run before, in words."""
    torch.cuda.set_sync_debug_mode("error")
    try:
        step()
    except RuntimeError as error:
        return f"a step of ours WAITS for the device: {str(error).splitlines()[0]}"
    finally:
        torch.cuda.set_sync_debug_mode("default")
    return "a step of ours never waits for the device"
