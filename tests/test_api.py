"""The user's functions, from a recipe and a folder to a run, its metrics and a detector."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import fiddle as fdl
import pytest
import torch
from tiny_settings import TINY_DENSE

import boxwright as bw
from boxwright.assembly import assemble, describe_data
from boxwright.config import NumClasses, apply_overrides, from_json, to_json
from boxwright.engine.checkpoint import load_weights, save_weights
from boxwright.engine.precision import resolve_precision
from boxwright.errors import CheckpointError, ConfigError, DataError, TrainingError
from boxwright.metrics import Metrics
from boxwright.models.suppression import SoftNMS

TINY = [*TINY_DENSE, "model.head.postprocess.score_threshold=0.0", "batch_size=4", "epochs=1"]


@dataclass(frozen=True)
class Darker:
    by: int

    def __call__(self, sample: dict, generator: torch.Generator) -> dict:
        return {**sample, "image": sample["image"] // self.by}


def tiny(data: Path | None = None) -> fdl.Config:
    config = bw.recipe("fcos_mnv2_320")
    apply_overrides(config, TINY + ([] if data is None else [f"data.root={data}"]))
    return config


@pytest.fixture(scope="module")
def run(tiny_data: Path, tmp_path_factory: pytest.TempPathFactory) -> bw.Run:
    config = tiny()
    config.data = bw.data.folder(tiny_data)
    config.ema_decay = 0.5
    return bw.train(config, out=tmp_path_factory.mktemp("run"), console=False)


def test_import_loads_nothing_and_opens_no_network() -> None:
    code = """
