"""Studies of a tiny detector: what they write, that they go on, and that a failure is one row."""

from __future__ import annotations

import html.parser
import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from command_line import call
from tiny_settings import TINY_DENSE

import boxwright as bw
from boxwright import api
from boxwright.cli.study import read_words
from boxwright.engine.checkpoint import steps
from boxwright.engine.placing import resolve_device
from boxwright.engine.trainer import TrainingInterrupted
from boxwright.errors import ConfigError, DataError
from boxwright.study import Row, Variant, protocol
from boxwright.study.progress import StudyProgress

TINY = [
    *TINY_DENSE,
    "model.head.postprocess.score_threshold=0.0",
    "model.head.postprocess.candidates=20",
    "batch_size=4",
    "epochs=2",
]
VARIANTS = ["fcos_mnv2_320", "fcos_mnv2_320:accumulate=3 name=broken", "retinanet_mnv2_320"]


def tiny_study(data: Path, out: Path, variants=VARIANTS, **options) -> list[Row]:
    options = {"check": False, "report": False, "console": False, "device": "cpu"} | options
    return bw.study(variants, out=out, overrides=[*TINY, f"data.root={data}"], **options)


@pytest.fixture(scope="module")
def finished(tiny_data: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Row]]:
    out = tmp_path_factory.mktemp("studies") / "study"
    return out, tiny_study(tiny_data, out)


class Tags(html.parser.HTMLParser):
    VOID = ("meta", "br")

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attrs: object) -> None:
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: object) -> None:
        pass

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_each_variant_is_trained_and_measured(finished: tuple[Path, list[Row]]) -> None:
    out, rows = finished
    assert [(row.variant, row.status) for row in rows] == [
        ("fcos_mnv2_320", "finished"),
        ("broken", "failed"),
        ("retinanet_mnv2_320", "finished"),
    ]
    for row in (rows[0], rows[2]):
        folder = out / row.folder
        assert (row.split, row.steps, row.epochs) == ("val", 4, 2)
        evaluation = json.loads((folder / "evaluation.json").read_text())
        assert row.metrics == {key: evaluation[key] for key in row.metrics}
        assert "bbox/AP90" in row.metrics
        assert row.seconds_per_image is not None
        assert 0 < row.seconds_per_image < 5
        assert row.images_per_second == pytest.approx(16 / 60 / (row.minutes or 1), rel=0.01)
        detector = bw.load(folder, device="cpu")
        assert row.parameters == sum(p.numel() for p in detector.model.parameters())
        assert row.about["precision"] == "fp32"
    assert "cannot be shared by 1 processes with accumulate=3" in rows[1].error
    assert "Traceback" in (out / rows[1].folder / "error.txt").read_text()


def test_tables_and_pictures(finished: tuple[Path, list[Row]]) -> None:
    out, rows = finished
    text = (out / "table.md").read_text()
    assert "| broken (failed) |" in text
    assert "AP50 | AP60 | AP70 | AP75 | AP80 | AP90" in text
    assert "boxwright study fcos_mnv2_320" in text
    page = (out / "study.html").read_text()
    tags = Tags()
    tags.feed(page)
    assert tags.open == []
    for section in ("results", "trade", "curves", "overlap", "errors", "request"):
        assert f"<section id='{section}'>" in page
    assert not re.search(r"(https?:)?//[a-z]", page)
    assert sorted(p.name for p in (out / "plots").iterdir())[0] == "bbox_curves.png"
    assert len((out / "rows.csv").read_text().splitlines()) == 1 + len(rows)


