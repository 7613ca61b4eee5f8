"""Checkpoints: whole or absent, safe to load, told when damaged."""

import errno
import json
import os
import pickle

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from boxwright.engine import checkpoint, find_last, load_state, load_weights
from boxwright.errors import CheckpointError

WEIGHTS = {"a": torch.arange(6.0).reshape(2, 3), "b": torch.tensor(3)}


class Malicious:
    def __init__(self, target):
        self.target = target

    def __reduce__(self):
        return os.system, (f"touch {self.target}",)


@pytest.fixture
def folder(tmp_path):
    for step in (1, 2, 3):
        checkpoint.save(tmp_path / "checkpoints", step, WEIGHTS, {"step": step}, metadata={"config": "{}"})
    return tmp_path / "checkpoints"


def test_round_trip(folder):
    state = load_state(folder / "step_00000002")
    weights, metadata = load_weights(folder / "step_00000002")
    assert state == {"step": 2}
    assert torch.equal(weights["a"], WEIGHTS["a"])
    assert metadata["config"] == "{}"
    assert metadata["boxwright_version"]
    assert checkpoint.read_pointer(folder / "last") == {"name": "step_00000003", "step": 3}


def test_layouts_and_shared_tensors(tmp_path):
    shared = torch.randn(2, 3, 4, 4).to(memory_format=torch.channels_last)
    path = checkpoint.save(tmp_path, 1, {"x": shared, "y": shared}, {"half": shared[:1]})
    weights, _ = load_weights(path)
    assert torch.equal(weights["x"], shared)
    assert torch.equal(weights["y"], shared)


def test_every_way_to_name_weights(folder, tmp_path):
    checkpoint.save(folder, 4, WEIGHTS, {}, ema={"a": torch.zeros(1)})
    checkpoint.write_pointer(folder / "best", {"name": "step_00000002"})
    torch.save({"state_dict": {f"module._orig_mod.{k}": v for k, v in WEIGHTS.items()}}, tmp_path / "old.pth")
    for path in (tmp_path, folder, folder / "best", folder / "last", tmp_path / "old.pth",
                 folder / "step_00000001", folder / "step_00000001" / "model.safetensors"):  # fmt: skip
        weights, _ = load_weights(path, ema=False)
        assert torch.equal(weights["a"], WEIGHTS["a"]), path
    assert torch.equal(load_weights(folder / "last")[0]["a"], torch.zeros(1))
    (folder / "best").unlink()
    assert torch.equal(load_weights(tmp_path)[0]["a"], torch.zeros(1))


def test_missing_and_foreign_files(tmp_path):
    with pytest.raises(CheckpointError, match="no checkpoint or weights"):
        load_weights(tmp_path / "nothing")
    with pytest.raises(CheckpointError, match="no checkpoint in"):
        load_weights(tmp_path)
    (tmp_path / "x.safetensors").write_bytes(b"\x08\0\0\0\0\0\0\0garbage!")
    with pytest.raises(CheckpointError, match="cannot read"):
        load_weights(tmp_path / "x.safetensors")
    torch.save([1, 2], tmp_path / "list.pt")
    with pytest.raises(CheckpointError, match="no state dict"):
        load_weights(tmp_path / "list.pt")
    (tmp_path / "best").write_text("[")
    with pytest.raises(CheckpointError, match="pointer"):
        load_weights(tmp_path / "best")


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("protocol", [0, 2, 4])
@pytest.mark.parametrize("how", ["pickle", "torch", "legacy"])
def test_a_malicious_pickle_is_refused(folder, tmp_path, protocol, how):
    trap = tmp_path / "sprung"

    def plant(path):
        if how == "pickle":
            path.write_bytes(pickle.dumps({"state_dict": Malicious(trap)}, protocol=protocol))
        else:
            evil = {"a": torch.ones(1), "x": Malicious(trap)}
            torch.save(
                evil, path, pickle_protocol=max(protocol, 2), _use_new_zipfile_serialization=how == "torch"
            )

    plant(tmp_path / "weights.pth")
    with pytest.raises(CheckpointError, match="refused"):
        load_weights(tmp_path / "weights.pth")
    plant(folder / "step_00000003" / "state.pt")
    with pytest.raises(CheckpointError, match="refused"):
        load_state(folder / "step_00000003")
    assert not trap.exists()


