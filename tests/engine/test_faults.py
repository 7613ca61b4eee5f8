"""Runs killed at random moments go on to the same weights; a run folder has one owner."""

import contextlib
import json
import os
import random
import shutil
import signal
import time
from pathlib import Path

import pytest
import torch

from boxwright.engine import find_last, folder, run_folder
from boxwright.errors import TrainingError

OPTIONS = {"epochs": 3, "batches": 8, "delay": 0.01, "iterations": 2, "ema_decay": 0.9, "accumulate": 2}


def kill_and_resume(out, kills, expected, launcher, seed):
    """Kill runs at random moments, resuming each time, until `kills` have hit; all that end are compared."""
    rng = random.Random(seed)
    hits, stops = 0, set()
    while hits < kills:
        (pid,) = launcher.start(out, **OPTIONS, resume=True)
        time.sleep(rng.uniform(0, 0.5))
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
        hit = launcher.wait() == [signal.SIGKILL]
        hits += hit
        last = find_last(out)
        stops.add(last and last.name)
        if not hit:
            compare(out, expected)
            shutil.rmtree(out)
    launcher.start(out, **OPTIONS, resume=True)
    assert launcher.wait() == [0], launcher.said()
    assert "damaged" not in launcher.said()
    compare(out, expected)
    return stops


def compare(out, expected):
    final = torch.load(out / "final.pt", weights_only=True)
    assert final.keys() == expected.keys()
    assert all(torch.equal(final[key], expected[key]) for key in expected)
    records = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert [r["step"] for r in records if r["kind"] == "train"] == [2, 4, 6, 8, 10, 12]
    assert [r["step"] for r in records if r["kind"] == "val"] == [4, 8, 12]


@pytest.fixture(scope="module")
def expected(tmp_path_factory, launcher):
    out = tmp_path_factory.mktemp("undisturbed") / "run"
    launcher.start(out, **OPTIONS)
    assert launcher.wait() == [0], launcher.said()
    return torch.load(out / "final.pt", weights_only=True)


def test_killed_runs_resume_to_the_same_weights(tmp_path, expected, launcher):
    kill_and_resume(tmp_path / "run", 5, expected, launcher, seed=0)


@pytest.mark.slow
def test_fifty_kills(tmp_path, expected, launcher):
    stops = kill_and_resume(tmp_path / "run", 50, expected, launcher, seed=1)
    assert len(stops) >= 4  # they hit at many places


@pytest.mark.parametrize("moment", range(12))
def test_a_kill_at_each_moment_of_saving(toy, tmp_path, moment, monkeypatch):
    """The process dies before the n-th rename, flush or removal of a save; what it leaves must be whole."""
    from boxwright.engine import checkpoint

    run = tmp_path / "run"
    toy.run(run, epochs=2)
    before = find_last(run)
    calls = iter(range(1000))

    class Killed(BaseException):
        pass

    def dying(function):
        def wrapped(*args, **kwargs):
            if next(calls) == moment:
                raise Killed
            return function(*args, **kwargs)

        return wrapped

    for target, name in ((os, "fsync"), (os, "replace"), (Path, "rename"), (checkpoint.shutil, "rmtree")):
        monkeypatch.setattr(target, name, dying(getattr(target, name)))
    weights = {"a": torch.ones(2)}
    try:
        checkpoint.save(run / "checkpoints", 99, weights, {"step": 99})
        checkpoint.prune(run / "checkpoints", 1, set())
    except Killed:
        pass
    monkeypatch.undo()
    found = find_last(run)
    assert found is not None
    assert found == before or found.name == "step_00000099"
    assert all(checkpoint.verify(path) is None for path in checkpoint.steps(run / "checkpoints"))


def wait_for(file):
    while not file.exists():
        time.sleep(0.01)


