"""A head with predictors of each level's own, and SSD's losses by hand."""

from functools import partial

import pytest
import torch
import torch.nn.functional as F

from boxwright.models.assigners import MaxIoUAssigner
from boxwright.models.coders import DeltaCoder
from boxwright.models.dense_heads import Centreness, DenseCriterion, DensePostprocess, PerLevelHead
from boxwright.models.layers import group_norm
from boxwright.models.losses import CrossEntropy, SmoothL1
from boxwright.models.priors import SSDAnchors
from boxwright.models.samplers import HardNegativeSampler
from boxwright.structures import DensePredictions, FeatureSpec, Priors, Targets

SPECS = (FeatureSpec(8, 8), FeatureSpec(6, 16))
CRITERION = DenseCriterion(
    assigner=MaxIoUAssigner(match_low_quality=True, low_quality_ties=False),
    class_loss=CrossEntropy(),
    sampler=HardNegativeSampler(),
    code_loss=SmoothL1(),
)


def make_head(criterion: DenseCriterion = CRITERION, **layers) -> PerLevelHead:
    torch.manual_seed(0)
    return PerLevelHead(
        SPECS,
        num_classes=3,
        priors=SSDAnchors((10.0, 20.0, 30.0), ((2.0,), (2.0, 3.0))),
        coder=DeltaCoder(),
        criterion=criterion,
        postprocess=DensePostprocess(),
        **layers,
    )


def features() -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(2, 8, 4, 6, generator=generator), torch.randn(2, 6, 2, 3, generator=generator)]


def test_outputs_stand_in_the_order_of_the_priors():
    head, maps = make_head(), features()
    out = head(maps)
    priors = head.place_priors(maps, (32, 48))
    assert priors.num_per_level == (4 * 6 * 4, 2 * 3 * 6)
    assert out.class_logits.shape == (2, sum(priors.num_per_level), 4)
    assert out.codes.shape == (2, sum(priors.num_per_level), 4)
    assert out.quality_logits is None
    predictor = head.class_predictors[1]
    one = F.conv2d(maps[1], predictor.weight, predictor.bias, padding=1)  # (2, 6 * 4, 2, 3)
    number = 96 + (1 * 3 + 2) * 6 + 5  # row 1, column 2, sixth anchor
    torch.testing.assert_close(out.class_logits[:, number], one[:, 20:24, 1, 2])


@pytest.mark.parametrize("norm", [None, partial(group_norm, groups=4)])
def test_towers_are_of_each_level(norm):
    head = make_head(tower_convs=2, channels=12, norm=norm)
    assert [tower[0].conv.in_channels for tower in head.class_towers] == [8, 6]
    assert all(predictor.in_channels == 12 for predictor in head.box_predictors)
    out = head(features())
    out.class_logits.sum().backward()
    assert all(p.grad is not None for p in head.class_towers.parameters())


def test_a_quality_branch_is_made_where_the_criterion_wants_one():
    head = make_head(
        DenseCriterion(MaxIoUAssigner(), CrossEntropy(), quality=Centreness(), code_loss=SmoothL1())
    )
    out = head(features())
    assert out.quality_logits is not None
    assert out.quality_logits.shape == out.class_logits.shape[:2]


def test_losses_by_hand():
    """SSD, Eq. 1 to 3, on four priors: two positives, and the hardest of the negatives."""
    boxes = torch.tensor(
        [[0.0, 0, 10, 10], [0, 0, 10, 8], [40, 40, 50, 50], [60, 0, 70, 10], [80, 0, 90, 10]]
    )
    priors = Priors(boxes, torch.ones(5), (5,))
    truth = torch.tensor([[[0.0, 0, 10, 10]]])
    one = torch.ones(1, 1, dtype=torch.bool)
    targets = Targets(truth, torch.tensor([[1]]), one, ~one)
    logits = torch.tensor([[[0.0, 2, 0, 0], [0, 0, 0, 0], [3, 0, 0, 0], [0, 0, 0, 5], [0, 1, 0, 0]]])
    codes = torch.tensor([[[0.5, 0, 0, 0], [2.0, 0, 0, 0], [9, 9, 9, 9], [9, 9, 9, 9], [9, 9, 9, 9]]])
    head_losses = DenseCriterion(
        MaxIoUAssigner(match_low_quality=True, low_quality_ties=False),
        CrossEntropy(),
        HardNegativeSampler(1.0),
        SmoothL1(),
    )(DensePredictions(logits, codes), priors, targets, torch.tensor([[100, 100]]), DeltaCoder())
    # Priors 0 and 1 (IoU 1 and 0.8) are positive; of 2, 3, 4 the two of the smallest background score count.
    log = logits[0].log_softmax(-1)
    expected = -(log[0, 1] + log[1, 1] + log[2, 3] + log[4, 3]) / 2
    torch.testing.assert_close(head_losses["loss/class"], expected)
    # Prior 1: the truth's centre lies 1 lower (1 / 8 of its height), its height is 10 / 8.
    target = torch.tensor([0.0, 1 / 8, 0, torch.log(torch.tensor(1.25)).item()])
    smooth = 0.5 * 0.5**2 + (2.0 - 0.5) + (0.5 * target[1:] ** 2).sum()
    torch.testing.assert_close(head_losses["loss/box"], smooth / 2)
