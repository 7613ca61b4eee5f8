"""YOLOv3 against recorded figures of MMDetection 3.3.0; see `golden_figures.py`.

MMDetection counts this neck's and head's levels from coarse to fine, ours go from fine to coarse, and its one
output a level has box, objectness and classes of each anchor side by side.
"""

from __future__ import annotations

import pytest
import torch
from golden_figures import Golden, agree, as_maps, check_gradients, check_trained, load, matched

from boxwright.models.dense_heads import YOLOHead
from boxwright.models.layers import set_batch_norm_eval


@pytest.fixture(scope="module")
def golden() -> Golden:
    return load("yolov3_d53_8xb8-320-273e_coco", "yolov3_d53_320")


def head_of(golden: Golden) -> YOLOHead:
    head = golden.model.head
    assert isinstance(head, YOLOHead)
    return head


@torch.no_grad()
def test_features_and_head_outputs(golden: Golden) -> None:
    model, record = golden.model.eval(), golden.record
    backbone = model.backbone(model.normalise(golden.batch.images, golden.batch.sizes))
    features = model.neck(backbone)
    for level, feature in enumerate(backbone):
        agree(feature, record["features"]["backbone"][f"backbone.{level}"])
    outputs = head_of(golden)(features)
    shapes = [(f.shape[2], f.shape[3]) for f in features]
    joint = torch.cat((outputs.codes, outputs.quality_logits[..., None], outputs.class_logits), -1)  # pyright: ignore
    for level, maps in enumerate(as_maps(joint, shapes, [3, 3, 3])):
        agree(features[level], record["features"]["neck"][f"neck.{2 - level}"])
        agree(maps, record["head"][f"head.0.{2 - level}"])


def test_losses_and_gradients(golden: Golden) -> None:
    model, record = golden.model.train(), golden.record["losses"]
    set_batch_norm_eval(model)  # as in the record; the backbone's stay so anyway
    check_trained(golden)
    losses = model.loss(golden.batch)
    found = {name: value.item() for name, value in losses.items() if name.startswith("loss/")}
    expected = {
        "loss/class": record["loss_cls"]["value"],
        "loss/quality": record["loss_conf"]["value"],
        "loss/box": record["loss_xy"]["value"] + record["loss_wh"]["value"],
    }
    assert found == pytest.approx(expected, rel=1e-4)
    check_gradients(golden, losses)


@torch.no_grad()
def test_assignments(golden: Golden) -> None:
    head, targets = head_of(golden), golden.batch.targets
    assert targets is not None
    features = [torch.zeros(2, 1, golden.canvas[0] // s, golden.canvas[1] // s) for s in (8, 16, 32)]
    assignment = head.criterion.assigner(head.place_priors(features, golden.canvas), targets)
    found = [
        [int(t[i].sum()) for t in (targets.valid, assignment.positive, assignment.negative)] for i in range(2)
    ]
    assert found == [entry[1:] for entry in golden.record["assignments"]]


@torch.no_grad()
def test_predictions(golden: Golden) -> None:
    found = golden.model.eval().predict(golden.batch.images, golden.batch.sizes)
    for image, expected in enumerate(golden.record["predictions"]):
        matched(found, image, expected)
