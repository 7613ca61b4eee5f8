"""Assignment rules against slow per-image references, and against torchvision's matcher."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchvision.models.detection._utils import Matcher
from torchvision.ops import box_iou

from boxwright.models.assigners import FCOSAssigner, MaxIoUAssigner
from boxwright.models.priors import Anchors, Points
from boxwright.structures import Priors, Targets


def random_targets(seed: int, images: int = 3, slots: int = 6, extent: float = 120.0) -> Targets:
    generator = torch.Generator().manual_seed(seed)
    corner = torch.rand(images, slots, 2, generator=generator) * extent * 0.7
    boxes = torch.cat((corner, corner + 4 + torch.rand(images, slots, 2, generator=generator) * 60), dim=-1)
    count = torch.randint(0, slots + 1, (images, 1), generator=generator)
    valid = torch.arange(slots) < count
    labels = torch.randint(0, 5, (images, slots), generator=generator)
    return Targets(boxes * valid[..., None], labels * valid, valid, torch.zeros_like(valid))


def anchors() -> Priors:
    return Anchors(scales=(3.0,), ratios=(0.5, 1.0, 2.0))([(16, 16), (8, 8)], [8, 16], (128, 128))


@given(st.integers(0, 10_000))
@settings(max_examples=25, deadline=None)
def test_max_iou_equals_torchvisions_matcher(seed: int):
    targets, priors = random_targets(seed), anchors()
    assigner = MaxIoUAssigner(0.5, 0.4, match_low_quality=True, low_quality_keeps_best=True)
    result = assigner(priors, targets)
    matcher = Matcher(0.5, 0.4, allow_low_quality_matches=True)
    for image in range(3):
        gt = targets.boxes[image][targets.valid[image]]
        if len(gt) == 0:
            assert not result.positive[image].any()
            assert not result.ignore[image].any()
            continue
        matched = matcher(box_iou(gt, priors.boxes))
        assert torch.equal(result.positive[image], matched >= 0)
        assert torch.equal(result.ignore[image], matched == Matcher.BETWEEN_THRESHOLDS)
        positive = result.positive[image]
        assert torch.equal(result.gt_index[image][positive], matched[positive])


def test_the_ground_truth_that_finds_a_prior_takes_it():
    # Ground truth 1 overlaps prior 0 less than ground truth 0 does, but has no better prior.
    priors = Priors(torch.tensor([[0.0, 0, 10, 10], [50, 50, 60, 60]]), torch.ones(2), (2,))
    boxes = torch.tensor([[[0.0, 0, 10, 9], [0, 6, 10, 16]]])
    targets = Targets(boxes, torch.zeros(1, 2).long(), torch.ones(1, 2).bool(), torch.zeros(1, 2).bool())
    own = MaxIoUAssigner(0.7, 0.3, match_low_quality=True)(priors, targets)
    best = MaxIoUAssigner(0.7, 0.3, match_low_quality=True, low_quality_keeps_best=True)(priors, targets)
    assert own.gt_index[0, 0] == 1
    assert best.gt_index[0, 0] == 0


def test_ignored_regions_make_no_negatives():
    priors = Priors(torch.tensor([[0.0, 0, 10, 10], [50, 50, 60, 60]]), torch.ones(2), (2,))
    boxes = torch.tensor([[[0.0, 0, 100, 30]]])
    region = Targets(boxes, torch.zeros(1, 1).long(), torch.zeros(1, 1).bool(), torch.ones(1, 1).bool())
    assert MaxIoUAssigner()(priors, region).ignore.tolist() == [[True, False]]
    assert FCOSAssigner(limits=(0.0, math.inf))(priors, region).ignore.tolist() == [[True, False]]


def fcos_reference(priors: Priors, targets: Targets, assigner: FCOSAssigner, image: int) -> list[int]:
    level_of = [level for level, count in enumerate(priors.num_per_level) for _ in range(count)]
    chosen = []
    for prior, stride, level in zip(priors.boxes.tolist(), priors.strides.tolist(), level_of, strict=True):
        x, y = (prior[0] + prior[2]) / 2, (prior[1] + prior[3]) / 2
        best, smallest = -1, math.inf
        for slot, (x1, y1, x2, y2) in enumerate(targets.boxes[image].tolist()):
            sides = (x - x1, y - y1, x2 - x, y2 - y)
            near = assigner.centre_radius is None or max(abs(x - (x1 + x2) / 2), abs(y - (y1 + y2) / 2)) < (
                assigner.centre_radius * stride
            )
            fits = assigner.limits[level] <= max(sides) <= assigner.limits[level + 1]
            size = (x2 - x1) * (y2 - y1)
            if targets.valid[image, slot] and min(sides) > 0 and fits and near and size < smallest:
                best, smallest = slot, size
        chosen.append(best)
    return chosen


@pytest.mark.parametrize("radius", [None, 1.5])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_fcos_equals_a_slow_reference(radius: float | None, seed: int):
    priors = Points()([(16, 16), (8, 8)], [8, 16], (128, 128))
    targets = random_targets(seed)
    assigner = FCOSAssigner(limits=(0.0, 32.0, math.inf), centre_radius=radius)
    result = assigner(priors, targets)
    for image in range(3):
        expected = torch.tensor(fcos_reference(priors, targets, assigner, image))
        assert torch.equal(result.positive[image], expected >= 0)
        positive = expected >= 0
        assert torch.equal(result.gt_index[image][positive], expected[positive])


@pytest.mark.parametrize(
    "assigner", [MaxIoUAssigner(0.5, 0.4, True), FCOSAssigner(limits=(0.0, 32.0, math.inf))]
)
@given(seed=st.integers(0, 1000), extra=st.integers(1, 5))
@settings(max_examples=15, deadline=None)
def test_empty_slots_and_other_images_change_nothing(assigner, seed: int, extra: int):
    priors = Points()([(16, 16), (8, 8)], [8, 16], (128, 128))
    targets = random_targets(seed)

    def padded(t: torch.Tensor) -> torch.Tensor:
        return torch.cat((t, t.new_zeros(t.shape[0], extra, *t.shape[2:])), dim=1)

    wide = Targets(*(padded(t) for t in (targets.boxes, targets.labels, targets.valid, targets.ignore)))
    whole, alone = assigner(priors, targets), assigner(priors, wide)
    assert torch.equal(whole.positive, alone.positive)
    assert torch.equal(whole.ignore, alone.ignore)
    assert torch.equal(whole.gt_index[whole.positive], alone.gt_index[whole.positive])
    one = assigner(
        priors, Targets(*(t[1:2] for t in (targets.boxes, targets.labels, targets.valid, targets.ignore)))
    )
    assert torch.equal(one.positive[0], whole.positive[1])


def test_fcos_names_the_wrong_number_of_levels():
    with pytest.raises(ValueError, match="limits for 5 levels, the head has 1"):
        FCOSAssigner()(Points()([(4, 4)], [8], (32, 32)), random_targets(0))


def test_of_priors_that_overlap_alike_one_or_all_are_found():
    boxes = torch.tensor([[0.0, 0, 10, 10], [10, 0, 20, 10], [5, 0, 15, 10], [5, 0, 15, 10]])
    priors = Priors(boxes, torch.ones(4), (4,))
    truth = torch.tensor([[[8.0, 0, 12, 4]]])
    one = torch.ones(1, 1, dtype=torch.bool)
    targets = Targets(truth, torch.zeros(1, 1).long(), one, ~one)
    every = MaxIoUAssigner(match_low_quality=True)(priors, targets)
    first = MaxIoUAssigner(match_low_quality=True, low_quality_ties=False)(priors, targets)
    assert every.positive.tolist() == [[False, False, True, True]]
    assert first.positive.tolist() == [[False, False, True, False]]
