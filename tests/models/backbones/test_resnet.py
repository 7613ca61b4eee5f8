import pytest
import torch
import torchvision
from torch import nn

from boxwright.errors import CheckpointError, ConfigError
from boxwright.models.backbones import ResNet
from boxwright.models.layers import FrozenBatchNorm2d, group_norm
from boxwright.structures import FeatureSpec

TWINS = {
    "resnet18": {"depth": 18},
    "resnet50": {"depth": 50},
    "resnet101": {"depth": 101},
    "resnext50_32x4d": {"depth": 50, "groups": 32, "width_per_group": 4},
    "wide_resnet50_2": {"depth": 50, "width_per_group": 128},
}


def shake(module: nn.Module) -> nn.Module:
    """Norms with weights and statistics that are not those of a fresh one."""
    for layer in module.modules():
        if isinstance(layer, nn.BatchNorm2d):
            for tensor in (layer.weight, layer.bias, layer.running_mean, layer.running_var):
                nn.init.uniform_(tensor, 0.3, 0.7)
    return module.eval()


@pytest.mark.parametrize("name", TWINS)
def test_parity_with_torchvision(name):
    torch.manual_seed(0)
    theirs = shake(torchvision.models.get_model(name, weights=None))
    ours = ResNet(**TWINS[name]).eval()
    state = {k: v for k, v in theirs.state_dict().items() if not k.startswith("fc.")}
    assert list(state) == list(ours.state_dict())
    ours.load_state_dict(state)
    x = torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        features = ours(x)
        y = theirs.maxpool(theirs.relu(theirs.bn1(theirs.conv1(x))))
        for feature, layer in zip(
            features, (theirs.layer1, theirs.layer2, theirs.layer3, theirs.layer4), strict=True
        ):
            y = layer(y)
            torch.testing.assert_close(feature, y, rtol=1e-5, atol=1e-5 * y.abs().max().item())


CATALOGUE = [
    {"depth": 18},
    {"depth": 34, "out_stages": (2, 3, 4)},
    {"depth": 50, "style": "caffe", "norm": FrozenBatchNorm2d},
    {"depth": 50, "deep_stem": True, "avg_down": True},
    {"depth": 50, "out_stages": (3,)},
    {"depth": 50, "strides": (1, 2, 2, 1), "dilations": (1, 1, 1, 2)},
    {"depth": 50, "groups": 64, "width_per_group": 4, "norm": group_norm},
    {"depth": 152, "out_stages": (1, 2)},
]


def catalogue_id(arguments: dict) -> str:
    """Without addresses of functions, which differ between the processes of a parallel run."""
    return " ".join(f"{name}={getattr(value, '__name__', value)}" for name, value in arguments.items())


