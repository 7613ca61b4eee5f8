"""ATSS by hand, against a slow reading of the paper's algorithm, and its properties."""

from __future__ import annotations

import math
import statistics
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from slots import targets_of

from boxwright.models.assigners import ATSSAssigner
from boxwright.models.priors import Anchors, TrainableArea
from boxwright.structures import Assignment, Priors


def random_boxes(seed: int, images: int = 3, most: int = 5) -> list[list[list[float]]]:
    """Boxes that stand at no two equal distances from priors."""
    generator = torch.Generator().manual_seed(seed)
    result = []
    for _ in range(images):
        count = int(torch.randint(0, most + 1, (1,), generator=generator))
        corner = torch.rand(count, 2, generator=generator) * 80
        size = 6 + torch.rand(count, 2, generator=generator) * 50
        result.append(torch.cat((corner, corner + size), dim=-1).tolist())
    return result


def priors_of(canvas: tuple[int, int] = (128, 128)) -> Priors:
    strides = (8, 16, 64)
    shapes = [(math.ceil(canvas[0] / s), math.ceil(canvas[1] / s)) for s in strides]
    return Anchors(scales=(4.0,), ratios=(1.0,))(shapes, strides, canvas)


def overlap_of(a: list[float], b: list[float]) -> float:
    width, height = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    shared = max(width, 0.0) * max(height, 0.0)
    return shared / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - shared)


def reference(priors: Priors, boxes: list[list[float]], valid: list[bool], topk: int) -> list[int]:
    """Algorithm 1 for one image: which ground truth each prior is positive for, -1 for none."""
    all_priors = priors.boxes.tolist()
    centres = [((p[0] + p[2]) / 2, (p[1] + p[3]) / 2) for p in all_priors]
    owner, best = [-1] * len(all_priors), [-1.0] * len(all_priors)
    for number, box in enumerate(boxes):
        middle = ((box[0] + box[2]) / 2, (box[1] + box[3]) / 2)
        candidates, start = [], 0
        for count in priors.num_per_level:
            level = [i for i in range(start, start + count) if valid[i]]
            candidates += sorted(level, key=lambda i: math.dist(centres[i], middle))[:topk]
            start += count
        overlaps = [overlap_of(all_priors[i], box) for i in candidates]
        threshold = statistics.mean(overlaps) + (statistics.stdev(overlaps) if len(overlaps) > 1 else 0.0)
        for i, overlap in zip(candidates, overlaps, strict=True):
            x, y = centres[i]
            inside = min(x - box[0], y - box[1], box[2] - x, box[3] - y) > 0.01
            if overlap >= threshold and inside and overlap > best[i]:
                owner[i], best[i] = number, overlap
    return owner


def agrees(found: Assignment, image: int, owner: list[int]) -> None:
    expected = torch.tensor(owner)
    positive = expected >= 0
    assert torch.equal(found.positive[image], positive)
    assert torch.equal(found.gt_index[image][positive], expected[positive])


def test_by_hand() -> None:
    # Five priors in a row, each half a side from the next; the box is the third of them exactly.
    boxes = torch.tensor([[x, 0.0, x + 10, 10.0] for x in (0.0, 5, 10, 15, 20)])
    priors = Priors(boxes, torch.full((5,), 8.0), (5,))
    found = ATSSAssigner(topk=5)(priors, targets_of([[[10.0, 0, 20, 10]]], 1))
    # IoU 0, 1/3, 1, 1/3, 0: mean 1/3, deviation 0.408; only the third is above their sum.
    assert found.positive.tolist() == [[False, False, True, False, False]]
    assert not found.ignore.any()


def test_a_positives_centre_lies_inside_its_box() -> None:
    # Both priors are as good as each other, with their centres on the box's left and right side.
    priors = Priors(torch.tensor([[0.0, 0, 8, 8], [8, 0, 16, 8]]), torch.full((2,), 8.0), (2,))
    assert not ATSSAssigner()(priors, targets_of([[[4.0, 0, 12, 8]]], 1)).positive.any()
    assert ATSSAssigner()(priors, targets_of([[[3.0, 0, 13, 8]]], 1)).positive.all()


