import pytest
import torch
from torch import nn

from boxwright.errors import ConfigError
from boxwright.models.necks import YOLONeck
from boxwright.structures import FeatureSpec

SPECS = (FeatureSpec(6, 8), FeatureSpec(10, 16), FeatureSpec(12, 32))


def maps(size=(64, 96)) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [
        torch.randn(2, s.channels, size[0] // s.stride, size[1] // s.stride, generator=generator)
        for s in SPECS
    ]


def test_levels():
    neck = YOLONeck(SPECS, (4, 5, 6))
    outs = neck(maps())
    assert neck.specs == tuple(FeatureSpec(c, s.stride) for c, s in zip((4, 5, 6), SPECS, strict=True))
    assert [o.shape for o in outs] == [(2, 4, 8, 12), (2, 5, 4, 6), (2, 6, 2, 3)]
    shapes = [tuple(layer.conv.weight.shape) for layer in neck.blocks[0]]
    assert shapes == [(4, 10, 1, 1), (8, 4, 3, 3), (4, 8, 1, 1), (8, 4, 3, 3), (4, 8, 1, 1)]


def test_a_coarser_level_comes_first_in_the_joined_map():
    neck, inputs = YOLONeck(SPECS, (4, 5, 6)).eval(), maps()
    outs = neck(inputs)
    torch.testing.assert_close(outs[2], neck.blocks[2](inputs[2]))
    for level in (1, 0):
        up = neck.laterals[level](outs[level + 1]).repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)
        torch.testing.assert_close(outs[level], neck.blocks[level](torch.cat((up, inputs[level]), 1)))


def test_sizes_that_do_not_halve_evenly():
    inputs = [
        torch.randn(1, s.channels, *size) for s, size in zip(SPECS, [(7, 5), (4, 3), (2, 2)], strict=True)
    ]
    assert [o.shape[2:] for o in YOLONeck(SPECS, (4, 4, 4)).eval()(inputs)] == [(7, 5), (4, 3), (2, 2)]


def test_norm_and_activation():
    neck = YOLONeck(SPECS, (4, 4, 4), norm=None, activation=nn.ReLU)
    assert all(o.min() >= 0 for o in neck(maps()))
    assert min(o.min() for o in YOLONeck(SPECS, (4, 4, 4))(maps())) < 0


def test_channels_for_each_level():
    with pytest.raises(ConfigError, match="2 numbers; the backbone gives 3 levels"):
        YOLONeck(SPECS, (4, 4))
