"""Runs that go on with other ranks, after kills, without hung ones; and what ranks agree on at start."""

import contextlib
import json
import math
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from tiny_settings import TINY, TINY_DENSE

from boxwright.engine import find_last, load_weights
from boxwright.engine.agreement import differences, ranges
from boxwright.engine.watch import Sign, compare
from boxwright.errors import TrainingError

RCNN = [
    *TINY, "model.rpn.channels=8", "model.rpn.postprocess.candidates=50", "model.roi.stages.0.trunk.width=16",
    "model.rpn.postprocess.max_detections=20", "model.backbone.norm_eval=false",
]  # fmt: skip


def go(launcher, out, ranks=1, **options):
    """Run a job on ranks that all have to end well."""
    launcher.start(out, ranks, **options)
    assert launcher.wait() == [0] * ranks, launcher.said()


def losses(out):
    records = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return {record["step"]: record["loss"] for record in records if record["kind"] == "train"}


def seen(out):
    return dict(json.loads(line) for line in out.with_name(f"{out.name}.seen").read_text().splitlines())


def final(out):
    return torch.load(out / "final.pt", weights_only=True)


def assert_close(first, second):
    assert first.keys() == second.keys()
    for key, value in first.items():
        assert torch.allclose(value, second[key], rtol=0, atol=1e-5), key


@pytest.fixture(scope="module")
def whole(elastic, tiny_data, tmp_path_factory):
    """A run that nothing happened to."""
    out = tmp_path_factory.mktemp("whole") / "run"
    go(elastic, out, job="train", data=str(tiny_data))
    return out


@pytest.mark.parametrize(
    ("middle", "stops"),
    [
        ({"ranks": 2}, (3, 6)),  # inside an epoch
        ({"ranks": 2}, (1, 5)),  # at the end of one
        ({"ranks": 1, "accumulate": 2}, (2, 5)),
        ({"ranks": 2, "accumulate": 2}, (2, 5)),
    ],
)
def test_one_rank_then_others_then_one(elastic, tiny_data, whole, tmp_path, middle, stops):
    same = {"job": "train", "data": str(tiny_data)}
    cut = tmp_path / "cut"
    go(elastic, cut, **same, stop=stops[0])
    go(elastic, cut, **same, **middle, stop=stops[1], resume=True)
    go(elastic, cut, **same, resume=True)
    assert seen(cut) == seen(whole)
    assert len(seen(whole)) == 8
    assert len({tuple(ids) for ids in seen(whole).values()}) > 2  # the order of an epoch is its own
    assert losses(cut) == pytest.approx(losses(whole), rel=1e-6)
    assert_close(final(cut), final(whole))


def test_a_loader_that_shares_out_otherwise_keeps_its_ranks(elastic, tmp_path):
    go(elastic, tmp_path / "run", job="plain", epochs=1, batches=4)
    elastic.start(tmp_path / "run", 2, job="plain", epochs=2, batches=8, resume=True)
    assert 0 not in elastic.wait()
    assert "'ranks': 1}, this run has" in elastic.said()
    assert "batch size, accumulation and number of processes" in elastic.said()


def test_another_batch_size_is_refused(elastic, tiny_data, tmp_path):
    go(elastic, tmp_path / "run", job="train", data=str(tiny_data), epochs=1)
    elastic.start(tmp_path / "run", 2, job="train", data=str(tiny_data), batch=8, resume=True)
    assert 0 not in elastic.wait()
    assert "'images': 4" in elastic.said()
    assert "this run has {'steps_per_epoch': 1, 'images': 8" in elastic.said()


def kill_ranks(elastic, out, kills, seed, data, epochs, **options):
    """Kill one rank or both of a job under the elastic agent after a random time; it goes on alone.

    Every other kill waits for the first step after the last one; the others may come while all is built.
    """
    rng = random.Random(seed)
    elastic.start(out, job="agent", restarts=2 * kills, data=str(data), epochs=epochs, **options)
    hits = []
    while len(hits) < kills:
        attempt = newest(out)
        pids = [wait_for(out.parent / f"pid-{attempt}-{rank}") for rank in range(2)]
        before = done(out)
        while len(hits) % 2 == 0 and done(out) == before and newest(out) == attempt:
            time.sleep(0.01)
        time.sleep(rng.uniform(0, 0.5))
        for pid in pids if rng.random() < 0.2 else [rng.choice(pids)]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        hits.append(done(out))
        wait_for(out.parent / f"pid-{attempt + 1}-1")
    assert elastic.wait() == [0], elastic.said()
    return hits


