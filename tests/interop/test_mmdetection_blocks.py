"""MMDetection's names of what its blocks and backbones add, where no recorded configuration has them."""

import re
from functools import partial

import pytest
import torch
from torch import nn

from boxwright.config import Pretrained, build, set_tagged
from boxwright.interop.mmdetection import rules_for
from boxwright.interop.renaming import load_renamed
from boxwright.models.layers import (
    ContextBlock,
    FrozenBatchNorm2d,
    ModulatedDeformConv2d,
    biased,
    group_norm,
)
from boxwright.recipes import recipe


def backbone_only(name: str, **changes: object) -> nn.Module:
    """A module with the recipe's backbone and neck alone, for the rules of these."""
    config = recipe(name).model
    set_tagged(config, Pretrained, None)
    for key, value in changes.items():
        setattr(config.backbone, key, value)
    if "depth" in changes:
        config.neck.norm = group_norm
    model = build(config)
    part = nn.Module()
    part.backbone, part.neck = model.backbone, model.neck
    return part


def check(part: nn.Module, rename) -> None:
    state = {rename(name): torch.randn_like(value) for name, value in part.state_dict().items()}
    report = load_renamed(part, state, rules_for(part))
    filled = part.state_dict()
    assert set(report.names) == set(filled)
    for ours, theirs in report.names.items():
        assert theirs == rename(ours)
        torch.testing.assert_close(filled[ours], state[theirs])


@pytest.mark.parametrize("before_version_2", [False, True])
def test_offsets_blocks_and_norms_in_a_resnet(before_version_2):
    block = partial(ContextBlock, ratio=0.25, fusions=("add", "scale"))
    part = backbone_only(
        "faster_rcnn_r50_fpn_1x",
        depth=18,
        norm=group_norm,
        conv3x3=(None, None, ModulatedDeformConv2d, None),
        plugins=(None, block, None, None),
    )

    def rename(name: str) -> str:
        if before_version_2:
            name = name.replace(".conv_offset.", "_offset.")
        if name.startswith("neck."):
            kind = "lateral" if "laterals" in name else "fpn"
            return f"neck.{kind}_convs." + name.split(".", 2)[2].replace(".norm.", ".gn.")
        name = name.replace(".plugin.attention", ".context_block.conv_mask")
        name = name.replace(".plugin.add", ".context_block.channel_add_conv")
        name = name.replace(".plugin.scale", ".context_block.channel_mul_conv")
        return name.replace(".bn", ".gn")

    check(part, rename)


def test_hrnet_with_its_neck():
    part = backbone_only("faster_rcnn_hrnetv2p_small_320", norm=partial(group_norm, groups=8))

    def rename(name: str) -> str:
        name = name.replace("neck.reduction.", "neck.reduction_conv.")
        return name.replace("neck.outputs.", "neck.fpn_convs.").replace(".bn", ".gn")

    check(part, rename)


def test_averaging_shortcuts_and_stages_that_nothing_looks_at():
    part = backbone_only(
        "faster_rcnn_r50_fpn_1x", avg_down=True, out_stages=(1, 2, 3), norm=FrozenBatchNorm2d
    )

    def rename(name: str) -> str:
        if name.startswith("neck."):
            kind = "lateral" if "laterals" in name else "fpn"
            return f"neck.{kind}_convs." + name.split(".", 2)[2]
        # There is a pool of one pixel before the first stage's shortcut, too.
        found = re.fullmatch(r"backbone\.layer1\.0\.downsample\.(\d)\.(.+)", name)
        return f"backbone.layer1.0.downsample.{int(found[1]) + 1}.{found[2]}" if found else name

    check(part, rename)
    state = {rename(name): value for name, value in part.state_dict().items()}
    beyond = {"backbone.layer4.0.conv1.weight": torch.zeros(1)}
    assert load_renamed(part, state | beyond, rules_for(part)).dropped == tuple(beyond)


def test_fcos_with_biases_and_a_deformable_layer():
    config = recipe("fcos_r50_fpn_1x").model
    set_tagged(config, Pretrained, None)
    config.backbone.depth, config.backbone.style = 18, "pytorch"
    config.neck.out_channels = config.head.channels = 32
    config.head.conv, config.head.last_conv = biased, partial(biased, conv=ModulatedDeformConv2d)
    model = build(config)

    def rename(name: str) -> str:
        for ours, theirs in (
            ("head.class_tower.", "bbox_head.cls_convs."),
            ("head.box_tower.", "bbox_head.reg_convs."),
            ("head.class_predictor.", "bbox_head.fcos_cls."),  # as until 2.0
            ("head.box_predictor.", "bbox_head.fcos_reg."),
            ("head.quality_predictor.", "bbox_head.fcos_centerness."),
            ("head.scales.", "bbox_head.scales."),
            ("neck.laterals.", "neck.lateral_convs."),
            ("neck.outputs.", "neck.fpn_convs."),
            ("neck.extras.0.", "neck.fpn_convs.3."),
            ("neck.extras.1.", "neck.fpn_convs.4."),
        ):
            name = name.replace(ours, theirs)
        return name.replace(".norm.", ".gn.")

    check(model, rename)
    assert "bbox_head.cls_convs.3.conv.conv_offset.weight" in map(rename, model.state_dict())
    assert "bbox_head.reg_convs.0.conv.bias" in map(rename, model.state_dict())
