"""The fully connected layer of a CPU equals PyTorch's."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from boxwright.ops.linear import has_product, linear, use_fast_linear

SIZES = st.integers(1, 70)


@given(SIZES, SIZES, SIZES, st.booleans(), st.booleans())
def test_values_and_gradients_are_those_of_pytorch(rows, inputs, outputs, with_bias, transposed):
    g = torch.Generator().manual_seed(rows * 1000 + inputs * 70 + outputs)
    x = torch.randn(inputs, rows, generator=g).t() if transposed else torch.randn(rows, inputs, generator=g)
    weight, bias = torch.randn(outputs, inputs, generator=g), torch.randn(outputs, generator=g)
    grad = torch.randn(rows, outputs, generator=g)
    results = []
    for function in (linear, F.linear):
        leaves = [t.clone().requires_grad_() for t in (x, weight, bias)]
        y = function(*leaves[: 2 + with_bias])
        results.append((y, *torch.autograd.grad(y, leaves[: 2 + with_bias], grad)))
    for ours, theirs in zip(*results, strict=True):
        assert torch.allclose(ours, theirs, atol=1e-4, rtol=1e-4)


def test_no_rows():
    layer = nn.Linear(3, 2)
    use_fast_linear(layer)
    y = layer(torch.zeros(0, 3, requires_grad=True))
    y.sum().backward()
    assert y.shape == (0, 2)
    assert layer.weight.grad is not None
    assert torch.equal(layer.weight.grad, torch.zeros(2, 3))


def test_a_module_keeps_its_names_and_computes_by_it(monkeypatch):
    module = nn.Sequential(nn.Linear(8, 4), nn.ReLU(), nn.Linear(4, 2))
    x, names = torch.randn(5, 8), list(module.state_dict())
    expected = module(x)
    use_fast_linear(module)
    called = []
    monkeypatch.setattr("boxwright.ops.linear.linear", lambda *a: called.append(1) or F.linear(*a))
    assert torch.equal(module(x), expected)
    assert len(called) == 2
    assert list(module.state_dict()) == names


def test_what_it_is_not_for_is_left_to_pytorch():
    weight = torch.randn(4, 8)
    assert linear(torch.randn(2, 3, 8), weight).shape == (2, 3, 4)
    assert linear(torch.randn(3, 8).double(), weight.double()).dtype == torch.float64
    with torch.autocast("cpu", torch.bfloat16):
        assert linear(torch.randn(3, 8), weight).dtype == torch.bfloat16


@pytest.mark.skipif(not has_product(), reason="this build of PyTorch has no oneDNN")
def test_it_compiles_whole():
    layer = nn.Linear(8, 4)
    use_fast_linear(layer)
    x = torch.randn(5, 8)
    assert torch.allclose(torch.compile(layer, fullgraph=True, backend="aot_eager")(x), layer(x), atol=1e-5)