def test_a_second_run_into_the_folder_is_refused_and_a_killed_one_leaves_no_lock(tmp_path, launcher):
    out = tmp_path / "run"
    (pid,) = launcher.start(out, delay=5)
    try:
        wait_for(out / "metrics.jsonl")
        with pytest.raises(TrainingError, match=f"pid {pid}"), run_folder(out, resume=True):
            pass
    finally:
        os.kill(pid, signal.SIGKILL)
        launcher.wait()
    with run_folder(out, resume=True):
        pass


def test_one_process_does_not_train_twice_into_a_folder(tmp_path):
    with (
        run_folder(tmp_path, False),
        pytest.raises(TrainingError, match="this process"),
        run_folder(tmp_path, False),
    ):
        pass
    with run_folder(tmp_path, False):
        pass


def test_an_earlier_run_is_not_overwritten(toy, tmp_path):
    toy.run(tmp_path / "run", epochs=1, metadata={"config": '{"a": 1}'})
    assert json.loads((tmp_path / "run/config.json").read_text()) == {"a": 1}
    with pytest.raises(TrainingError, match=r"already holds a run .*resume=True .*another `out`"):
        toy.run(tmp_path / "run", epochs=1)


def test_a_changed_configuration_is_told(toy, tmp_path, capsys):
    toy.run(tmp_path / "run", epochs=1, metadata={"config": '{"a": 1}'})
    toy.run(tmp_path / "run", epochs=1, metadata={"config": '{ "a": 1}'}, resume=True)
    assert "differs" not in capsys.readouterr().err
    toy.run(tmp_path / "run", epochs=1, metadata={"config": '{"a": 2}'}, resume=True)
    assert "differs" in capsys.readouterr().err


def test_an_unwritable_place_is_told(tmp_path):
    (tmp_path / "file").write_text("")
    with (
        pytest.raises(TrainingError, match="cannot write the run folder"),
        run_folder(tmp_path / "file/run", False),
    ):
        pass


def test_sigterm_to_a_process_stops_it_politely(tmp_path, launcher):
    out = tmp_path / "run"
    (pid,) = launcher.start(out, delay=0.02, epochs=50)
    wait_for(out / "metrics.jsonl")
    time.sleep(0.1)
    os.kill(pid, signal.SIGTERM)
    launcher.wait()
    assert "go on with resume=True" in launcher.said()
    assert find_last(out) is not None


@pytest.mark.parametrize("wait", [0.0, 0.013, 0.03])
def test_a_signal_to_the_whole_group_with_its_workers_stops_it_politely(tmp_path, launcher, wait):
    out = tmp_path / "run"
    (pid,) = launcher.start(out, workers=True, batches=200)
    wait_for(out / "metrics.jsonl")
    while not (out / "metrics.jsonl").read_text():
        time.sleep(0.01)
    time.sleep(wait)
    os.killpg(pid, signal.SIGTERM)
    launcher.wait()
    assert "is saved: go on with resume=True" in launcher.said()
    assert find_last(out) is not None


class Torn:
    """A file whose process is killed before the call of that number."""

    def __init__(self, file, calls):
        self.file, self.calls = file, calls

    def __getattr__(self, name):
        if self.calls == 0:
            raise KeyboardInterrupt
        self.calls -= 1
        return getattr(self.file, name)


def test_a_kill_while_a_run_is_signed_leaves_it_signed(tmp_path):
    """Else the processes that its launcher starts anew would take it for another's."""
    survived = 0
    with run_folder(tmp_path, resume=False):
        signed = folder._signed_by(tmp_path)
        assert signed == folder._launcher()
        for calls in range(10):
            with os.fdopen(os.open(tmp_path / ".lock", os.O_RDWR), "r+") as file:
                try:
                    folder._sign(Torn(file, calls))
                    survived += 1
                except KeyboardInterrupt:
                    pass
                assert folder._signed_by(tmp_path) == signed, calls  # before anything is flushed by closing
    assert 0 < survived < 10
