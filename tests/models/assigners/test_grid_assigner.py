"""The grid rule against slow references: the paper's, and MMDetection's steps one after the other."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchvision.ops import box_iou

from boxwright.models.assigners import GridAssigner
from boxwright.models.priors import SizedAnchors
from boxwright.structures import Priors, Targets

ANCHORS = SizedAnchors(sizes=(((10, 13), (16, 30), (33, 23)), ((30, 61), (62, 45), (59, 119))))
PRIORS = ANCHORS([(16, 16), (8, 8)], [8, 16], (128, 128))
PAPER = GridAssigner()
MMDETECTION = GridAssigner(positive_iou=0.5, shared_cells=True)


def random_targets(seed: int, images: int = 2, slots: int = 6) -> Targets:
    generator = torch.Generator().manual_seed(seed)
    centre = torch.rand(images, slots, 2, generator=generator) * 100 + 14
    centre[:, 1::2] = centre[:, ::2] + torch.rand(images, slots // 2, 2, generator=generator) * 6  # crowded
    size = 4 + torch.rand(images, slots, 2, generator=generator) * 60
    valid = torch.arange(slots) < torch.randint(0, slots + 1, (images, 1), generator=generator)
    boxes = torch.cat((centre - size / 2, centre + size / 2), dim=-1) * valid[..., None]
    return Targets(boxes, torch.zeros(images, slots).long(), valid, torch.zeros_like(valid))


def cell_holds(prior: list[float], stride: float, box: list[float]) -> bool:
    return all(
        (box[i] + box[i + 2]) / 2 // stride == (prior[i] + prior[i + 2]) / 2 // stride for i in range(2)
    )


def reference(targets: Targets, image: int, assigner: GridAssigner) -> list[int]:
    """Ground truth of each prior, -1 for none, -2 for ignored."""
    gt = targets.boxes[image][targets.valid[image]]
    count = len(PRIORS.boxes)
    if len(gt) == 0:
        return [-1] * count
    cells = list(zip(PRIORS.boxes.tolist(), PRIORS.strides.tolist(), strict=True))
    overlap = box_iou(gt, PRIORS.boxes)
    found = [-2 if best > assigner.ignore_iou else -1 for best in overlap.amax(0).tolist()]
    held = torch.tensor([[cell_holds(*cell, box) for cell in cells] for box in gt.tolist()])
    allowed = held.any(0).expand_as(held) if assigner.shared_cells else held
    rows = torch.where(allowed, overlap, -1.0).tolist()
    if assigner.positive_iou is not None:
        for a in range(count):
            best = max(range(len(rows)), key=lambda g, a=a: rows[g][a])
            if rows[best][a] > assigner.positive_iou:
                found[a] = best
    for g, row in enumerate(rows):
        highest = max(row)
        for a in range(count):
            if row[a] > 0 and row[a] == highest:
                found[a] = g
    return found


@pytest.mark.parametrize("assigner", [PAPER, MMDETECTION], ids=["paper", "mmdetection"])
@given(seed=st.integers(0, 10_000))
@settings(max_examples=8, deadline=None)
def test_equals_a_slow_reference(assigner: GridAssigner, seed: int):
    targets = random_targets(seed)
    result = assigner(PRIORS, targets)
    for image in range(2):
        expected = torch.tensor(reference(targets, image, assigner))
        assert torch.equal(result.positive[image], expected >= 0)
        assert torch.equal(result.ignore[image], expected == -2)
        assert torch.equal(result.gt_index[image][expected >= 0], expected[expected >= 0])


@given(seed=st.integers(0, 10_000))
@settings(max_examples=20, deadline=None)
def test_the_papers_positives_lie_in_the_cell_of_their_object(seed: int):
    targets = random_targets(seed)
    result = PAPER(PRIORS, targets)
    for image in range(2):
        for a in result.positive[image].nonzero().flatten().tolist():
            box = targets.boxes[image, result.gt_index[image, a]]
            assert cell_holds(PRIORS.boxes[a].tolist(), PRIORS.strides[a].item(), box.tolist())


def one_target(box: list[float], ignore: bool = False) -> Targets:
    flag = torch.tensor([[ignore]])
    return Targets(torch.tensor([[box]]), torch.zeros(1, 1).long(), ~flag, flag)


def test_by_hand():
    # A box of 10 x 13 in the middle of the cell (row 2, column 3): its first anchor overlaps it wholly.
    result = PAPER(PRIORS, one_target([23.0, 13.5, 33.0, 26.5]))
    (found,) = result.positive[0].nonzero().flatten().tolist()
    assert found == (2 * 16 + 3) * 3
    assert not result.ignore.any()  # the neighbours overlap 26 of 234 or 50 of 210 pixels
    # A little larger, the anchor of 16 x 30 in the same cell overlaps it more than 0.5 as well.
    box = [21.0, 10.0, 35.0, 30.0]
    best, other = (2 * 16 + 3) * 3 + 1, GridAssigner(ignore_iou=0.4)(PRIORS, one_target(box))
    assert PAPER(PRIORS, one_target(box)).positive[0].nonzero().flatten().tolist() == [best]
    assert other.ignore[0, best - 1]
    lower = GridAssigner(positive_iou=0.4)(PRIORS, one_target(box)).positive[0].nonzero().flatten().tolist()
    assert lower == [best - 1, best]


def test_regions_and_priors_that_do_not_count():
    region = PAPER(PRIORS, one_target([0.0, 0.0, 64.0, 64.0], ignore=True))
    assert not region.positive.any()
    assert region.ignore[0, (2 * 16 + 3) * 3]
    assert not region.ignore[0, (14 * 16 + 14) * 3]
    valid = torch.zeros(1, len(PRIORS.boxes), dtype=torch.bool)
    none = PAPER(
        Priors(PRIORS.boxes, PRIORS.strides, PRIORS.num_per_level, valid),
        one_target([23.0, 13.5, 33.0, 26.5]),
    )
    assert none.ignore.all()
    assert not none.positive.any()


@given(seed=st.integers(0, 1000), extra=st.integers(1, 5))
@settings(max_examples=10, deadline=None)
def test_empty_slots_change_nothing(seed: int, extra: int):
    targets = random_targets(seed)

    def padded(t: torch.Tensor) -> torch.Tensor:
        return torch.cat((t, t.new_zeros(t.shape[0], extra, *t.shape[2:])), dim=1)

    wide = Targets(*(padded(t) for t in (targets.boxes, targets.labels, targets.valid, targets.ignore)))
    a, b = MMDETECTION(PRIORS, targets), MMDETECTION(PRIORS, wide)
    assert torch.equal(a.positive, b.positive)
    assert torch.equal(a.ignore, b.ignore)
    assert torch.equal(a.gt_index[a.positive], b.gt_index[b.positive])
