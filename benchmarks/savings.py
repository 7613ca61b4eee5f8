"""What each way to save memory saves in a training step, and what it costs in time; makes docs/memory.md.

Detectors are those of recipes, with random weights whose norms are calibrated. A step is measured with norms
of fixed statistics (as most recipes have) and with norms that learn them (as large batches want). Memory is
measured in a process for each case; times are taken in turn in one process. R50-C4 trains 128 regions an
image.
"""

from __future__ import annotations

import argparse
import csv
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from boxwright.config import Norm, Pretrained, build, set_tagged
from boxwright.engine.memory import Memory, save_memory
from boxwright.engine.placing import place, place_model
from boxwright.engine.precision import resolve_precision
from boxwright.engine.step import total_loss
from boxwright.models.layers import InPlaceBatchNorm2d
from boxwright.recipes import recipe

from . import harness
from .detectors import calibrate, make_input
from .peak import Peak, in_processes, peak_of, say

PAGE = Path(__file__).parents[1] / "docs" / "memory.md"
BEGIN, END = "<!-- savings: begin -->", "<!-- savings: end -->"
MODELS = {"Faster R-CNN R50-C4": "faster_rcnn_r50_c4_1x", "Mask R-CNN R50-FPN": "mask_rcnn_r50_fpn_1x"}
NORMS = ("fixed", "learning")
REGIONS = 128
"""Regions an image that R50-C4 trains, instead of 512: each goes through the whole last stage."""


@dataclass(frozen=True)
class Saving:
    """A way to train in less memory.

    Args:
        memory: settings of the experiment.
        precision: of the step.
        norm: of the ResNet.
    """

    memory: Memory = Memory(fold="never")  # noqa: RUF009  frozen
    precision: str = "fp32"
    norm: Callable[[int], nn.Module] = nn.BatchNorm2d


PLAIN = Saving()
CHECKPOINT = Memory(checkpoint="auto", fold="never")
SAVINGS: dict[str, dict[str, Saving]] = {
    "fixed": {
        "plain": PLAIN,
        "fold=always": Saving(Memory()),
        "checkpoint=auto": Saving(CHECKPOINT),
        "bf16": Saving(precision="bf16"),
        "bf16, fold=always": Saving(Memory(), "bf16"),
        "all together": Saving(Memory(checkpoint="auto"), "bf16"),
    },
    "learning": {
        "plain": PLAIN,
        "in-place norm": Saving(norm=InPlaceBatchNorm2d),
        "checkpoint=auto": Saving(CHECKPOINT),
        "bf16": Saving(precision="bf16"),
        "all together": Saving(CHECKPOINT, "bf16", InPlaceBatchNorm2d),
    },
}


