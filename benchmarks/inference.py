"""Prediction with post-processing, ours beside torchvision's: latency at batch 1, and throughput.

Predictors are spread so that detectors find a hundred objects in each image, as trained ones do. Masks are
left as probabilities inside their boxes by both; `operators` measures pasting. "auto" compares what each does
when nothing is said: ours in the precision that the device is fast in, torchvision's in float32.
"""

from __future__ import annotations

import argparse
import itertools

import torch

from boxwright.engine.precision import resolve_precision

from . import harness
from .detectors import BUILDERS, Pair
from .peers import PEERS, make_pairs
from .training import input_size

EQUAL = 1e-4
"""Two scores are those of one detection where they differ by less."""

ALIKE = 0.1
"""Share of an image's detections that only one of both may have: suppression may turn at a tie."""


def main() -> None:
    """Measure the chosen detectors."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--models", nargs="*", default=list(BUILDERS), choices=list(BUILDERS))
    parser.add_argument("--peers", nargs="*", default=list(PEERS), choices=list(PEERS))
    parser.add_argument("--size", nargs=2, type=int, metavar=("HEIGHT", "WIDTH"))
    parser.add_argument("--batch", nargs="*", type=int, default=[1, 8])
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--precisions", nargs="*", default=["fp32", "bf16"])
    arguments = parser.parse_args()
    device = harness.the_device()
    for name, batch in itertools.product(arguments.models, arguments.batch):
        size = arguments.size or input_size(name, device)
        with harness.leaving_out(f"{name}, batch {batch}"):
            for pair in make_pairs(arguments.peers, name, batch, *size, device):
                gap = difference(pair)
                assert gap < ALIKE, f"{name}, {pair.who}: {gap:.0%} of the detections differ"
                text = "x".join(map(str, size))
                measure(pair, name, batch, text, arguments.precisions, arguments.repeats)


def measure(pair: Pair, name: str, batch: int, size: str, precisions: list[str], repeats: int) -> None:
    """Time both in every precision, all in turn."""
    device = pair.batch.images.device
    runs = {(who, p): pair.predict(who, p) for p in precisions for who in ("ours", pair.who)}
    timings = harness.interleave({" ".join(key): run for key, run in runs.items()}, repeats, device)
    auto = resolve_precision("auto", device).name
    pairs = {p: (p, p) for p in precisions} | {"auto": (auto, "fp32")}
    for kind, chosen in pairs.items():
        both = dict(zip(("ours", pair.who), chosen, strict=True))
        if not set(chosen) <= set(precisions) or (kind == "auto" and chosen[0] == chosen[1]):
            continue
        times = {who: timings[f"{who} {p}"] for who, p in both.items()}
        case = name if kind != "auto" else f"{name}, auto"
        rows = harness.rows_of(times, case, kind, device, batch=batch, size=size, precisions=both)
        harness.record("inference", rows, device)


def difference(pair: Pair) -> float:
    """Share of the detections, by their scores in float32, that only one of both has, in the worst image."""
    with harness.exactly():
        ours, theirs = (pair.predict(who, "fp32")() for who in ("ours", pair.who))
    found = []
    for image, other in enumerate(theirs):  # pyright: ignore
        scores, mine = other["scores"], ours.scores[image][ours.valid[image]]  # pyright: ignore
        assert len(scores) > 20, f"{len(scores)} detections: there is nothing to suppress or to mask"
        missing = (mine[:, None] - scores).abs() > EQUAL
        found += [missing.all(dim).float().mean() for dim in (0, 1)]
    return float(torch.stack(found).max())
