"""The commands: what they print, write, and exit with."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from command_line import call
from PIL import Image
from tiny_settings import TINY_DENSE

from boxwright import __version__
from boxwright.cli import main
from boxwright.cli.predict import names_for
from boxwright.cli.words import only, take
from boxwright.errors import ConfigError

TINY = [*TINY_DENSE, "model.head.postprocess.score_threshold=0.0", "batch_size=4", "epochs=1"]
QUIET = ("--quiet", "--no-report")
COMMANDS = (
    ["train"],
    ["evaluate"],
    ["predict"],
    ["study"],
    ["recipes"],
    ["config"],
    ["data", "check"],
    ["data", "stats"],
    ["data", "browse"],
    ["data", "convert"],
    ["doctor"],
    ["variance"],
    ["demo"],
)


@pytest.fixture(scope="module")
def run(tiny_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("cli") / "run"
    assert call("train", "fcos_mnv2_320", f"data.root={tiny_data}", f"out={out}", *TINY, *QUIET) == 0
    return out


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_help_teaches_with_an_example(command: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert call(*command, "--help") == 0
    assert f"boxwright {' '.join(command)}" in capsys.readouterr().out.split("Options")[0].replace(
        "Usage: ", "", 1
    )


def test_version_and_no_words(capsys: pytest.CaptureFixture[str]) -> None:
    assert call("--version") == 0
    assert capsys.readouterr().out.strip() == __version__
    assert call() in (0, 2)
    assert "Object detection" in capsys.readouterr().out


def test_module_is_the_command() -> None:
    done = subprocess.run([sys.executable, "-m", "boxwright", "--version"], capture_output=True, text=True)
    assert done.stdout.strip() == __version__


@pytest.mark.parametrize(
    ("words", "message", "code"),
    [
        (["config", "fcos_mnv2_32"], "did you mean fcos_mnv2_320", 2),
        (["config", "fcos_mnv2_320", "epoch=3"], "did you mean epochs", 2),
        (["config", "fcos_mnv2_320", "epochs=x"], "takes int", 2),
        (["train", "fcos_mnv2_320"], "out=runs/NAME", 2),
        (["train", "fcos_mnv2_320", "out=a", "out=b"], "given twice", 2),
        (["train", "fcos_mnv2_320", "out=a", "resnet"], "'resnet': expected name=value", 2),
        (["train", "out=nowhere"], "name a recipe", 2),
        (["recipes", "swin"], "no recipe has swin", 2),
        (["evaluate", "nowhere"], "no checkpoint", 1),
        (["config", "fcos_mnv2_320", "nms=soft"], "write GreedyNMS, SoftNMS, WeightedNMS", 2),
        (["evaluate", "nowhere", "dat=x"], "did you mean data=?", 2),
        (["predict", "nowhere", "x.jpg"], "no checkpoint", 1),
        (["data", "check", "nowhere"], "does not exist", 1),
        (["data", "check", ".", "root=x"], "root= is not known", 2),
    ],
)
def test_mistakes_are_one_message(
    words: list[str], message: str, code: int, capsys: pytest.CaptureFixture[str], tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    assert call(*words) == code
    told = capsys.readouterr()
    assert told.out == ""
    assert told.err.startswith("boxwright: ")
    assert message in told.err
    assert "Traceback" not in told.err


def test_debug_shows_the_traceback() -> None:
    with pytest.raises(ConfigError):
        main(["config", "fcos_mnv2_32", "--debug"])


def test_recipes_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert call("recipes", "retinanet", "r50") == 0
    lines = capsys.readouterr().out.splitlines()
    names = [line.split()[0] for line in lines]
    assert names == ["retinanet_r50_fpn_1x", "retinanet_r50_fpn_2x", "ga_retinanet_r50_fpn_1x"]


def test_config_prints_values_history_and_difference(capsys: pytest.CaptureFixture[str]) -> None:
    assert call("config", "fcos_mnv2_320", "optimizer.lr=0.5") == 0
    assert "optimizer.lr = 0.5\n" in capsys.readouterr().out
    assert call("config", "fcos_mnv2_320", "optimizer.lr=0.5", "--history") == 0
    assert re.search(r"optimizer.lr = 0.5 +# command line: optimizer.lr=0.5", capsys.readouterr().out)
    assert call("config", "fcos_r50_fpn_2x", "--diff", "fcos_r50_fpn_1x") == 0
    assert "- epochs = 12\n+ epochs = 24" in capsys.readouterr().out
    assert call("config", "fcos_r50_fpn_1x", "--diff", "fcos_r50_fpn_1x") == 0
    assert "hold the same values" in capsys.readouterr().out
    assert call("config", "fcos_r50_fpn_1x", "--json", "--history") == 2
    assert "leave out --history" in capsys.readouterr().err


def test_config_reads_runs(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert call("config", run) == 0
    assert "model.head.num_classes = 2\n" in capsys.readouterr().out
    assert call("config", run, "--json") == 0
    assert json.loads(capsys.readouterr().out)


def test_evaluate_prints_a_table_or_json(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert call("evaluate", run) == 0
    assert "IoU 0.50:0.95" in capsys.readouterr().out
    assert call("evaluate", run / "predictions.json", "split=val", "--json") == 0
    measured = json.loads(capsys.readouterr().out)
    assert set(measured["per_class"]) == {"red", "green"}
    assert 0 <= measured["bbox/AP"] <= 1


def test_predict_writes_pictures_and_json(run: Path, tiny_data: Path, tmp_path: Path) -> None:
    out = tmp_path / "found"
    assert call("predict", run, tiny_data / "images", "--out", out, "--score", "0", "--batch-size", "3") == 0
    listed = json.loads((out / "images.json").read_text())
    assert [Path(image["file_name"]).name for image in listed["images"]] == [f"{i}.png" for i in range(8)]
    assert listed["categories"] == [{"id": 3, "name": "red"}, {"id": 4, "name": "green"}]
    records = json.loads((out / "predictions.json").read_text())
    assert {record["image_id"] for record in records} <= set(range(8))
    assert records
    assert Image.open(out / "0.png").size == (64, 48)


def test_a_run_is_used_with_another_suppression(run: Path, tiny_data: Path, tmp_path: Path) -> None:
    strict, image = ("--nms", "SoftNMS(method=gaussian, min_score=0.9)"), tiny_data / "images" / "1.png"
    predicting = ("predict", run, image, "--out", tmp_path / "one", "--score", "0", "--no-draw")
    for words in (predicting, ("evaluate", run, "--out", tmp_path / "all")):
        for more, some in (((), True), (strict, False)):
            assert call(*words, *more) == 0
            assert (
                bool(json.loads((words[words.index("--out") + 1] / "predictions.json").read_text())) == some
            )


def test_predict_skips_what_cannot_be_read(
    run: Path, tiny_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    broken = tmp_path / "broken.png"
    broken.write_bytes((tiny_data / "images" / "0.png").read_bytes()[:200])
    out = tmp_path / "found"
    assert call("predict", run, broken, tiny_data / "images" / "1.png", "--out", out, "--no-draw") == 1
    told = capsys.readouterr()
    assert "skipped" in told.err
    assert "broken.png" in told.err.replace("\n", "")
    assert len(json.loads((out / "images.json").read_text())["images"]) == 1
    assert not (out / "1.png").exists()


def test_data_commands(tiny_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert call("data", "check", tiny_data) == 0
    assert "COCO JSON" in capsys.readouterr().out
    assert call("data", "stats", tiny_data, "format=coco") == 0
    assert "green" in capsys.readouterr().out
    assert call("data", "browse", tiny_data, "--out", tmp_path / "sheet.png", "--count", "2") == 0
    assert Image.open(tmp_path / "sheet.png").width > 100
    assert call("data", "convert", tiny_data, tmp_path / "light", "--to", "light") == 0
    assert call("data", "check", tmp_path / "light") == 0


def test_data_check_fails_on_missing_images(tiny_data: Path, tmp_path: Path) -> None:
    (tmp_path / "annotations").mkdir()
    content = (tiny_data / "annotations" / "instances_train.json").read_text()
    (tmp_path / "annotations" / "instances_train.json").write_text(content)
    assert call("data", "check", tmp_path) == 1


def test_doctor_finds_the_operators_right(capsys: pytest.CaptureFixture[str]) -> None:
    assert call("doctor") == 0
    told = capsys.readouterr().out
    assert "roi_align" in told
    assert "right" in told
    assert "WRONG" not in told


def test_resume_takes_the_recipe_from_the_run(run: Path) -> None:
    assert call("train", f"out={run}", "--resume", *QUIET) == 0


def test_words_are_taken_apart() -> None:
    assert take(["out=a=b", "x.y=1"], ("out",)) == ({"out": "a=b"}, ["x.y=1"])
    assert only([], ("data",)) == {}
    with pytest.raises(ConfigError, match="expected name=value"):
        take(["nothing"], ("out",))


def test_equal_names_get_numbers() -> None:
    files = [Path("a/x.jpg"), Path("b/x.jpg"), Path("c/x.jpg"), Path("x_2.jpg"), Path("y.tif")]
    assert names_for(files) == ["x.jpg", "x_2.jpg", "x_3.jpg", "x_2_2.jpg", "y.png"]


@pytest.mark.slow
def test_torchrun_trains_with_two_processes(tiny_data: Path, tmp_path: Path) -> None:
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    words = ["train", "fcos_mnv2_320", f"data.root={tiny_data}", f"out={tmp_path / 'run'}", *TINY]
    words.append("--no-report")
    done = subprocess.run([*launcher, "-m", "boxwright", *words], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("COCO metrics") == 1
    assert (tmp_path / "run" / "evaluation.json").is_file()
    assert done.stderr.count("learning rate") == 1
