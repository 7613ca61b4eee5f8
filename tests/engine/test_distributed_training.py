"""Two processes on gloo train as one does on the joined batch."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from boxwright.distributed import rank
from boxwright.engine import run_folder

TOY = Path(__file__).with_name("toy.py")
JOINED = {"epochs": 3, "batches": 8, "shuffle": False, "dropout": 0.0, "norm": False, "clip_norm": 1.0,
          "ema_decay": 0.5, "iterations": 3}  # fmt: skip


def run(launcher, out, **options):
    launcher.start(out, ranks=2, **options)
    return launcher.wait()


def losses(out):
    records = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return [record["loss"] for record in records if record["kind"] == "train"]


def test_two_ranks_equal_one_on_the_joined_batch(toy, tmp_path, launcher):
    assert run(launcher, tmp_path / "two", **JOINED, accumulate=2) == [0, 0]
    together = torch.load(tmp_path / "two/final.pt", weights_only=True)
    alone = toy.run(tmp_path / "one", **JOINED, accumulate=4)
    assert not any("module" in key for key in together)
    for key, value in toy.weights(alone).items():
        assert torch.allclose(value, together[key], atol=1e-6), key
    assert losses(tmp_path / "one") == pytest.approx(losses(tmp_path / "two"), rel=1e-4)


def test_two_ranks_resume_exactly(toy, tmp_path, launcher):
    options = {"epochs": 2, "batches": 8, "ema_decay": 0.5, "iterations": 2}
    assert run(launcher, tmp_path / "whole", **options) == [0, 0]
    run(launcher, tmp_path / "cut", **options, interrupt=6)
    assert launcher.said().count("stopped by SIGTERM at step 7 of 8") == 2  # the one that got no signal too
    assert not (tmp_path / "cut/final.pt").exists()
    assert run(launcher, tmp_path / "cut", **options, resume=True) == [0, 0]
    whole, cut = (torch.load(tmp_path / name / "final.pt", weights_only=True) for name in ("whole", "cut"))
    toy.assert_equal(whole, cut)
    run(launcher, tmp_path / "cut", **{**options, "batches": 16, "accumulate": 2}, resume=True)
    assert "accumulate" in launcher.said()


def test_an_error_of_one_rank_reaches_all(tmp_path, launcher):
    assert 0 not in run(launcher, tmp_path / "run", epochs=2, batches=8, nan_at=[1, 3])
    assert launcher.said().count("TrainingError: iteration 4 (epoch 1): loss/box is nan") == 2
    (tmp_path / "other").mkdir()
    (tmp_path / "other/metrics.jsonl").write_text("")
    assert 0 not in run(launcher, tmp_path / "other")
    assert launcher.said().count("already holds a run") == 2


def test_torchrun_ends_well(tmp_path):
    """The whole way, exit code included: a wrapper that outlives its process group would abort here."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", str(TOY)]
    done = subprocess.run(
        [*command, str(tmp_path / "run"), json.dumps({"epochs": 1, "batches": 4})],
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "run/final.pt").exists()


def test_a_killed_run_of_two_ranks_resumes(toy, tmp_path, launcher):
    options = {"epochs": 2, "batches": 8, "iterations": 1}
    assert run(launcher, tmp_path / "whole", **options) == [0, 0]
    pids = launcher.start(tmp_path / "cut", ranks=2, **options, delay=0.1)
    while not list((tmp_path / "cut").glob("checkpoints/step_*3")):
        pass
    for pid in pids:
        os.kill(pid, signal.SIGKILL)
    assert launcher.wait() == [signal.SIGKILL] * 2
    assert run(launcher, tmp_path / "cut", **options, resume=True) == [0, 0]
    whole, cut = (torch.load(tmp_path / name / "final.pt", weights_only=True) for name in ("whole", "cut"))
    toy.assert_equal(whole, cut)


def on_rank(out):
    """What `test_ranks_that_do_not_see_the_run_folder_are_named` does on each rank."""
    for name in ("shared", f"own{rank()}"):
        with run_folder(out / name, resume=False):
            pass


def test_ranks_that_do_not_see_the_run_folder_are_named(tmp_path, launcher):
    """Else they say so when the training is done and is to be evaluated."""
    launcher.start(tmp_path, ranks=3, call=__file__)
    assert launcher.wait() == [0, 0, 0], launcher.said()
    assert launcher.said().count("not see the run folder") == 1
    assert (
        f"warning: ranks 1 to 2 do not see the run folder {tmp_path / 'own0'}: to resume" in launcher.said()
    )