def newest(out):
    """Number of the newest attempt."""
    return max((int(path.name.split("-")[1]) for path in out.parent.glob("pid-*-1")), default=0)


def done(out):
    """The last line that was written of a step."""
    path = out.with_name(f"{out.name}.seen")
    return path.read_text().count("\n") if path.exists() else 0


def test_only_the_launcher_that_began_a_run_goes_on_unasked(toy, tmp_path, monkeypatch):
    toy.run(tmp_path / "run", epochs=1)
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    assert toy.run(tmp_path / "run", epochs=2).first_step == 7
    lock = tmp_path / "run/.lock"
    lock.write_text(lock.read_text().replace(str(os.getppid()), "1"))
    for _ in range(2):  # a refused start does not sign
        with pytest.raises(TrainingError, match="already holds a run"):
            toy.run(tmp_path / "run", epochs=3)


def wait_for(path: Path) -> int:
    for _ in range(6000):
        if path.exists() and path.read_text():
            return int(path.read_text())
        time.sleep(0.01)
    raise TimeoutError(path)


def test_killed_ranks_are_started_anew_and_go_on(elastic, tiny_data, tmp_path):
    options = {"data": tiny_data, "epochs": 12, "delay": 0.05, "every": 5}
    out = tmp_path / "killed" / "run"
    out.parent.mkdir()
    kill_ranks(elastic, out, 2, 0, **options)
    said = elastic.said()
    go(elastic, tmp_path / "run", 2, job="train", **{**options, "data": str(tiny_data), "delay": 0.0})
    for key, value in final(out).items():
        assert torch.equal(value, final(tmp_path / "run")[key]), key
    assert "resuming at step" in said
    assert losses(out) == losses(tmp_path / "run")


@pytest.mark.slow
def test_thirty_kills_of_ranks(elastic, tiny_data, tmp_path):
    options = {"data": tiny_data, "epochs": 300, "delay": 0.02, "every": 3, "log": 5}
    out = tmp_path / "killed" / "run"
    out.parent.mkdir()
    hits = kill_ranks(elastic, out, 30, 1, **options)
    assert len(set(hits)) >= 15  # they hit at many places: every other one a step further at least
    go(elastic, tmp_path / "run", 2, job="train", **{**options, "data": str(tiny_data), "delay": 0.0})
    for key, value in final(out).items():
        assert torch.equal(value, final(tmp_path / "run")[key]), key


@pytest.mark.parametrize(
    ("what", "words"),
    [
        ("sleep", ("held up by rank 1 (", "at step 3, training, for ", "elastic.py:", "rank 1 stands here")),
        ("SIGSTOP", ("no sign of life any more from rank 1 (", "at step 3, training")),
        ("SIGKILL", ("no sign of life any more from rank 1 (", "at step 3, training")),
        ("error", ("RankError: rank 1 failed: DataError: image 7 is gone",)),
        ("bug", ("RankError: rank 1 failed: RuntimeError: a matrix is missing",)),
    ],
    ids=("sleep", "freeze", "kill", "error", "bug"),
)
def test_the_rank_that_holds_others_up_is_named(elastic, tiny_data, tmp_path, what, words):
    pids = elastic.start(
        tmp_path / "run", 2, job="train", data=str(tiny_data), mishap=[what, 1, 3], timeout=1.5
    )  # fmt: skip
    began = time.monotonic()
    if what == "SIGSTOP":  # a frozen process ends when somebody ends it
        while "no sign of life" not in elastic.said() and time.monotonic() - began < 30:
            time.sleep(0.1)
        os.kill(pids[1], signal.SIGKILL)
    statuses = elastic.wait()
    assert 0 not in statuses
    assert time.monotonic() - began < 30  # not the minute for which it would sleep
    for word in words:
        assert word in elastic.said(), elastic.said()
    assert (tmp_path / "run/checkpoints/step_00000003").is_dir()


def signs(**ranks):
    """Lines of ranks, given as beat, order and whether it waits."""
    return {
        int(name[1:]): Sign("host", beat, order, 9, "training", 4.0, waits, "a.py:1 in f")
        for name, (beat, order, waits) in ranks.items()
    }


