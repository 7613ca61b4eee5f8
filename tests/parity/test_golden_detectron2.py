"""Converted detectors against recorded figures of Detectron2, with weights and images made by formula.

The records hold names and shapes of its state dict, what was changed of a published configuration, and what
it computed in float32 on a CPU for the same numbers (`golden_inputs.py`) in its own frame: images in blue,
green, red, minus its mean.
"""

from __future__ import annotations

import gzip
import json
from dataclasses import dataclass
from typing import Any

import golden_inputs
import pytest
import torch
from golden_figures import FOLDER, agree, as_maps, matched
from torch import Tensor

from boxwright.config import build
from boxwright.convert import experiment_of_detectron2
from boxwright.convert.detectron2_keys import Keys
from boxwright.interop import from_detectron2
from boxwright.models.detectors import OneStageDetector, TwoStageDetector

HEIGHT, WIDTH = 128, 160
QUICK = ("retinanet_R_50_FPN_1x", "cascade_mask_rcnn_R_50_FPN_1x")
SLOW = ("mask_rcnn_R_50_C4_1x", "faster_rcnn_R_50_DC5_1x", "mask_rcnn_R_50_FPN_1x_dconv_c3-c5_changed")


@dataclass
class Golden:
    """A record, the converted model, and its inputs."""

    record: dict[str, Any]
    model: OneStageDetector | TwoStageDetector
    images: Tensor
    sizes: Tensor


@pytest.fixture(
    scope="module", params=[*QUICK, *(pytest.param(name, marks=pytest.mark.slow) for name in SLOW)]
)
def golden(request: pytest.FixtureRequest) -> Golden:
    record = json.loads(gzip.decompress((FOLDER / f"detectron2_{request.param}.json.gz").read_bytes()))
    weights = golden_inputs.fill_state_dict(record["keys"], adjust=record["adjust"])
    experiment, _ = experiment_of_detectron2(weights, Keys(record["given"]))
    model = build(experiment.model).eval()
    from_detectron2({"model": {name: value.numpy() for name, value in weights.items()}}, model)
    sizes = golden_inputs.valid_sizes(2, HEIGHT, WIDTH)
    images = (golden_inputs.image_batch(2, HEIGHT, WIDTH) * 40 + 120).clamp(0, 255).round()
    for image, (height, width) in zip(images, sizes, strict=True):
        image[:, height:], image[:, :, width:] = 0, 0
    agree(images, record["images"], 1e-6)
    return Golden(record, model, images.to(torch.uint8), torch.tensor(sizes))


@torch.no_grad()
def test_features_and_head_outputs(golden: Golden) -> None:
    model, record = golden.model, golden.record
    features = model.features(golden.images, golden.sizes)
    assert len(features) == len(record["features"])
    for ours, theirs in zip(features, record["features"], strict=True):
        agree(ours, theirs)
    head = model.head if isinstance(model, OneStageDetector) else model.rpn
    outputs, per_place = head(features), head.priors.num_per_place()
    shapes = [(f.shape[2], f.shape[3]) for f in features]
    ratios = len(head.priors.ratios)
    for column, name in ((outputs.class_logits, "class_logits"), (outputs.codes, "codes")):
        for maps, theirs in zip(
            as_maps(column, shapes, [per_place] * len(shapes)), record[name], strict=True
        ):
            by_size = maps.unflatten(1, (ratios, per_place // ratios, -1)).transpose(1, 2).flatten(1, 3)
            agree(by_size, theirs)


@torch.no_grad()
def test_detections(golden: Golden) -> None:
    found = golden.model.predict(golden.images, golden.sizes)
    for image, expected in enumerate(golden.record["predictions"]):
        slot, same = matched(found, image, expected)
        if "masks" in expected:
            assert found.masks is not None
            means = found.masks[image][found.valid[image]].mean((1, 2))[slot]
            torch.testing.assert_close(means[same], torch.tensor(expected["masks"])[same], rtol=0, atol=1e-4)
