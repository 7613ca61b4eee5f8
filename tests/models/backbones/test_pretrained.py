import os
import pickle
import re

import pytest
import torch
import torchvision
from safetensors.torch import save_file
from torch import nn

from boxwright.errors import CheckpointError
from boxwright.models.backbones import VGG, Darknet, HRNet, ResNet, TimmBackbone
from boxwright.models.backbones.pretrained import load_backbone_weights, read_weights


@pytest.fixture(scope="module")
def state() -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    return torchvision.models.resnet18(weights=None).state_dict()


def wrapped(state, kind):
    return {
        "plain": lambda: state,
        "nested": lambda: {"state_dict": state, "epoch": 3, "optimizer": {"lr": 0.1}},
        "parallel": lambda: {"model": {f"module.{k}": v for k, v in state.items()}},
        "prefixed": lambda: {f"backbone.{k}": v for k, v in state.items()},
        "detector": lambda: {
            **{f"backbone.body.{k}": v for k, v in state.items()},
            "backbone.fpn.inner_blocks.0.weight": torch.ones(1),
            "rpn.head.weight": torch.ones(1),
        },
    }[kind]()


@pytest.mark.parametrize("kind", ["plain", "nested", "parallel", "prefixed", "detector"])
def test_forms_of_files(kind, state, tmp_path):
    torch.save(wrapped(state, kind), tmp_path / "weights.pth")
    backbone = ResNet(18, weights=tmp_path / "weights.pth")
    assert torch.equal(backbone.layer4[1].conv2.weight, state["layer4.1.conv2.weight"])


def test_safetensors_and_stages_that_are_not_built(state, tmp_path):
    save_file(state, tmp_path / "weights.safetensors")
    backbone = ResNet(18, out_stages=(2, 3), weights=str(tmp_path / "weights.safetensors"))
    assert torch.equal(backbone.layer3[1].conv2.weight, state["layer3.1.conv2.weight"])


def test_what_does_not_fit_is_listed(state, tmp_path):
    changed = {k: v for k, v in state.items() if k != "layer1.0.conv1.weight"}
    changed |= {"conv1.weight": torch.zeros(64, 1, 7, 7), "layer9.weight": torch.zeros(1)}
    torch.save(changed, tmp_path / "weights.pth")
    with pytest.raises(CheckpointError) as error:
        ResNet(18, weights=tmp_path / "weights.pth")
    text = str(error.value)
    assert "1 missing: layer1.0.conv1.weight" in text
    assert "1 unexpected: layer9.weight" in text
    assert "conv1.weight (64, 1, 7, 7) instead of (64, 3, 7, 7)" in text
    assert str(tmp_path / "weights.pth") in text


def test_a_deeper_networks_weights_are_refused(state, tmp_path):
    torch.save(state, tmp_path / "weights.pth")
    with pytest.raises(CheckpointError, match=r"and [0-9]+ more"):
        ResNet(34, weights=tmp_path / "weights.pth")


class Malicious:
    def __init__(self, command):
        self.command = command

    def __reduce__(self):
        return os.system, (self.command,)


@pytest.mark.parametrize("legacy", [False, True])
def test_a_malicious_pickle_is_refused(legacy, tmp_path):
    path, trace = tmp_path / "weights.pth", tmp_path / "ran"
    content = {"conv1.weight": Malicious(f"touch {trace}")}
    if legacy:
        path.write_bytes(pickle.dumps(content, protocol=2))
    else:
        torch.save(content, path)
    with pytest.raises(CheckpointError, match="refused to load"):
        ResNet(18, weights=path)
    assert not trace.exists()


@pytest.mark.parametrize("name", ["weights.pth", "weights.safetensors"])
@pytest.mark.parametrize(
    "content", [b"", b"not weights at all", b"PK\x03\x04 torn", b"\x80\x02", b"\xff" * 64]
)
def test_damaged_files(name, content, tmp_path):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(CheckpointError, match=re.escape(str(tmp_path / name))):
        read_weights(tmp_path / name)


def test_a_truncated_file(state, tmp_path):
    torch.save(state, tmp_path / "weights.pth")
    whole = (tmp_path / "weights.pth").read_bytes()
    (tmp_path / "weights.pth").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(CheckpointError, match="fetch it again"):
        read_weights(tmp_path / "weights.pth")


