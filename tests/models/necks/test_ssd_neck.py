"""SSD's neck: shapes of the paper's Figure 2, the norm, and small maps."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from boxwright.errors import ConfigError
from boxwright.models.necks import SSDNeck
from boxwright.models.necks.ssd import L2Norm
from boxwright.structures import FeatureSpec

SPECS = (FeatureSpec(512, 8), FeatureSpec(1024, 16))
SSD512 = {
    "channels": (512, 256, 256, 256, 256),
    "kernels": (3, 3, 3, 3, 4),
    "strides": (2, 2, 2, 2, 1),
    "paddings": (1, 1, 1, 1, 1),
}


@pytest.mark.parametrize(
    ("arguments", "sides"),
    [({}, (38, 19, 10, 5, 3, 1)), (SSD512, (64, 32, 16, 8, 4, 2, 1))],
    ids=["ssd300", "ssd512"],
)
def test_sides_of_the_levels(arguments: dict, sides: tuple[int, ...]):
    with torch.device("meta"):
        neck = SSDNeck(SPECS, **arguments)
        maps = neck([torch.zeros(1, s.channels, n, n) for s, n in zip(SPECS, sides, strict=False)])
    assert [tuple(m.shape[1:]) for m in maps] == [
        (s.channels, n, n) for s, n in zip(neck.specs, sides, strict=True)
    ]
    assert [spec.stride for spec in neck.specs][:5] == [8, 16, 32, 64, 64 if not arguments else 128]


@given(st.integers(1, 40), st.integers(1, 40))
@settings(max_examples=15, deadline=None)
def test_every_level_of_a_small_canvas_has_a_place(height: int, width: int):
    specs = (FeatureSpec(2, 8), FeatureSpec(4, 16))
    neck = SSDNeck(specs, channels=(4, 4, 4, 4))
    maps = neck([torch.randn(1, 2, height, width), torch.randn(1, 4, -(-height // 2), -(-width // 2))])
    assert len(maps) == len(neck.specs)
    assert all(m.shape[2] >= 1 and m.shape[3] >= 1 and m.isfinite().all() for m in maps)


def test_extra_levels_by_hand():
    neck = SSDNeck((FeatureSpec(2, 8),), channels=(4,), kernels=(3,), strides=(2,), paddings=(1,))
    x = torch.randn(2, 2, 5, 7).relu()
    squeeze, expand = (layer.conv for layer in neck.extras[0])
    middle = F.conv2d(x, squeeze.weight, squeeze.bias).relu()
    expected = F.conv2d(middle, expand.weight, expand.bias, stride=2, padding=1).relu()
    first, second = neck([x])
    torch.testing.assert_close(second, expected)
    torch.testing.assert_close(first, 20 * x / x.square().sum(1, keepdim=True).sqrt().clamp(min=1e-10))


def test_the_norm_of_nothing_is_nothing():
    norm = L2Norm(3)
    x = torch.zeros(1, 3, 2, 2, requires_grad=True)
    y = norm(x.relu())
    assert torch.equal(y, torch.zeros_like(y))
    y.sum().backward()
    assert x.grad is not None
    assert x.grad.isfinite().all()
    assert norm.weight.grad is not None
    assert norm.weight.grad.isfinite().all()


def test_the_norm_keeps_the_dtype():
    assert L2Norm(3)(torch.rand(1, 3, 2, 2, dtype=torch.bfloat16)).dtype == torch.bfloat16


def test_lengths_have_to_agree():
    with pytest.raises(ConfigError, match="but have 4, 3, 4 and 4"):
        SSDNeck(SPECS, kernels=(3, 3, 3))
