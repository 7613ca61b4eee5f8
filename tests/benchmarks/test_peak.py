"""How memory is measured, on steps whose peak is known."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).parents[2]))

peak = importlib.import_module("benchmarks.peak")
savings = importlib.import_module("benchmarks.savings")
MIB = 2**20


def test_the_peak_is_that_of_the_worst_moment() -> None:
    model = nn.Linear(512, 512, bias=False)  # 1 MiB
    held: list[torch.Tensor] = []

    def step() -> None:
        model.weight.grad = None
        held.clear()
        first = torch.zeros(4 * MIB, dtype=torch.uint8)
        del first
        second = torch.zeros(2 * MIB, dtype=torch.uint8)
        held.append(torch.zeros(3 * MIB, dtype=torch.uint8))
        del second
        model(torch.ones(1, 512)).sum().backward()

    measured = peak.peak_of(step, model, torch.device("cpu"))
    # 3 MiB of the step before are there, and freed at first; 5 MiB are the most that is there at once.
    assert abs(measured.tensors - measured.standing - 5 * MIB) < MIB / 4
    assert measured.standing >= 4 * MIB


def test_the_table_compares_to_the_plain_step() -> None:
    rows = [
        {"who": "plain", "precision": "fp32", "value": "800", "seconds": "2.0"},
        {"who": "all together", "precision": "bf16", "value": "300", "seconds": "1.0"},
    ]
    lines = savings.table(rows).splitlines()
    assert lines[2] == "| plain | fp32 | 800 MiB | 100% | 2 s | 1.00x |"
    assert lines[3] == "| all together | bf16 | 300 MiB | 38% | 1 s | 0.50x |"
