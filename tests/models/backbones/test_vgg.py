"""VGG against torchvision's layers, and the weights it takes."""

from pathlib import Path

import pytest
import torch
import torchvision
from torch import Tensor, nn

from boxwright.errors import CheckpointError, ConfigError
from boxwright.models.backbones import VGG
from boxwright.models.backbones.vgg import subsample


def convolutions(depth: int = 11) -> dict[str, Tensor]:
    """torchvision's convolutions, without the large classifier."""
    torch.manual_seed(1)
    with torch.device("meta"):
        shapes = torchvision.models.get_model(f"vgg{depth}").features.state_dict()
    return {f"features.{name}": torch.randn(value.shape) * 0.02 for name, value in shapes.items()}


def classifier() -> dict[str, Tensor]:
    """Full layers; each weight is the number of its input channel, so that they are views of few numbers."""
    number = torch.arange(4096.0)
    return {
        "classifier.0.weight": torch.arange(512 * 49.0).expand(4096, -1),
        "classifier.0.bias": number,
        "classifier.3.weight": number.expand(4096, -1),
        "classifier.3.bias": number + 0.5,
        "classifier.6.weight": torch.zeros(1).expand(1000, 4096),
        "classifier.6.bias": torch.zeros(1000),
    }


def saved(state: dict[str, Tensor], folder: Path) -> Path:
    torch.save(state, folder / "weights.pth")
    return folder / "weights.pth"


@pytest.mark.parametrize(("size", "maps"), [((300, 300), (38, 19)), ((70, 41), (9, 5))])
def test_maps_are_rounded_up(size: tuple[int, int], maps: tuple[int, int]):
    with torch.device("meta"):
        fine, coarse = VGG()(torch.zeros(1, 3, *size))
    assert fine.shape[:3] == (1, 512, maps[0])
    assert coarse.shape[:3] == (1, 1024, maps[1])
    assert (fine.shape[3], coarse.shape[3]) == tuple(-(-size[1] // s) for s in (8, 16))


@pytest.mark.parametrize("depth", [11, 13, 16, 19])
def test_names_and_shapes_are_torchvisions(depth: int):
    with torch.device("meta"):
        theirs = torchvision.models.get_model(f"vgg{depth}").features
        ours = VGG(depth).features
    for i, layer in enumerate(theirs):
        assert type(ours[i]) is type(layer)
    expected = {name: value.shape for name, value in theirs.state_dict().items()}
    found = {name: value.shape for name, value in ours.state_dict().items()}
    added = {f"{len(theirs) + i}.{part}" for i in (0, 2) for part in ("weight", "bias")}
    assert {name: found[name] for name in expected} == expected
    assert set(found) - set(expected) == added


def test_conv4_is_what_torchvision_computes(tmp_path: Path):
    state = convolutions()
    ours = VGG(11, weights=saved(state, tmp_path)).eval()
    with torch.device("meta"):
        theirs = torchvision.models.vgg11().features
    theirs.load_state_dict(
        {name.removeprefix("features."): value for name, value in state.items()}, assign=True
    )
    images = torch.randn(1, 3, 32, 48)  # whole at each pool, where rounding up and down are one
    torch.testing.assert_close(
        ours(images)[0], nn.Sequential(*list(theirs)[:15])(images), rtol=1e-4, atol=1e-5
    )


def test_fully_connected_layers_are_thinned_out():
    full = classifier()
    fc6, fc7 = subsample(full["classifier.0.weight"]), subsample(full["classifier.3.weight"])
    assert fc6.shape == (1024, 512, 3, 3)
    assert fc7.shape == (1024, 1024, 1, 1)
    # Channel 2 has places 98 to 146, in rows of 7; of these rows and columns 0, 3, 6 are taken.
    assert fc6[5, 2].tolist() == [[98 + 7 * row + column for column in (0, 3, 6)] for row in (0, 3, 6)]
    assert fc7[2, 3, 0, 0] == 12
    assert subsample(full["classifier.3.bias"])[3] == 12.5


@pytest.mark.parametrize("naming", ["torchvision", "numbers", "caffe"])
def test_ways_of_naming(naming: str, tmp_path: Path):
    state = convolutions()
    reduced = {"weight": torch.randn(1024, 512, 3, 3), "bias": torch.randn(1024)}
    second = {"weight": torch.randn(1024, 1024, 1, 1), "bias": torch.randn(1024)}
    if naming == "torchvision":
        named = state | {f"features.21.{k}": v for k, v in reduced.items()}
        named |= {f"features.23.{k}": v for k, v in second.items()}
    elif naming == "numbers":
        named = {name.removeprefix("features."): value for name, value in state.items()}
        named |= {f"21.{k}": v for k, v in reduced.items()} | {f"23.{k}": v for k, v in second.items()}
    else:
        layers = ("1_1", "2_1", "3_1", "3_2", "4_1", "4_2", "5_1", "5_2")
        numbers = sorted({int(name.split(".")[1]) for name in state})
        named = {
            f"conv{layer}.{part}": state[f"features.{number}.{part}"]
            for layer, number in zip(layers, numbers, strict=True)
            for part in ("weight", "bias")
        }
        named |= {f"fc6.{k}": v for k, v in reduced.items()} | {f"fc7.{k}": v for k, v in second.items()}
    features = VGG(11, weights=saved(named, tmp_path)).features
    assert torch.equal(features[3].weight, state["features.3.weight"])
    assert torch.equal(features[21].weight, reduced["weight"])
    assert torch.equal(features[23].bias, second["bias"])


def test_full_layers_are_used_and_the_last_is_dropped(tmp_path: Path):
    full = classifier()
    vgg = VGG(11, weights=saved(convolutions() | full, tmp_path))
    assert torch.equal(vgg.features[21].bias, torch.arange(0.0, 4096, 4))
    assert torch.equal(vgg.features[23].weight, subsample(full["classifier.3.weight"]))


def test_without_fully_connected_layers_theirs_are_random(tmp_path: Path):
    """torchvision's weights of VGG's authors have NaN there."""
    nan = {name: torch.full((2,), torch.nan) for name in classifier()}
    features = VGG(11, weights=saved(convolutions() | nan, tmp_path)).features
    assert features[21].weight.isfinite().all()
    assert features[21].weight.std() > 0


def test_misfits_are_named(tmp_path: Path):
    state = convolutions() | {"features.21.weight": torch.zeros(1024, 512, 3, 3)}
    with pytest.raises(CheckpointError, match=r"3 missing: features\.21\.bias"):
        VGG(11, weights=saved(state, tmp_path))
    with pytest.raises(ConfigError, match="VGG has 11, 13, 16, 19"):
        VGG(12)
