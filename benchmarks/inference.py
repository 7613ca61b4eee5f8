"""Prediction with post-processing, ours beside torchvision's: latency at batch 1, and throughput.

Masks are left as probabilities inside their boxes by both; `operators` measures pasting.
"""

from __future__ import annotations

import argparse

from . import harness
from .detectors import BUILDERS, make_pair
from .training import input_size


def main() -> None:
    """Measure the chosen detectors."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--models", nargs="*", default=list(BUILDERS), choices=list(BUILDERS))
    parser.add_argument("--size", nargs=2, type=int, metavar=("HEIGHT", "WIDTH"))
    parser.add_argument("--batch", nargs="*", type=int, default=[1, 8])
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--precisions", nargs="*", default=["fp32", "bf16"])
    arguments = parser.parse_args()
    device = harness.the_device()
    for name in arguments.models:
        for batch in arguments.batch:
            size = arguments.size or input_size(name, device)
            pair = make_pair(name, batch, *size, device)
            for precision in arguments.precisions:
                runs = {who: pair.predict(who, precision) for who in ("ours", "torchvision")}
                timings = harness.interleave(runs, arguments.repeats, device)
                text = "x".join(map(str, size))
                rows = harness.rows_of(timings, name, precision, device, batch=batch, size=text)
                harness.record("inference", rows, device)
