"""Settings that save memory: the same gradients from fewer activations."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import nn
from torch._functorch import config as functorch
from torch.utils._python_dispatch import TorchDispatchMode

import boxwright as bw
from boxwright.assembly import assemble
from boxwright.config import (
    Pretrained,
    apply_overrides,
    build,
    diff,
    flatten,
    from_json,
    history,
    set_tagged,
    to_json,
)
from boxwright.engine.memory import CompileBudget, Memory, blocks, checkpoint_modules, save_memory, stages
from boxwright.errors import ConfigError
from boxwright.models.backbones.darknet import Darknet
from boxwright.models.backbones.hrnet import HRNet
from boxwright.models.backbones.resnet import ResNet
from boxwright.models.backbones.timm import TimmBackbone
from boxwright.models.backbones.vgg import VGG
from boxwright.models.layers import ConvNorm, CrossBatchNorm2d, InPlaceBatchNorm2d, group_norm
from boxwright.recipes import recipe
from boxwright.structures import Batch, Targets

SMALL_HRNET = {"blocks": (1, 1, 1, 2), "modules": (1, 1, 1), "first_width": 8, "norm_eval": False}
BACKBONES = {
    "resnet": lambda: ResNet(18, frozen_stages=1, norm_eval=False),
    "in-place": lambda: ResNet(18, frozen_stages=0, norm_eval=False, norm=InPlaceBatchNorm2d),
    "cross-device": lambda: ResNet(18, out_stages=(2,), norm_eval=False, norm=CrossBatchNorm2d),
    "hrnet": lambda: HRNet(8, **SMALL_HRNET),
    "vgg": lambda: VGG(11),
    "darknet": lambda: Darknet(out_stages=(2, 3), norm_eval=False),
    "mobilenet": lambda: TimmBackbone("mobilenetv2_050", norm_eval=False, drop_path_rate=0.3),
    "densenet": lambda: TimmBackbone("densenet121", out_indices=(1, 2), norm_eval=False),
}


class Detector(nn.Module):
    """The backbone stands under its usual name."""

    def __init__(self, backbone: nn.Module) -> None:
        super().__init__()
        self.backbone = backbone

    def forward(self, x: torch.Tensor) -> list[torch.Tensor]:
        return self.backbone(x)


class Heads(nn.Module):
    """A detector's head with a tower."""

    def __init__(self, tower: nn.Module) -> None:
        super().__init__()
        self.tower = tower


def outcome(model: nn.Module, side: int = 64) -> tuple[list[torch.Tensor], int]:
    """Features, gradients, buffers and the next random numbers of a step; the bytes that it kept."""
    kept: dict[int, int] = {}
    x = torch.randn(2, 3, side, side, generator=torch.Generator().manual_seed(2))

    def pack(t: torch.Tensor) -> torch.Tensor:
        kept[t.untyped_storage().data_ptr()] = t.untyped_storage().nbytes()
        return t

    torch.manual_seed(1)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        features = model(x)
    sum(f.square().mean() for f in features).backward()  # pyright: ignore
    grads = [p.grad for p in model.parameters() if p.grad is not None]
    values = [*(f.detach() for f in features), *grads, *model.buffers(), torch.rand(3)]
    return values, sum(kept.values())


@pytest.mark.parametrize("name", list(BACKBONES))
def test_gradients_statistics_and_random_numbers_stay_the_same(name: str) -> None:
    torch.manual_seed(0)
    plain = Detector(BACKBONES[name]()).train()
    saving = copy.deepcopy(plain)
    assert checkpoint_modules(saving)
    assert list(saving.state_dict()) == list(plain.state_dict())
    saving = copy.deepcopy(saving)  # as the moving average of the weights copies a model
    (expected, before), (values, after) = outcome(plain), outcome(saving)
    assert len(values) == len(expected)
    assert all(torch.equal(a, b) for a, b in zip(values, expected, strict=True))
    assert after < 0.75 * before


