"""Guided anchoring against recorded figures of MMDetection 3.3.0; see `golden_figures.py`.

One thing is changed for the comparison. MMDetection from 2.0 on hands the location targets to a focal loss
whose label 0 is the first class and 1 the background, so it trains the centres of objects to be unlikely and
all other places to be likely. `Reversed` does the same; our recipes follow the paper.
"""

from __future__ import annotations

import gzip
import json
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from golden_figures import FOLDER, Golden, agree, as_maps, check_gradients, check_trained, load, matched
from torch import Tensor

from boxwright.config import build
from boxwright.convert import model_from_mmdetection
from boxwright.models.dense_heads import DensePostprocess, GuidedAnchorHead, GuidedPostprocess
from boxwright.models.losses import FocalLoss
from boxwright.recipes import recipe
from boxwright.structures import Targets

RECIPES = {
    "ga-retinanet_r50_fpn_1x_coco": "ga_retinanet_r50_fpn_1x",
    "ga-rpn_r50_fpn_1x_coco": "ga_rpn_r50_fpn_1x",
}


@dataclass(frozen=True)
class Reversed(FocalLoss):
    """Focal loss of targets turned round."""

    def __call__(self, logits: Tensor, labels: Tensor, scores: Tensor) -> Tensor:
        return super().__call__(logits, labels, 1 - scores)


@pytest.fixture(scope="module", params=RECIPES)
def golden(request: pytest.FixtureRequest) -> Golden:
    return load(request.param, RECIPES[request.param])


def read(name: str) -> dict[str, Any]:
    return json.loads(gzip.decompress((FOLDER / f"{name}.json.gz").read_bytes()))


def parts(golden: Golden) -> tuple[GuidedAnchorHead, Targets]:
    head, targets = golden.model.head, golden.batch.targets
    assert isinstance(head, GuidedAnchorHead)
    assert targets is not None
    return head, targets


@torch.no_grad()
def test_features_and_head_outputs(golden: Golden) -> None:
    model, record = golden.model.eval(), golden.record
    features = model.features(golden.batch.images, golden.batch.sizes)
    for level, feature in enumerate(features):
        agree(feature, record["features"]["neck"][f"neck.{level}"])
    outputs = parts(golden)[0](features)
    shapes = [(f.shape[2], f.shape[3]) for f in features]
    columns = (outputs.class_logits, outputs.codes, outputs.shapes, outputs.location_logits[..., None])
    for number, column in enumerate(columns):
        for level, maps in enumerate(as_maps(column, shapes, [1] * len(shapes))):
            agree(maps, record["head"][f"head.{number}.{level}"])


LOSSES = {
    "loss_cls": "loss/class",
    "loss_bbox": "loss/box",
    "loss_shape": "loss/shape",
    "loss_loc": "loss/location",
    "loss_rpn_cls": "loss/class",
    "loss_rpn_bbox": "loss/box",
    "loss_anchor_shape": "loss/shape",
    "loss_anchor_loc": "loss/location",
}


def test_losses_and_gradients(golden: Golden) -> None:
    model, record = golden.model.train(), golden.record
    head, _ = parts(golden)
    head.guidance = replace(head.guidance, location_loss=Reversed())
    check_trained(golden)
    losses = model.loss(golden.batch)
    expected = {LOSSES[name]: entry["value"] for name, entry in record["losses"].items() if "loss" in name}
    found = {name: value.item() for name, value in losses.items() if name.startswith("loss/")}
    assert found == pytest.approx(expected, rel=1e-4)
    check_gradients(golden, losses)


@torch.no_grad()
def test_assignments(golden: Golden) -> None:
    """How many squares, then how many guided anchors of each image are positive and negative, exactly."""
    model, batch = golden.model.train(), golden.batch
    head, targets = parts(golden)
    features = model.features(batch.images, batch.sizes)
    squares = head.guidance.trainable(head.place_priors(features, golden.canvas), batch.sizes)
    anchors = head.anchors(head(features), squares)
    assignments = [head.guidance.shape_assigner(squares, targets), head.criterion.assigner(anchors, targets)]
    objects = targets.valid.sum(1).tolist()
    found = [
        [count, int(a.positive[i].sum()), int(a.negative[i].sum())]
        for a in assignments
        for i, count in enumerate(objects)
    ]
    assert found == [entry[1:] for entry in golden.record["assignments"]]


@torch.no_grad()
def test_predictions(golden: Golden) -> None:
    model, batch = golden.model.eval(), golden.batch
    found = model.predict(batch.images, batch.sizes)
    for i, expected in enumerate(golden.record["predictions"]):
        matched(found, i, expected)


def test_proposals_in_training_come_from_all_places() -> None:
    model = read("faster-rcnn_r50_fpn_1x_coco")["model"]
    guided = read("ga-rpn_r50_fpn_1x_coco")["model"]
    model["rpn_head"], model["train_cfg"]["rpn"] = guided["rpn_head"], guided["train_cfg"]["rpn"]
    converted, ours = model_from_mmdetection(model), recipe("ga_faster_rcnn_r50_fpn_1x").model
    for made in (converted, ours):
        assert type(build(made.rpn.postprocess)) is GuidedPostprocess
        assert type(build(made.train_proposals)) is DensePostprocess
