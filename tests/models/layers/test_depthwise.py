import copy

import pytest
import torch
from torch import nn

from boxwright.models.layers import StridedDepthwiseConv2d, use_fast_depthwise
from boxwright.models.layers.depthwise import _Depthwise


def twins(channels=6, **arguments):
    plain = nn.Sequential(nn.Conv2d(channels, channels, groups=channels, **arguments))
    fast = copy.deepcopy(plain)
    use_fast_depthwise(fast)
    assert isinstance(fast[0], StridedDepthwiseConv2d)
    assert list(fast.state_dict()) == list(plain.state_dict())
    return plain, fast


@pytest.mark.parametrize("size", [(11, 14), (8, 8), (7, 5)])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize(
    "settings", [(3, 2, 1, 1), (5, 2, 2, 1), (3, 2, 0, 1), (3, 3, 2, 2), (3, (2, 1), 1, 1)]
)
@pytest.mark.parametrize("last", [False, True])
def test_values_and_gradients_in_bf16_are_those_of_the_plain_layer(size, bias, settings, last):
    torch.manual_seed(0)
    kernel, stride, padding, dilation = settings
    plain, fast = twins(kernel_size=kernel, stride=stride, padding=padding, dilation=dilation, bias=bias)
    x = torch.randn(2, 6, *size)
    if last:
        x = x.to(memory_format=torch.channels_last)
    results = []
    for module in (plain, fast):
        inputs = x.clone().requires_grad_()
        with torch.autocast("cpu", torch.bfloat16):
            output = module(inputs)
        assert output.dtype == torch.bfloat16
        weight = torch.randn(output.shape, generator=torch.Generator().manual_seed(1))
        (output.float() * weight).sum().backward()
        results.append((output, inputs.grad, *(p.grad for p in module.parameters())))
    for expected, ours in zip(*results, strict=True):
        torch.testing.assert_close(ours, expected, rtol=0.02, atol=0.02)


def test_gradcheck():
    x = torch.randn(1, 2, 6, 7, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(2, 1, 3, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x, w: _Depthwise.apply(x, w, (2, 2), (1, 1), (1, 1)), (x, weight))


def test_only_strided_depthwise_layers_are_exchanged():
    layers = nn.Sequential(
        nn.Conv2d(4, 4, 3, groups=4),
        nn.Conv2d(4, 4, 3, stride=2),
        nn.Conv2d(4, 8, 3, stride=2, groups=4),
        nn.Conv2d(4, 4, 3, stride=2, groups=4, padding_mode="reflect"),
    )
    use_fast_depthwise(layers)
    assert all(type(layer) is nn.Conv2d for layer in layers)


def test_compiles_whole_in_bf16():
    _, fast = twins(kernel_size=3, stride=2, padding=1)
    compiled = torch.compile(fast, fullgraph=True, backend="aot_eager")
    gradients = []
    for module in (fast, compiled):
        x = torch.ones(1, 6, 8, 8, requires_grad=True)
        with torch.autocast("cpu", torch.bfloat16):
            module(x).float().pow(2).sum().backward()
        gradients.append(x.grad)
    torch.testing.assert_close(*gradients, rtol=0.02, atol=0.02)
