"""The worked example of the documentation: ATSS by hand, its properties, and a step with its recipe."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import pytest
import torch

import boxwright as bw
from boxwright.models.priors import Anchors
from boxwright.structures import Batch, Priors, Targets

EXAMPLE = Path(__file__).resolve().parents[2] / "docs" / "examples" / "atss.py"


@pytest.fixture(scope="module")
def atss() -> ModuleType:
    bw.recipe(f"{EXAMPLE}:atss_r50_fpn_1x")  # a recipe's file becomes a module under its name
    return sys.modules["atss"]


def targets_of(boxes: list[list[list[float]]], slots: int) -> Targets:
    full = torch.zeros(len(boxes), slots, 4)
    valid = torch.zeros(len(boxes), slots, dtype=torch.bool)
    for i, image in enumerate(boxes):
        if image:
            full[i, : len(image)], valid[i, : len(image)] = torch.tensor(image), True
    return Targets(full, torch.zeros(len(boxes), slots, dtype=torch.long), valid, torch.zeros_like(valid))


def priors_of(canvas: int = 64) -> Priors:
    strides = (8, 16)
    shapes = [(canvas // s, canvas // s) for s in strides]
    return Anchors(scales=(4.0,), ratios=(1.0,), offset=0.5)(shapes, strides, (canvas, canvas))


def test_by_hand(atss: ModuleType) -> None:
    # Five priors in a row at 1/2 of a box's overlap steps; the box is the third of them exactly.
    boxes = torch.tensor([[x, 0.0, x + 10, 10.0] for x in (0.0, 5, 10, 15, 20)])
    priors = Priors(boxes, torch.full((5,), 8.0), (5,))
    found = atss.ATSSAssigner(topk=5)(priors, targets_of([[[10.0, 0, 20, 10]]], 1))
    # IoU 0, 1/3, 1, 1/3, 0: mean 1/3, deviation 0.408; only the third is above their sum.
    assert found.positive.tolist() == [[False, False, True, False, False]]
    assert not found.ignore.any()


def test_no_ground_truth_no_positive(atss: ModuleType) -> None:
    assert not atss.ATSSAssigner()(priors_of(), targets_of([[], []], 3)).positive.any()


def test_batch_is_its_images_and_empty_slots_change_nothing(atss: ModuleType) -> None:
    images = [[[4.0, 6, 40, 44], [30.0, 30, 62, 62]], [[10.0, 10, 30, 26]], []]
    together = atss.ATSSAssigner()(priors_of(), targets_of(images, 8))
    assert together.positive.sum(1).tolist()[2] == 0
    for i, image in enumerate(images):
        alone = atss.ATSSAssigner()(priors_of(), targets_of([image], 2))
        assert torch.equal(alone.positive[0], together.positive[i])
        chosen = alone.positive[0]
        assert torch.equal(alone.gt_index[0][chosen], together.gt_index[i][chosen])


def test_priors_that_take_no_part_are_ignored(atss: ModuleType) -> None:
    priors = priors_of()
    valid = priors.boxes[:, 0].lt(16)[None]
    found = atss.ATSSAssigner()(replace(priors, valid=valid), targets_of([[[4.0, 6, 40, 44]]], 1))
    assert not (found.positive & ~valid).any()
    assert torch.equal(found.ignore, ~valid)


def test_recipe_trains_and_compiles() -> None:
    experiment = bw.recipe(f"{EXAMPLE}:atss_r50_fpn_1x")
    backbone = experiment.model.backbone
    backbone.depth, backbone.norm_eval, backbone.frozen_stages = 18, False, 0
    experiment.model.neck.out_channels = experiment.model.head.channels = 32
    torch.manual_seed(0)
    model = bw.build(experiment, num_classes=2, pretrained=False)
    batch = Batch(
        torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8),
        torch.tensor([[64, 64], [60, 50]]),
        targets_of([[[4.0, 6, 40, 44]], []], 4),
    )
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    totals = []
    for _ in range(5):
        losses = model(batch)
        total = torch.stack([value for key, value in losses.items() if key.startswith("loss/")]).sum()
        optimizer.zero_grad()
        total.backward()
        optimizer.step()
        totals.append(float(total.detach()))
    assert losses["stat/positives"] > 0
    assert totals[-1] < totals[0] < float("inf")
    explained = torch.compile(model.loss, fullgraph=True, backend="eager")
    assert torch.isfinite(explained(batch)["loss/class"])
