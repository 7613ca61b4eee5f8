import pytest
import torch
import torch.nn.functional as F
from torch import nn

from boxwright.errors import ConfigError
from boxwright.models.layers import ConvWS2d, group_norm
from boxwright.models.necks import HRFPN
from boxwright.structures import FeatureSpec

SPECS = tuple(FeatureSpec(4 * 2**i, 4 * 2**i) for i in range(3))


def features(height: int = 32, width: int = 48) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [
        torch.randn(2, s.channels, height * 4 // s.stride, width * 4 // s.stride, generator=generator)
        for s in SPECS
    ]


@pytest.mark.parametrize("stride", [1, 2])
def test_declared_levels_are_the_real_ones(stride):
    neck = HRFPN(SPECS, 8, num_outs=4, stride=stride)
    assert neck.specs == tuple(FeatureSpec(8, 4 * stride * 2**k) for k in range(4))
    for spec, out in zip(neck.specs, neck(features()), strict=True):
        assert out.shape == (2, 8, 32 * 4 // spec.stride, 48 * 4 // spec.stride)


@pytest.mark.parametrize("pooling", ["average", "max"])
def test_levels_are_pooled_from_one_joint_map(pooling):
    torch.manual_seed(0)
    neck, maps = HRFPN(SPECS, 8, num_outs=3, pooling=pooling), features()
    raised = [F.interpolate(x, scale_factor=2**i, mode="bilinear") for i, x in enumerate(maps)]
    joint = neck.reduction.conv(torch.cat(raised, 1))
    for k, out in enumerate(neck(maps)):
        cells = joint.unflatten(2, (-1, 2**k)).unflatten(4, (-1, 2**k))
        pooled = cells.mean((3, 5)) if pooling == "average" else cells.amax((3, 5))
        torch.testing.assert_close(out, neck.outputs[k].conv(pooled), atol=1e-5, rtol=1e-4)


def test_odd_sizes_norms_and_convolutions():
    maps = [torch.randn(1, s.channels, -(-88 // s.stride), -(-100 // s.stride)) for s in SPECS]
    neck = HRFPN(SPECS, 32, num_outs=2, norm=group_norm, conv=ConvWS2d)
    assert [out.shape[2:] for out in neck(maps)] == [(22, 25), (11, 12)]
    assert sum(isinstance(m, nn.GroupNorm) for m in neck.modules()) == 3
    assert sum(isinstance(m, ConvWS2d) for m in neck.modules()) == 3


def test_compiles_and_exports():
    neck, maps = HRFPN(SPECS, 8).eval(), features()
    expected = neck(maps)
    compiled = torch.compile(neck, fullgraph=True, backend="aot_eager")(maps)
    torch.testing.assert_close(compiled, expected)
    torch.testing.assert_close(torch.export.export(neck, (maps,)).module()(maps), expected)


def test_arguments_that_do_not_fit():
    with pytest.raises(ConfigError, match="pooling is 'mean'"):
        HRFPN(SPECS, 8, pooling="mean")
    with pytest.raises(ConfigError, match="num_outs is 0"):
        HRFPN(SPECS, 8, num_outs=0)