def main() -> None:
    """Measure, record, and renew the page."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--models", nargs="*", default=list(MODELS), choices=list(MODELS))
    parser.add_argument("--norms", nargs="*", default=list(NORMS), choices=list(NORMS))
    parser.add_argument("--size", nargs=2, type=int, metavar=("HEIGHT", "WIDTH"))
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=5, help="timed steps of each; 0 for memory alone")
    parser.add_argument(
        "--jobs", type=int, default=1, help="processes at a time that measure memory; times are taken alone"
    )
    parser.add_argument("--table", action="store_true", help="measure nothing, renew the page from the rows")
    parser.add_argument("--one", nargs=6, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        model, norms, saving, *numbers = arguments.one
        say(measure(model, norms, saving, *map(int, numbers)))
        return
    device = harness.the_device()
    height, width = arguments.size or ((800, 1344) if device.type == "cuda" else (512, 640))
    sizes = (arguments.batch, height, width)
    cases = [(model, norms) for model in arguments.models for norms in arguments.norms]
    cases = [] if arguments.table else cases
    runs = [(*case, who, *sizes) for case in cases for who in SAVINGS[case[1]]]
    found = list(in_processes("savings", runs, arguments.jobs))  # all of it, before times are taken
    for model, norms in cases:
        peaks = {who: found[runs.index((model, norms, who, *sizes))] for who in SAVINGS[norms]}
        compare(model, norms, sizes, arguments.repeats, peaks, device)
    write_page()


def compare(
    model: str,
    norms: str,
    sizes: tuple[int, int, int],
    repeats: int,
    peaks: Mapping[str, Mapping[str, float]],
    device: torch.device,
) -> None:
    """Time all savings of one model and record them with their peaks."""
    savings, (batch, height, width) = SAVINGS[norms], sizes
    timings = {who: harness.Timing((0.0,)) for who in savings}
    if repeats:
        prepared = {who: prepare(model, norms, who, *sizes, device)[0] for who in savings}
        timings = harness.interleave(prepared, repeats, device, warmup=1)
    rows = [
        harness.Row(
            f"{model}, {norms} statistics",
            who,
            saving.precision,
            batch,
            f"{height}x{width}",
            timings[who].median,
            timings[who].spread if repeats else 0.0,
            ratio=peaks[who]["tensors"] / peaks["plain"]["tensors"],
            value=peaks[who]["tensors"] / 2**20,
            note="MiB at the peak",
        )
        for who, saving in savings.items()
    ]
    harness.record("savings", rows, device)


def measure(model: str, norms: str, saving: str, batch: int, height: int, width: int) -> Peak:
    """Memory of one case."""
    device = harness.the_device()
    step, module = prepare(model, norms, saving, batch, height, width, device)
    return peak_of(step, module, device)


def prepare(
    model: str, norms: str, saving: str, batch: int, height: int, width: int, device: torch.device
) -> tuple[Callable[[], None], nn.Module]:
    """A whole training step (forward, backward, SGD) and the model that it trains."""
    chosen, name = SAVINGS[norms][saving], MODELS[model]
    _, _, images = make_input(batch, height, width, "mask" in name)
    plain = make_model(name, nn.BatchNorm2d, norms == "learning")
    calibrate(plain, lambda: plain.predict(images.images[:1], images.sizes[:1]))  # pyright: ignore
    module = make_model(name, chosen.norm, norms == "learning")
    module.load_state_dict(plain.state_dict())
    precision = resolve_precision(chosen.precision, device)
    place_model(module.train(), device, precision.channels_last)
    shown = place(images, device, precision.channels_last)
    save_memory(module, chosen.memory)
    parameters = [p for p in module.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(parameters, lr=1e-6, momentum=0.9, fused=True)

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        with precision.autocast(device):
            losses = module(shown)
        total_loss(losses).backward()
        optimizer.step()

    return step, module


def make_model(name: str, norm: Callable[[int], nn.Module], learning: bool) -> nn.Module:
    """A recipe's detector with random weights."""
    torch.manual_seed(0)
    config: Any = recipe(name).model
    set_tagged(config, Pretrained, None)
    set_tagged(config, Norm, norm)
    config.backbone.norm_eval = not learning
    if name.startswith("faster_rcnn_r50_c4"):
        config.roi.stages[0].trunk.network.norm_eval = not learning
        config.roi.stages[0].criterion.sampler.number = REGIONS
    return build(config)


def write_page() -> None:
    """Put the newest row of each case into the page."""
    path = harness.ROWS / "savings.csv"
    if not path.exists():
        return
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    newest = list({(r["machine"], r["case"], r["batch"], r["size"], r["who"]): r for r in rows}.values())
    cases = dict.fromkeys((r["machine"], r["case"], r["batch"], r["size"]) for r in newest)
    parts = []
    for case in cases:
        of_case = [r for r in newest if (r["machine"], r["case"], r["batch"], r["size"]) == case]
        machine, name, batch, size = case
        about = f"{machine}; torch {of_case[-1]['torch']}; {of_case[-1]['date']}"
        parts.append(f"**{name}**, batch {batch}, {size} ({about})\n\n{table(of_case)}")
    text = PAGE.read_text(encoding="utf-8")
    before, rest = text.split(BEGIN, 1)
    inside = "\n\n".join([BEGIN, *parts, END])
    PAGE.write_text(f"{before}{inside}{rest.split(END, 1)[1]}", encoding="utf-8")
    print(f"wrote {PAGE}")


def table(rows: Sequence[dict[str, str]]) -> str:
    """A Markdown table of one case; the first row is what the others are compared to."""
    plain = next(row for row in rows if row["who"] == "plain")
    lines = ["| | precision | peak | of plain | step | of plain |", "| --- | --- | --- | --- | --- | --- |"]
    for row in rows:
        seconds, of = float(row["seconds"]), float(plain["seconds"])
        step, share = (f"{seconds:.3g} s", f"{seconds / of:.2f}x") if seconds and of else ("", "")
        memory = float(row["value"]) / float(plain["value"])
        cells = [row["who"], row["precision"], f"{float(row['value']):.0f} MiB", f"{memory:.0%}", step, share]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)
