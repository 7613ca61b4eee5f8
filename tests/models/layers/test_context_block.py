import pytest
import torch
from torch import nn

from boxwright.errors import ConfigError
from boxwright.models.layers import ContextBlock, init_kaiming


def shaken(**arguments) -> ContextBlock:
    torch.manual_seed(0)
    block = ContextBlock(8, ratio=0.5, **arguments)
    for parameter in block.parameters():
        nn.init.normal_(parameter)
    return block


def test_starts_as_the_identity():
    x = torch.randn(2, 16, 5, 6)
    block = ContextBlock(16)
    init_kaiming(nn.Sequential(block))  # leaves it alone
    assert torch.equal(block(x), x)
    # Multiplied by sigmoid(0).
    assert torch.equal(ContextBlock(16, fusions=("scale",))(x), x / 2)
    assert torch.equal(ContextBlock(16, fusions=("add", "scale"))(x), x / 2)


@pytest.mark.parametrize("pooling", ["attention", "average"])
@pytest.mark.parametrize("fusions", [("add",), ("scale",), ("add", "scale")])
def test_is_what_the_equation_says_place_by_place(pooling, fusions):
    block, x = shaken(pooling=pooling, fusions=fusions), torch.randn(2, 8, 3, 4)
    found = block(x)
    for image, out in zip(x, found, strict=True):
        places = image.flatten(1).T  # (12, 8)
        weights = torch.full((12,), 1 / 12)
        if pooling == "attention":
            logits = places @ block.attention.weight[0, :, 0, 0] + block.attention.bias
            weights = logits.exp() / logits.exp().sum()
        context = (weights[:, None] * places).sum(0)
        expected = places
        if "scale" in fusions:
            expected = expected * transform(block.scale, context).sigmoid()
        if "add" in fusions:
            expected = expected + transform(block.add, context)
        torch.testing.assert_close(out.flatten(1).T, expected, atol=1e-4, rtol=1e-4)


def transform(layers: nn.Sequential, context: torch.Tensor) -> torch.Tensor:
    """W2 relu(LN(W1 context)) with matrices and vectors."""
    first, norm, _, last = layers
    hidden = first.weight[:, :, 0, 0] @ context + first.bias
    hidden = (hidden - hidden.mean()) / (hidden.var(correction=0) + norm.eps).sqrt()
    hidden = (hidden * norm.weight[:, 0, 0] + norm.bias[:, 0, 0]).relu()
    return last.weight[:, :, 0, 0] @ hidden + last.bias


def test_context_does_not_depend_on_where_things_are():
    block, x = shaken(), torch.randn(1, 8, 4, 5)
    order = torch.randperm(20)
    shuffled = x.flatten(2)[:, :, order].unflatten(2, (4, 5))
    torch.testing.assert_close(block(shuffled).flatten(2), block(x).flatten(2)[:, :, order])


def test_autocast_compile_and_export():
    block, x = shaken(fusions=("add", "scale")), torch.randn(2, 8, 4, 5)
    expected = block(x)
    torch.testing.assert_close(torch.compile(block, fullgraph=True, backend="aot_eager")(x), expected)
    torch.testing.assert_close(torch.export.export(block, (x,)).module()(x), expected)
    with torch.autocast("cpu", torch.bfloat16):
        assert block(x.bfloat16()).dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"ratio": 1 / 16}, "of 8 channels that leaves none"),
        ({"ratio": 0.5, "pooling": "max"}, "pooling is 'max'"),
        ({"ratio": 0.5, "fusions": ()}, "fusions is"),
        ({"ratio": 0.5, "fusions": ("concat",)}, "fusions is"),
    ],
)
def test_arguments_that_do_not_fit(arguments, message):
    with pytest.raises(ConfigError, match=message):
        ContextBlock(8, **arguments)
