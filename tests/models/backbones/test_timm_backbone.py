import pytest
import timm
import torch
import torchvision
from safetensors.torch import save_file
from torch import nn

from boxwright.errors import CheckpointError, ConfigError
from boxwright.models.backbones import TimmBackbone
from boxwright.models.backbones.timm import TORCHVISION_TWINS
from boxwright.structures import FeatureSpec

CATALOGUE = [
    "mobilenetv2_050",
    "mobilenetv3_small_050",
    "resnet10t",
    "efficientnet_b0",
    "regnetx_002",
    "convnext_atto",
    "ghostnet_050",
    "hrnet_w18_small",
    "densenet121",
    "mobileone_s0",
]


@pytest.mark.parametrize("name", CATALOGUE)
def test_declared_levels_are_the_real_ones(name):
    backbone = TimmBackbone(name).eval()
    with torch.no_grad():
        features = backbone(torch.zeros(1, 3, 64, 64))
    assert backbone.specs == tuple(FeatureSpec(f.shape[1], 64 // f.shape[2]) for f in features)
    assert [s.stride for s in backbone.specs] == [4, 8, 16, 32]


def test_levels_of_a_transformer_are_channels_first():
    backbone = TimmBackbone("swin_tiny_patch4_window7_224", img_size=64, window_size=2).eval()
    with torch.no_grad():
        features = backbone(torch.zeros(1, 3, 64, 64))
    assert [tuple(f.shape[1:]) for f in features] == [(96, 16, 16), (192, 8, 8), (384, 4, 4), (768, 2, 2)]
    assert [s.channels for s in backbone.specs] == [96, 192, 384, 768]


def test_choice_of_levels():
    assert [s.stride for s in TimmBackbone("mobilenetv2_050", min_stride=8).specs] == [8, 16, 32]
    assert [s.stride for s in TimmBackbone("mobilenetv2_050", out_indices=(0, 2)).specs] == [2, 8]
    with pytest.raises(ConfigError, match="min_stride is 64"):
        TimmBackbone("mobilenetv2_050", min_stride=64)


def test_an_unknown_network_or_argument():
    with pytest.raises(ConfigError, match="mobilenetv2_100"):
        TimmBackbone("mobilnetv2_100")
    with pytest.raises(ConfigError, match="colour"):
        TimmBackbone("mobilenetv2_050", colour="red")


@pytest.mark.parametrize(
    ("name", "last_frozen", "first_trained"),
    [
        ("mobilenetv2_050", "blocks.2.", "blocks.3."),
        ("convnext_atto", "stages_1.", "stages_2."),
        ("resnet10t", "layer2.", "layer3."),
    ],
)
def test_frozen_stages(name, last_frozen, first_trained):
    backbone = TimmBackbone(name, frozen_stages=2, norm_eval=False).eval().train()
    names = [n for n, _ in backbone.net.named_parameters()]
    frozen = [n for n, p in backbone.net.named_parameters() if not p.requires_grad]
    assert frozen == names[: len(frozen)]
    assert frozen[-1].startswith(last_frozen)
    assert names[len(frozen)].startswith(first_trained)
    for path, layer in backbone.net.named_modules():
        if isinstance(layer, nn.BatchNorm2d):
            assert layer.training != any(n.startswith(f"{path}.") for n in frozen), path


def test_frozen_stages_that_do_not_exist():
    with pytest.raises(ConfigError, match="frozen_stages is 9"):
        TimmBackbone("mobilenetv2_050", frozen_stages=9)


@pytest.mark.parametrize("norm_eval", [True, False])
def test_norm_eval(norm_eval):
    backbone = TimmBackbone("mobilenetv2_050", norm_eval=norm_eval).eval().train()
    norms = [m for m in backbone.modules() if isinstance(m, nn.BatchNorm2d)]
    assert {m.training for m in norms} == {not norm_eval}
    assert all(p.requires_grad for p in backbone.parameters())


def test_compiles_and_exports():
    backbone = TimmBackbone("mobilenetv2_050").eval()
    x = torch.randn(1, 3, 64, 64)
    eager = backbone(x)
    compiled = torch.compile(backbone, fullgraph=True, backend="aot_eager")(x)
    program = torch.export.export(backbone, (x,)).module()(x)
    for a, b, c in zip(eager, compiled, program, strict=True):
        torch.testing.assert_close(a, b)
        torch.testing.assert_close(a, c)


@pytest.mark.parametrize("name", ["convnext_atto", "mobilenetv2_050", "vit_tiny_patch16_224"])
def test_a_file_of_the_whole_network_loads_by_name(name, tmp_path):
    torch.manual_seed(0)
    whole = timm.create_model(name).eval()
    save_file(whole.state_dict(), tmp_path / "model.safetensors")
    indices = {"out_indices": (3,)} if name.startswith("vit") else {}
    backbone = TimmBackbone(name, weights=tmp_path / "model.safetensors", **indices).eval()
    x = torch.randn(1, 3, 224, 224)
    with torch.no_grad():
        expected = whole.forward_intermediates(
            x, indices=(3,) if indices else 1, norm=False, intermediates_only=True
        )
        torch.testing.assert_close(backbone(x)[-1], expected[-1], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["mobilenetv2_100", "efficientnet_b0", "resnet18"])
def test_a_file_of_torchvisions_twin_loads(name, tmp_path):
    torch.manual_seed(0)
    twin = torchvision.models.get_model(TORCHVISION_TWINS[name][0], weights=None).eval()
    for layer in twin.modules():
        if isinstance(layer, nn.BatchNorm2d):
            for tensor in (layer.weight, layer.bias, layer.running_mean, layer.running_var):
                nn.init.uniform_(tensor, 0.3, 0.9)
    torch.save({"state_dict": {f"module.{k}": v for k, v in twin.state_dict().items()}}, tmp_path / "w.pth")
    backbone = TimmBackbone(name, weights=str(tmp_path / "w.pth"), norm_eval=False).eval()
    whole = timm.create_model(name).eval()
    whole.load_state_dict(dict(zip(whole.state_dict(), twin.state_dict().values(), strict=True)))
    x = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(whole(x), twin(x))
        extractor = timm.create_model(name, features_only=True, out_indices=(1, 2, 3, 4)).eval()
        extractor.load_state_dict(whole.state_dict(), strict=False)
        for a, b in zip(backbone(x), extractor(x), strict=True):
            torch.testing.assert_close(a, b)


@pytest.mark.slow
@pytest.mark.parametrize("name", TORCHVISION_TWINS)
def test_twins_compute_the_same(name):
    torch.manual_seed(0)
    twin = torchvision.models.get_model(TORCHVISION_TWINS[name][0], weights=None).eval()
    ours = timm.create_model(name).eval()
    ours.load_state_dict(dict(zip(ours.state_dict(), twin.state_dict().values(), strict=True)))
    torchvision.models.get_weight(TORCHVISION_TWINS[name][1])
    x = torch.randn(1, 3, 96, 96)
    with torch.no_grad():
        torch.testing.assert_close(ours(x), twin(x), rtol=1e-5, atol=1e-5)


def test_shared_mobilenet_weights_load(shared_data):
    path = shared_data / "weights" / "mobilenet_v2_imagenet_tfquant.pth"
    backbone = TimmBackbone("mobilenetv2_100", weights=path).eval()
    twin = torchvision.models.mobilenet_v2(weights=None).eval()
    twin.load_state_dict(torch.load(path, weights_only=True))
    x = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        last = twin.features[:18](x)
        torch.testing.assert_close(backbone(x)[-1], last, rtol=1e-4, atol=1e-4)


def test_weights_of_another_network_are_listed(tmp_path):
    torch.save(timm.create_model("mobilenetv2_100").state_dict(), tmp_path / "w.pth")
    with pytest.raises(CheckpointError, match=r"of another shape: .*conv_stem.*instead of"):
        TimmBackbone("mobilenetv2_050", weights=tmp_path / "w.pth")
    torch.save(torchvision.models.resnet18(weights=None).state_dict(), tmp_path / "r.pth")
    with pytest.raises(CheckpointError, match=r"missing: .*unexpected: .*layer1"):
        TimmBackbone("mobilenetv2_100", weights=tmp_path / "r.pth")


def test_torchvision_has_no_twin():
    with pytest.raises(ConfigError, match="torchvision has no network"):
        TimmBackbone("ghostnet_050", weights="torchvision")


def test_a_failed_download_says_what_to_do(monkeypatch):
    def fail(*args, **kwargs):
        raise ConnectionError("no route to host")

    monkeypatch.setattr("timm.models._builder.load_pretrained", fail)
    with pytest.raises(
        CheckpointError, match=r"(?s)mobilenetv2_100.*no route.*huggingface.*model\.backbone\.weights="
    ):
        TimmBackbone("mobilenetv2_100", weights="timm")
