"""The targets of guided anchoring against slow references, one image, object and place at a time."""

import dataclasses
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchvision.ops import box_iou

from boxwright.models.assigners import ApproxMaxIoUAssigner, FCOSAssigner, MaxIoUAssigner, RegionAssigner
from boxwright.models.priors import Anchors, Points, TrainableArea
from boxwright.models.targets import gather_priors
from boxwright.structures import Assignment, Priors, Targets

SHAPES, STRIDES = [(16, 20), (8, 10), (4, 5)], [8, 16, 32]
HEIGHT, WIDTH = 128, 160


def squares() -> Priors:
    return Anchors(scales=(2.0,), ratios=(1.0,))(SHAPES, STRIDES, (HEIGHT, WIDTH))


def random_targets(seed: int, images: int = 2, slots: int = 5) -> Targets:
    generator = torch.Generator().manual_seed(seed)
    corner = torch.rand(images, slots, 2, generator=generator) * torch.tensor([WIDTH * 0.8, HEIGHT * 0.8])
    size = (torch.rand(images, slots, 2, generator=generator) * 4.5).exp() + 2
    boxes = torch.cat((corner, torch.minimum(corner + size, torch.tensor([WIDTH, HEIGHT]))), dim=-1)
    count = torch.randint(0, slots + 1, (images, 1), generator=generator)
    valid = torch.arange(slots) < count
    labels = torch.randint(0, 5, (images, slots), generator=generator)
    return Targets(boxes * valid[..., None], labels * valid, valid, torch.zeros_like(valid))


def level_of(box: list[float]) -> int:
    """The level whose squares, of 16, 32 and 64 pixels, are nearest in octaves."""
    octaves = math.log2(math.sqrt((box[2] - box[0]) * (box[3] - box[1])) / 16)
    return min(max(math.floor(octaves + 0.5), 0), 2)


def inside(box: list[float], ratio: float, stride: int, x: int, y: int) -> bool:
    """Whether a cell lies in a box that is shrunk about its centre; half numbers round to even."""
    for first, last, cell in ((box[0], box[2], x), (box[1], box[3], y)):
        middle, half = (first + last) / 2 / stride, (last - first) * ratio / 2 / stride
        if not round(middle - half) <= cell <= round(middle + half):
            return False
    return True


def regions_reference(boxes: list[list[float]]) -> list[str]:
    found = []
    for level, (height, width) in enumerate(SHAPES):
        for y in range(height):
            for x in range(width):
                kind = "negative"
                for box in boxes:
                    apart, stride = abs(level_of(box) - level), STRIDES[level]
                    if apart == 0 and inside(box, 0.2, stride, x, y):
                        kind = "positive"
                    elif apart <= 1 and inside(box, 0.5, stride, x, y) and kind == "negative":
                        kind = "ignore"
                found.append(kind)
    return found


def kinds(assignment: Assignment, image: int) -> list[str]:
    rows = zip(assignment.positive[image].tolist(), assignment.ignore[image].tolist(), strict=True)
    return ["positive" if positive else "ignore" if ignore else "negative" for positive, ignore in rows]


@given(st.integers(0, 10_000))
@settings(max_examples=15, deadline=None)
def test_regions_equal_the_reference(seed: int):
    targets = random_targets(seed)
    result = RegionAssigner()(squares(), targets)
    for image in range(2):
        boxes = targets.boxes[image][targets.valid[image]]
        assert kinds(result, image) == regions_reference(boxes.tolist())


def test_regions_by_hand():
    # 32 x 32 px belong to the second level, of stride 16; the centre region is the cell that holds (64, 64).
    boxes = torch.tensor([[[48.0, 48, 80, 80]]])
    there = torch.ones(1, 1, dtype=torch.bool)
    result = RegionAssigner()(squares(), Targets(boxes, torch.zeros(1, 1).long(), there, ~there))
    value = result.positive[0].int() - result.ignore[0].int()
    levels = value.split([h * w for h, w in SHAPES])
    fine, middle, coarse = (part.reshape(shape) for part, shape in zip(levels, SHAPES, strict=True))
    assert middle.nonzero().tolist() == [[4, 4]]  # 3.5 and 4.5 round to even
    assert middle[4, 4] == 1
    assert fine.nonzero().tolist() == [[y, x] for y in range(7, 10) for x in range(7, 10)]
    assert fine.max() == 0
    assert coarse.nonzero().tolist() == [[2, 2]]
    assert coarse[2, 2] == -1


