"""What the machine refuses, and settings that make no sense: errors that say what, where and what to do."""

from __future__ import annotations

import errno
import os
import pickle
from pathlib import Path

import pytest
import torch
from torch import nn

from boxwright.engine import Hook, checkpoint, find_last, run_folder
from boxwright.engine.checkpoint import load_weights
from boxwright.engine.ema import ModelEMA
from boxwright.engine.folder import check_unused, write_config
from boxwright.engine.optim import scale_lr
from boxwright.engine.placing import resolve_device
from boxwright.errors import (
    CheckpointError,
    ConfigError,
    DataError,
    MissingExtraError,
    TrainingError,
    is_out_of_memory,
)
from boxwright.labels import LabelMap


class Refusal(Hook):
    """Raises an error after a step."""

    key = "refusal"
    priority = 99

    def __init__(self, error, step):
        self.error, self.step = error, step

    def after_train_iter(self, state):
        if state.step == self.step:
            raise self.error


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (
            OSError(errno.ENOSPC, "No space left on device", "a.jsonl"),
            "No space left on device.*Make room",
        ),
        (torch.OutOfMemoryError("CUDA out of memory."), r"memory of cpu is full \(CUDA.*Raise accumulate"),
        (
            RuntimeError("DefaultCPUAllocator: no memory"),
            "memory of cpu is full .*memory.checkpoint=auto",
        ),
        (MemoryError(), "memory of cpu is full"),
        (
            RuntimeError("DataLoader worker (pid 7) is killed"),
            "a worker process of the loader died",
        ),
    ],
)
def test_what_the_machine_refuses_says_where_the_run_was(toy, tmp_path, error, words):
    with pytest.raises(TrainingError, match=f"after 9 of 21 iterations: .*{words}") as told:
        toy.run(tmp_path / "run", extra=[Refusal(error, 9)])
    assert f"{tmp_path}/run/checkpoints/step_00000007 is saved: go on with resume=True" in str(told.value)
    assert told.value.__cause__ is error
    state = toy.run(tmp_path / "run", resume=True)
    assert state.first_step == 7
    assert state.step == 21


@pytest.mark.parametrize("error", [DataError("image 7 is gone"), KeyError("x"), ConnectionResetError()])
def test_other_errors_stay_what_they_are(toy, tmp_path, error):
    with pytest.raises(type(error)) as told:
        toy.run(tmp_path / "run", extra=[Refusal(error, 1)])
    assert told.value is error
    assert getattr(error, "__notes__", []) == (
        ["after 1 of 21 iterations; nothing is saved"] if isinstance(error, DataError) else []
    )


def test_a_worker_that_dies_while_a_checkpoint_is_written_is_not_a_full_disk(toy, tmp_path, monkeypatch):
    def interrupted(*_, **__):
        raise RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed.")

    toy.run(tmp_path / "run", epochs=1)
    monkeypatch.setattr(checkpoint.torch, "save", interrupted)
    with pytest.raises(TrainingError, match=r"worker process .* died .*step_00000007 is saved"):
        toy.run(tmp_path / "run", epochs=2, resume=True)
    assert [path.name for path in checkpoint.steps(tmp_path / "run/checkpoints")] == ["step_00000007"]
    assert not list((tmp_path / "run/checkpoints").glob(".*"))


def test_what_pytorch_cannot_write_is_told_plainly(tmp_path, monkeypatch):
    def torn(*_, **__):
        raise RuntimeError("[enforce fail at inline_container.cc:671] . unexpected pos 64 vs 0")

    monkeypatch.setattr(checkpoint.torch, "save", torn)
    with pytest.raises(CheckpointError, match=r"not all of state\.pt could be written \(\d+ MiB free"):
        checkpoint.save(tmp_path, 1, {"a": torch.ones(1)}, {})


def test_nothing_saved_is_told(toy, tmp_path):
    with pytest.raises(TrainingError, match=r"after 1 of 21 iterations: .*nothing is saved"):
        toy.run(tmp_path / "run", extra=[Refusal(MemoryError(), 1)])


def test_memory_errors_are_known_by_type_or_text():
    assert is_out_of_memory(torch.OutOfMemoryError("x"))
    assert not is_out_of_memory(RuntimeError("the size of tensor a must match"))
    assert not is_out_of_memory(ValueError("out of memory"))


