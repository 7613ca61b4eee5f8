"""What a clumsy user types and what a machine refuses: one message, a code, and nothing lost."""

from __future__ import annotations

import errno
import io
import json
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import fiddle as fdl
import pytest
import torch
from command_line import call
from tiny_settings import TINY_DENSE

import boxwright as bw
from boxwright import api, inference
from boxwright.assembly import set_num_classes
from boxwright.asynchronous.run import _settings
from boxwright.asynchronous.server import SETTINGS
from boxwright.cli import main
from boxwright.config import apply_overrides, build, to_json
from boxwright.engine.checkpoint import load_weights, save_weights
from boxwright.errors import BoxwrightError, ConfigError, DataError, RankError

RECIPE = "fcos_mnv2_320"


@pytest.fixture(scope="module")
def run(tiny_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder with untrained weights."""
    config = bw.recipe(RECIPE)
    words = [*TINY_DENSE, "model.head.postprocess.score_threshold=0.0", f"data.root={tiny_data}"]
    apply_overrides(config, words)
    data = bw.data.folder(tiny_data)
    set_num_classes(config, len(data.label_map))
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("mishaps") / "run"
    folder.mkdir()
    metadata = {"config": to_json(config), "label_map": data.label_map.to_json()}
    save_weights(folder / "model.safetensors", build(config.model).state_dict(), metadata)
    (folder / "config.json").write_text(metadata["config"])
    return folder


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["config", "yolo"], "yolov3_mnv2_320?"),
        (["config", "?"], "`boxwright recipes` lists all"),
        (["config", RECIPE, "optimizer.lr="], "optimizer.lr= has no value"),
        (["config", RECIPE, "lr=0.1"], "did you mean optimizer.lr?"),
        (["config", RECIPE, "canvas=640"], "set what is below it: canvas.shapes"),
        (["config", RECIPE, "schedule=cosine"], "schedule takes Schedule, but 'cosine' is str"),
        (["config", RECIPE, "optimizer=adamw"], "set what is below it: optimizer."),
        (["config", RECIPE, "hooks=x"], "hooks takes"),
        (
            ["config", RECIPE, "model.head.channels=0"],
            "boxwright: model.head.channels takes a whole number from 1 on, not 0\n",
        ),
        (["config", RECIPE, "model.head.tower_convs=-1"], "takes a whole number from 0 on, not -1"),
        (["config", RECIPE, "model.head.predictor_kernel=2"], "takes an odd whole number from 1 on, not 2"),
        (["config", RECIPE, "model.neck.out_channels=x"], "takes a whole number from 1 on, not 'x'"),
        (["config", RECIPE, "train_transforms.2.p=7"], "takes a number from 0 to 1, not 7"),
        (
            ["config", "retinanet_mnv2_320", "model.head.priors.scales=()"],
            "one or more numbers above 0, not ()",
        ),
        (
            ["config", "retinanet_mnv2_320", "model.head.coder.stds=(0,1,1,1)"],
            "takes a tuple of 4, each a number above 0, not (0, 1, 1, 1)",
        ),
        (
            ["config", "retinanet_mnv2_320", "model.head.criterion.assigner.positive_iou=-1"],
            "takes a number from 0 to 1 or Tensor, not -1",
        ),
        (["config", RECIPE, "--epochs", "3"], "no option --epochs (--help lists them)"),
        (["config", RECIPE, "--epochs=3"], "values are set without dashes: epochs=3"),
        (["train", "--out", "runs/x", RECIPE], "without dashes: out=runs/x"),
        (["train", RECIPE, "out="], "out= has no value"),
        (
            ["train", RECIPE, "out=x", "device=cpu"],
            "no value of the recipe but an option: --device cpu",
        ),
        (["train", "out=nowhere", "--resume"], "there is no nowhere/config.json to go on with"),
        (["study", "--epochs", "3", "out=x"], "without dashes: epochs=3"),
        (["evaluate", "nowhere", "--split", "val"], "without dashes: split=val"),
        (["evaluate", "--split", "val", "nowhere"], "without dashes: split=val"),
        (["variance", "nowhere", "--data", "x"], "without dashes: data=x"),
    ],
)
def test_wrong_words_are_told_with_the_right_ones(
    words: list[str], message: str, capsys: pytest.CaptureFixture[str], tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    assert call(*words) == 2
    told = capsys.readouterr()
    assert told.err.startswith("boxwright: ")
    assert message in told.err
    assert list(tmp_path.iterdir()) == []


def test_a_begun_run_is_offered_to_be_resumed(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert call("train", f"out={run}") == 2
    assert f"or give --resume to go on with the run in {run}" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (
            OSError(errno.ENOSPC, "No space left on device", "a/b"),
            1,
            "a/b: No space left on device; make room",
        ),
        (PermissionError(errno.EACCES, "Permission denied", "a"), 1, "a: Permission denied; choose a place"),
        (torch.OutOfMemoryError("CUDA out of memory. Tried"), 1, "the memory is full: CUDA out of memory"),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate"), 1, "the memory is full: "),
        (MemoryError(), 1, "the memory is full: MemoryError"),
        (
            RuntimeError("DataLoader worker (pid 7) is killed"),
            1,
            "a worker process of the loader died",
        ),
        (KeyboardInterrupt(), 130, "interrupted"),
    ],
)
def test_what_the_machine_refuses_is_one_message(
    error: BaseException, code: int, message: str, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    def refuse(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(api, "load", refuse)
    assert call("predict", "run", "x.jpg") == code
    told = capsys.readouterr().err
    assert told.startswith(f"boxwright: {message}")
    assert told.count("\n") == 1
    if isinstance(error, Exception):
        with pytest.raises(type(error)):
            main(["predict", "run", "x.jpg", "--debug"])


def test_a_fault_of_the_program_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("a matrix is missing")

    monkeypatch.setattr(api, "load", fail)
    with pytest.raises(RuntimeError, match="matrix"):
        main(["predict", "run", "x.jpg"])


@pytest.mark.parametrize(
    ("rank", "local", "error", "speaks"),
    [
        ("0", "0", ConfigError("wrong"), True),
        ("1", "1", ConfigError("wrong"), False),
        (
            "8",
            "0",
            ConfigError("wrong"),
            True,
        ),  # the first of another machine
        ("0", "0", RankError("gone", speaks=False), False),
        ("1", "1", RankError("gone", speaks=True), True),
    ],
)
def test_one_process_of_a_machine_speaks(
    rank: str, local: str, error: Exception, speaks: bool, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    def fail(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(api, "load", fail)
    monkeypatch.setenv("RANK", rank)
    monkeypatch.setenv("LOCAL_RANK", local)
    assert call("predict", "run", "x.jpg") in (1, 2)
    assert bool(capsys.readouterr().err) is speaks


@pytest.mark.parametrize("size", [0, -1])
def test_a_batch_has_images(size: int, run: Path, tiny_data: Path, tmp_path: Path) -> None:
    words = ("--batch-size", size, "--out", tmp_path / "found")
    assert call("predict", run, tiny_data / "images" / "0.png", *words) == 2
    assert not (tmp_path / "found").exists()


def test_an_image_that_cannot_be_drawn_is_skipped_and_the_others_listed_once(
    run: Path, tiny_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    save = inference.ImageDetections.save

    def vanished(self: inference.ImageDetections, path: Path) -> Path:
        if path.name == "2.png":
            raise DataError("2.png: the image does not exist")
        return save(self, path)

    monkeypatch.setattr(inference.ImageDetections, "save", vanished)
    out = tmp_path / "found"
    assert call("predict", run, tiny_data / "images", "--out", out, "--score", "0", "--batch-size", "4") == 1
    listed = [image["id"] for image in json.loads((out / "images.json").read_text())["images"]]
    assert listed == [0, 1, 3, 4, 5, 6, 7]
    records = json.loads((out / "predictions.json").read_text())
    assert {record["image_id"] for record in records} == set(listed)
    assert "skipped: 2.png" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["predict", "evaluate"])
def test_a_place_that_cannot_hold_results_is_told_before_the_work(
    command: str, run: Path, tiny_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    def work(*_: object, **__: object) -> None:
        raise AssertionError("predicted")

    monkeypatch.setattr(inference.Detector, "predict", work)
    monkeypatch.setattr(api, "evaluate_model", work)
    (tmp_path / "file").write_text("")
    words = [run, tiny_data / "images"] if command == "predict" else [run]
    for place in (tmp_path / "file", tmp_path / "file" / "below"):
        assert call(command, *words, "--out", place) == 1
        assert f"{place}: no folder that can be written" in capsys.readouterr().err


@pytest.mark.parametrize("place", ["the images' folder", "the same by a link", "the run"])
def test_results_replace_nothing_that_they_are_made_of(
    place: str, run: Path, tiny_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    photos, begun = tmp_path / "photos", tmp_path / "run"
    shutil.copytree(tiny_data / "images", photos)
    shutil.copytree(run, begun)
    (begun / "predictions.json").write_text("[]")
    (tmp_path / "link").symlink_to(photos)
    before = {file: file.read_bytes() for folder in (photos, begun) for file in folder.iterdir()}
    out = {"the images' folder": photos, "the same by a link": tmp_path / "link", "the run": begun}[place]
    assert call("predict", begun, photos, "--out", out, "--score", "0") == 2
    assert "would replace" in (told := capsys.readouterr().err) or "is a run folder" in told
    after = {file: file.read_bytes() for folder in (photos, begun) for file in folder.iterdir()}
    assert after == before
    if place != "the run":  # what is not drawn replaces nothing
        assert call("predict", begun, photos, "--out", out, "--no-draw") == 0


def test_a_score_is_no_percentage(run: Path, tiny_data: Path, tmp_path: Path) -> None:
    words = ("--score", "30", "--out", tmp_path / "found")
    assert call("predict", run, tiny_data / "images" / "0.png", *words) == 2
    assert not (tmp_path / "found").exists()


def test_output_that_cannot_hold_a_character_goes_on_without_it(
    tiny_data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(written, encoding="cp1252"))
    assert call("data", "stats", tiny_data) == 0
    sys.stdout.flush()
    assert "green" in written.getvalue().decode("cp1252")


def test_where_a_run_s_data_lies_now_can_be_said(
    run: Path, tiny_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    moved = tmp_path / "run"
    shutil.copytree(run, moved)
    config = bw.config.from_json((moved / "config.json").read_text())
    apply_overrides(config, [f"data.root={tmp_path / 'gone'}"])
    (moved / "config.json").write_text(to_json(config))
    weights, texts = load_weights(run)
    save_weights(moved / "model.safetensors", weights, {**texts, "config": to_json(config)})
    (moved / "predictions.json").write_text("[]")
    for words, remedy in (
        (("evaluate", moved), "set data=FOLDER"),
        (("evaluate", moved / "predictions.json"), "set data=FOLDER"),
        (("train", f"out={moved}", "--resume", "-q"), "set data.root=FOLDER"),
    ):
        assert call(*words) == 1
        told = capsys.readouterr().err
        assert "gone: does not exist" in told
        assert remedy in told


def test_addresses_are_not_fetched(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert call("predict", run, "https://example.org/a.jpg", "--out", tmp_path / "found") == 1
    assert "not fetched from the web" in capsys.readouterr().err


@pytest.mark.parametrize("damage", ["empty", "torn", "bytes", "another call", "a word for a number"])
def test_a_damaged_configuration_is_named(
    damage: str, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    broken = tmp_path / "run"
    shutil.copytree(run, broken)
    file = broken / "config.json"
    text = file.read_text()
    match damage:
        case "empty":
            file.write_text("")
        case "torn":
            file.write_text(text[: len(text) // 2])
        case "bytes":
            file.write_bytes(b"\xff\xfe\x00")
        case "another call":
            file.write_text(to_json(fdl.Config(torch.nn.Linear, 1, 2)))
        case "a word for a number":
            config = bw.config.from_json(text)
            config.epochs = "ten"
            file.write_text(to_json(config))
    (broken / "predictions.json").write_text("[]")
    for words in (["train", f"out={broken}", "--resume"], ["evaluate", broken / "predictions.json"]):
        assert call(*words) == 2
        told = capsys.readouterr().err
        assert "Traceback" not in told
        match damage:
            case "another call":
                assert "that of a torch.nn.modules.linear.Linear" in told
            case "a word for a number":
                assert "epochs takes int, but 'ten' is str" in told
            case _:
                assert str(file) in told


def test_files_given_the_wrong_way_round(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "results.json").write_text("[]")
    (tmp_path / "other.json").write_text('{"a": 1}')
    for name, message in (("results.json", "is a list, not a COCO data set"), ("other.json", "has no list")):
        assert call("evaluate", tmp_path / "results.json", f"data={tmp_path / name}") == 1
        assert f"{tmp_path / name}: {message}" in capsys.readouterr().err


def test_a_picture_of_the_variance_is_one(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call("variance", run, "--out", tmp_path / "variance.csv") == 2
    assert "end its name in .png" in capsys.readouterr().err


def test_what_is_left_after_a_training_is_told(tmp_path: Path) -> None:
    parts: Any = SimpleNamespace(config=bw.recipe(RECIPE), evaluated=None)
    with pytest.raises(DataError, match="no run folder") as told:
        api.finish(parts, tmp_path, torch.device("cpu"), False, True)
    assert told.value.__notes__ == [
        f"the training itself is finished; `boxwright train out={tmp_path} --resume` does the rest"
    ]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"label_map": "{"}, "its label map is damaged"),
        ({"label_map": "[]"}, "its label map is damaged"),
        ({"config": "[1]"}, "configuration file"),
        ({"config": to_json(fdl.Config(torch.nn.Linear, 1, 2))}, "describes no experiment"),
    ],
)
def test_weights_with_damaged_text_are_named(
    change: dict[str, str], message: str, run: Path, tmp_path: Path
) -> None:
    weights, metadata = load_weights(run)
    save_weights(tmp_path / "odd.safetensors", weights, {**metadata, **change})
    with pytest.raises(BoxwrightError, match=rf"odd\.safetensors: .*{message}"):
        bw.load(tmp_path / "odd.safetensors")


def test_settings_of_workers_that_are_damaged_are_named(tmp_path: Path) -> None:
    for text in ("{", "[]", "{}"):
        (tmp_path / SETTINGS).write_text(text)
        with pytest.raises(ConfigError, match=f"{SETTINGS} cannot be read .*say replicas= again"):
            _settings(tmp_path, None, None, resume=True)


@pytest.mark.slow
def test_what_one_process_stumbles_over_at_the_start_is_told_once(tmp_path: Path) -> None:
    (tmp_path / "half_there.py").write_text(
        "import os, boxwright as bw\n"
        "def recipe():\n"
        "    if os.environ['RANK'] == '1':\n"
        "        raise FileNotFoundError('extra.txt')\n"
        "    return bw.recipe('fcos_mnv2_320')\n"
    )
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    words = ["train", "half_there.py", "data.root=nowhere", "out=run"]
    done = subprocess.run(
        [*launcher, "-m", "boxwright", *words], capture_output=True, text=True, timeout=300, cwd=tmp_path
    )
    assert done.returncode != 0
    message = "rank 1 failed: ConfigError: half_there.py: recipe failed with FileNotFoundError: extra.txt"
    assert done.stderr.count(f"boxwright: {message}") == 1, done.stderr
    assert done.stderr.count("boxwright: ") == 1