def test_a_prior_of_two_objects_goes_to_the_one_it_overlaps_more() -> None:
    priors = Priors(torch.tensor([[0.0, 0, 10, 10]]), torch.full((1,), 8.0), (1,))
    found = ATSSAssigner()(priors, targets_of([[[0.0, 0, 10, 16], [0, 0, 10, 12]]], 4))
    assert found.positive.item()
    assert found.gt_index.item() == 1


@pytest.mark.parametrize("topk", [1, 4, 9])
@given(seed=st.integers(0, 10_000))
@settings(max_examples=15, deadline=None)
def test_equals_a_slow_reference(topk: int, seed: int) -> None:
    images, priors = random_boxes(seed), priors_of()
    found = ATSSAssigner(topk)(priors, targets_of(images, 6))
    for i, boxes in enumerate(images):
        agrees(found, i, reference(priors, boxes, [True] * len(priors.boxes), topk))
    assert not found.ignore.any()


@given(seed=st.integers(0, 10_000))
@settings(max_examples=15, deadline=None)
def test_padding_beside_an_image_is_neither_candidate_nor_negative(seed: int) -> None:
    # The valid part of the coarsest level has fewer priors than an object wants.
    images, priors = random_boxes(seed), priors_of((192, 224))
    sizes = torch.tensor([[128, 128], [100, 130], [192, 224]])
    priors = TrainableArea()(priors, sizes)
    assert priors.valid is not None
    found = ATSSAssigner()(priors, targets_of(images, 6))
    for i, boxes in enumerate(images):
        agrees(found, i, reference(priors, boxes, priors.valid[i].tolist(), 9))
    assert torch.equal(found.ignore, ~priors.valid)


def test_images_may_have_priors_of_their_own() -> None:
    images, priors = random_boxes(3), priors_of()
    targets = targets_of(images, 6)
    shift = torch.tensor([0.0, 3.0, -5.0])[:, None, None]
    own = replace(priors, boxes=priors.boxes + shift)
    found = ATSSAssigner()(own, targets)
    for i, boxes in enumerate(images):
        moved = replace(priors, boxes=own.boxes[i])
        agrees(found, i, reference(moved, boxes, [True] * len(priors.boxes), 9))


def test_no_valid_prior_no_positive() -> None:
    priors = priors_of()
    priors = replace(priors, valid=torch.zeros(1, len(priors.boxes), dtype=torch.bool))
    found = ATSSAssigner()(priors, targets_of([[[4.0, 6, 40, 44]]], 2))
    assert not found.positive.any()
    assert found.ignore.all()


def test_ignored_regions_make_no_negatives() -> None:
    priors = priors_of()
    plain = targets_of([[[4.0, 6, 40, 44]], []], 2)
    crowd = torch.tensor([0.0, 0, 128, 64])
    boxes, ignore = plain.boxes.clone(), plain.ignore.clone()
    boxes[:, 1], ignore[:, 1] = crowd, True
    without, found = (
        ATSSAssigner()(priors, plain),
        ATSSAssigner()(priors, replace(plain, boxes=boxes, ignore=ignore)),
    )
    # The objects' own priors stay; others of which at least half lies in the region count neither way.
    assert torch.equal(found.positive, without.positive)
    x1, y1, x2, y2 = priors.boxes.unbind(-1)
    width, height = x2.clamp(max=128) - x1.clamp(min=0), y2.clamp(max=64) - y1.clamp(min=0)
    half = width.clamp(min=0) * height.clamp(min=0) >= 0.5 * (x2 - x1) * (y2 - y1)
    assert half.any()
    assert not half.all()
    assert torch.equal(found.ignore, half & ~found.positive)


def test_images_without_objects_have_no_positives() -> None:
    assert not ATSSAssigner()(priors_of(), targets_of([[], []], 3)).positive.any()


def test_a_batch_is_its_images_and_empty_slots_change_nothing() -> None:
    images = [[[4.0, 6, 40, 44], [30.0, 30, 62, 62]], [[10.0, 10, 30, 26]], []]
    together = ATSSAssigner()(priors_of(), targets_of(images, 8))
    assert together.positive.sum(1).tolist()[2] == 0
    for i, image in enumerate(images):
        alone = ATSSAssigner()(priors_of(), targets_of([image], 2))
        assert torch.equal(alone.positive[0], together.positive[i])
        chosen = alone.positive[0]
        assert torch.equal(alone.gt_index[0][chosen], together.gt_index[i][chosen])