def test_rows_with_group_norms_keep_what_convolutions_give() -> None:
    def tower() -> nn.Module:
        torch.manual_seed(0)
        norm = partial(group_norm, groups=4)
        return nn.Sequential(*(ConvNorm(i, 8, 3, norm=norm) for i in (3, 8, 8, 8)))

    def step(model: nn.Module) -> tuple[list[torch.Tensor], int, int]:
        kept: dict[int, int] = {}
        calls = 0

        def pack(t: torch.Tensor) -> torch.Tensor:
            kept[t.untyped_storage().data_ptr()] = t.untyped_storage().nbytes()
            return t

        class Count(TorchDispatchMode):
            def __torch_dispatch__(self, func, types, args=(), kwargs=None):
                nonlocal calls
                calls += func is torch.ops.aten.convolution.default
                return func(*args, **(kwargs or {}))

        x = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(2))
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
            y = model(x)
        with Count():
            y.square().sum().backward()
        return (
            [y.detach(), *(p.grad for p in model.parameters() if p.grad is not None)],
            sum(kept.values()),
            calls,
        )

    plain, saving = tower(), tower()
    assert checkpoint_modules(Heads(saving)) == ("tower",)
    saving = copy.deepcopy(saving)
    (expected, before, _), (values, after, again) = step(plain), step(saving)
    assert len(values) == len(expected) == 1 + 4 * 3
    assert all(torch.equal(a, b) for a, b in zip(values, expected, strict=True))
    assert before - after >= 3 * values[0].nbytes  # one activation of two, but for the last
    assert again == 0  # no convolution is computed again
    assert list(saving.state_dict()) == list(plain.state_dict())


def test_stages_and_modules_by_name() -> None:
    model = Detector(ResNet(18, frozen_stages=0))
    assert stages(model) == [f"backbone.layer{i}" for i in (1, 2, 3, 4)]
    assert checkpoint_modules(model, ("layer3", "backbone.layer4.1")) == (
        "backbone.layer3",
        "backbone.layer4.1",
    )
    assert stages(Detector(VGG(11)))[-2:] == ["backbone.conv5", "backbone.fc"]
    hrnet = Detector(HRNet(8, **SMALL_HRNET))
    assert checkpoint_modules(hrnet, ("stage4",)) == ("backbone.stage4",)
    with pytest.raises(ConfigError, match=r"'layer5'.*stages are: backbone\.layer1, backbone\.layer2"):
        checkpoint_modules(model, ("layer5",))
    with pytest.raises(ConfigError, match="no layers with weights"):
        checkpoint_modules(model, ("backbone.relu",))


def test_automatic_choice_leaves_out_what_is_frozen() -> None:
    frozen = Detector(ResNet(18, frozen_stages=2))
    assert list(blocks(frozen)) == [f"backbone.layer{i}.{j}" for i in (3, 4) for j in (0, 1)]
    config = recipe("faster_rcnn_r50_c4_1x").model
    set_tagged(config, Pretrained, None)
    with torch.device("meta"):
        c4 = build(config)
    assert checkpoint_modules(c4) == (
        "backbone.layer2",
        "backbone.layer3",
        *(f"roi.stages.0.trunk.stage.{i}" for i in range(3)),
    )


