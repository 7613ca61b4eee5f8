"""How memory is measured, on steps whose peak is known."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn
from torch._subclasses import FakeTensorMode

from boxwright.ops import _roi_align_bags as bags

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


def test_what_a_compiler_left_behind_is_not_counted() -> None:
    before = peak.living_bytes(torch.device("cpu"))
    with FakeTensorMode():
        fake = torch.empty(MIB, dtype=torch.uint8)
    assert fake.numel() == MIB
    assert abs(peak.living_bytes(torch.device("cpu")) - before) < MIB / 2


def test_results_of_processes_come_in_the_order_of_the_cases(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[list[str]] = []

    def run(command: list[str], **_: object) -> subprocess.CompletedProcess:
        asked.append(command[3:])
        time.sleep(0.02 * (command[-1] == "0"))  # the first ends last
        said = json.dumps({"tensors": int(command[-1])})
        return subprocess.CompletedProcess(command, 0, f"noise\n{said}\n", "")

    monkeypatch.setattr(peak.subprocess, "run", run)
    found = peak.in_processes("memory", [("a", i) for i in range(5)], jobs=3)
    assert [result["tensors"] for result in found] == [0, 1, 2, 3, 4]
    assert sorted(asked) == [["memory", "--one", "a", str(i)] for i in range(5)]


def test_low_precision_is_pooled_image_by_image() -> None:
    """Copies in float32 take no more than an image, beside what is made: the result, the gradients."""
    features = [torch.randn(8, 64, 64, 64).bfloat16().contiguous(memory_format=torch.channels_last)]  # 4 MiB
    boxes, level = torch.tensor([4.0, 4, 30, 30]).repeat(8, 64, 1), torch.zeros(8, 64, dtype=torch.int64)
    layout = bags.Layout([4], [64], [64], 8, 1, True)
    grad = torch.randn(8, 64, 64, 8, 8).bfloat16()  # 4 MiB

    def grown(run: Callable[[], object]) -> float:
        cpu = [torch.profiler.ProfilerActivity.CPU]
        with torch.profiler.profile(activities=cpu, profile_memory=True) as profiler:
            run()
        return max(peak.running_totals(profiler)) / MIB

    # The images' parts (4 MiB), then them and the whole; an image in float32 is 1 MiB, its regions likewise.
    assert grown(lambda: bags.forward(features, boxes, level, layout)) < 4 + 4 + 1
    assert grown(lambda: bags.backward(grad, boxes, level, layout)) < 4 + 4 + 1


def test_the_table_compares_to_the_plain_step() -> None:
    rows = [
        {"who": "plain", "precision": "fp32", "value": "800", "seconds": "2.0"},
        {"who": "all together", "precision": "bf16", "value": "300", "seconds": "1.0"},
    ]
    lines = savings.table(rows).splitlines()
    assert lines[2] == "| plain | fp32 | 800 MiB | 100% | 2 s | 1.00x |"
    assert lines[3] == "| all together | bf16 | 300 MiB | 38% | 1 s | 0.50x |"
