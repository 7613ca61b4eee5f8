"""One line of configuration changes all norms, or all convolutions before them."""

from functools import partial

import pytest
import torch
from torch import nn

from boxwright.config import Conv, Norm, Pretrained, build, set_tagged
from boxwright.models.layers import ConvWS2d, FrozenBatchNorm2d, group_norm
from boxwright.recipes import recipe


def built(name: str, *changes) -> nn.Module:
    config = recipe(name).model
    set_tagged(config, Pretrained, None)
    config.backbone.depth = 18
    for tag, value in changes:
        assert set_tagged(config, tag, value) >= 3
    with torch.device("meta"):
        return build(config)


def kinds(model: nn.Module) -> set[type]:
    norms = (nn.GroupNorm, nn.modules.batchnorm._BatchNorm, FrozenBatchNorm2d)
    return {type(m) for m in model.modules() if isinstance(m, norms)}


def normalised(model: nn.Module) -> list[str]:
    """Parts that have a norm."""
    found = {name for name, m in model.named_modules() if isinstance(m, nn.GroupNorm | nn.BatchNorm2d)}
    parts = ("backbone.", "neck.laterals.", "neck.outputs.", "roi.stages.0.trunk.", "roi.mask.convs.", "rpn.")
    return [part for part in parts if any(name.startswith(part) for name in found)]


def test_group_norm_is_in_every_part_but_the_proposals():
    model = built("mask_rcnn_r50_fpn_gn_2x")
    assert kinds(model) == {nn.GroupNorm}
    assert normalised(model) == [
        "backbone.",
        "neck.laterals.",
        "neck.outputs.",
        "roi.stages.0.trunk.",
        "roi.mask.convs.",
    ]


@pytest.mark.parametrize("name", ["mask_rcnn_r50_fpn_gn_2x", "mask_rcnn_r50_fpn_gn_ws_2x"])
@pytest.mark.parametrize("norm", [nn.BatchNorm2d, nn.SyncBatchNorm, FrozenBatchNorm2d])
def test_one_line_changes_all_norms(name, norm):
    assert kinds(built(name, (Norm, norm))) == {norm}


def test_one_line_changes_the_groups():
    model = built("mask_rcnn_r50_fpn_gn_2x", (Norm, partial(group_norm, groups=16)))
    assert {m.num_groups for m in model.modules() if isinstance(m, nn.GroupNorm)} == {16}


def test_standardised_convolutions_are_those_before_a_norm():
    model = built("mask_rcnn_r50_fpn_gn_ws_2x")
    standardised = {name for name, m in model.named_modules() if isinstance(m, ConvWS2d)}
    plain = {name for name, m in model.named_modules() if type(m) is nn.Conv2d}
    assert plain == {"rpn.stem.0.conv", "rpn.class_predictor", "rpn.box_predictor", "roi.mask.predictor"}
    norms = {name for name, m in model.named_modules() if isinstance(m, nn.GroupNorm)}
    assert len(standardised) == len(norms)
    back = built("mask_rcnn_r50_fpn_gn_ws_2x", (Conv, nn.Conv2d))
    assert not any(isinstance(m, ConvWS2d) for m in back.modules())
