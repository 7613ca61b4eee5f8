"""Which regions a RoI stage trains on, and for which objects."""

import pytest
import torch

from boxwright.models.assigners import MaxIoUAssigner
from boxwright.models.losses import CrossEntropy, SmoothL1
from boxwright.models.roi_heads import RoICriterion
from boxwright.models.samplers import AllSampler
from boxwright.structures import Targets


def sampled(boxes: list[list[float]], truth: list[list[float]], *, low_quality: bool):
    """The sample of one image, with all proposals and then all ground truths."""
    rule = MaxIoUAssigner(0.5, 0.5, match_low_quality=low_quality, min_positive_iou=0.5)
    criterion = RoICriterion(rule, AllSampler(), CrossEntropy(), SmoothL1())
    gt = torch.tensor([truth])
    there = torch.ones(gt.shape[:2], dtype=torch.bool)
    proposals = torch.tensor([boxes])
    targets = Targets(gt, torch.arange(gt.shape[1])[None], there, ~there)
    regions, sample = criterion.sample(proposals, torch.ones(proposals.shape[:2], dtype=torch.bool), targets)
    assert torch.equal(regions, torch.cat((proposals, gt), 1))
    return sample


@pytest.mark.parametrize(("low_quality", "objects"), [(True, [0, 1]), (False, [1, 1])])
def test_objects_find_their_best_proposals_though_their_own_boxes_are_better(
    low_quality: bool, objects: list[int]
):
    """The first proposal has an IoU of 0.64 with object 0, whose best it is, and of 0.69 with object 1."""
    proposals = [[0.0, 2.2, 10, 12.2], [0.0, 3.9, 10, 13.9]]
    truth = [[0.0, 0, 10, 10], [0.0, 4, 10, 14]]
    sample = sampled(proposals, truth, low_quality=low_quality)
    assert sample.positive.tolist() == [[True] * 4]
    assert sample.gt_index.tolist() == [[*objects, 0, 1]]


def test_boxes_that_are_added_are_trained_for_themselves():
    """Of two objects with one box, too; a box without area, whose code is not finite, is not trained."""
    twins = [[0.0, 0, 10, 10], [0.0, 0, 10, 10], [3.0, 3, 3, 9]]
    sample = sampled([[20.0, 20, 30, 30]], twins, low_quality=False)
    assert sample.gt_index.tolist()[0][1:] == [0, 1, 2]
    assert sample.positive.tolist() == [[False, True, True, False]]
    assert sample.negative.tolist() == [[True, False, False, False]]