def test_a_file_is_no_run_folder(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(TrainingError, match="it is a file; choose another `out`"):
        check_unused(tmp_path / "file", False)
    with pytest.raises(TrainingError, match="File exists"), run_folder(tmp_path / "file", True):
        pass
    check_unused(tmp_path / "new", False)


def test_a_full_disk_leaves_the_configuration_that_was_there(tmp_path, monkeypatch):
    write_config(tmp_path, "{}")

    def full(self, text):
        self.touch()
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(TrainingError, match=r"cannot write .*config\.json: No space left"):
        write_config(tmp_path, '{"a": 1}')
    assert [path.name for path in tmp_path.iterdir()] == ["config.json"]
    assert (tmp_path / "config.json").read_text() == "{}"


def test_a_checkpoint_of_another_model_is_told_in_short(toy, tmp_path):
    toy.run(tmp_path / "run", epochs=1)
    other = nn.Sequential(*(nn.Linear(4, 4) for _ in range(200)))
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "run").rglob("*") if path.is_file()}
    with pytest.raises(CheckpointError, match=r"Missing key.*Resume with the recipe and the data") as told:
        toy.run(tmp_path / "run", epochs=1, model=other, resume=True)
    assert len(str(told.value)) < 1200
    after = {path: path.stat().st_mtime_ns for path in (tmp_path / "run").rglob("*") if path.is_file()}
    assert {k: v for k, v in after.items() if k.name != ".lock"} == {
        k: v for k, v in before.items() if k.name != ".lock"
    }
    assert find_last(tmp_path / "run") is not None


def test_a_run_does_not_go_on_with_other_classes(toy, tmp_path):
    own = {"config": "{}", "label_map": LabelMap(("cat", "dog")).to_json()}
    toy.run(tmp_path / "run", epochs=1, metadata=own)
    for other in (LabelMap(("dog", "cat")), LabelMap(("cat", "dog"), (1, 3))):
        with pytest.raises(CheckpointError, match=r"the classes cat \(id 1\), dog \(id 2\), but the"):
            toy.run(tmp_path / "run", resume=True, metadata={"config": "[]", "label_map": other.to_json()})
    assert (tmp_path / "run/config.json").read_text() == "{}"
    toy.run(tmp_path / "run", epochs=2, resume=True, metadata=own)
    toy.run(tmp_path / "run", epochs=3, resume=True)


@pytest.mark.parametrize("base", [0, -1])
def test_a_base_batch_size_is_a_number_of_images(base):
    with pytest.raises(ConfigError, match="base_batch_size"):
        scale_lr(0.1, 8, base)


def test_a_file_without_weights_is_named(tmp_path):
    torch.save([1, 2], tmp_path / "list.pt")
    with pytest.raises(CheckpointError, match=r"list\.pt holds no state dict"):
        load_weights(tmp_path / "list.pt")


class Evil:
    def __reduce__(self):
        return os.system, ("true",)


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
def test_a_file_with_code_gives_no_advice_to_run_it(tmp_path):
    torch.save({"a": Evil()}, tmp_path / "evil.pth")
    with pytest.raises(CheckpointError, match=r"could run code .*it asks for posix\.system") as told:
        load_weights(tmp_path / "evil.pth")
    assert "weights_only" not in str(told.value)
    (tmp_path / "plain.pth").write_bytes(pickle.dumps({"a": Evil()}))
    with pytest.raises(CheckpointError, match="refused to load") as told:
        load_weights(tmp_path / "plain.pth")
    assert "weights_only" not in str(told.value)


def test_shortened_keeps_the_beginning():
    error = RuntimeError("\n".join(["Error in loading", *(f"\t{'name ' * 100}{i}" for i in range(9))]))
    told = checkpoint.shortened(error)
    assert told.startswith("Error in loading name name")
    assert told.endswith("... (and 6 lines more)")
    assert len(told) < 800


@pytest.mark.parametrize("decay", [-0.1, 1.0, 2.0])
def test_the_decay_of_an_average_is_a_share(decay):
    with pytest.raises(ConfigError, match="at least 0 and below 1"):
        ModelEMA(nn.Linear(1, 1), decay)


@pytest.mark.parametrize("device", ["meta", "xpu", "gpu", "cuda:x"])
def test_a_device_that_computes_nothing_here(device):
    if device == "xpu" and torch.xpu.is_available():
        pytest.skip("there is one")
    with pytest.raises(ConfigError, match=f"device='{device}': .*choose auto"):
        resolve_device(device)


def test_more_processes_than_gpus_is_said_by_all_of_them(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    for rank in ("0", "1"):
        monkeypatch.setenv("LOCAL_RANK", rank)
        with pytest.raises(ConfigError, match=r"2 processes on this machine, but 1 CUDA devices: .* 1, or"):
            resolve_device("auto")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "1")
    with pytest.raises(ConfigError, match="device='cuda:3': there are 1"):
        resolve_device("cuda:3")


def test_ranks_can_send_each_other_a_missing_extra():
    again = pickle.loads(pickle.dumps(MissingExtraError("matplotlib", "plot", "plotting")))
    assert str(again) == str(MissingExtraError("matplotlib", "plot", "plotting"))
