"""Detectors built from MMDetection's own configurations compute what MMDetection computed."""

from __future__ import annotations

import gzip
import json
from dataclasses import replace
from typing import Any

import fiddle as fdl
import golden_inputs
import pytest
import torch
from golden_figures import FOLDER, agree, make_batch
from test_golden_guided_anchoring import Reversed

from boxwright.config import build
from boxwright.convert import model_from_mmdetection
from boxwright.interop import from_mmdetection
from boxwright.models.dense_heads import GuidedAnchorHead
from boxwright.models.detectors import Normalise

RECORDS = sorted(
    path.name.removesuffix(".json.gz")
    for path in FOLDER.glob("*.json.gz")
    if not path.name.startswith("detectron2_")
)
QUICK = ("retinanet_r50_fpn_1x_coco", "cascade-mask-rcnn_r50_fpn_1x_coco")


def read(name: str) -> dict[str, Any]:
    return json.loads(gzip.decompress((FOLDER / f"{name}.json.gz").read_bytes()))


@pytest.mark.parametrize(
    "name", [n if n in QUICK else pytest.param(n, marks=pytest.mark.slow) for n in RECORDS]
)
def test_losses_gradients_and_detections(name: str) -> None:
    record = read(name)
    config = model_from_mmdetection(record["model"])
    config.normalise = fdl.Config(Normalise, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
    model = build(config)
    fill, size = record["fill"], (record["input"]["height"], record["input"]["width"])
    weights = golden_inputs.fill_state_dict(record["keys"], fill["seed"], fill["adjust"], fill["aliases"])
    from_mmdetection({"state_dict": weights}, model)
    batch = make_batch(record, size)
    for level, feature in enumerate(model.eval().features(batch.images, batch.sizes)):
        agree(feature.detach(), record["features"]["neck"][f"neck.{level}"])

    for module in model.train().modules():
        if isinstance(module, torch.nn.modules.batchnorm._BatchNorm):
            module.eval()
    if isinstance(getattr(model, "head", None), GuidedAnchorHead):
        # MMDetection trains the location branch towards the opposite; see test_golden_guided_anchoring.py.
        model.head.guidance = replace(model.head.guidance, location_loss=Reversed())
    losses = model.loss(batch)
    total = torch.stack([v for k, v in losses.items() if k.startswith("loss/")]).sum()
    assert total.item() == pytest.approx(record["total"], rel=1e-4)
    total.backward()
    norms = [p.grad.norm() for p in model.parameters() if p.grad is not None]
    assert torch.stack(norms).norm().item() == pytest.approx(record["gradients"]["global_norm"], rel=1e-3)

    with torch.no_grad():
        found = model.eval().predict(batch.images, batch.sizes)
    for image, expected in enumerate(record["predictions"]):
        assert abs(int(found.valid[image].sum()) - expected["count"]) <= 2
        scores = torch.tensor(expected["scores"])
        count = min(len(scores), int(found.valid[image].sum()))
        assert (found.scores[image, :count] - scores[:count]).abs().max() < 2e-3


@pytest.mark.parametrize("name", RECORDS)
def test_every_recorded_configuration_is_translated(name: str) -> None:
    assert model_from_mmdetection(read(name)["model"]) is not None
