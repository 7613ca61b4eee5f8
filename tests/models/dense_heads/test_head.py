"""The convolutions of a dense head's towers."""

from __future__ import annotations

import torch
from fiddle import Partial

from boxwright.config import build
from boxwright.models.dense_heads import DenseHead
from boxwright.models.layers import OffsetDeformConv2d, biased, group_norm
from boxwright.recipes import atss
from boxwright.structures import FeatureSpec

SPECS = [FeatureSpec(8, 8), FeatureSpec(8, 16)]


def make(**changes: object) -> DenseHead:
    config: Partial = atss.head()
    config.num_classes, config.channels, config.norm = 2, 8, Partial(group_norm, groups=2)
    for name, value in changes.items():
        setattr(config, name, value)
    return build(config)(SPECS)


def test_a_deformable_last_layer_starts_as_a_plain_one() -> None:
    torch.manual_seed(0)
    plain, deformable = make(), make(last_conv=OffsetDeformConv2d)
    kinds = [type(layer.conv) for layer in deformable.class_tower]
    assert kinds == [torch.nn.Conv2d] * 3 + [OffsetDeformConv2d]
    assert isinstance(deformable.box_tower[-1].conv, OffsetDeformConv2d)
    missing, unexpected = deformable.load_state_dict(plain.state_dict(), strict=False)
    assert not unexpected
    assert {name.rpartition("conv_offset.")[2] for name in missing} == {"weight", "bias"}
    features = [torch.randn(1, 8, 8, 8), torch.randn(1, 8, 4, 4)]
    with torch.no_grad():
        ours, expected = deformable(features), plain(features)
    torch.testing.assert_close(ours.class_logits, expected.class_logits)
    torch.testing.assert_close(ours.codes, expected.codes)


def test_a_bias_before_the_norm() -> None:
    head = make(conv=biased)
    assert all(layer.conv.bias is not None for layer in (*head.class_tower, *head.box_tower))
    assert make().class_tower[0].conv.bias is None
