"""A detector that begins with the weights of a trained one."""

from pathlib import Path

import pytest
import torch
from torch import nn

from boxwright.engine.checkpoint import save_weights
from boxwright.engine.start import start_from
from boxwright.errors import CheckpointError


def network(classes: int, width: int = 8) -> nn.ModuleDict:
    return nn.ModuleDict({
        "body": nn.Sequential(nn.Conv2d(3, width, 3), nn.BatchNorm2d(width), nn.Conv2d(width, width, 3)),
        "classes": nn.Conv2d(width, classes, 1),
    })  # fmt: skip


def test_all_is_taken_but_what_depends_on_the_classes(tmp_path: Path) -> None:
    trained, model = network(80), network(3)
    save_weights(tmp_path / "trained.safetensors", trained.state_dict(), {})
    before = model["classes"].weight.clone()
    told = start_from(model, tmp_path / "trained.safetensors")
    for name, value in trained["body"].state_dict().items():
        assert torch.equal(model["body"].state_dict()[name], value), name
    assert torch.equal(model["classes"].weight, before)
    assert "anew begin classes.weight, classes.bias" in told
    assert "not used" not in told


def test_what_the_model_lacks_is_told(tmp_path: Path) -> None:
    trained = network(3)
    trained["mask"] = nn.Conv2d(8, 3, 1)
    save_weights(tmp_path / "trained.safetensors", trained.state_dict(), {})
    assert start_from(network(3), tmp_path / "trained.safetensors").endswith(
        "not used are mask.bias, mask.weight"
    )


def test_another_detector_is_refused(tmp_path: Path) -> None:
    save_weights(tmp_path / "other.safetensors", network(3, width=16).state_dict(), {})
    model = network(3)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(CheckpointError, match="take the recipe that those weights are of"):
        start_from(model, tmp_path / "other.safetensors")
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="nowhere"):
        start_from(network(3), tmp_path / "nowhere")
