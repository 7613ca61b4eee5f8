from functools import partial

import pytest
import timm
import torch
from torch import nn

from boxwright.errors import CheckpointError, ConfigError
from boxwright.models.backbones import Darknet
from boxwright.models.layers import leaky_relu
from boxwright.structures import FeatureSpec


def shake(module: nn.Module) -> nn.Module:
    """Norms with weights and statistics that are not those of a fresh one."""
    for layer in module.modules():
        if isinstance(layer, nn.BatchNorm2d):
            for tensor in (layer.weight, layer.bias, layer.running_mean, layer.running_var):
                nn.init.uniform_(tensor, 0.3, 0.7)
    return module.eval()


def test_parity_with_timm():
    """timm's has the same tensors in the same order, and 0.01 as the slope of its leaky ReLU."""
    torch.manual_seed(0)
    theirs = shake(timm.create_model("darknet53", features_only=True, out_indices=(3, 4, 5)))
    ours = Darknet(activation=partial(leaky_relu, 0.01)).eval()
    own, state = ours.state_dict(), theirs.state_dict()
    assert [v.shape for v in own.values()] == [v.shape for v in state.values()]
    ours.load_state_dict(dict(zip(own, state.values(), strict=True)))
    x = torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        for a, b in zip(ours(x), theirs(x), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4 * b.abs().max().item())


@pytest.mark.parametrize("out_stages", [(3, 4, 5), (1, 3), (2,)])
def test_declared_levels_are_the_real_ones(out_stages):
    backbone = Darknet(out_stages=out_stages).eval()
    with torch.no_grad():
        features = backbone(torch.zeros(1, 3, 64, 64))
    assert backbone.specs == tuple(FeatureSpec(f.shape[1], 64 // f.shape[2]) for f in features)
    assert hasattr(backbone, "conv_res_block5") == (out_stages[-1] == 5)


def test_weights_of_a_file(tmp_path):
    """MMDetection's names, of the backbone alone or of a detector; stages that are not built are left out."""
    whole = Darknet(out_stages=(3,))
    state = {name.replace(".norm.", ".bn."): value for name, value in whole.state_dict().items()}
    for name, content in (
        ("backbone.pth", {"state_dict": state}),
        ("detector.pth", {f"backbone.{k}": v for k, v in state.items()} | {"neck.conv1": torch.ones(1)}),
    ):
        torch.save(content, tmp_path / name)
        loaded = Darknet(out_stages=(1, 2), weights=tmp_path / name)
        for key, value in loaded.state_dict().items():
            assert torch.equal(value, whole.state_dict()[key])
    del state["conv_res_block1.res0.conv1.bn.weight"]
    torch.save(state, tmp_path / "short.pth")
    with pytest.raises(CheckpointError, match=r"1 missing: conv_res_block1\.res0\.conv1\.norm\.weight"):
        Darknet(out_stages=(2,), weights=tmp_path / "short.pth")
    with pytest.raises(CheckpointError, match="does not exist"):
        Darknet(out_stages=(1,), weights="darknet53-a628ea1b.pth")


@pytest.mark.parametrize(("frozen_stages", "norm_eval"), [(0, True), (0, False), (2, False)])
def test_what_trains(frozen_stages, norm_eval):
    backbone = Darknet(out_stages=(2, 3), frozen_stages=frozen_stages, norm_eval=norm_eval)
    backbone.eval().train()
    frozen = ("conv1.", "conv_res_block1.", "conv_res_block2.") if frozen_stages else ("none",)
    for name, parameter in backbone.named_parameters():
        assert parameter.requires_grad != name.startswith(frozen), name
    for name, layer in backbone.named_modules():
        if isinstance(layer, nn.BatchNorm2d):
            assert layer.training != (norm_eval or name.startswith(frozen)), name


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"depth": 19}, "depth is 19; Darknet has 53"),
        ({"out_stages": (4, 3)}, "ascending"),
        ({"out_stages": (6,)}, "out_stages"),
        ({"out_stages": (1,), "frozen_stages": 2}, "1 stages are built"),
    ],
)
def test_arguments_that_do_not_fit(arguments, message):
    with pytest.raises(ConfigError, match=message):
        Darknet(**arguments)
