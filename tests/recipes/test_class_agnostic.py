"""Proposal networks as detectors of their own: any data set will do, and every object is of one class."""

from dataclasses import replace

import fiddle as fdl
import pytest
import torch

from boxwright.assembly import set_num_classes
from boxwright.config import Pretrained, build, set_tagged
from boxwright.errors import ConfigError
from boxwright.models.losses import BinaryCrossEntropy
from boxwright.recipes import recipe
from boxwright.structures import DensePredictions, Priors, Targets

NAMES = ["rpn_r50_fpn_1x", "ga_rpn_r50_fpn_1x"]


@pytest.mark.parametrize("name", NAMES)
def test_it_needs_no_number_of_classes(name: str):
    model = recipe(name).model
    set_num_classes(model, 7)
    assert model.head.num_classes == 1
    assert model.head.criterion.class_agnostic
    fdl.clear_tags(model.head.criterion, "class_agnostic")
    with pytest.raises(ConfigError, match="NumClasses"):
        set_num_classes(model, 7)


def test_labels_do_not_matter():
    model = recipe(NAMES[0]).model
    set_tagged(model, Pretrained, None)
    criterion = build(model.head.criterion)
    assert isinstance(criterion.class_loss, BinaryCrossEntropy)
    boxes = torch.tensor([[0.0, 0, 20, 20], [30, 30, 60, 60], [5, 5, 90, 90]])
    priors = Priors(boxes + 1, torch.ones(3), (3,))
    there = torch.ones(1, 3, dtype=torch.bool)
    targets = Targets(boxes[None], torch.tensor([[4, 0, 6]]), there, ~there)
    generator = torch.Generator().manual_seed(0)
    logits, codes = torch.randn(1, 3, 1, generator=generator), torch.randn(1, 3, 4, generator=generator)
    coder, sizes = build(model.head.coder), torch.tensor([[96, 96]])
    losses = criterion(DensePredictions(logits, codes), priors, targets, sizes, coder)
    same = replace(targets, labels=torch.zeros(1, 3, dtype=torch.int64))
    torch.testing.assert_close(losses, criterion(DensePredictions(logits, codes), priors, same, sizes, coder))