def test_an_input_that_is_overwritten_is_an_error() -> None:
    class Overwrites(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.row = nn.Sequential(nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = x * 1.0
            return self.row(y) + y.mul_(2).sum()

    model = Overwrites()
    checkpoint_modules(model, ("row",))
    out = model(torch.randn(1, 3, 4, 4))
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        out.sum().backward()


def test_prediction_and_evaluation_are_untouched() -> None:
    model = Detector(ResNet(18, frozen_stages=0)).eval()
    x = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        expected = model(x)
        checkpoint_modules(model)
        assert all(torch.equal(a, b) for a, b in zip(model(x), expected, strict=True))


@pytest.mark.parametrize(
    "make", [lambda: ResNet(18, out_stages=(1,), frozen_stages=0, norm_eval=False), lambda: VGG(11)]
)
def test_it_compiles_whole(make: Callable[[], nn.Module]) -> None:
    torch.manual_seed(0)
    plain = Detector(make()).train()
    saving = copy.deepcopy(plain)
    checkpoint_modules(saving)
    torch._dynamo.reset()
    saving.compile(fullgraph=True, backend="aot_eager_decomp_partition")
    (expected, _), (values, _) = outcome(plain), outcome(saving)
    for ours, theirs in zip(values[:-1], expected[:-1], strict=True):
        scale = float(theirs.double().abs().max().clamp(min=1e-3))
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-4 * scale)


def test_a_whole_detector_in_bf16_folded_and_recomputed() -> None:
    config = recipe("fcos_mnv2_320").model
    set_tagged(config, Pretrained, None)
    torch.manual_seed(0)
    plain = build(config).train()
    saving = copy.deepcopy(plain)
    save_memory(saving, Memory(checkpoint="auto", fold="always"))
    boxes, valid = torch.tensor([[[8.0, 8, 60, 60]]]), torch.ones(1, 1, dtype=torch.bool)
    images = torch.randint(0, 256, (1, 3, 64, 96), dtype=torch.uint8)
    batch = Batch(images, torch.tensor([[64, 96]]), Targets(boxes, valid.long(), valid, ~valid))
    grads = []
    for model in (plain, saving):
        with torch.autocast("cpu", torch.bfloat16):
            losses = model(batch)
        sum(v.float() for k, v in losses.items() if k.startswith("loss/")).backward()  # pyright: ignore
        grads.append([p.grad for p in model.parameters() if p.grad is not None])
    assert len(grads[0]) > 100
    assert all(torch.equal(a, b) for a, b in zip(*grads, strict=True))


def test_settings_of_the_command_line() -> None:
    config = recipe("fcos_mnv2_320")
    plain = recipe("fcos_mnv2_320")
    apply_overrides(config, ["memory.checkpoint=auto", "memory.fold=never"])
    assert flatten(config)["memory.checkpoint"] == "auto"
    assert flatten(plain)["memory.compile_budget"] is None
    assert history(plain)["memory.fold"] == "default of Experiment"
    assert "+ memory.fold = 'never'" in diff(plain, config)
    assert diff(from_json(to_json(config)), config) == ""
    built = build(from_json(to_json(config)).memory)
    assert built == Memory(checkpoint="auto", fold="never")
    config.memory = Memory(checkpoint=("backbone.net.blocks.2",))
    assert diff(from_json(to_json(config)), config) == ""
    apply_overrides(config, ["memory.checkpoint=blocks.1, blocks.2"])
    assert build(config.memory).names == ("blocks.1", "blocks.2")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [({"fold": "often"}, "choose auto, always or never"), ({"compile_budget": 1.5}, "choose 0 to 1")],
)
def test_settings_without_sense(arguments: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Memory(**arguments)


def test_the_budget_lasts_as_long_as_a_run() -> None:
    with pytest.raises(ConfigError, match="needs compile=true"):
        save_memory(nn.Linear(2, 2), Memory(compile_budget=0.5))
    (hook,) = save_memory(nn.Linear(2, 2), Memory(compile_budget=0.5), compiled=True)
    assert isinstance(hook, CompileBudget)
    assert functorch.activation_memory_budget == 1.0
    hook.before_run(None)  # pyright: ignore
    assert functorch.activation_memory_budget == 0.5
    hook.after_run(None)  # pyright: ignore
    assert functorch.activation_memory_budget == 1.0


def test_a_run_is_set_up(tiny_data: Path, tmp_path: Path) -> None:
    config = bw.recipe("fcos_mnv2_320")
    set_tagged(config.model, Pretrained, None)
    config.data, config.workers = str(tiny_data), 0
    apply_overrides(config, ["memory.checkpoint=auto", "memory.fold=never"])
    model = assemble(config, tmp_path, resume=False, console=False).experiment.model
    row = model.get_submodule("backbone.net.blocks.2")
    assert "segments" in row.__dict__
    assert {m.folding for m in model.modules() if type(m) is nn.Conv2d} == {"never"}
