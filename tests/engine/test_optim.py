"""Parameter groups, the scaling rule and fused kernels."""

import pytest
import torch
from torch import nn

from boxwright.engine import adamw, scale_lr, scale_optimizer, sgd
from boxwright.engine.optim import parameter_groups
from boxwright.errors import ConfigError


class CustomNorm(nn.Module):
    def __init__(self):
        super().__init__()
        self.gain = nn.Parameter(torch.ones(3))


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.backbone = nn.Sequential(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3), CustomNorm())
        self.head = nn.Sequential(nn.Conv2d(3, 3, 1), nn.GroupNorm(1, 3))
        self.scale = nn.Parameter(torch.ones(()))


def test_groups_by_kind_and_place():
    model = Model()
    model.backbone[0].weight.requires_grad_(False)
    groups = {g["name"]: g for g in parameter_groups(model, 0.1, 1e-4, 0.0, 5e-5, 2.0, 0.1)}
    shapes = {name: len(group["params"]) for name, group in groups.items()}
    assert shapes == {"weight": 2, "backbone.bias": 1, "backbone.norm": 3, "bias": 1, "norm": 2}
    assert groups["norm"]["weight_decay"] == 0
    assert groups["bias"]["weight_decay"] == 5e-5
    assert groups["weight"]["weight_decay"] == 1e-4
    assert groups["bias"]["lr"] == pytest.approx(0.2)
    assert groups["backbone.bias"]["lr"] == pytest.approx(0.02)
    assert groups["backbone.norm"]["lr"] == groups["backbone.norm"]["initial_lr"] == pytest.approx(0.01)


def test_factors_by_name_multiply_the_others():
    factors = {"head.0": 0.1, "scale": 3.0}
    groups = parameter_groups(Model(), 0.1, 1e-4, bias_lr_factor=2.0, lr_factors=factors)
    lr = {g["name"]: g["lr"] for g in groups}
    assert lr["weight head.0"] == pytest.approx(0.01)
    assert lr["bias head.0"] == pytest.approx(0.02)
    assert lr["weight scale"] == pytest.approx(0.3)
    assert lr["norm"] == lr["backbone.weight"] == pytest.approx(0.1)
    assert sum(len(g["params"]) for g in groups) == len(list(Model().parameters()))
    with pytest.raises(ConfigError, match="conv_offset"):
        sgd(Model(), 0.1, lr_factors={"conv_offset": 0.1})


def test_shared_parameters_are_counted_once():
    model = nn.ModuleList([nn.Linear(2, 2), nn.Linear(2, 2)])
    model[1].weight = model[0].weight
    assert sum(len(g["params"]) for g in sgd(model, 0.1).param_groups) == 3


def test_defaults():
    assert all(g["weight_decay"] == 1e-4 for g in sgd(Model(), 0.1).param_groups)
    decays = {g["name"]: g["weight_decay"] for g in adamw(Model(), 0.1).param_groups}
    assert decays["weight"] == 0.05
    assert decays["norm"] == decays["bias"] == 0


def test_all_frozen_is_refused():
    with pytest.raises(ConfigError, match="frozen"):
        sgd(Model().requires_grad_(False), 0.1)


def test_linear_rule():
    assert scale_lr(0.02, 8, 16) == pytest.approx(0.01)
    assert scale_lr(0.02, 8, None) == 0.02
    optimizer = sgd(Model(), 0.02, bias_lr_factor=2.0)
    said = scale_optimizer(optimizer, 8, 16)
    assert "8/16" in said
    assert {g["name"]: g["initial_lr"] for g in optimizer.param_groups}["bias"] == pytest.approx(0.02)


@pytest.mark.parametrize("make", [sgd, adamw])
def test_fused_step_is_right_with_channels_last(make):
    def two_steps(fused, memory_format):
        torch.manual_seed(0)
        model = nn.Conv2d(3, 4, 3).to(memory_format=memory_format)
        optimizer = make(model, 0.1)
        for group in optimizer.param_groups:
            group["fused"] = fused
        for seed in range(2):
            x = torch.randn(2, 3, 5, 5, generator=torch.Generator().manual_seed(seed))
            optimizer.zero_grad()
            model(x).square().mean().backward()
            optimizer.step()
        return model.weight.detach().contiguous()

    expected = two_steps(False, torch.contiguous_format)
    assert torch.allclose(two_steps(True, torch.channels_last), expected, atol=1e-5)