@pytest.mark.parametrize(("content", "message"), [([1, 2], "holds a list"), ({"epoch": 3}, "no tensors")])
def test_files_without_weights(content, message, tmp_path):
    torch.save(content, tmp_path / "weights.pth")
    with pytest.raises(CheckpointError, match=message):
        read_weights(tmp_path / "weights.pth")


@pytest.mark.parametrize("path", ["absent.pth", "~/absent/weights.safetensors"])
def test_an_absent_file(path):
    with pytest.raises(CheckpointError, match="does not exist"):
        read_weights(path)


@pytest.mark.parametrize("name", ["ResNet51_Weights.V1", "ResNet50_Weights.V9", "resnet50", "/some/folder"])
def test_an_unknown_name(name):
    with pytest.raises(CheckpointError, match="neither a file"):
        read_weights(name)
    with pytest.raises(CheckpointError, match="timm knows no model"):
        read_weights("timm:resnet51")


def test_a_failed_download_says_what_to_do(monkeypatch):
    def fail(*args, **kwargs):
        raise OSError("no route to host")

    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", fail)
    with pytest.raises(CheckpointError) as error:
        ResNet(50, weights="torchvision")
    text = str(error.value)
    assert "torchvision ResNet50_Weights.IMAGENET1K_V1" in text
    assert "resnet50-0676ba61.pth" in text
    assert "model.backbone.weights=/path/to/" in text
    monkeypatch.setattr("timm.models._builder.load_pretrained", fail)
    with pytest.raises(CheckpointError, match="timm resnet18"):
        read_weights("timm:resnet18.a1_in1k")


def test_torchvisions_weights_by_name(state, monkeypatch):
    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", lambda *a, **k: state)
    for weights in ("torchvision", "ResNet18_Weights.IMAGENET1K_V1"):
        assert torch.equal(ResNet(18, weights=weights).conv1.weight, state["conv1.weight"])


def test_any_module_with_the_same_names(state, tmp_path):
    torch.save({"w": torch.ones(2, 2), "head.weight": torch.ones(1)}, tmp_path / "weights.pth")
    module = nn.Linear(2, 2, bias=False)
    load_backbone_weights(module, tmp_path / "weights.pth", rename={"w": "weight"})
    assert torch.equal(module.weight, torch.ones(2, 2))


def test_an_address_is_fetched_once_and_its_hash_checked(state, tmp_path, monkeypatch):
    fetched = []

    def fetch(address, file, hash_prefix, progress):
        fetched.append((address, hash_prefix))
        torch.save(state, file)

    monkeypatch.setattr("torch.hub.get_dir", lambda: str(tmp_path / "cache"))
    monkeypatch.setattr("torch.hub.download_url_to_file", fetch)
    address = "https://example.org/weights/resnet18_of_ours-0123abcd.pth?version=1"
    for _ in range(2):
        backbone = ResNet(18, weights=address)
        assert torch.equal(backbone.layer4[1].conv2.weight, state["layer4.1.conv2.weight"])
    assert fetched == [(address, "0123abcd")]


def test_an_address_that_cannot_be_reached_says_what_to_do(tmp_path, monkeypatch):
    def fail(*args, **kwargs):
        raise ConnectionError("no route to host")

    monkeypatch.setattr("torch.hub.get_dir", lambda: str(tmp_path))
    monkeypatch.setattr("torch.hub.download_url_to_file", fail)
    with pytest.raises(CheckpointError, match=r"(?s)no route.*download https://example.org/a\.pth"):
        read_weights("https://example.org/a.pth")


@pytest.mark.parametrize(
    ("kind", "arguments"),
    [
        (ResNet, {"depth": 18}),
        (TimmBackbone, {"name": "mobilenetv2_035", "min_stride": 8}),
        (TimmBackbone, {"name": "mobilenetv3_small_050", "plugin": lambda c: nn.Conv2d(c, c, 1)}),
        (HRNet, {"width": 4, "modules": (1, 1, 1), "blocks": (1, 1, 1, 1)}),
        (Darknet, {"out_stages": (2,)}),
        (VGG, {"depth": 11}),
    ],
)
def test_a_backbone_starts_from_a_detector_of_ours(kind, arguments, tmp_path):
    """What a run saves holds the backbone beside the rest, by the names that it has in the detector."""
    first = kind(**arguments)
    state = {f"backbone.{name}": value for name, value in first.state_dict().items()}
    save_file(state | {"head.class.bias": torch.zeros(3)}, tmp_path / "model.safetensors")
    second = kind(**arguments, weights=tmp_path / "model.safetensors")
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))