def test_who_holds_the_others_up():
    before = signs(r0=(1, 5, True), r1=(1, 5, True), r2=(1, 5, True))
    frozen = compare(before, signs(r0=(2, 5, True), r1=(1, 5, True), r2=(2, 5, False)))
    assert frozen.suspects == (1,)
    assert frozen.text.startswith("no sign of life any more from rank 1 (host) at step 9, training")
    assert compare(before, signs(r0=(2, 5, True), r1=(2, 4, True), r2=(2, 5, False))).suspects == (1,)
    assert compare(before, signs(r0=(2, 5, True), r1=(2, 5, True), r2=(2, 5, False))).suspects == (2,)
    mutual = compare(before, signs(r0=(2, 5, True), r1=(2, 5, True), r2=(2, 5, True)))
    assert mutual.suspects == ()
    assert mutual.text.startswith("each waits for others. The others:\n  rank 0 (host) at step 9")
    many = {rank: Sign("host", 2, int(rank > 50), 9, "training", 4.0, True, "") for rank in range(100)}
    text = compare({}, many).text
    assert "rank 7 (host)" in text
    assert "and 43 ranks more. The others:" in text


def test_differences_are_told_by_rank():
    values = [{"a": "1", "b": "x"}, {"a": "1", "b": "y"}, {"a": "1"}, {"a": "1", "b": "x"}]
    assert differences(values) == "b is x on ranks 0, 3, y on rank 1, absent on rank 2"
    assert differences([{"a": "1"}] * 3) == ""
    assert ranges([0, 2, 3, 4, 7]) == "ranks 0, 2 to 4, 7"
    assert differences([{str(i): "a" for i in range(11)}, {}]).endswith("; and 3 more")


def test_ranks_that_differ_are_told_at_start(elastic, tiny_data, tmp_path):
    other = tmp_path / "other"
    shutil.copytree(tiny_data, other)
    path = other / "annotations/instances_train.json"
    content = json.loads(path.read_text())
    content["annotations"][0]["bbox"][2] -= 1
    path.write_text(json.dumps(content))
    go(
        elastic, tmp_path / "run", 2, job="own", then="agree", rank1_version="9.9",
        rank0_settings=["data.root=/a"], rank1_settings=["batch_size=4", "model.neck.out_channels=8"],
        rank0_data=str(tiny_data), rank1_data=str(other),
    )  # fmt: skip
    said = elastic.said()
    for rank in range(2):
        assert f"ConfigError on rank {rank}: the ranks run different versions: boxwright is " in said
        assert (
            f"ConfigError on rank {rank}: the ranks were given different configurations: model.neck."
            "out_channels is 128 on rank 0, 8 on rank 1; batch_size is 8 on rank 0, 4 on rank 1. Start"
        ) in said
        assert (
            f"DataError on rank {rank}: the ranks see different data sets: split train is 8 images (contents "
        ) in said
    assert "split val" not in said
    assert "torch is" not in said


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"settings": ["batch_size=3"]}, ["batch_size=3 images a step cannot be shared by 2 processes"] * 2),
        ({"settings": ["schedule.warmup=99"]}, ["warmup=99 iterations is longer than the run of"] * 2),
        (
            {"rank1_settings": ["data.root=/nowhere"], "rank0_settings": []},
            ["errors.DataError: /nowhere: does not exist", "RankError: rank 1 failed: DataError: /nowhere"],
        ),
    ],
    ids=("batch", "warmup", "data"),
)
def test_what_cannot_be_trained_ends_every_rank_at_start(elastic, tiny_data, tmp_path, options, words):
    options = {
        key: [*TINY_DENSE, f"data.root={tiny_data}", "epochs=1", "batch_size=4", *value]
        for key, value in options.items()
    }
    elastic.start(tmp_path / "run", 2, job="own", then="recipe", name="fcos_mnv2_320", **options)
    assert 0 not in elastic.wait()
    for word in words:
        assert elastic.said().count(word) >= words.count(word), elastic.said()
    assert not (tmp_path / "run/checkpoints").exists()


@pytest.mark.parametrize(
    ("name", "settings", "kept"), [("fcos_mnv2_320", TINY_DENSE, 1), ("faster_rcnn_mnv2_320", RCNN, 2)]
)
def test_ranks_without_objects_or_images_of_their_own(elastic, tiny_data, tmp_path, name, settings, kept):
    """One image for two ranks; or two images, of which one has no objects."""
    data = tmp_path / "data"
    shutil.copytree(tiny_data, data)
    for path in data.glob("annotations/*.json"):
        content = json.loads(path.read_text())
        content["images"] = content["images"][:kept]
        content["annotations"] = [a for a in content["annotations"] if a["image_id"] == 1]
        path.write_text(json.dumps(content))
    go(
        elastic, tmp_path / "run", 2, job="recipe", name=name,
        settings=[*settings, f"data.root={data}", "batch_size=2", "epochs=2"],
    )  # fmt: skip
    assert sorted(losses(tmp_path / "run")) == [1, 2]
    assert all(math.isfinite(loss) for loss in losses(tmp_path / "run").values())
    assert (tmp_path / "run/evaluation.json").is_file()


