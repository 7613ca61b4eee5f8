import pytest
import timm
import torch
from torch import nn

from boxwright.errors import CheckpointError, ConfigError
from boxwright.models.backbones import HRNet
from boxwright.models.backbones.hrnet import ExchangeModule, _style
from boxwright.models.layers import group_norm
from boxwright.structures import FeatureSpec

SMALL = {"width": 16, "modules": (1, 1, 1), "blocks": (1, 2, 2, 2), "first_width": 32}
TWINS = {
    "hrnet_w18_small": SMALL,
    "hrnet_w18_small_v2": {"width": 18, "modules": (1, 3, 2), "blocks": (2, 2, 2, 2)},
}


def shake(module: nn.Module) -> nn.Module:
    for layer in module.modules():
        if isinstance(layer, nn.BatchNorm2d):
            for tensor in (layer.weight, layer.bias, layer.running_mean, layer.running_var):
                nn.init.uniform_(tensor, 0.3, 0.7)
    return module.eval()


@pytest.mark.parametrize("name", TWINS)
def test_parity_with_timm(name, tmp_path):
    torch.manual_seed(0)
    theirs = shake(timm.create_model(name))
    torch.save(theirs.state_dict(), tmp_path / "w.pth")
    ours = HRNet(**TWINS[name], weights=tmp_path / "w.pth").eval()  # the classifier is dropped
    x = torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        y = theirs.act1(theirs.bn1(theirs.conv1(x)))
        y = theirs.act2(theirs.bn2(theirs.conv2(y)))
        for a, b in zip(ours(x), theirs.stages(y), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5 * b.abs().max().item())


@pytest.mark.parametrize("width", [18, 32])
def test_full_network_has_the_names_and_shapes_of_timms(width):
    with torch.device("meta"):
        ours = HRNet(width).state_dict()
        theirs = timm.create_model(f"hrnet_w{width}").state_dict()
    assert {k: v.shape for k, v in ours.items()} == {k: theirs[k].shape for k in ours}
    rest = {k.split(".")[0] for k in theirs if k not in ours}
    assert rest == {"incre_modules", "downsamp_modules", "final_layer", "classifier"}


@pytest.mark.parametrize("size", [(64, 96), (72, 40)])
def test_declared_levels_are_the_real_ones(size):
    backbone = HRNet(**SMALL).eval()
    assert backbone.specs == tuple(FeatureSpec(16 * 2**i, 4 * 2**i) for i in range(4))
    with torch.no_grad():
        features = backbone(torch.zeros(1, 3, *size))
    for spec, feature in zip(backbone.specs, features, strict=True):
        assert feature.shape[1:] == (spec.channels, *(-(-side // spec.stride) for side in size))


def test_every_branch_hears_every_other():
    torch.manual_seed(0)
    module = ExchangeModule([4, 8, 16], 1, _style(nn.BatchNorm2d, nn.Conv2d)).eval()
    maps = [torch.randn(1, 4 * 2**i, 16 // 2**i, 16 // 2**i, requires_grad=True) for i in range(3)]
    for out in module(maps):
        grads = torch.autograd.grad(out.sum(), maps, retain_graph=True)
        assert all(g.abs().sum() > 0 for g in grads)


def test_exchange_is_a_sum_of_all_at_one_resolution():
    """With identity blocks and averaging kernels, constants add up: 1 + 10 + 100 everywhere."""
    module = ExchangeModule([1, 1, 1], 1, _style(lambda c: nn.Identity(), nn.Conv2d))
    for branch in module.branches:
        for parameter in branch.parameters():
            nn.init.zeros_(parameter)  # a residual block without a branch
    for parameter in module.fuse_layers.parameters():
        nn.init.zeros_(parameter)
        parameter.data[..., parameter.shape[-1] // 2, parameter.shape[-1] // 2] = 1
    maps = [torch.full((1, 1, 8 // 2**i, 8 // 2**i), 10.0**i) for i in range(3)]
    for i, out in enumerate(module(maps)):
        assert torch.equal(out, torch.full_like(maps[i], 111.0))


@pytest.mark.parametrize("norm_eval", [True, False])
def test_norm_eval(norm_eval):
    backbone = HRNet(**SMALL, norm_eval=norm_eval).eval().train()
    assert {m.training for m in backbone.modules() if isinstance(m, nn.BatchNorm2d)} == {not norm_eval}
    assert all(p.requires_grad for p in backbone.parameters())


def test_another_norm():
    def norm(channels):
        return group_norm(channels, 8)

    backbone = HRNet(**SMALL, norm=norm)
    assert not any(isinstance(m, nn.BatchNorm2d) for m in backbone.modules())
    assert [f.shape[1] for f in backbone(torch.randn(1, 3, 32, 32))] == [16, 32, 64, 128]


def test_compiles_and_exports():
    backbone, x = HRNet(**SMALL).eval(), torch.randn(1, 3, 64, 64)
    eager = backbone(x)
    compiled = torch.compile(backbone, fullgraph=True, backend="aot_eager")(x)
    program = torch.export.export(backbone, (x,)).module()(x)
    for a, b, c in zip(eager, compiled, program, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(a, c, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"modules": (1, 4)}, "modules is"),
        ({"blocks": (4, 4, 4)}, "blocks"),
        ({"modules": (1, 0, 3)}, "modules is"),
        ({"width": 20, "weights": "timm"}, "timm has weights"),
        ({**SMALL, "weights": "timm"}, "timm has weights"),
    ],
)
def test_arguments_that_do_not_fit(arguments, message):
    with pytest.raises(ConfigError, match=message):
        HRNet(**arguments)


def test_weights_of_another_width(tmp_path):
    torch.save(HRNet(**{**SMALL, "width": 8}).state_dict(), tmp_path / "w.pth")
    with pytest.raises(CheckpointError, match="of another shape"):
        HRNet(**SMALL, weights=tmp_path / "w.pth")
