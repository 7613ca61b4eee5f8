"""In-place activated batch norm equals batch norm and a leaky ReLU, and keeps less."""

import copy
import os
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import nn

from boxwright.errors import ConfigError
from boxwright.models.backbones.resnet import ResNet
from boxwright.models.layers import (
    ConvNorm,
    InPlaceBatchNorm2d,
    conv_norm_act,
    leaky_relu,
    set_batch_norm_eval,
)

SCRIPT = Path(__file__).with_name("inplace_norm_ranks.py")


def pair(channels=5, dtype=torch.float64, **arguments):
    torch.manual_seed(0)
    plain, ours = nn.BatchNorm2d(channels, dtype=dtype), InPlaceBatchNorm2d(channels, **arguments).to(dtype)
    for norm in (plain, ours):
        norm.load_state_dict(plain.state_dict())
    with torch.no_grad():
        for name, value in plain.state_dict().items():
            if value.is_floating_point():
                value.copy_(torch.rand_like(value) + 0.5 if "var" in name else torch.randn_like(value))
    ours.load_state_dict(plain.state_dict())  # the same names
    return plain, ours


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-9), (torch.float32, 1e-5)])
@pytest.mark.parametrize("learning", [True, False])
@pytest.mark.parametrize(
    "activation", [None, nn.ReLU(inplace=True), nn.LeakyReLU(0.1)], ids=["none", "relu", "leaky"]
)
def test_values_gradients_and_statistics_are_those_of_two_layers(
    activation, learning, dtype, tolerance, layout
):
    plain, ours = pair(dtype=dtype)
    plain.train(learning)
    ours.train(learning)
    slope = {nn.ReLU: 0.01, nn.LeakyReLU: 0.1}.get(type(activation), 1.0)
    x = torch.randn(3, 5, 7, 6, dtype=dtype) * 2 + 1
    results = []
    for norm in (plain, ours):
        given = x.clone(memory_format=layout).requires_grad_()
        if norm is plain:
            y = nn.functional.leaky_relu(plain(given), slope)
        else:
            y = ours(given) if activation is None else ours.activated(given, activation)
        (y.sin() * y).sum().backward()
        results.append((y.detach(), given.grad, norm.weight.grad, norm.bias.grad, *norm.buffers()))
    for mine, expected in zip(*results, strict=True):
        scale = float(expected.double().abs().max().clamp(min=1))
        torch.testing.assert_close(mine, expected, rtol=0, atol=tolerance * scale)


def test_bf16_inputs_keep_their_type():
    plain, ours = pair(dtype=torch.float32)
    x, weight = torch.randn(4, 5, 9, 9).to(torch.bfloat16), torch.randn(4, 5, 9, 9)
    results = []
    for norm in (plain, ours):
        given = x.clone().requires_grad_()
        y = norm(given) if norm is plain else ours.activated(given, nn.LeakyReLU(1.0))
        (y.float() * weight).sum().backward()
        results.append((y, given.grad, norm.weight.grad))
    assert results[1][0].dtype == results[1][1].dtype == torch.bfloat16
    for mine, expected in zip(*results, strict=True):
        scale = expected.float().abs().max()
        assert (mine.float() - expected.float()).abs().max() / scale < 0.05


def test_a_scale_that_vanishes_is_held_and_learns():
    _, ours = pair()
    with torch.no_grad():
        ours.weight[:3] = torch.tensor([0.0, 1e-9, -1e-9])
    x = torch.randn(2, 5, 6, 6, dtype=torch.float64, requires_grad=True)
    y = ours.activated(x, nn.ReLU())
    y.square().sum().backward()
    for tensor in (x, ours.weight, ours.bias):
        assert tensor.grad is not None
        assert tensor.grad.isfinite().all()
        assert tensor is x or (tensor.grad[:3] != 0).all()
    plain = nn.BatchNorm2d(5, dtype=torch.float64).train()
    with torch.no_grad():
        plain.weight.copy_(ours.weight)
        plain.weight[:3] = torch.tensor([1e-4, 1e-4, -1e-4])
        plain.bias.copy_(ours.bias)
    torch.testing.assert_close(y, nn.functional.leaky_relu(plain(x), 0.01))


def test_only_the_output_is_kept():
    kept: list[tuple[int, int]] = []

    def bytes_kept(norm):
        torch.manual_seed(0)
        layers = nn.Sequential(*(ConvNorm(8, 8, 3, norm=norm, activation=leaky_relu) for _ in range(4)))
        seen = {}
        hooks = torch.autograd.graph.saved_tensors_hooks(
            lambda t: seen.__setitem__(t.untyped_storage().data_ptr(), t.untyped_storage().nbytes()) or t,
            lambda t: t,
        )
        with hooks:
            y = layers(torch.randn(2, 8, 32, 32))
        kept.append((y.untyped_storage().nbytes(), sum(seen.values())))
        return y

    outputs = [bytes_kept(nn.BatchNorm2d), bytes_kept(InPlaceBatchNorm2d)]
    torch.testing.assert_close(*outputs)
    (size, plain), (_, ours) = kept
    assert plain - ours > 3.9 * size  # one activation less in each of four layers


def test_one_argument_changes_all_norms_of_a_network():
    torch.manual_seed(0)
    network = ResNet(18, norm=InPlaceBatchNorm2d, norm_eval=False, frozen_stages=0, deep_stem=True)
    assert {type(m) for m in network.modules() if isinstance(m, nn.BatchNorm2d | nn.SyncBatchNorm)} == {
        InPlaceBatchNorm2d
    }
    torch.stack([f.square().mean() for f in network(torch.randn(2, 3, 64, 64))]).sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in network.parameters())
    fixed = copy.deepcopy(network)
    set_batch_norm_eval(fixed)
    before = {k: v.clone() for k, v in fixed.named_buffers()}
    fixed(torch.randn(2, 3, 64, 64))
    assert all(torch.equal(v, before[k]) for k, v in fixed.named_buffers())


def test_other_activations_and_slopes_are_refused():
    norm = InPlaceBatchNorm2d(4)
    with pytest.raises(ConfigError, match="cannot take over SiLU"):
        conv_norm_act(nn.Conv2d(3, 4, 1), norm, nn.SiLU(), torch.zeros(1, 3, 4, 4))
    with pytest.raises(ConfigError, match="slope=0"):
        InPlaceBatchNorm2d(4, slope=0.0)


def test_it_compiles_whole():
    torch.manual_seed(0)
    layer = ConvNorm(3, 4, 3, norm=partial(InPlaceBatchNorm2d, slope=0.02))
    x = torch.randn(2, 3, 8, 8)
    compiled = torch.compile(copy.deepcopy(layer), fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x), layer(x))


def test_statistics_of_several_ranks():
    launch = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node=2",
        str(SCRIPT),
    ]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(launch, env=environment, capture_output=True, text=True, timeout=300)
    assert "agree" in done.stdout, done.stderr[-4000:]
