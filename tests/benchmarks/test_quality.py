"""Time to quality: that torchvision's detector is as large as ours, and the budget holds what it says."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

import pytest
import torch
import torchvision
from torch import nn

import boxwright as bw
from boxwright.config import NumClasses, Pretrained, build, set_tagged
from boxwright.data import Table

sys.path.insert(0, str(Path(__file__).parents[2]))

quality = importlib.import_module("benchmarks.quality")


def size(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("weights") / "mobilenet_v2.pth"
    torch.save(torchvision.models.mobilenet_v2().state_dict(), path)
    return path


def test_torchvisions_detector_is_as_large_as_ours(weights: Path) -> None:
    config = bw.recipe("faster_rcnn_mnv2_320").model
    set_tagged(config, Pretrained, None)
    set_tagged(config, NumClasses, 3)
    ours, theirs = build(config), quality.torchvision_detector(weights, 3)
    assert size(theirs.backbone.fpn) == size(ours.neck)
    assert size(theirs.rpn) == size(ours.rpn)
    stage = ours.roi.stages[0]
    assert size(theirs.roi_heads.box_head) == size(stage.trunk)
    heads = theirs.roi_heads.box_predictor
    assert size(heads.cls_score) == size(stage.class_predictor)
    assert heads.bbox_pred.in_features == stage.box_predictor.in_features


def test_the_evaluations_are_part_of_the_budget() -> None:
    line = {"kind": "train", "seconds": 10.0, "images_per_second": 40.0}
    lines = [line, line | {"seconds": 20.0, "images_per_second": 20.0}, {"kind": "val", "seconds": 23.0}]
    assert quality.seconds_per_step(lines) == pytest.approx(0.3)
    assert quality.seconds_of_evaluation(lines) == pytest.approx(3.0)
    assert quality.epochs_within(345.0, epoch=5.0, evaluation=3.0) == 60  # and 15 evaluations
    assert quality.epochs_within(80.0, epoch=5.0, evaluation=3.0) == 10  # each is evaluated
    assert quality.epochs_within(1.0, epoch=5.0, evaluation=3.0) == 1


def test_a_run_replaces_its_former_curve(tmp_path: Path) -> None:
    quality.write_curve(tmp_path, "torchvision", [(1.0, 0.1), (2.0, 0.2)])
    quality.write_curve(tmp_path, "torchvision_bf16", [(1.0, 0.3)])
    quality.write_curve(tmp_path, "torchvision", [(1.5, 0.4)])
    lines = (tmp_path / "curve.csv").read_text().splitlines()
    assert lines == ["torchvision_bf16,1.00,0.3000", "torchvision,1.50,0.4000"]
    assert quality.plot_curves(tmp_path).stat().st_size > 1000


@pytest.mark.parametrize("name", ["torchvision", "torchvision_bf16"])
def test_torchvision_is_trained_and_measured(
    name: str, tmp_path: Path, tiny_data: Path, weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(quality, "BATCH", 1)
    row = quality.measure_torchvision(name, tiny_data, weights, 0.01, tmp_path)
    assert row["steps"] == 1
    assert 0 <= row["AP"] <= 1
    assert (tmp_path / "curve.csv").read_text().startswith(f"{name},")
    words = quality.table_row(name, 0.5, row)
    assert words.startswith(f"| torchvision Faster R-CNN ({'bf16' if 'bf16' in name else 'float32'}) | 0.5 |")


def test_images_and_boxes_are_resized_alike(tiny_data: Path) -> None:
    table = quality.folder(tiny_data).train
    image, target = quality.sample(quality.read(table, 0), table, 0, flip=False)
    assert image.shape == (3, 240, 320)
    x1, y1, x2, y2 = target["boxes"][0].round().int().tolist()
    assert (x2 - x1, y2 - y1) == (120, 100)  # 24 x 20 pixels of 64 x 48
    bright = image.amax(0) > 0.9
    assert bright[y1 + 4 : y2 - 4, x1 + 4 : x2 - 4].all()
    mirrored, flipped = quality.sample(quality.read(table, 0), table, 0, flip=True)
    assert flipped["boxes"][0, 0] == pytest.approx(320 - float(target["boxes"][0, 2]))
    assert torch.equal(mirrored.flip(-1), image)


class Knows(nn.Module):
    """Finds exactly what an image holds, in the pixels of the image that it is given."""

    def __init__(self, table: Table) -> None:
        super().__init__()
        self.table, self.number = table, 0

    def forward(self, images: list[torch.Tensor]) -> list[dict[str, torch.Tensor]]:
        assert images[0].shape == (3, 240, 320)
        image = quality.read(self.table, self.number)
        _, target = quality.sample(image, self.table, self.number, flip=False)
        self.number += 1
        return [target | {"scores": torch.ones(len(target["labels"]))}]


def test_detections_are_measured_in_pixels_of_the_file(tiny_data: Path) -> None:
    table = quality.folder(tiny_data).evaluation
    assert quality.evaluate_torchvision(Knows(table), table)["AP"] == pytest.approx(1.0)