@pytest.mark.slow
def test_a_detector_goes_on_with_other_ranks(elastic, tiny_data, tmp_path):
    """FCOS with fixed norms: nothing in its step depends on how a batch is shared out."""
    settings = [*TINY_DENSE, f"data.root={tiny_data}", "batch_size=4", "evaluate_every=0"]
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    same = {"job": "recipe", "name": "fcos_mnv2_320"}
    go(elastic, whole, **same, settings=[*settings, "epochs=6"])
    for ranks, epochs in ((1, 2), (2, 4), (1, 6)):
        stop = {} if epochs == 6 else {"stop": 2 * epochs - 1}
        go(elastic, cut, ranks, **same, settings=[*settings, "epochs=6"], resume=True, **stop)
    assert losses(cut) == pytest.approx(losses(whole), rel=1e-5)
    assert_close(load_weights(find_last(cut))[0], load_weights(find_last(whole))[0])


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    pytest.importorskip("sklearn")
    from boxwright.demo_data import make_digits

    return make_digits(tmp_path_factory.mktemp("digits") / "data", train=16, val=4, size=96)


def words_of(out, data):
    """Arguments of the command that trains a small Faster R-CNN, from the beginning or from where it is."""
    settings = [*RCNN, f"data.root={data}", "batch_size=4", "epochs=6"]
    return ["train", "faster_rcnn_mnv2_320", f"out={out}", *settings, "--resume", "--quiet"]


def assert_same_run(out, whole):
    for ema in (False, True):
        mine, other = (load_weights(find_last(run), ema=ema)[0] for run in (out, whole))
        assert mine.keys() == other.keys()
        assert all(torch.equal(mine[key], other[key]) for key in mine)
    assert losses(out) == losses(whole)
    first, second = (json.loads((run / "evaluation.json").read_text()) for run in (out, whole))
    assert first == second


@pytest.mark.slow
def test_fifty_kills_of_a_detector(elastic, digits, tmp_path):
    """The whole command, from a process that has imported what it needs; kills hit all of its life."""
    whole, out = tmp_path / "whole", tmp_path / "run"
    elastic.start(whole, job="command", words=[*words_of(whole, digits), "--no-report"])
    began = time.monotonic()
    assert elastic.wait() == [0], elastic.said()
    life, rng, kills, places = time.monotonic() - began, random.Random(0), 0, set()
    while kills < 50:
        (pid,) = elastic.start(out, job="command", words=[*words_of(out, digits), "--no-report"])
        time.sleep(rng.uniform(0, life))
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
        killed = elastic.wait() == [signal.SIGKILL]
        kills += killed
        assert "damaged" not in elastic.said()
        last = find_last(out)
        places.add(last and last.name)
        if not killed:
            assert_same_run(out, whole)
            shutil.rmtree(out)
    go(elastic, out, job="command", words=[*words_of(out, digits), "--no-report"])
    assert_same_run(out, whole)
    assert len(places) >= 5  # they hit at many places


@pytest.mark.slow
def test_kills_of_the_real_command(elastic, digits, tmp_path):
    whole, out = tmp_path / "whole", tmp_path / "run"
    go(elastic, whole, job="command", words=[*words_of(whole, digits), "--no-report"])
    rng = random.Random(1)
    command = [sys.executable, "-m", "boxwright", *words_of(out, digits)]
    quiet = {"env": {**os.environ, "OMP_NUM_THREADS": "1"}, "stdout": subprocess.DEVNULL}
    for kill in range(6):
        process = subprocess.Popen(command, **quiet)
        limit = time.monotonic() + 60
        while kill > 1 and not (out / "metrics.jsonl").exists() and time.monotonic() < limit:
            time.sleep(0.05)
        time.sleep(rng.uniform(0, 6))
        process.kill()
        process.wait()
    assert subprocess.run(command, check=False, **quiet).returncode == 0
    assert_same_run(out, whole)
    assert (out / "report.html").is_file()
