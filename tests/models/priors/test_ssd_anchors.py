"""SSD's default boxes against the paper's formulae and against torchvision's generator."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchvision.models.detection.anchor_utils import DefaultBoxGenerator
from torchvision.models.detection.image_list import ImageList

from boxwright.errors import ConfigError
from boxwright.models.priors import SSDAnchors, TrainableArea, ssd_sizes

SHAPES = [(38, 38), (19, 19), (10, 10), (5, 5), (3, 3), (1, 1)]
RATIOS = ((2.0,), (2.0, 3.0), (2.0, 3.0), (2.0, 3.0), (2.0,), (2.0,))
STEPS = (8.0, 16.0, 32.0, 64.0, 100.0, 300.0)
SIZES = (21.0, 45.0, 99.0, 153.0, 207.0, 261.0, 315.0)


def ssd300(steps: tuple[float, ...] | None = STEPS) -> SSDAnchors:
    return SSDAnchors(ssd_sizes(300, 6, first=7, lowest=15), RATIOS, steps)


def test_sizes_of_the_published_networks():
    assert ssd_sizes(300, 6, first=7, lowest=15) == SIZES
    assert ssd_sizes(300, 6, first=10, lowest=20) == (30, 60, 111, 162, 213, 264, 315)  # on VOC
    assert ssd_sizes(512, 7, first=4, lowest=10) == (20, 51, 133, 215, 296, 378, 460, 542)


@given(st.integers(3, 9), st.integers(5, 30), st.integers(200, 600))
@settings(max_examples=30, deadline=None)
def test_sizes_follow_equation_4(levels: int, lowest: int, side: int):
    found = ssd_sizes(side, levels, first=4, lowest=lowest)
    assert len(found) == levels + 1
    m = levels - 1
    for k, size in enumerate(found[1:-1], start=1):
        exact = lowest + (90 - lowest) / (m - 1) * (k - 1)
        # The step loses less than a percent at each level, the size less than a pixel.
        assert exact - k < 100 * (size + 1) / side
        assert 100 * size / side <= exact + 1e-9


def test_8732_boxes_at_the_papers_centres():
    """Sec. 2.2: centres at (i + 0.5) / |f_k|, and 8732 boxes (Table 7)."""
    priors = ssd300(None)(SHAPES, [8] * 6, (300, 300))
    assert len(priors.boxes) == 8732
    assert priors.num_per_level == (5776, 2166, 600, 150, 36, 4)
    first = 0
    for level, ((height, width), count) in enumerate(zip(SHAPES, priors.num_per_level, strict=True)):
        place = ssd300().num_per_place(level)
        boxes = priors.boxes[first : first + count].reshape(height, width, place, 4)
        centre = (boxes[..., :2] + boxes[..., 2:]) / 2 / 300
        across = (torch.arange(width) + 0.5) / width
        torch.testing.assert_close(centre[..., 0], across[None, :, None].expand(height, width, place))
        torch.testing.assert_close(centre[..., 1], across[:, None, None].expand(height, width, place))
        first += count


@pytest.mark.parametrize("level", range(6))
def test_shapes_of_a_level(level: int):
    """Sec. 2.2: width s * sqrt(a), height s / sqrt(a), and for a = 1 also sqrt(s_k * s_(k + 1))."""
    size, following = SIZES[level : level + 2]
    expected = [(size, size), (math.sqrt(size * following),) * 2]
    for a in [r for ratio in RATIOS[level] for r in (ratio, 1 / ratio)]:
        expected.append((size * math.sqrt(a), size / math.sqrt(a)))
    base = ssd300().base(level)
    torch.testing.assert_close(base[:, 2:] - base[:, :2], torch.tensor(expected))
    torch.testing.assert_close(base[:, 2:], -base[:, :2])


def test_boxes_are_torchvisions():
    scales = [size / 300 for size in SIZES]
    ratios = [[int(r) for r in level] for level in RATIOS]
    theirs = DefaultBoxGenerator(ratios, scales=scales, steps=[int(s) for s in STEPS], clip=False)
    features = [torch.zeros(1, 1, *shape) for shape in SHAPES]
    expected = theirs(ImageList(torch.zeros(1, 3, 300, 300), [(300, 300)]), features)[0]
    found = ssd300()(SHAPES, [8, 16, 32, 64, 64, 64], (300, 300))
    torch.testing.assert_close(found.boxes, expected, rtol=1e-5, atol=1e-3)


def test_cells_that_begin_beyond_the_image_are_not_trained():
    """As in MMDetection: of 270 x 289 pixels, ceil(270 / step) rows and ceil(289 / step) columns a level."""
    priors = ssd300()(SHAPES, [8, 16, 32, 64, 64, 64], (300, 300))
    valid = TrainableArea(divisor=1, offset=0.5)(priors, torch.tensor([[270, 289], [300, 300]])).valid
    assert valid is not None
    expected = []
    for level, (side, _) in enumerate(SHAPES):
        rows, columns = (min(math.ceil(n / STEPS[level]), side) for n in (270, 289))
        expected.append(rows * columns * ssd300().num_per_place(level))
    assert [int(part.sum()) for part in valid[0].split(priors.num_per_level)] == expected
    assert valid[1].all()


def test_lengths_have_to_agree():
    with pytest.raises(ConfigError, match="ratios for 2 levels want 3 sizes"):
        SSDAnchors((10.0, 20.0), ((2.0,), (2.0,)))
    with pytest.raises(ConfigError, match="1 steps"):
        SSDAnchors((10.0, 20.0, 30.0), ((2.0,), (2.0,)), steps=(8.0,))
    with pytest.raises(ConfigError, match="ratios for 6 levels, the head has 1"):
        ssd300()([(2, 2)], [8], (16, 16))