import socket, sys
def refuse(*_, **__): raise AssertionError("a connection")
socket.socket = socket.create_connection = refuse
import boxwright
heavy = {"torch", "timm", "fiddle", "pyarrow", "matplotlib", "typer", "faster_coco_eval"} & set(sys.modules)
assert not heavy, heavy
"""
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)


def test_names_of_the_package_resolve() -> None:
    for name in bw.__all__:
        assert getattr(bw, name) is not None
    assert set(bw.__all__) <= set(dir(bw))
    with pytest.raises(AttributeError, match="no attribute 'trian'"):
        bw.trian  # noqa: B018


def test_recipes_is_a_function_and_a_package() -> None:
    from boxwright.recipes import fcos

    assert bw.recipes()["fcos_mnv2_320"].startswith("FCOS")
    assert bw.recipes.fcos is fcos  # pyright: ignore[reportFunctionMemberAccess]


@pytest.mark.parametrize("folder", ["", "~/"])
def test_training_starts_from_a_trained_detector(
    folder: str, run: bw.Run, tiny_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tiny(tiny_data)
    monkeypatch.chdir(run.path.parent)
    monkeypatch.setenv("HOME", str(run.path.parent))
    monkeypatch.setenv("USERPROFILE", str(run.path.parent))
    config.start_from = f"{folder}{run.path.name}"
    config.model.backbone.weights = "nowhere.pth"  # is not looked for
    parts = assemble(config, tmp_path, resume=False, console=False)
    trained, _ = load_weights(run.path)
    assert parts.config.start_from == str(run.path.absolute())
    for name, value in parts.experiment.model.state_dict().items():
        assert torch.equal(value, trained[name]), name


def test_build_does_not_change_the_recipe() -> None:
    config = tiny()
    before = to_json(config)
    model = bw.build(config, num_classes=3, pretrained=False)
    assert model.head.num_classes == 3
    assert to_json(config) == before
    with pytest.raises(ConfigError, match="NumClasses"):
        bw.build(fdl.Config(torch.nn.Linear, 1, 1), num_classes=3)


def test_run_folder_is_complete(run: bw.Run, tiny_data: Path) -> None:
    assert (run.path / "report.html").stat().st_size > 10_000
    assert (run.path / "plots").is_dir()
    for name in ("config.json", "metrics.jsonl", "evaluation.json", "predictions.json", "checkpoints/last"):
        assert (run.path / name).is_file(), name
    evaluation = json.loads((run.path / "evaluation.json").read_text())
    assert evaluation["bbox/AP"] == run.metrics["bbox/AP"]
    assert set(evaluation["per_class"]) <= {"red", "green"}
    config = from_json((run.path / "config.json").read_text())
    assert config.data.root == str(tiny_data)
    assert config.model.head.num_classes == 2
    assert NumClasses in fdl.get_tags(config.model.head, "num_classes")
    assert os.fspath(run) == str(run.path)


def test_evaluate_run_checkpoint_and_results_agree(run: bw.Run, tiny_data: Path, tmp_path: Path) -> None:
    again = bw.evaluate(run, progress=False)
    assert dict(again) == pytest.approx(dict(run.metrics), abs=1e-6)
    checkpoint = next((run.path / "checkpoints").glob("step_*"))
    assert dict(bw.evaluate(checkpoint, progress=False)) == pytest.approx(dict(again), abs=1e-6)
    predictions = run.path / "predictions.json"
    assert dict(bw.evaluate(predictions)) == pytest.approx(dict(again), abs=1e-6)
    annotations = tiny_data / "annotations" / "instances_val.json"
    assert dict(bw.evaluate(predictions, annotations)) == pytest.approx(dict(again), abs=1e-6)
    other = tmp_path / "elsewhere.json"
    other.write_text(predictions.read_text())
    with pytest.raises(DataError, match="what data"):
        bw.evaluate(other)


def test_ground_truth_against_itself_is_perfect(tiny_data: Path, tmp_path: Path) -> None:
    content = json.loads((tiny_data / "annotations" / "instances_val.json").read_text())
    records = [
        {k: a[k] for k in ("image_id", "category_id", "bbox")} | {"score": 1.0}
        for a in content["annotations"]
    ]
    file = tmp_path / "results.json"
    file.write_text(json.dumps(records))
    metrics = bw.evaluate(file, data=tiny_data, split="val")
    assert metrics["bbox/AP"] == pytest.approx(1.0)
    assert metrics.per_class["red"]["bbox/AP50"] == pytest.approx(1.0)
    assert "1.000" in str(metrics)
    with pytest.raises(DataError, match="no split 'tests'"):
        bw.evaluate(file, data=tiny_data, split="tests")


def test_the_precision_is_that_of_the_experiment_unless_another_is_asked_for(run: bw.Run) -> None:
    own = bw.load(run, device="cpu")
    assert own.precision == resolve_precision(own.config.precision, "cpu")
    assert bw.load(run, device="cpu", precision="bf16").precision.name == "bf16"


def test_load_prefers_the_moving_average(run: bw.Run) -> None:
    averaged = bw.load(run, device="cpu").model.state_dict()
    plain = bw.load(run, device="cpu", ema=False).model.state_dict()
    name = (
        "head.classes.weight"
        if "head.classes.weight" in plain
        else next(n for n in plain if n.endswith("weight"))
    )
    checkpoint = next((run.path / "checkpoints").glob("step_*"))
    assert torch.equal(averaged[name], load_weights(checkpoint, ema=True)[0][name])
    assert torch.equal(plain[name], load_weights(checkpoint, ema=False)[0][name])


def test_load_refuses_foreign_files(tmp_path: Path, run: bw.Run) -> None:
    torch.save({"weight": torch.zeros(1)}, tmp_path / "other.pth")
    with pytest.raises(CheckpointError, match="from_torchvision"):
        bw.load(tmp_path / "other.pth")
    with pytest.raises(CheckpointError, match="no checkpoint"):
        bw.load(tmp_path / "nothing")
    weights, metadata = load_weights(run.path)
    save_weights(tmp_path / "cut.safetensors", dict(list(weights.items())[1:]), metadata)
    with pytest.raises(CheckpointError, match="do not fit"):
        bw.load(tmp_path / "cut.safetensors")
    evil = (
        metadata["config"]
        .replace("boxwright.models.detectors.one_stage", "os")
        .replace("OneStageDetector", "system")
    )
    save_weights(tmp_path / "evil.safetensors", weights, {**metadata, "config": evil})
    with pytest.raises(ConfigError, match=r"os\.system"):
        bw.load(tmp_path / "evil.safetensors")


def test_a_second_run_needs_resume(run: bw.Run) -> None:
    with pytest.raises(TrainingError, match="resume=True"):
        bw.train(from_json((run.path / "config.json").read_text()), out=run.path, console=False, report=False)


def test_resume_without_recipe_goes_on(run: bw.Run) -> None:
    again = bw.train(None, out=run.path, resume=True, console=False, report=False)
    assert dict(again.metrics) == pytest.approx(dict(run.metrics), abs=1e-6)


def test_a_recipe_of_ones_own_needs_trust_to_be_loaded(tiny_data: Path, tmp_path: Path) -> None:
    config = tiny(tiny_data)
    config.train_transforms = [*config.train_transforms, fdl.Config(Darker, by=2)]
    run = bw.train(config, out=tmp_path / "run", console=False)
    with pytest.raises(ConfigError, match=r"test_api\.Darker.*trust"):
        bw.load(run)
    assert bw.load(run, device="cpu", trust=[__name__]).label_map.names == ("red", "green")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ([], "data.root"),
        (["batch_size=3", "accumulate=2"], "multiple of 2"),
        (["model.head.init_std=-1"], r"cannot build model\.head \(DenseHead\): RuntimeError"),
    ],
)
def test_train_says_what_is_wrong(change: list[str], message: str, tiny_data: Path, tmp_path: Path) -> None:
    config = tiny(tiny_data if change else None)
    apply_overrides(config, change)
    with pytest.raises(ConfigError, match=message):
        bw.train(config, out=tmp_path / "run", console=False, report=False)
    assert not (tmp_path / "run").exists()


def test_train_wants_a_description(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="recipe"):
        bw.train(None, out=tmp_path)
    with pytest.raises(ConfigError, match="not Linear"):
        bw.train(torch.nn.Linear(1, 1), out=tmp_path)  # pyright: ignore[reportArgumentType]


def test_metrics_are_a_mapping_that_prints() -> None:
    metrics = Metrics({"bbox/AP": 0.5, "segm/AP": 0.25, "bbox/AP50": 0.75}, split="val")
    assert list(metrics) == ["bbox/AP", "segm/AP", "bbox/AP50"]
    assert "0.250" in str(metrics)
    assert "on val" in str(metrics)
    with pytest.raises(KeyError, match="there are: bbox/AP"):
        metrics["bbox/APP"]
    assert str(Metrics({})) != ""


def test_a_run_says_how_its_data_was_chosen(tiny_data: Path) -> None:
    data = bw.data.folder(tiny_data, format="coco", train="val", test="train")
    described = describe_data(data, None)
    again = bw.build(from_json(to_json(described)))
    assert list(again.splits) == list(data.splits) == ["train", "test"]
    assert again.root == data.root


def test_predicting_sees_the_pixels_that_the_evaluation_saw(run: bw.Run, tiny_data: Path) -> None:
    detector = bw.load(run, device="cpu")
    table = bw.data.folder(tiny_data).evaluation
    loader = bw.data.Loader(table, detector.transforms, detector.canvas, batch_size=8, shuffle=False)
    (evaluated,) = loader
    seen = []
    predict = detector.predict
    detector.predict = lambda batch: seen.append(batch) or predict(batch)
    detector([record.file for record in table], batch_size=8)
    (predicted,) = seen
    assert torch.equal(predicted.images, evaluated.images)
    assert torch.equal(predicted.sizes, evaluated.sizes)


def test_a_trained_detector_takes_another_suppression(run: bw.Run, tmp_path: Path) -> None:
    written = (run.path / "evaluation.json").read_bytes()
    detector = bw.load(run, nms="SoftNMS(method=gaussian)")
    assert detector.model.head.postprocess.nms == SoftNMS("gaussian")  # pyright: ignore
    measured = bw.evaluate(run, nms=SoftNMS(min_score=0.9), progress=False, out=tmp_path)
    assert (run.path / "evaluation.json").read_bytes() == written
    assert json.loads((tmp_path / "predictions.json").read_text()) == []  # no score of one epoch is as high
    assert json.loads((run.path / "predictions.json").read_text())
    assert measured.keys() == run.metrics.keys()
    with pytest.raises(ConfigError, match=r"give nms= to boxwright\.load"):
        bw.evaluate(detector, nms="GreedyNMS")
    with pytest.raises(ConfigError, match="holds results"):
        bw.evaluate(run.path / "predictions.json", nms="GreedyNMS")
