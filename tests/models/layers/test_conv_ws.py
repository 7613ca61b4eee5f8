import pytest
import torch
import torch.nn.functional as F
from torch import nn

from boxwright.models.layers import ConvNorm, ConvWS2d, group_norm, init_kaiming
from boxwright.models.layers.conv_ws import standardise


def test_kernels_have_mean_0_and_deviation_1():
    weight = standardise(torch.randn(5, 4, 3, 3) * 7 + 3, 1e-5).flatten(1)
    torch.testing.assert_close(weight.mean(1), torch.zeros(5), atol=1e-5, rtol=0)
    torch.testing.assert_close(weight.std(1), torch.ones(5))


def test_a_kernel_worked_by_hand():
    # Mean 3, squares 9 + 1 + 1 + 9 over three degrees of freedom.
    weight = torch.tensor([0.0, 2.0, 4.0, 6.0]).view(1, 4, 1, 1)
    expected = torch.tensor([-3.0, -1.0, 1.0, 3.0]) / (20 / 3) ** 0.5
    torch.testing.assert_close(standardise(weight, 0.0).flatten(), expected)


def test_a_constant_kernel_gives_zero():
    conv = ConvWS2d(3, 2, 3, bias=False)
    nn.init.constant_(conv.weight, 0.3)
    out = conv(torch.randn(1, 3, 5, 5))
    torch.testing.assert_close(out, torch.zeros_like(out), atol=1e-1, rtol=0)
    out.sum().backward()
    assert conv.weight.grad is not None
    assert conv.weight.grad.isfinite().all()


def test_scale_and_shift_of_the_kernel_do_not_matter():
    conv, other = (ConvWS2d(4, 6, 3, stride=2, padding=1, groups=2) for _ in range(2))
    other.load_state_dict({"weight": 5 * conv.weight - 2, "bias": conv.bias})
    x = torch.randn(2, 4, 7, 7)
    torch.testing.assert_close(conv(x), other(x), atol=1e-4, rtol=1e-4)
    expected = F.conv2d(x, standardise(conv.weight, conv.eps), conv.bias, 2, 1, 1, 2)
    torch.testing.assert_close(conv(x), expected)


def test_state_dict_and_initialisation_are_those_of_a_plain_convolution():
    conv, plain = ConvWS2d(4, 6, 3), nn.Conv2d(4, 6, 3)
    conv.load_state_dict(plain.state_dict())
    torch.manual_seed(0)
    init_kaiming(conv)
    torch.manual_seed(0)
    init_kaiming(plain)
    assert torch.equal(conv.weight, plain.weight)


@pytest.mark.parametrize("norm", [group_norm, nn.BatchNorm2d])
def test_is_not_folded_into_a_norm(norm):
    torch.manual_seed(0)
    layer = ConvNorm(8, 32, 3, norm=norm, conv=ConvWS2d).eval()
    nn.init.uniform_(layer.norm.weight, 0.5, 2.0)
    x = torch.randn(2, 8, 6, 6)
    torch.testing.assert_close(layer(x), layer.norm(layer.conv(x)).relu())


def test_autocast_and_compile():
    conv, x = ConvWS2d(4, 6, 3), torch.randn(2, 4, 7, 7)
    expected = conv(x)
    torch.testing.assert_close(torch.compile(conv, fullgraph=True, backend="aot_eager")(x), expected)
    with torch.autocast("cpu", torch.bfloat16):
        low = conv(x)
    assert low.dtype == torch.bfloat16
    torch.testing.assert_close(low.float(), expected, atol=0.15, rtol=0.05)
    assert standardise(conv.weight.bfloat16(), 1e-5).dtype == torch.bfloat16
