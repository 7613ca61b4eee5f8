"""Weights made ready once: the same values, and nothing old once they change."""

import copy

import pytest
import torch
from torch import nn

from boxwright.models.backbones.folding import fold_norms
from boxwright.models.layers import ConvNorm, FrozenBatchNorm2d, StridedDepthwiseConv2d, set_folding, settle
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
        assert sum(made.packed is not None for made in kept(net)) == 5


def test_compiled_the_layers_are_what_they_were():
    net, x = make()
    settle(net)
    with torch.no_grad():
        compiled = torch.compile(net, fullgraph=True, backend="aot_eager")(x)
        assert not kept(net)
        torch.testing.assert_close(compiled, net(x))
