"""Each method's recipe, with a small backbone from scratch, learns eight images by heart (slow)."""

from pathlib import Path

import pytest
from fiddle import Config, Partial

import boxwright as bw
from boxwright.data.canvas import Canvas
from boxwright.demo_data import make_digits
from boxwright.engine.optim import adamw
from boxwright.engine.schedule import CosineSchedule
from boxwright.models.backbones import ResNet

METHODS = [
    "retinanet_r50_fpn_1x",
    "fcos_r50_fpn_1x",
    "faster_rcnn_r50_fpn_1x",
    "mask_rcnn_r50_fpn_1x",
    "fcos_mnv2_320",
    "faster_rcnn_mnv2_320",
    "mask_rcnn_mnv2_320",
]


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_digits(tmp_path_factory.mktemp("data") / "digits", train=8, val=1, size=192, seed=3)


@pytest.mark.slow
@pytest.mark.parametrize("name", METHODS)
def test_overfits_eight_images(name: str, digits: Path, tmp_path: Path):
    experiment = bw.recipe(name)
    experiment.data = bw.data.folder(digits)
    fine = name.endswith("_320") or name.startswith(("retinanet", "fcos"))
    stages = (2, 3, 4) if name.endswith("_320") else (1, 2, 3, 4)
    experiment.model.backbone = Config(ResNet, depth=18, out_stages=stages, frozen_stages=0, norm_eval=False)
    experiment.train_transforms = experiment.eval_transforms = []
    experiment.canvas = Config(Canvas, shapes=((192, 192),))
    experiment.batch_size = experiment.base_batch_size = 8
    experiment.optimizer = Partial(adamw, lr=1e-3)
    experiment.schedule = Config(CosineSchedule, warmup=20)
    experiment.clip_norm, experiment.ema_decay = 10.0, None
    experiment.epochs = 400 if fine else 300
    experiment.evaluate_every = 1000
    run = bw.train(experiment, tmp_path / "run", console=False, report=False)
    measured = bw.evaluate(run, split="train", progress=False)
    for metric in experiment.metrics:
        assert measured[f"{metric}/AP"] > 0.9, str(measured)
