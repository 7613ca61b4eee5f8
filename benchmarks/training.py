"""A training step, ours beside torchvision's, in the same and in our own precision.

Weights are torchvision's through the importer, images and objects are the same, the same layers are frozen,
and both sample as many anchors and proposals (which ones is drawn). Operations are those of the peer's step.
"""

from __future__ import annotations

import argparse
from dataclasses import replace

import torch
from torch.utils.flop_counter import FlopCounterMode

from boxwright.engine.precision import resolve_precision

from . import harness
from .detectors import BUILDERS, Pair
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
    arguments = parser.parse_args()
    device = harness.the_device()
    for name in arguments.models:
        for batch in arguments.batch or batches(name, device):
            size = arguments.size or input_size(name, device)
            for pair in make_pairs(arguments.peers, name, batch, *size, device):
                measure(pair, name, batch, size, device, arguments.precisions, arguments.repeats)


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
) -> None:
    """Time both in each precision, all in turn."""
    with FlopCounterMode(display=False) as counter:
        pair.step(pair.who, "fp32")()
    precisions = [precision for precision in precisions if knows(pair, name, precision)]
    kinds = [(who, precision) for precision in precisions for who in ("ours", pair.who)]
    timings = harness.interleave({kind: pair.step(*kind) for kind in kinds}, repeats, device)
    for precision in precisions:
        rows = harness.rows_of(
            {who: timings[who, precision] for who in ("ours", pair.who)},
            name,
            precision,
            device,
            batch=batch,
            size="x".join(map(str, size)),
            operations=counter.get_total_flops(),
            dtype=resolve_precision(precision, device).dtype,
        )
        if precision == "fp32" and "bf16" in precisions:
            across = timings[pair.who, "fp32"].median / timings["ours", "bf16"].median
            rows[-1] = replace(rows[-1], value=across, note="times ours in bf16")
        harness.record("training", rows, device)


def knows(pair: Pair, name: str, precision: str) -> bool:
    """Whether the peer can train in a precision at all; says so if not (mmcv's NMS has no bf16 on a CPU)."""
    try:
        pair.step(pair.who, precision)()
    except RuntimeError as error:
        print(f"{name}: left out, {pair.who} does not train in {precision}: {error}")
        return False
    return True
