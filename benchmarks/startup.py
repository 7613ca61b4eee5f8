"""Waiting before the first step: imports, building a recipe, compiling it with a cold and a warm cache."""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time

import torch

from . import harness

RECIPE = "fcos_mnv2_320"
BUILD = f"""
import boxwright as bw
from boxwright.config import Pretrained, build, set_tagged
config = bw.recipe({RECIPE!r})
set_tagged(config.model, Pretrained, None)
model = build(config.model)
"""
STEP = """
import torch
from boxwright.structures import Batch, Targets
boxes, valid = torch.tensor([[[8.0, 8, 80, 90]]]), torch.ones(1, 1, dtype=torch.bool)
targets = Targets(boxes, valid.long(), valid, ~valid)
batch = Batch(torch.zeros(1, 3, 256, 320, dtype=torch.uint8), torch.tensor([[256, 320]]), targets)
run = torch.compile(model, fullgraph=True) if compiled else model
torch.stack([v for k, v in run(batch).items() if k.startswith("loss/")]).sum().backward()
"""
CASES = {
    "import torch, torchvision": "import torch, torchvision",
    "import boxwright": "import boxwright",
    "build a recipe": BUILD,
    "first step": f"{BUILD}\ncompiled = False\n{STEP}",
}
COMPILED = f"{BUILD}\ncompiled = True\n{STEP}"


def seconds(code: str, cache: str | None = None) -> float:
    """Time of a fresh Python process that runs the code."""
    environment = os.environ | ({"TORCHINDUCTOR_CACHE_DIR": cache} if cache else {})
    start = time.perf_counter()
    subprocess.run([sys.executable, "-c", code], check=True, env=environment, capture_output=True)
    return time.perf_counter() - start


def main() -> None:
    """Measure each case in fresh processes."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--no-compile", action="store_true", help="leave out the compiled step (minutes)")
    arguments = parser.parse_args()
    device = torch.device("cpu")
    rows = []
    for name, code in CASES.items():
        seconds(code)
        timing = harness.Timing(tuple(seconds(code) for _ in range(arguments.repeats)))
        rows.append(harness.Row(name, "ours", "fp32", 0, RECIPE, timing.median, timing.spread, 1.0))
    if not arguments.no_compile:
        with tempfile.TemporaryDirectory() as cache:
            for state in ("cold", "warm"):
                name = f"first compiled step, {state} cache"
                rows.append(harness.Row(name, "ours", "fp32", 0, RECIPE, seconds(COMPILED, cache), 0.0, 1.0))
    harness.record("startup", rows, device)
