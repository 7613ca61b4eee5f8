"""MMDetection's names of what its blocks and backbones add, where no recorded configuration has them."""

from functools import partial

import pytest
import torch
from torch import nn

from boxwright.config import Pretrained, build, set_tagged
from boxwright.interop.mmdetection import rules_for
from boxwright.interop.renaming import load_renamed
from boxwright.models.layers import ContextBlock, ModulatedDeformConv2d, group_norm
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