@pytest.mark.parametrize("arguments", CATALOGUE, ids=catalogue_id)
def test_declared_levels_are_the_real_ones(arguments):
    backbone = ResNet(**arguments).eval()
    with torch.no_grad():
        features = backbone(torch.zeros(1, 3, 64, 64))
    assert backbone.specs == tuple(FeatureSpec(f.shape[1], 64 // f.shape[2]) for f in features)


def test_caffe_style_has_the_stride_on_the_first_convolution():
    for style, strides in (("pytorch", (1, 2)), ("caffe", (2, 1))):
        block = ResNet(50, style=style).layer2[0]
        assert (block.conv1.stride[0], block.conv2.stride[0]) == strides


def test_stages_behind_the_last_output_are_not_built():
    assert not hasattr(ResNet(18, out_stages=(2, 3)), "layer4")


@pytest.mark.parametrize("deep_stem", [False, True])
@pytest.mark.parametrize(("frozen_stages", "frozen_stem"), [(0, False), (0, True), (1, False), (3, True)])
def test_frozen_stages_stay_frozen_in_training(frozen_stages, frozen_stem, deep_stem):
    frozen = {"frozen_stages": frozen_stages, "frozen_stem": frozen_stem}
    backbone = ResNet(18, **frozen, norm_eval=False, deep_stem=deep_stem)
    backbone.requires_grad_(True)  # even when somebody else changes it
    backbone.eval().train()
    stem = ("stem.",) if deep_stem else ("conv1.", "bn1.")
    frozen = tuple(f"layer{i}." for i in range(1, frozen_stages + 1))
    if frozen_stages or frozen_stem:
        frozen = (*stem, *frozen)
    for name, parameter in backbone.named_parameters():
        assert parameter.requires_grad != name.startswith(frozen), name
    for name, layer in backbone.named_modules():
        if isinstance(layer, nn.BatchNorm2d):
            assert layer.training != f"{name}.".startswith(frozen), name


@pytest.mark.parametrize(
    ("norm", "norm_eval", "trained", "statistics_move"),
    [
        (FrozenBatchNorm2d, True, False, False),
        (nn.BatchNorm2d, True, True, False),
        (nn.BatchNorm2d, False, True, True),
    ],
)
def test_norm_modes(norm, norm_eval, trained, statistics_move):
    backbone = ResNet(18, norm=norm, norm_eval=norm_eval, frozen_stages=0).train()
    before = backbone.layer1[0].bn1.running_mean.clone()
    backbone(torch.randn(2, 3, 32, 32))[-1].sum().backward()
    bn = backbone.layer1[0].bn1
    assert isinstance(bn.weight, nn.Parameter) == trained
    assert not trained or bn.weight.grad is not None
    assert torch.equal(before, bn.running_mean) != statistics_move


def test_hooks_of_later_papers():
    class Double(nn.Module):
        def __init__(self, channels):
            super().__init__()
            self.channels = channels

        def forward(self, x):
            return 2 * x

    made = []

    def conv3x3(*args, **kwargs):
        made.append(args)
        return nn.Conv2d(*args, **kwargs)

    backbone = ResNet(
        50, conv3x3=(None, None, None, conv3x3), plugins=(None, None, Double, None), frozen_stages=0
    )
    assert len(made) == 3
    assert [block.plugin.channels for block in backbone.layer3] == [1024] * 6
    assert all(block.plugin is None for block in backbone.layer2)
    plain = ResNet(50, frozen_stages=0)
    plain.load_state_dict(backbone.state_dict())
    x = torch.randn(1, 3, 32, 32)
    with torch.no_grad():
        ours, theirs = backbone.eval()(x), plain.eval()(x)
    assert torch.equal(ours[1], theirs[1])
    assert not torch.equal(ours[2], theirs[2])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"depth": 51}, "depth is 51"),
        ({"out_stages": (2, 1)}, "ascending"),
        ({"out_stages": ()}, "out_stages"),
        ({"out_stages": (5,)}, "out_stages"),
        ({"frozen_stages": 3, "out_stages": (1, 2)}, "2 stages are built"),
        ({"frozen_stages": -1}, "frozen_stages is -1"),
        ({"style": "tensorflow"}, "style"),
        ({"depth": 18, "groups": 32}, "bottlenecks"),
        ({"strides": (1, 2)}, "strides has 2"),
        ({"style": "caffe", "weights": "torchvision"}, "file"),
        ({"groups": 32, "width_per_group": 4, "depth": 101, "weights": "torchvision"}, "timm:"),
    ],
)
def test_arguments_that_do_not_fit(arguments, message):
    with pytest.raises(ConfigError, match=message):
        ResNet(**arguments)


def test_caffe_weights_with_biases_before_the_norms(tmp_path):
    """Files of Detectron's networks hold some, which MMDetection leaves out."""
    state = ResNet(50, style="caffe", out_stages=(1, 2)).state_dict()
    with_biases = state | {
        name: torch.ones(channels)
        for name, channels in (
            ("conv1.bias", 64),
            ("layer1.0.conv3.bias", 256),
            ("layer1.0.downsample.0.bias", 256),
            ("layer4.0.conv1.bias", 512),
            ("fc.bias", 1000),
        )
    }
    file = tmp_path / "caffe.pth"
    torch.save({"state_dict": with_biases}, file)
    loaded = ResNet(50, style="caffe", out_stages=(1, 2), weights=file).state_dict()
    assert all(torch.equal(value, loaded[name]) for name, value in state.items())
    with pytest.raises(CheckpointError, match=r"conv1\.bias"):
        ResNet(50, out_stages=(1, 2), weights=file)


def test_compiles_exports_and_keeps_channels_last():
    backbone = ResNet(18, frozen_stages=0).eval()
    x = torch.randn(1, 3, 64, 64)
    eager = backbone(x)
    compiled = torch.compile(backbone, fullgraph=True, backend="aot_eager")(x)
    program = torch.export.export(backbone, (x,)).module()(x)
    for a, b, c in zip(eager, compiled, program, strict=True):
        torch.testing.assert_close(a, b)
        torch.testing.assert_close(a, c)
    backbone.to(memory_format=torch.channels_last)
    outs = backbone(x.to(memory_format=torch.channels_last))
    assert all(o.is_contiguous(memory_format=torch.channels_last) for o in outs)


def test_bfloat16_autocast_with_frozen_norms():
    backbone = ResNet(18, norm=FrozenBatchNorm2d).eval()
    with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
        assert all(f.dtype == torch.bfloat16 for f in backbone(torch.randn(1, 3, 64, 64)))
