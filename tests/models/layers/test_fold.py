import copy

import pytest
import torch
from torch import nn

from boxwright.models.layers import FrozenBatchNorm2d, conv_norm, group_norm


@pytest.fixture
def folded(monkeypatch):
    """Fold in float32, too, where the two ways can be compared closely."""
    monkeypatch.setattr("boxwright.models.layers.fold.in_low_precision", lambda x: True)


def layers(norm, bias=False, seed=0):
    torch.manual_seed(seed)
    conv, norm = nn.Conv2d(4, 6, 3, stride=2, padding=1, bias=bias), norm(6)
    for name, value in norm.state_dict().items():
        if value.dim():
            value.uniform_(0.5, 1.5) if "var" in name or "weight" in name else value.normal_()
    return conv, norm


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize(
    "norm",
    [
        nn.BatchNorm2d,
        FrozenBatchNorm2d,
        lambda c: nn.BatchNorm2d(c, affine=False),
        lambda c: group_norm(c, 3),
    ],
)
def test_values_and_gradients_are_those_of_the_two_layers(norm, bias, folded):
    conv, norm = layers(norm, bias)
    norm.eval()
    results = []
    for run in (conv_norm, lambda conv, norm, x: norm(conv(x))):
        module = nn.ModuleList((copy.deepcopy(conv), copy.deepcopy(norm)))
        x = torch.randn(2, 4, 9, 7, generator=torch.Generator().manual_seed(1)).requires_grad_()
        output = run(module[0], module[1], x)
        output.pow(3).sum().backward()
        results.append((output.detach(), x.grad, *(p.grad for p in module.parameters())))
    for ours, expected in zip(*results, strict=True):
        torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-3)


def test_a_norm_that_learns_statistics_is_called(folded):
    conv, norm = layers(nn.BatchNorm2d)
    x = torch.randn(2, 4, 8, 8)
    expected = copy.deepcopy(norm)(conv(x))
    before = norm.running_mean.clone()
    torch.testing.assert_close(conv_norm(conv, norm, x), expected)
    assert not torch.equal(norm.running_mean, before)
    no_statistics = nn.BatchNorm2d(6, track_running_stats=False).eval()
    torch.testing.assert_close(conv_norm(conv, no_statistics, x), no_statistics(conv(x)))


def test_only_low_precision_is_folded():
    conv, norm = layers(nn.BatchNorm2d)
    norm.eval()
    x = torch.randn(2, 4, 8, 8)
    assert torch.equal(conv_norm(conv, norm, x), norm(conv(x)))
    calls = []
    norm.register_forward_hook(lambda *_: calls.append(1))
    with torch.autocast("cpu", torch.bfloat16):
        output = conv_norm(conv, norm, x)
    assert output.dtype == torch.bfloat16
    assert not calls


def test_no_activation_of_the_convolution_is_kept_for_the_gradient(folded):
    conv, norm = layers(nn.BatchNorm2d)
    norm.eval()
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.shape) or t, lambda t: t):
        output = conv_norm(conv, norm, torch.randn(2, 4, 8, 8))
    assert output.requires_grad
    assert output.shape not in kept


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("last", [False, True])
def test_gradients_of_pointwise_convolutions_in_bf16_are_those_of_the_convolution(stride, bias, last):
    torch.manual_seed(0)
    conv, norm = nn.Conv2d(24, 40, 1, stride=stride, bias=bias), nn.BatchNorm2d(40).eval()
    layout = torch.channels_last if last else torch.contiguous_format
    x = torch.randn(2, 24, 9, 7).bfloat16().float().contiguous(memory_format=layout)
    upstream = torch.randn(2, 40, -(-9 // stride), -(-7 // stride)).bfloat16()
    results = []
    for low in (True, False):
        leaf, module = x.clone().requires_grad_(), nn.ModuleList(copy.deepcopy((conv, norm)))
        with torch.autocast("cpu", torch.bfloat16, enabled=low):
            output = conv_norm(module[0], module[1], leaf)
        output.backward(upstream.to(output.dtype))
        results.append((leaf.grad, *(p.grad for p in module.parameters())))
    for found, expected in zip(*results, strict=True):
        assert found.shape == expected.shape
        assert (found - expected).abs().max() < 2**-6 * expected.abs().max()
