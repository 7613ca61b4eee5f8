"""The model of a step by hand, the page that is made of it, and the processes that are measured."""

from __future__ import annotations

import importlib
import math
import sys
from dataclasses import fields, replace
from pathlib import Path

import pytest
import torch
from torch import nn

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

model = importlib.import_module("benchmarks.step_model")
page = importlib.import_module("benchmarks.scaling_page")
scaling = importlib.import_module("benchmarks.scaling")
worker = importlib.import_module("benchmarks.scaling_worker")

PLAIN = model.Assumptions(
    devices_per_node=4,
    inner_bandwidth=1e9,
    outer_bandwidth=1e8,
    inner_latency=1e-5,
    outer_latency=1e-3,
    spread=0.0,
)
# Two buckets of 10 MB in float32, half of the backward pass apart.
WORK = model.Work(2, 0.1, 0.2, 0.01, (model.Bucket(2_500_000, 0.5), model.Bucket(2_500_000, 1.0)))


def test_a_ring_by_hand() -> None:
    # 3 devices: 4 messages of a third of 3 MB at 1 MB/s, each 0.1 s late.
    assert model.ring(3e6, 3, 1e6, 0.1) == pytest.approx(4 * (1.0 + 0.1))
    assert model.ring(3e6, 3, 1e6, 0.1) == pytest.approx(2 * 2 / 3 * 3e6 / 1e6 + 2 * 2 * 0.1)
    assert model.ring(3e6, 1, 1e6, 0.1) == 0


def test_a_sum_over_nodes_is_made_within_and_between_them() -> None:
    size = 1e7
    within = model.ring(size, 4, 1e9, 1e-5)
    assert model.all_reduce(size, 4, PLAIN) == within
    assert model.all_reduce(size, 8, PLAIN) == pytest.approx(within + 1e7 / 1e8 + 2e-3)
    flat = model.all_reduce(size, 8, replace(PLAIN, hierarchical=False))
    assert flat == pytest.approx(2 * 7 / 8 * 1e7 / 1e8 + 14e-3)


def test_a_step_by_hand() -> None:
    assert model.step_seconds(WORK, 1, PLAIN) == pytest.approx(WORK.seconds)
    bucket = model.all_reduce(1e7, 8, PLAIN)  # 0.117 s: longer than the 0.1 s between the buckets
    assert bucket > 0.1
    # The first starts in the middle of the backward pass, the second as soon as the first is through.
    assert model.step_seconds(WORK, 8, PLAIN) == pytest.approx(0.1 + 0.1 + 2 * bucket + 0.01)
    after = replace(PLAIN, overlap=False)
    assert model.step_seconds(WORK, 8, after) == pytest.approx(0.3 + 2 * bucket + 0.01)
    half = replace(PLAIN, bytes_per_value=2)
    bucket = model.all_reduce(5e6, 8, half)  # shorter: the first is through when the second begins
    assert model.step_seconds(WORK, 8, half) == pytest.approx(0.3 + bucket + 0.01)
    assert model.gradient_bytes(WORK, half) == 10_000_000


def test_shared_norms_and_the_slowest_device() -> None:
    free = replace(PLAIN, inner_bandwidth=math.inf, outer_bandwidth=math.inf, inner_latency=0.0)
    shared = replace(WORK, norms=(64, 128))
    # Two nodes: each of two sums a norm takes two messages between them.
    extra = model.step_seconds(shared, 8, free) - model.step_seconds(WORK, 8, free)
    assert extra == pytest.approx(2 * 2 * 2e-3)
    assert model.slowest(1) == 0
    # The expected largest of 10 and of 100 standard normal variables is 1.5388 and 2.5076.
    assert model.slowest(10) == pytest.approx(1.5388, abs=0.01)
    assert model.slowest(100) == pytest.approx(2.5076, abs=0.01)
    uneven = replace(free, outer_latency=0.0, spread=0.1)
    assert model.step_seconds(WORK, 10, uneven) == pytest.approx(0.3 * (1 + 0.1 * model.slowest(10)) + 0.01)


def test_efficiency_falls_with_devices_and_not_without_cost() -> None:
    shares = [model.efficiency(WORK, n, PLAIN) for n in (1, 2, 4, 8, 64, 512)]
    assert shares[0] == 1
    assert shares == sorted(shares, reverse=True)
    free = replace(
        PLAIN, inner_bandwidth=math.inf, outer_bandwidth=math.inf, inner_latency=0, outer_latency=0
    )
    assert model.efficiency(WORK, 512, free) == pytest.approx(1)
    assert model.images_per_second(WORK, 512, free) == pytest.approx(1024 / WORK.seconds)
    assert WORK.taking(1.0).seconds == pytest.approx(1.0)
    assert WORK.taking(1.0).backward == pytest.approx(0.2 / 0.31)


def test_gradients_are_grouped_as_they_become_ready() -> None:
    mib = 2**20 // 4
    made = model.group([(mib, 0.1), (mib, 0.2), (mib, 0.3), (10, 0.4)], 2**20, 2 * 2**20)
    assert made == (model.Bucket(mib, 0.1), model.Bucket(2 * mib, 0.3), model.Bucket(10, 0.4))


def test_every_assumption_is_listed_with_its_meaning() -> None:
    listed = model.listed(model.Assumptions())
    assert [name for name, _, _ in listed] == [f.name for f in fields(model.Assumptions)]
    assert all(len(meaning) > 20 for _, _, meaning in listed)


def test_the_page_is_what_the_rows_and_the_model_say() -> None:
    text = page.PAGE.read_text(encoding="utf-8")
    assert page.render(text) == text, "run `python -m benchmarks scaling --page`"
    assert page.PICTURE.is_file()
    assert "| 64 | 253 | 88% |" in text


def test_a_share_is_the_images_of_one_process() -> None:
    whole = scaling.make_input(4, 32, 32, masks=False)[2]
    mine = worker.share(whole, 1, 2)
    assert torch.equal(mine.images, whole.images[2:])
    assert torch.equal(mine.targets.boxes, whole.targets.boxes[2:])
    assert worker.Job.from_json((job := worker.Job("a", (3, 4), 2, 5, "fp32")).to_json()) == job


def test_a_step_is_taken_apart() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.last, self.frozen = nn.Linear(4, 4), nn.Linear(4, 1), nn.Linear(1, 1)
            self.frozen.requires_grad_(False)

        def forward(self, batch: torch.Tensor) -> dict[str, torch.Tensor]:
            return {"loss/a": self.frozen(self.last(self.first(batch))).sum()}

    net = Net()
    before = net.last.weight.detach().clone()
    parts = scaling.take_apart(net, torch.optim.SGD(net.parameters(), 0.1), torch.ones(2, 4))
    assert set(parts["ready"]) == {"first.weight", "first.bias", "last.weight", "last.bias"}
    assert parts["ready"]["last.weight"] < parts["ready"]["first.weight"] <= parts["backward"]
    assert not torch.equal(net.last.weight, before)


@pytest.mark.slow
def test_losses_do_not_depend_on_the_number_of_processes() -> None:
    rows = scaling.losses_agree(worker.Job("fcos_mnv2_320", (64, 96), 1, 2, "fp32"), [1, 2])
    assert rows[0].value == 0
    assert 0 <= rows[1].value < 1e-3
