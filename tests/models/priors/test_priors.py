"""Anchors and points: by hand, and equal to torchvision's generator where it is asked for."""

import pytest
import torch
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.image_list import ImageList

from boxwright.models.priors import Anchors, Points, TrainableArea


def test_anchors_by_hand():
    priors = Anchors(scales=(2.0,), ratios=(1.0, 4.0))([(1, 2)], [8], (8, 16))
    square, tall = [-8.0, -8.0, 8.0, 8.0], [-4.0, -16.0, 4.0, 16.0]
    shifted = [[x + 8 * (i % 2 == 0) for i, x in enumerate(box)] for box in (square, tall)]
    assert priors.boxes.tolist() == [square, tall, *shifted]
    assert priors.num_per_level == (4,)
    assert priors.num_per_place == 2
    assert priors.strides.tolist() == [8.0] * 4


def test_anchors_equal_torchvision_where_steps_are_not_strides():
    sizes, ratios = ((32, 40), (64, 80), (128, 160)), (0.5, 1.0, 2.0)
    shapes, canvas = [(26, 33), (13, 17), (7, 9)], (208, 264)
    theirs = AnchorGenerator(sizes, (ratios,) * 3)
    images = ImageList(torch.zeros(1, 3, *canvas), [canvas])
    expected = theirs(images, [torch.zeros(1, 1, *shape) for shape in shapes])[0]
    ours = Anchors(sizes=sizes, ratios=ratios, whole_pixels=True, step_from_canvas=True)
    torch.testing.assert_close(ours(shapes, (8, 16, 32), canvas).boxes, expected)


def test_points_are_squares_of_a_stride():
    priors = Points()([(2, 2), (1, 1)], [8, 16], (16, 16))
    assert priors.boxes[3].tolist() == [8.0, 8.0, 16.0, 16.0]
    assert priors.boxes[4].tolist() == [0.0, 0.0, 16.0, 16.0]
    assert priors.num_per_level == (4, 1)


@pytest.mark.parametrize(("border", "expected"), [(None, [True, True, False, False]), (0.0, [False] * 4)])
def test_trainable_area(border: float | None, expected: list[bool]):
    priors = Anchors(scales=(1.0,), ratios=(1.0,))([(1, 4)], [16], (16, 64))  # centres at x = 0, 16, 32, 48
    area = TrainableArea(divisor=16, allowed_border=border)
    assert area(priors, torch.tensor([[16, 30]])).valid.tolist() == [expected]
