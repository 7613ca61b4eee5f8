import math
from functools import partial

import pytest
import torch
from torch import nn

from boxwright.models.layers import (
    ConvNorm,
    FrozenBatchNorm2d,
    Scale,
    bias_for_prior,
    freeze,
    group_norm,
    init_kaiming,
    init_normal,
    init_xavier,
    set_batch_norm_eval,
)


def random_batch_norm(channels: int = 6) -> nn.BatchNorm2d:
    norm = nn.BatchNorm2d(channels)
    for tensor in (norm.weight, norm.bias, norm.running_mean, norm.running_var):
        nn.init.uniform_(tensor, 0.5, 2.0)
    return norm.eval()


def test_frozen_batch_norm_equals_batch_norm_in_evaluation():
    norm, x = random_batch_norm(), torch.randn(2, 6, 5, 7)
    frozen = FrozenBatchNorm2d(6)
    assert not frozen.load_state_dict(norm.state_dict()).missing_keys  # strict, with num_batches_tracked
    torch.testing.assert_close(frozen(x), norm(x))
    assert not list(frozen.parameters())


def test_batch_norm_loads_what_a_frozen_one_saved():
    frozen = FrozenBatchNorm2d(6)
    frozen.load_state_dict(random_batch_norm().state_dict())
    norm = nn.BatchNorm2d(6).eval()
    norm.load_state_dict(frozen.state_dict())  # strict
    x = torch.randn(1, 6, 4, 4)
    torch.testing.assert_close(norm(x), frozen(x))


def test_frozen_batch_norm_keeps_dtype_and_memory_format():
    frozen = FrozenBatchNorm2d(6)
    frozen.load_state_dict(random_batch_norm().state_dict())
    x = torch.randn(2, 6, 8, 8).to(memory_format=torch.channels_last)
    y = frozen(x.bfloat16())
    assert y.dtype == torch.bfloat16
    assert y.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(y.float(), frozen(x), rtol=2e-2, atol=5e-2)
    assert frozen.bfloat16()(x.bfloat16()).dtype == torch.bfloat16


def test_group_norm_names_groups_that_fit():
    assert group_norm(64).num_groups == 32
    with pytest.raises(ValueError, match=r"48 channels.*, groups=24\).*'group_norm\(groups=24\)'"):
        group_norm(48)
    assert partial(group_norm, groups=24)(48).num_groups == 24


@pytest.mark.parametrize("norm", [None, nn.BatchNorm2d, partial(group_norm, groups=4)])
def test_conv_norm_has_a_bias_exactly_without_norm(norm):
    layer = ConvNorm(3, 8, 3, norm=norm)
    assert (layer.conv.bias is None) == (norm is not None)
    assert layer(torch.randn(2, 3, 9, 9)).shape == (2, 8, 9, 9)
    assert layer(torch.randn(2, 3, 9, 9)).min() >= 0


def test_conv_norm_is_its_three_parts_in_order():
    layer = ConvNorm(3, 8, 5, 2, norm=nn.BatchNorm2d, activation=nn.Sigmoid, dilation=2).eval()
    x = torch.randn(1, 3, 16, 16)
    expected = torch.sigmoid(layer.norm(layer.conv(x)))
    torch.testing.assert_close(layer(x), expected)
    assert layer(x).shape == (1, 8, 8, 8)
    assert ConvNorm(3, 8, 3, padding=0)(x).shape == (1, 8, 14, 14)


def test_conv_norm_leaves_its_input_alone():
    x = torch.randn(1, 4, 3, 3)
    kept = x.clone()
    ConvNorm(4, 4, 1)(x)
    assert torch.equal(x, kept)


def test_scale_multiplies_and_keeps_the_dtype():
    scale = Scale(2.0)
    assert torch.equal(scale(torch.ones(3)), torch.full((3,), 2.0))
    assert scale(torch.ones(3, dtype=torch.bfloat16)).dtype == torch.bfloat16
    scale(torch.ones(3)).sum().backward()
    assert scale.scale.grad == 3


@pytest.mark.parametrize(
    ("initialise", "std"),
    [
        (partial(init_normal, std=0.05), 0.05),
        (init_xavier, math.sqrt(2 / (9 * 64 + 9 * 128))),
        (init_kaiming, math.sqrt(2 / (9 * 128))),
    ],
)
def test_initialisers_give_the_stated_spread(initialise, std):
    torch.manual_seed(0)
    module = nn.Sequential(nn.Conv2d(64, 128, 3), nn.ReLU())
    initialise(module)
    assert module[0].weight.std().item() == pytest.approx(std, rel=0.02)
    assert not module[0].bias.any()


def test_initialisers_leave_layers_alone_that_initialise_themselves():
    class Special(nn.Module):
        def __init__(self):
            super().__init__()
            self.offset = nn.Conv2d(2, 2, 1)
            self.reset_parameters()

        def reset_parameters(self):
            nn.init.zeros_(self.offset.weight)

    module = nn.Sequential(Special(), nn.Conv2d(2, 2, 1))
    init_normal(module, 1.0)
    assert not module[0].offset.weight.any()


def test_bias_for_prior_is_the_logit():
    assert torch.tensor(bias_for_prior(0.01)).sigmoid().item() == pytest.approx(0.01)
    with pytest.raises(ValueError, match="between 0 and 1"):
        bias_for_prior(1.0)


def test_freezing():
    module = nn.Sequential(nn.Conv2d(2, 2, 1), nn.BatchNorm2d(2), nn.SyncBatchNorm(2), nn.Dropout())
    set_batch_norm_eval(module)
    assert [layer.training for layer in module] == [True, False, False, True]
    freeze(module)
    assert not any(p.requires_grad for p in module.parameters())
    assert not any(layer.training for layer in module)
