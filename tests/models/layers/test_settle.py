"""Weights made ready once: the same values, and nothing old once they change."""

import copy
import sys

import pytest
import torch
from torch import nn

from boxwright.models.backbones.folding import fold_norms
from boxwright.models.backbones.resnet_blocks import BlockStyle, Bottleneck
from boxwright.models.layers import (
    ConvNorm,
    FrozenBatchNorm2d,
    StridedDepthwiseConv2d,
    conv_norm,
    set_folding,
    settle,
)
from boxwright.models.layers.settle import Ready, has_packing
from boxwright.ops.linear import use_fast_linear


class Net(nn.Module):
    """One layer of each kind; the last convolution and its norm are found by tracing."""

    def __init__(self) -> None:
        super().__init__()
        self.first = ConvNorm(3, 8, 3, norm=nn.BatchNorm2d)
        self.second = ConvNorm(8, 8, 1, norm=FrozenBatchNorm2d, activation=None)
        self.plain = nn.Conv2d(8, 8, 3, padding=1)
        self.strided = StridedDepthwiseConv2d(8, 8, 3, stride=2, padding=1, groups=8)
        self.up = nn.ConvTranspose2d(8, 4, 2, stride=2)
        self.traced = nn.Sequential(nn.Conv2d(4, 6, 3, bias=False), nn.BatchNorm2d(6), nn.ReLU())
        self.linear = nn.Linear(6, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.up(self.strided(self.plain(self.second(self.first(x)))))
        return self.linear(self.traced(x).mean((2, 3)))


def make() -> tuple[Net, torch.Tensor]:
    torch.manual_seed(0)
    net = Net()
    for name, value in net.named_buffers():
        if value.dim():
            value.uniform_(0.5, 1.5) if "var" in name or "weight" in name else value.normal_()
    assert fold_norms(net.traced) == 1
    return net.eval(), torch.randn(2, 3, 12, 10).contiguous(memory_format=torch.channels_last)


def kept(net: nn.Module) -> list[Ready]:
    return [r for layer in net.modules() for r in layer.__dict__.get("ready", {}).values()]


@pytest.mark.parametrize("low", [False, True])
def test_values_are_the_same(low: bool):
    net, x = make()
    set_folding(net, "always")
    use_fast_linear(net)
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16, enabled=low):
        expected = net(x)
        settle(net)
        first, again = net(x), net(x)
    tolerance = {"rtol": 2**-7, "atol": 2**-7} if low else {}
    torch.testing.assert_close(first, expected, **tolerance)
    assert torch.equal(again, first)
    assert {made.weight.dtype for made in kept(net)} == {torch.bfloat16 if low else torch.float32}
    assert len(kept(net)) == 7


def test_what_is_kept_is_used_again():
    net, x = make()
    settle(net)
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        net(x)
        before = [id(made) for made in kept(net)]
        net(x)
    assert [id(made) for made in kept(net)] == before


@pytest.mark.parametrize(
    "name",
    ["first.conv.weight", "first.norm.running_var", "linear.bias", "traced.1.running_mean", "up.weight"],
)
def test_changed_weights_are_made_ready_anew(name: str):
    net, x = make()
    settle(net)
    with torch.inference_mode():
        before = net(x)
    state = net.state_dict()
    net.load_state_dict(state | {name: state[name] * 2 + 1})
    fresh, _ = make()
    fresh.load_state_dict(net.state_dict())
    with torch.inference_mode():
        torch.testing.assert_close(net(x), fresh(x))
        assert (net(x) - before).abs().max() > 1e-3


def test_training_and_copies_are_as_if_nothing_had_been_kept():
    net, x = make()
    expected = torch.autograd.grad(net.train()(x).sum(), list(net.parameters()))
    settle(net.eval())
    with torch.inference_mode():
        net(x)
    copied = copy.deepcopy(net)
    assert kept(net)
    assert not kept(copied)
    assert copied.plain.forward.args[0] is copied.plain  # pyright: ignore
    for module in (net, copied):
        found = torch.autograd.grad(module.train()(x).sum(), list(module.parameters()))
        for ours, theirs in zip(found, expected, strict=True):
            torch.testing.assert_close(ours, theirs)
    assert net.state_dict().keys() == make()[0].state_dict().keys()


