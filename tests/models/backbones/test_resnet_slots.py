"""What later papers put into ResNet's slots: deformable convolutions, context blocks, other norms."""

from functools import partial

import pytest
import torch
from torch import nn

from boxwright.errors import CheckpointError
from boxwright.models.backbones import ResNet, TimmBackbone
from boxwright.models.layers import (
    ContextBlock,
    ConvWS2d,
    ModulatedDeformConv2d,
    OffsetDeformConv2d,
    group_norm,
)


def build(depth: int = 18, **arguments) -> ResNet:
    torch.manual_seed(0)
    return ResNet(depth, frozen_stages=0, **arguments).eval()


def test_deformable_stages_begin_as_plain_ones():
    plain = build(50, groups=32, width_per_group=4)
    slots = (None, *[partial(OffsetDeformConv2d, deform_groups=4)] * 3)
    deformed = build(50, groups=32, width_per_group=4, conv3x3=slots)
    lacking = deformed.load_state_dict(plain.state_dict(), strict=False)
    assert not lacking.unexpected_keys
    assert all(".conv2.conv_offset." in name for name in lacking.missing_keys)
    assert len(lacking.missing_keys) == 2 * (4 + 6 + 3)
    assert type(deformed.layer1[0].conv2) is nn.Conv2d
    assert deformed.layer4[0].conv2.stride == (2, 2)
    x = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        for a, b in zip(deformed(x), plain(x), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4 * b.abs().max().item())


def test_context_blocks_begin_as_the_plain_network():
    plain, block = build(), partial(ContextBlock, ratio=1 / 4)
    with_blocks = build(plugins=(None, block, block, block))
    lacking = with_blocks.load_state_dict(plain.state_dict(), strict=False)
    assert all(".plugin." in name for name in lacking.missing_keys)
    x = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(with_blocks(x), plain(x))


def test_weights_of_the_plain_network_load_and_of_the_changed_one_too(tmp_path):
    plain = build()
    torch.save(plain.state_dict(), tmp_path / "plain.pth")
    slots = {
        "conv3x3": (None, None, None, ModulatedDeformConv2d),
        "plugins": (None, None, partial(ContextBlock, ratio=1 / 4), None),
    }
    changed = build(**slots, weights=tmp_path / "plain.pth")
    assert torch.equal(changed.layer4[0].conv2.weight, plain.layer4[0].conv2.weight)
    assert not changed.layer4[0].conv2.conv_offset.weight.any()
    nn.init.normal_(changed.layer4[0].conv2.conv_offset.weight)
    torch.save(changed.state_dict(), tmp_path / "changed.pth")
    again = build(**slots, weights=tmp_path / "changed.pth")
    for a, b in zip(again.state_dict().values(), changed.state_dict().values(), strict=True):
        assert torch.equal(a, b)
    with pytest.raises(CheckpointError, match="unexpected"):  # the plain network has no place for offsets
        build(weights=tmp_path / "changed.pth")


def test_group_norms_under_mmdetections_names_load(tmp_path):
    net = build(norm=group_norm, conv=ConvWS2d)
    state = {
        name.replace("bn1.", "gn1.").replace("bn2.", "gn2."): value
        for name, value in net.state_dict().items()
    }
    assert "layer1.0.gn2.weight" in state
    nn.init.normal_(state["layer1.0.gn2.weight"])
    torch.save({"state_dict": state}, tmp_path / "gn.pth")
    loaded = build(norm=group_norm, conv=ConvWS2d, weights=tmp_path / "gn.pth")
    assert torch.equal(loaded.layer1[0].bn2.weight, state["layer1.0.gn2.weight"])
    with pytest.raises(CheckpointError, match="missing"):  # a batch norm has statistics, too
        build(weights=tmp_path / "gn.pth")


def test_norms_and_convolutions_are_exchanged_throughout():
    net = build(50, norm=group_norm, conv=ConvWS2d)
    assert all(isinstance(m, ConvWS2d) for m in net.modules() if isinstance(m, nn.Conv2d))
    assert not any(isinstance(m, nn.BatchNorm2d) for m in net.modules())
    with torch.no_grad():
        assert all(f.isfinite().all() for f in net(torch.randn(1, 3, 64, 64)))


def test_a_plugin_behind_each_level_of_a_timm_network():
    torch.manual_seed(0)
    plain = TimmBackbone("mobilenetv2_050", min_stride=8).eval()
    backbone = TimmBackbone("mobilenetv2_050", min_stride=8, plugin=partial(ContextBlock, ratio=0.5)).eval()
    backbone.net.load_state_dict(plain.net.state_dict())
    x = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(backbone(x), plain(x))
        nn.init.ones_(backbone.plugins[1].add[-1].bias)
        torch.testing.assert_close(backbone(x)[1], plain(x)[1] + 1)