def test_places_in_ignored_regions_are_ignored():
    boxes = torch.tensor([[[0.0, 0, 64, 64]]])
    there = torch.ones(1, 1, dtype=torch.bool)
    result = RegionAssigner()(squares(), Targets(boxes, torch.zeros(1, 1).long(), ~there, there))
    assert not result.positive.any()
    assert int(result.ignore.sum()) == 9 * 9 + 5 * 5 + 3 * 3


RULE = MaxIoUAssigner(0.5, 0.4, match_low_quality=True, min_positive_iou=0.4)


@given(st.integers(0, 10_000))
@settings(max_examples=15, deadline=None)
def test_approximations_equal_the_reference(seed: int):
    """The best of nine anchors at each place, made one by one."""
    targets, priors = random_targets(seed), squares()
    result = ApproxMaxIoUAssigner(RULE)(priors, targets)
    nine = Anchors(scales=(2.0, 2 * 2 ** (1 / 3), 2 * 2 ** (2 / 3)), ratios=(0.5, 1.0, 2.0))
    anchors = nine(SHAPES, STRIDES, (HEIGHT, WIDTH)).boxes.reshape(-1, 9, 4)
    for image in range(2):
        gt = targets.boxes[image][targets.valid[image]]
        best = (
            torch.stack([torch.stack([box_iou(g[None], a).max() for a in anchors]) for g in gt])
            if len(gt)
            else None
        )
        for place in range(0, len(anchors), 7):
            if best is None:
                assert result.negative[image, place]
                continue
            overlap = best[:, place]
            lowly = any(best[g].max() >= 0.4 and overlap[g] >= best[g].max() - 1e-6 for g in range(len(gt)))
            if not lowly and (overlap.max() - torch.tensor([0.4, 0.5])).abs().min() > 1e-5:
                assert bool(result.positive[image, place]) == bool(overlap.max() >= 0.5)
                assert bool(result.negative[image, place]) == bool(overlap.max() < 0.4)
            if lowly:
                assert result.positive[image, place]


def test_only_valid_squares_are_assigned():
    boxes = torch.tensor([[[40.0, 40, 60, 70]]])
    there = torch.ones(1, 1, dtype=torch.bool)
    priors = squares()
    valid = torch.arange(len(priors.boxes))[None] % 2 == 0
    priors = Priors(priors.boxes, priors.strides, priors.num_per_level, valid)
    targets = Targets(boxes, torch.zeros(1, 1).long(), there, ~there)
    for assigner in (ApproxMaxIoUAssigner(RULE), RegionAssigner()):
        result = assigner(priors, targets)
        assert result.ignore[~valid].all()
        assert not result.positive[~valid].any()
    assert ApproxMaxIoUAssigner(RULE)(priors, targets).positive.any()


@pytest.mark.parametrize("assigner", [ApproxMaxIoUAssigner(RULE), RegionAssigner()])
def test_a_batch_gives_what_its_images_give(assigner):
    targets = random_targets(3)
    together = assigner(squares(), targets)
    for image in range(2):
        part = slice(image, image + 1)
        fields = (targets.boxes, targets.labels, targets.valid, targets.ignore)
        alone = assigner(squares(), Targets(*(value[part] for value in fields)))
        assert torch.equal(alone.positive, together.positive[part])
        assert torch.equal(alone.ignore, together.ignore[part])


def test_priors_of_each_image_are_taken_like_shared_ones():
    """What the network predicts as priors differs from image to image: boxes `(B, A, 4)`."""
    targets, shared = random_targets(5), Points()(SHAPES, STRIDES, (HEIGHT, WIDTH))
    sizes = torch.tensor([[96, 150], [128, 160]])
    own = dataclasses.replace(shared, boxes=shared.boxes.expand(2, -1, 4))
    for area in (TrainableArea(), TrainableArea(allowed_border=0)):
        assert torch.equal(area(own, sizes).valid, area(shared, sizes).valid)
    for assigner in (RULE, FCOSAssigner((0.0, 32.0, 64.0, math.inf), centre_radius=1.5)):
        a, b = assigner(own, targets), assigner(shared, targets)
        assert torch.equal(a.positive, b.positive)
        assert torch.equal(a.ignore, b.ignore)
        assert torch.equal(a.gt_index, b.gt_index)
    index = torch.tensor([[3, 0, 7], [5, 5, 1]])
    for a, b in zip(gather_priors(own, index), gather_priors(shared, index), strict=True):
        assert torch.equal(a, b)
    assert torch.equal(gather_priors(shared, index)[0][1, 2], shared.boxes[1])