def test_convolutions_lie_in_onednns_order_whatever_the_size_of_the_image():
    net, x = make()
    set_folding(net, "always")
    settle(net)
    expected = make()[0]
    with torch.inference_mode():
        for size in (12, 20, 9):
            image = x.repeat(1, 1, 3, 3)[:, :, :size, :size].contiguous(memory_format=torch.channels_last)
            torch.testing.assert_close(net(image), expected(image))
    if has_packing():
        assert [len(made.packed) for made in kept(net) if made.packed] == [3] * 5


@pytest.mark.skipif(not has_packing(), reason="oneDNN's convolutions are not in this build")
def test_levels_of_one_layer_each_have_a_sorted_kernel_and_share_it_where_it_lies_alike():
    layer = nn.Conv2d(64, 64, 3, padding=1)
    settle(layer)
    levels = [torch.randn(1, 64, n, n).contiguous(memory_format=torch.channels_last) for n in (40, 20, 10)]
    with torch.inference_mode():
        for x in levels * 2:
            torch.testing.assert_close(layer(x), layer._conv_forward(x, layer.weight, layer.bias))
    (made,) = kept(layer)
    assert set(made.packed) == {x.shape for x in levels}
    assert len({id(kernel) for kernel in made.packed.values()}) < 3
    assert all(kernel.is_mkldnn for kernel in made.packed.values())


def test_sizes_without_end_are_not_all_kept(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(sys.modules[Ready.__module__], "SHAPES", 2)
    layer = nn.Conv2d(4, 4, 3, padding=1)
    settle(layer)
    with torch.inference_mode():
        for n in range(8, 14):
            x = torch.randn(1, 4, n, n).contiguous(memory_format=torch.channels_last)
            torch.testing.assert_close(layer(x), layer._conv_forward(x, layer.weight, layer.bias))
    assert len(kept(layer)[0].packed) == (2 if has_packing() else 0)


@pytest.mark.parametrize("low", [False, True])
@pytest.mark.parametrize("norm", [FrozenBatchNorm2d, None])
@pytest.mark.parametrize("added", [False, True])
@pytest.mark.parametrize("activation", [nn.ReLU(True), nn.ReLU6(), nn.LeakyReLU(0.1), nn.SiLU(), None])
def test_sum_and_activation_are_done_by_the_convolution(activation, added: bool, norm, low: bool):
    torch.manual_seed(0)
    conv, norm = nn.Conv2d(16, 16, 3, padding=1), None if norm is None else norm(16)
    x, other = (torch.randn(1, 16, 9, 7).contiguous(memory_format=torch.channels_last) * 4 for _ in range(2))
    before = other.clone()
    set_folding(conv, "always")
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16, enabled=low):
        shortcut = (other.bfloat16() if low else other) if added else None
        expected = conv_norm(conv, norm, x, activation, shortcut)
        settle(conv)
        found = conv_norm(conv, norm, x, activation, shortcut)
    torch.testing.assert_close(found, expected, rtol=2**-6 if low else 1e-5, atol=2**-5 if low else 1e-5)
    assert torch.equal(other, before)  # the shortcut may be a level that others read


@pytest.mark.skipif(not has_packing(), reason="oneDNN's convolutions are not in this build")
@pytest.mark.parametrize("traced", [False, True])
def test_residual_blocks_leave_no_sum_and_no_activation_behind(traced: bool):
    block = Bottleneck(
        16, 4, 1, BlockStyle(1, 64, False, False, 1, FrozenBatchNorm2d, nn.Conv2d, nn.Conv2d, None)
    )
    net = block.eval()
    if traced:
        net = nn.Sequential(nn.Conv2d(16, 16, 1), nn.BatchNorm2d(16), nn.ReLU6()).eval()
        assert fold_norms(net) == 1
    set_folding(net, "always")
    settle(net)
    x = torch.randn(1, 16, 8, 8).contiguous(memory_format=torch.channels_last)
    with torch.inference_mode():
        net(x)
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profiled:
            net(x)
    names = {event.key for event in profiled.key_averages()}
    assert "mkldnn::_convolution_pointwise" in names
    assert not names & {"aten::add", "aten::relu_", "aten::clamp_min_", "aten::hardtanh", "aten::hardtanh_"}


def test_compiled_the_layers_are_what_they_were():
    net, x = make()
    settle(net)
    with torch.no_grad():
        compiled = torch.compile(net, fullgraph=True, backend="aot_eager")(x)
        assert not kept(net)
        torch.testing.assert_close(compiled, net(x))