def test_finished_runs_are_not_repeated_and_others_join(
    finished: tuple[Path, list[Row]], tiny_data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, rows = finished
    trained = []
    train = api.train

    def noted(config, folder: Path, *rest, **options) -> bw.Run:
        trained.append(folder.name)
        return train(config, folder, *rest, **options)

    monkeypatch.setattr(api, "train", noted)
    again = tiny_study(tiny_data, out, [VARIANTS[1], VARIANTS[2]])
    assert trained == ["broken"]  # a failed run is tried again
    assert [row.variant for row in again] == ["broken", "retinanet_mnv2_320", "fcos_mnv2_320"]
    assert again[1:] == [rows[2], rows[0]]
    with pytest.raises(ConfigError, match=r"other settings.*optimizer.lr=1"):
        tiny_study(tiny_data, out, [Variant("retinanet_mnv2_320", ("optimizer.lr=1",), "retinanet_mnv2_320")])
    assert trained == ["broken"]


def test_a_stopped_study_goes_on(
    finished: tuple[Path, list[Row]], tiny_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "stopped"
    after = StudyProgress.after_train_iter

    def stop(self: StudyProgress, state) -> None:
        after(self, state)
        if self.name == "retinanet_mnv2_320" and state.step == 3:
            os.kill(os.getpid(), signal.SIGTERM)

    with monkeypatch.context() as patch:
        patch.setattr(StudyProgress, "after_train_iter", stop)
        with pytest.raises(TrainingInterrupted, match=r"SIGTERM in run \[2/2\] retinanet") as stopped:
            tiny_study(tiny_data, out, [VARIANTS[0], VARIANTS[2]])
    assert stopped.value.exit_code == 128 + signal.SIGTERM
    kept = json.loads((out / "study.json").read_text())["rows"]
    assert [row["status"] for row in kept] == ["finished", "begun"]
    names = {path.name for path in steps(out / "runs" / "retinanet_mnv2_320" / "checkpoints")}
    assert "step_00000003" in names
    assert "retinanet_mnv2_320 (begun)" in (out / "table.md").read_text()
    rows = bw.study(out=out, console=False, report=False, device="cpu")
    assert [row.status for row in rows] == ["finished", "finished"]
    _, undisturbed = finished
    for row, whole in zip(rows, (undisturbed[0], undisturbed[2]), strict=True):
        assert row.metrics == pytest.approx(dict(whole.metrics), abs=1e-6)


def test_a_study_that_goes_on_by_its_folder_takes_no_changes(
    finished: tuple[Path, list[Row]], capsys: pytest.CaptureFixture[str]
) -> None:
    out, _ = finished
    for words in (
        ["epochs=9"],
        ["--vary", "seed=1,2"],
        ["--seeds", "2"],
        ["--minutes", "1"],
        ["--split", "val"],
    ):
        assert call("study", *words, f"out={out}") == 2
        told = capsys.readouterr().err
        assert words[-1].split("=")[-1] in told
        assert "name them again" in told


def test_a_signal_between_trainings_stops_too(
    finished: tuple[Path, list[Row]], tiny_data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, _ = finished
    monkeypatch.setattr(api, "train", lambda *a, **k: os.kill(os.getpid(), signal.SIGINT))
    with pytest.raises(TrainingInterrupted, match="SIGINT"):
        tiny_study(tiny_data, out, [VARIANTS[1]])
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_minutes_become_epochs(tiny_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(protocol, "PACE_STEPS", 2)
    monkeypatch.setattr(protocol, "PACE_WARMUP", 1)
    config = bw.recipe("fcos_mnv2_320")
    bw.config.apply_overrides(config, [*TINY, f"data.root={tiny_data}"])
    device = resolve_device("cpu")
    epochs = protocol.epochs_within(config, 10.0, tmp_path, device)
    assert 20 < epochs < 60_000  # a step takes between 5 ms and 15 s
    assert list(tmp_path.iterdir()) == []
    monkeypatch.setattr("boxwright.study.run.epochs_within", lambda *_: 1)
    (row,) = tiny_study(tiny_data, tmp_path / "study", VARIANTS[:1], minutes=10.0)
    assert (row.status, row.epochs) == ("finished", 1)


def test_the_command_fails_where_a_variant_did(
    finished: tuple[Path, list[Row]], capsys: pytest.CaptureFixture[str]
) -> None:
    out, _ = finished
    assert call("study", f"out={out}", "--quiet", "--no-report", "--device", "cpu") == 1
    told = capsys.readouterr()
    assert "broken" in told.out
    assert "failed" in told.err
    assert "study.html" in told.out


def test_masks_are_left_out_of_ready_made_lists(
    tmp_path: Path, tiny_data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    boxes = tmp_path / "boxes"
    (boxes / "annotations").mkdir(parents=True)
    (boxes / "images").symlink_to(tiny_data / "images")
    for path in (tiny_data / "annotations").iterdir():
        content = json.loads(path.read_text())
        for annotation in content["annotations"]:
            del annotation["segmentation"]
        (boxes / "annotations" / path.name).write_text(json.dumps(content))
    monkeypatch.setitem(bw.study.READY, "short", lambda: ("mask_rcnn_mnv2_320",))  # pyright: ignore
    (row,) = bw.study(named="short", data=boxes, out=tmp_path / "out", console=False)
    assert (row.status, row.error) == ("left out", "the data has no masks")
    assert "## Left out" in (tmp_path / "out" / "table.md").read_text()


@pytest.mark.parametrize(
    ("words", "message", "code"),
    [
        (["fcos_mnv2_320"], "out=runs/NAME", 2),
        (["fcos_mnv2_32", "out=s"], "did you mean fcos_mnv2_320", 2),
        (["out=s"], "name the variants", 2),
        (["--study", "all", "out=s"], "there are: methods", 2),
        (["fcos_mnv2_320", "out=s"], "data.root", 2),
        (["fcos_mnv2_320", "data.root=none", "out=s"], "does not exist", 1),
        (["fcos_mnv2_320", "--vary", "epochs", "out=s"], "no list of values", 2),
    ],
)
def test_mistakes_are_one_message(
    words: list[str], message: str, code: int, capsys: pytest.CaptureFixture[str], tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    assert call("study", *words) == code
    assert message in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_folders_that_are_no_study_are_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ConfigError, match="folder of a run"):
        bw.study(["fcos_mnv2_320"], out=tmp_path)
    (tmp_path / "config.json").unlink()
    (tmp_path / "study.json").write_text("[")
    with pytest.raises(DataError, match="delete it"):
        bw.study(out=tmp_path)


def test_a_study_in_a_file(tmp_path: Path) -> None:
    file = tmp_path / "study.txt"
    file.write_text(
        "# two variants\nfcos_mnv2_320\nfcos_mnv2_320: optimizer.lr=0.01 name=slow  # by half\n\n"
        "epochs=6\n--vary model.backbone.depth=50,101\n"
    )
    assert read_words(file) == (
        ["fcos_mnv2_320", "fcos_mnv2_320: optimizer.lr=0.01 name=slow", "epochs=6"],
        ["model.backbone.depth=50,101"],
    )
    file.write_text("--seeds 3\n")
    with pytest.raises(ConfigError, match="--seeds"):
        read_words(file)
    with pytest.raises(ConfigError, match="cannot be read"):
        read_words(tmp_path / "none")


def test_progress_names_the_run_and_its_place(capsys: pytest.CaptureFixture[str]) -> None:
    with StudyProgress(3, 1) as progress:
        progress.begin(2, "fcos [x]")
        progress.end("AP 0.5")
    told = capsys.readouterr().out
    assert "1 of 3 runs need nothing more" in told
    assert "[2/3] fcos [x]: AP 0.5" in told


@pytest.mark.slow
def test_all_processes_train_each_run(tiny_data: Path, tmp_path: Path) -> None:
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    out = tmp_path / "study"
    words = ["study", VARIANTS[0], VARIANTS[2], f"data.root={tiny_data}", f"out={out}", *TINY]
    options = ["--no-report", "--no-check", "--device", "cpu"]
    command = [*launcher, "-m", "boxwright", *words, *options]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    rows = json.loads((out / "study.json").read_text())["rows"]
    assert [row["status"] for row in rows] == ["finished", "finished"]
    assert done.stdout.count("study.html") == 1