@pytest.mark.parametrize("damage", ["truncate", "flip", "empty", "missing", "meta", "meta_gone", "meta_type"])
@pytest.mark.parametrize("name", ["model.safetensors", "state.pt"])
def test_damage_is_noticed_and_the_one_before_taken(folder, capsys, damage, name):
    newest = folder / "step_00000003"
    file = newest / name
    content = bytearray(file.read_bytes())
    match damage:
        case "truncate":
            file.write_bytes(content[:-7])
        case "flip":
            content[len(content) // 2] ^= 1
            file.write_bytes(content)
        case "empty":
            file.write_bytes(b"")
        case "missing":
            file.unlink()
        case "meta":
            (newest / "meta.json").write_text((newest / "meta.json").read_text()[:40])
        case "meta_gone":
            (newest / "meta.json").unlink()
        case "meta_type":
            (newest / "meta.json").write_text(json.dumps([1]))
    assert find_last(folder.parent) == folder / "step_00000002"
    said = capsys.readouterr().err
    assert "step_00000003" in said
    assert "damaged" in said


def test_all_damaged_is_an_error(folder):
    for path in checkpoint.steps(folder):
        (path / "state.pt").unlink()
    with pytest.raises(CheckpointError, match="all checkpoints"):
        find_last(folder.parent)


def test_drafts_are_never_taken_and_swept(folder):
    (folder / ".draft-step_00000009-1").mkdir()
    (folder / ".old-step_00000001-1").mkdir()
    (folder / "step_x").mkdir()
    assert find_last(folder.parent) == folder / "step_00000003"
    checkpoint.sweep(folder)
    assert not list(folder.glob(".*"))


def test_saving_again_replaces(folder):
    (folder / "step_00000003" / "state.pt").write_bytes(b"torn")
    checkpoint.save(folder, 3, WEIGHTS, {"step": 33})
    assert load_state(folder / "step_00000003") == {"step": 33}
    assert not list(folder.glob(".*"))


def test_prune_keeps_the_newest_and_the_protected(folder):
    checkpoint.save(folder, 4, WEIGHTS, {})
    checkpoint.prune(folder, 1, {"step_00000002"})
    assert [path.name for path in checkpoint.steps(folder)] == ["step_00000004", "step_00000002"]


@pytest.mark.parametrize("limit", [60, 400, 1000])
def test_a_full_disk_is_told_and_leaves_the_last(folder, limit):
    resource = pytest.importorskip("resource")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
    try:
        with pytest.raises(CheckpointError, match=r"cannot write checkpoint .*earlier checkpoints"):
            checkpoint.save(folder, 4, WEIGHTS, {"x": torch.zeros(1000)})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert not list(folder.glob(".*"))
    assert find_last(folder.parent) == folder / "step_00000003"


def test_a_failing_flush_is_told(folder, monkeypatch):
    def full(handle):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(CheckpointError, match="No space left"):
        checkpoint.save(folder, 4, WEIGHTS, {})
    assert not list(folder.glob(".*"))


@pytest.mark.parametrize("value", [object(), np.float64(1), np.ones(2), {1, 2}])
def test_what_cannot_be_loaded_safely_is_not_saved(folder, value):
    with pytest.raises(CheckpointError, match=r"state\['hooks'\]\['mine'\]\[0\]"):
        checkpoint.save(folder, 4, WEIGHTS, {"hooks": {"mine": [value]}})


def test_a_plain_safetensors_file_without_metadata(tmp_path):
    save_file({"w": torch.ones(2)}, tmp_path / "w.safetensors")
    weights, metadata = load_weights(tmp_path / "w.safetensors")
    assert list(weights) == ["w"]
    assert metadata == {}
