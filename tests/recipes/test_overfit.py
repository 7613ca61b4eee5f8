"""Each method learns eight real images by heart, from ImageNet weights where it has some (slow)."""

import json
import os
from pathlib import Path
from typing import Any

import pytest
from fiddle import Config, Partial

import boxwright as bw
from boxwright.config import Pretrained, set_tagged
from boxwright.data.transforms import Resize
from boxwright.engine.optim import adamw
from boxwright.recipes import table

METHODS = [name for name in table() if name.endswith(("_mnv2_320", "_small_320"))]
REPEATS = 20
"""How often each image stands in the training split, so that an epoch is more than one step."""

EPOCHS = {"ga_retinanet_mnv2_320": 30}
"""Guided anchors have to be learnt before what is made of them; other methods take 15."""


@pytest.fixture(scope="module")
def eight(shared_data: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """COCO folders of eight images: cells with boxes, and fruits with masks too."""
    folders = {}
    for name in ("bccd", "fruits_nuts"):
        root = tmp_path_factory.mktemp(name)
        data = bw.data.folder(shared_data / name)
        truth = data.train.to_coco()
        chosen = truth["images"][:8]
        files = {image["id"]: data.train[i].file for i, image in enumerate(chosen)}
        (root / "images").mkdir()
        for ident, file in files.items():
            os.symlink(file, root / "images" / f"{ident}{file.suffix}")
        images = [{**image, "file_name": f"{image['id']}{files[image['id']].suffix}"} for image in chosen]
        write(root, "val", truth, images)
        write(root, "train", truth, images * REPEATS)
        folders[name] = root
    return folders


def write(root: Path, split: str, truth: dict[str, Any], images: list[dict[str, Any]]) -> None:
    """A COCO file in which an image that comes again is an image of its own."""
    objects: dict[int, list[dict[str, Any]]] = {}
    for annotation in truth["annotations"]:
        objects.setdefault(annotation["image_id"], []).append(annotation)
    records, annotations = [], []
    for number, image in enumerate(images, start=1):
        records.append({**image, "id": number})
        for annotation in objects.get(image["id"], []):
            annotations.append({**annotation, "id": len(annotations) + 1, "image_id": number})
    content = {"images": records, "annotations": annotations, "categories": truth["categories"]}
    (root / "annotations").mkdir(exist_ok=True)
    (root / "annotations" / f"instances_{split}.json").write_text(json.dumps(content))


@pytest.mark.slow
@pytest.mark.parametrize("name", METHODS)
def test_overfits_eight_images(name: str, eight: dict[str, Path], shared_data: Path, tmp_path: Path) -> None:
    experiment = bw.recipe(name)
    experiment.data = bw.data.folder(eight["fruits_nuts" if "segm" in experiment.metrics else "bccd"])
    weights = str(shared_data / "weights" / "mobilenet_v2_imagenet_tfquant.pth")
    scratch = not set_tagged(experiment, Pretrained, weights)
    experiment.train_transforms = [Config(Resize, short=320, long=320)]
    experiment.optimizer = Partial(adamw, lr=1e-3 if scratch else 5e-4, weight_decay=0.0)
    experiment.schedule.warmup = 20
    experiment.ema_decay = None
    experiment.epochs, experiment.evaluate_every = EPOCHS.get(name, 15), 1000
    run = bw.train(experiment, tmp_path / "run", console=False, report=False)
    for metric in experiment.metrics:
        measure = "AP50" if scratch else "AP"
        assert run.metrics[f"{metric}/{measure}"] > 0.9, str(run.metrics)
