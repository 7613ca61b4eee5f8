"""The worked example of the documentation: its parts by hand, their properties, a step with its recipe."""

from __future__ import annotations

import math
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import pytest
import torch
from slots import targets_of

import boxwright as bw
from boxwright.models.priors import Anchors
from boxwright.structures import Batch, Priors

EXAMPLE = Path(__file__).resolve().parents[2] / "docs" / "examples" / "nwd.py"
RECIPE = f"{EXAMPLE}:retinanet_nwd_r50_fpn_1x"


@pytest.fixture(scope="module")
def nwd() -> ModuleType:
    bw.recipe(RECIPE)  # a recipe's file becomes a module under its name
    return sys.modules["nwd"]


def priors_of(canvas: int = 64) -> Priors:
    strides = (8, 16)
    shapes = [(canvas // s, canvas // s) for s in strides]
    return Anchors(scales=(4.0,), ratios=(1.0,), offset=0.5)(shapes, strides, (canvas, canvas))


def test_distance_and_loss_by_hand(nwd: ModuleType) -> None:
    box, target = torch.tensor([[0.0, 0, 10, 10]]), torch.tensor([[3.0, -1, 13, 19]])
    # Centres (5, 5) and (8, 9), half sides (5, 5) and (5, 10): the root of 9 + 16 + 0 + 25.
    assert nwd.wasserstein(box, target).item() == pytest.approx(math.sqrt(50))
    expected = 2 * (1 - math.exp(-math.sqrt(50) / 10))
    assert nwd.NWDLoss(weight=2.0, scale=10.0)(box, target).item() == pytest.approx(expected)
    # Boxes that do not touch have a gradient; equal ones have none, and it is not a NaN.
    for shift in (30.0, 0.0):
        moved = (box + shift).requires_grad_()
        nwd.NWDLoss()(moved, box).sum().backward()
        assert moved.grad is not None
        assert moved.grad.isfinite().all()
        assert bool(moved.grad.any()) == (shift > 0)


def test_assignment_by_hand(nwd: ModuleType) -> None:
    # Five priors in a row; the first object stands between the second and the third, the other on the third.
    boxes = torch.tensor([[x, 0.0, x + 4, 4.0] for x in (0.0, 10, 20, 30, 40)])
    priors = Priors(boxes, torch.full((5,), 8.0), (5,))
    found = nwd.RankingAssigner(topk=2)(priors, targets_of([[[14.0, 0, 18, 4], [21, 0, 25, 4]]], 2))
    # The first is 4 and 6 px from the second and third prior, the other 1 and 9 from the third and fourth.
    assert found.positive.tolist() == [[False, True, True, True, False]]
    assert found.gt_index[0, 1:4].tolist() == [0, 1, 1]
    assert not found.ignore.any()


def test_no_ground_truth_no_positive(nwd: ModuleType) -> None:
    assert not nwd.RankingAssigner()(priors_of(), targets_of([[], []], 3)).positive.any()


def test_batch_is_its_images_and_empty_slots_change_nothing(nwd: ModuleType) -> None:
    images = [[[4.0, 6, 41, 44], [30.0, 31, 62, 62]], [[10.0, 11, 31, 26]], []]
    together = nwd.RankingAssigner()(priors_of(), targets_of(images, 8))
    assert together.positive.sum(1).tolist() == [6, 3, 0]
    for i, image in enumerate(images):
        alone = nwd.RankingAssigner()(priors_of(), targets_of([image], 2))
        assert torch.equal(alone.positive[0], together.positive[i])
        chosen = alone.positive[0]
        assert torch.equal(alone.gt_index[0][chosen], together.gt_index[i][chosen])


def test_priors_that_take_no_part_and_crowds_are_ignored(nwd: ModuleType) -> None:
    priors = priors_of()
    valid = priors.boxes[:, 0].lt(16)[None]
    targets = targets_of([[[4.0, 6, 40, 44]]], 1)
    found = nwd.RankingAssigner()(replace(priors, valid=valid), targets)
    assert found.positive.any()
    assert not (found.positive & ~valid).any()
    assert torch.equal(found.ignore, ~valid)
    crowd = replace(targets, valid=targets.ignore, ignore=targets.valid)
    found = nwd.RankingAssigner()(priors, crowd)
    assert not found.positive.any()
    assert 0 < found.ignore.sum() < len(priors.boxes)


def test_recipe_trains_and_compiles() -> None:
    experiment = bw.recipe(RECIPE)
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
