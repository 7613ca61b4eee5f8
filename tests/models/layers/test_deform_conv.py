from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from boxwright.models.layers import (
    ConvNorm,
    DeformConv2d,
    ModulatedDeformConv2d,
    OffsetDeformConv2d,
    init_kaiming,
    init_normal,
)
from boxwright.ops.deform_conv import deform_conv2d

OWN = (OffsetDeformConv2d, ModulatedDeformConv2d)


@pytest.mark.parametrize("layer", OWN)
@pytest.mark.parametrize(
    "settings",
    [
        {"kernel_size": 3, "padding": 1},
        {"kernel_size": 3, "stride": 2, "padding": 2, "dilation": 2, "groups": 2, "deform_groups": 4},
        {"kernel_size": 1, "bias": False},
    ],
)
def test_starts_as_a_plain_convolution(layer, settings):
    conv = layer(8, 6, **settings)
    if conv.bias is not None:
        nn.init.normal_(conv.bias)
    plain = nn.Conv2d(8, 6, **{k: v for k, v in settings.items() if k != "deform_groups"})
    state = {name: value for name, value in conv.state_dict().items() if "conv_offset" not in name}
    plain.load_state_dict(state)  # strict: the same names and shapes
    x = torch.randn(2, 8, 9, 7)
    expected = plain(x)
    if layer is ModulatedDeformConv2d:  # the factors of the taps start at 0.5
        bias = 0 if conv.bias is None else conv.bias[:, None, None]
        expected = (expected - bias) / 2 + bias
    torch.testing.assert_close(conv(x), expected, atol=1e-5, rtol=1e-4)


def test_bare_form_takes_offsets_and_factors_from_outside():
    conv = DeformConv2d(8, 6, 3, padding=1, deform_groups=4, bias=False)
    assert {n for n, _ in conv.named_parameters()} == {"weight"}
    assert conv.taps == 36
    x, offset, mask = torch.randn(2, 8, 5, 6), torch.randn(2, 72, 5, 6), torch.rand(2, 36, 5, 6)
    torch.testing.assert_close(conv(x, offset), deform_conv2d(x, offset, conv.weight, padding=1))
    torch.testing.assert_close(
        conv(x, offset, mask), deform_conv2d(x, offset, conv.weight, padding=1, mask=mask)
    )


def test_own_offsets_are_made_tap_by_tap_vertical_first():
    conv = OffsetDeformConv2d(4, 4, 3, padding=1, bias=False)
    with torch.no_grad():
        conv.conv_offset.bias[0::2] = 1.0  # all taps one row down
    x = torch.randn(1, 4, 6, 6)
    below = F.pad(x, (0, 0, 0, 1))[:, :, 1:]
    # Rows near the top read one row that the shifted map no longer has; compare the others.
    torch.testing.assert_close(
        conv(x)[:, :, 1:], F.conv2d(below, conv.weight, padding=1)[:, :, 1:], atol=1e-5, rtol=1e-4
    )


def test_factors_are_the_last_third_of_what_the_extra_convolution_makes():
    conv = ModulatedDeformConv2d(4, 4, 3, padding=1, bias=False, deform_groups=2)
    assert conv.conv_offset.out_channels == 54
    with torch.no_grad():
        conv.conv_offset.bias[36:] = 50.0  # a sigmoid of 1
    x = torch.randn(1, 4, 6, 6)
    torch.testing.assert_close(conv(x), F.conv2d(x, conv.weight, padding=1), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("layer", OWN)
def test_initialisers_leave_the_offsets_at_zero(layer):
    module = nn.Sequential(ConvNorm(4, 4, 3, norm=nn.BatchNorm2d, conv=partial(layer, deform_groups=2)))
    for initialise in (init_kaiming, init_normal):
        initialise(module)
        assert not any(p.any() for p in module[0].conv.conv_offset.parameters())
        assert module[0].conv.weight.any()


@pytest.mark.parametrize("layer", OWN)
def test_offsets_learn(layer):
    torch.manual_seed(0)
    conv = layer(4, 4, 3, padding=1)
    conv(torch.randn(1, 4, 6, 6)).square().sum().backward()
    assert conv.conv_offset.weight.grad is not None
    assert conv.conv_offset.weight.grad.abs().sum() > 0


@pytest.mark.parametrize("layer", OWN)
def test_compiles_and_exports(layer):
    torch.manual_seed(0)
    conv, x = layer(4, 6, 3, stride=2, padding=1), torch.randn(2, 4, 8, 8)
    nn.init.normal_(conv.conv_offset.weight, std=0.1)
    expected = conv(x)
    torch.testing.assert_close(torch.compile(conv, fullgraph=True, backend="aot_eager")(x), expected)
    torch.testing.assert_close(torch.export.export(conv, (x,)).module()(x), expected)


@pytest.mark.parametrize("layer", OWN)
def test_autocast_and_channels_last(layer):
    conv = layer(4, 6, 3, padding=1).to(memory_format=torch.channels_last)
    x = torch.randn(2, 4, 8, 8).to(memory_format=torch.channels_last)
    expected = conv(x)
    with torch.autocast("cpu", torch.bfloat16):
        found = conv(x.bfloat16())
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found.float(), expected, atol=0.05, rtol=0.05)


def test_groups_have_to_divide_the_channels():
    with pytest.raises(ValueError, match="deform_groups is 3"):
        DeformConv2d(8, 8, 3, deform_groups=3)
    with pytest.raises(ValueError, match="groups is 5"):
        OffsetDeformConv2d(8, 8, 3, groups=5)
