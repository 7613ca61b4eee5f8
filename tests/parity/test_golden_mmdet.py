"""Our recipes against recorded figures of MMDetection 3.3.0's published configurations.

The records in `golden/` hold what MMDetection computed in float32 on a CPU, for weights, images and targets
that `golden_inputs.py` makes again. What a record changed for determinism is changed here, too: sampling
takes everything.
"""

from __future__ import annotations

import gzip
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import fiddle as fdl
import golden_inputs
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from boxwright.config import Pretrained, build, set_tagged
from boxwright.interop import from_mmdetection
from boxwright.models.detectors import Normalise, OneStageDetector, TwoStageDetector
from boxwright.ops.masks import pack, paste
from boxwright.recipes import recipe
from boxwright.structures import Batch, Priors, Targets

FOLDER = Path(__file__).parent / "golden"
RECIPES = {
    "retinanet_r50_fpn_1x_coco": "retinanet_r50_fpn_1x",
    "fcos_r50-caffe_fpn_gn-head_1x_coco": "fcos_r50_fpn_1x",
    "faster-rcnn_r50_fpn_1x_coco": "faster_rcnn_r50_fpn_1x",
    "mask-rcnn_r50_fpn_1x_coco": "mask_rcnn_r50_fpn_1x",
}
SLOTS = 8


@dataclass
class Golden:
    """A record, our model with its weights, and its inputs."""

    record: dict[str, Any]
    model: OneStageDetector | TwoStageDetector
    names: dict[str, str]
    batch: Batch

    @property
    def canvas(self) -> tuple[int, int]:
        return self.record["input"]["height"], self.record["input"]["width"]


@pytest.fixture(scope="module", params=RECIPES)
def golden(request: pytest.FixtureRequest) -> Golden:
    record = json.loads(gzip.decompress((FOLDER / f"{request.param}.json.gz").read_bytes()))
    model = build_model(RECIPES[request.param])
    fill, size = record["fill"], (record["input"]["height"], record["input"]["width"])
    weights = golden_inputs.fill_state_dict(record["keys"], fill["seed"], fill["adjust"], fill["aliases"])
    for name, figures in fill["check"].items():
        agree(weights[name], figures, 1e-6)
    report = from_mmdetection({"state_dict": weights}, model)
    return Golden(record, model, dict(report.names), make_batch(record, size))


def build_model(name: str) -> OneStageDetector | TwoStageDetector:
    """The recipe's model; images are normalised already, and sampling takes everything."""
    config = recipe(name).model
    set_tagged(config, Pretrained, None)
    config.normalise = fdl.Config(Normalise, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
    if fdl.get_callable(config) is TwoStageDetector:
        config.rpn.criterion.sampler.number = 1_000_000
        config.roi.stages[0].criterion.sampler.number = 1_000_000
    return build(config)


def make_batch(record: dict[str, Any], size: tuple[int, int]) -> Batch:
    images = golden_inputs.image_batch(2, *size)
    agree(images, record["input"]["image"], 1e-6)
    truth = golden_inputs.targets(2, *size)
    boxes, labels = torch.zeros(2, SLOTS, 4), torch.zeros(2, SLOTS, dtype=torch.int64)
    valid = torch.zeros(2, SLOTS, dtype=torch.bool)
    for i, target in enumerate(truth):
        count = len(target["boxes"])
        boxes[i, :count], labels[i, :count], valid[i, :count] = target["boxes"], target["labels"], True
    masks = pack([target["masks"] for target in truth], SLOTS)
    sizes = torch.tensor([meta["img_shape"] for meta in record["input"]["metas"]])
    return Batch(images, sizes, Targets(boxes, labels, valid, torch.zeros_like(valid), masks))


def agree(tensor: Tensor, figures: dict[str, Any], tolerance: float = 1e-4) -> None:
    """Shape, mean, deviation and some values, to a tolerance in standard deviations."""
    assert list(tensor.shape) == figures["shape"]
    bound = tolerance * figures["std"]
    tensor = tensor.double()
    assert abs(tensor.mean().item() - figures["mean"]) <= bound
    assert abs(tensor.std(correction=0).item() - figures["std"]) <= bound
    values = tensor.flatten()[figures["index"]]
    assert (values - torch.tensor(figures["values"], dtype=torch.float64)).abs().max() <= bound


@torch.no_grad()
def test_features_and_head_outputs(golden: Golden) -> None:
    model, record = golden.model.eval(), golden.record
    backbone = model.backbone(model.normalise(golden.batch.images, golden.batch.sizes))
    features = model.neck(backbone)
    for name, maps in (("backbone", backbone), ("neck", features)):
        assert len(maps) == len(record["features"][name])
        for level, feature in enumerate(maps):
            agree(feature, record["features"][name][f"{name}.{level}"])
    head = model.head if isinstance(model, OneStageDetector) else model.rpn
    outputs = head(features)
    codes = outputs.codes
    if outputs.quality_logits is not None:  # MMDetection's FCOS head gives distances, ours their logarithms
        codes = head.coder.activation(codes)  # pyright: ignore[reportAttributeAccessIssue]
    columns = [outputs.class_logits, codes]
    if outputs.quality_logits is not None:
        columns.append(outputs.quality_logits[..., None])
    shapes = [(f.shape[2], f.shape[3]) for f in features]
    for number, column in enumerate(columns):
        for level, maps in enumerate(as_maps(column, shapes, head.priors.num_per_place())):
            agree(maps, record["head"][f"head.{number}.{level}"])


def as_maps(values: Tensor, shapes: list[tuple[int, int]], per_place: int) -> list[Tensor]:
    """`(B, A, C)` of all levels to one `(B, places * C, H, W)` a level."""
    parts = values.split([h * w * per_place for h, w in shapes], dim=1)
    return [p.reshape(len(p), h, w, -1).permute(0, 3, 1, 2) for p, (h, w) in zip(parts, shapes, strict=True)]


@torch.no_grad()
def test_region_outputs(golden: Golden) -> None:
    model, record = golden.model.eval(), golden.record
    if not isinstance(model, TwoStageDetector):
        assert "roi" not in record
        return
    rois = golden_inputs.rois(2, *golden.canvas)
    torch.testing.assert_close(rois, torch.tensor(record["roi"]["rois"]))
    boxes = rois[:, 1:].reshape(2, -1, 4)
    valid = torch.ones(boxes.shape[:2], dtype=torch.bool)
    features, outputs = model.features(golden.batch.images, golden.batch.sizes), record["roi"]["outputs"]
    stage, mask = model.roi.stages[0], model.roi.mask
    found = stage(features, boxes, valid)
    agree(stage.extractor(features, stage.strides, boxes, valid).flatten(0, 1), outputs["bbox.bbox_feats"])  # pyright: ignore
    agree(found.class_logits.flatten(0, 1), outputs["bbox.cls_score"])
    agree(found.codes.flatten(0, 1).flatten(1), outputs["bbox.bbox_pred"])
    assert (mask is None) == ("mask.mask_preds" not in outputs)
    if mask is not None:
        # All classes at once, as MMDetection computes them; and through the head, which computes one.
        pooled = mask.extractor(features, mask.strides, boxes, valid).flatten(0, 1)
        every = mask.predictor(F.relu(mask.upsample(mask.convs(pooled))))
        agree(every, outputs["mask.mask_preds"])
        labels = torch.arange(boxes.shape[0] * boxes.shape[1]).reshape(boxes.shape[:2]) * 9
        of_label = every[torch.arange(len(every)), labels.flatten()]
        torch.testing.assert_close(
            mask(features, boxes, labels, valid).flatten(0, 1), of_label, atol=1e-4, rtol=1e-4
        )


LOSSES = {
    "loss_cls": "loss/class",
    "loss_bbox": "loss/box",
    "loss_centerness": "loss/quality",
    "loss_rpn_cls": "loss/rpn_class",
    "loss_rpn_bbox": "loss/rpn_box",
    "loss_mask": "loss/mask",
}


def test_losses_and_gradients(golden: Golden) -> None:
    model, record = golden.model.train(), golden.record
    trained = {golden.names[name] for name, p in model.named_parameters() if p.requires_grad}
    buffers = ("running_mean", "running_var", "num_batches_tracked")
    assert trained == {key for key in record["keys"] if not key.endswith(buffers)} - set(record["frozen"])

    model.zero_grad()
    losses = model.loss(golden.batch)
    expected = {LOSSES[name]: entry["value"] for name, entry in record["losses"].items() if "loss" in name}
    found = {name: value.item() for name, value in losses.items() if name.startswith("loss/")}
    assert found == pytest.approx(expected, rel=1e-4)
    assert sum(found.values()) == pytest.approx(record["total"], rel=1e-4)

    sum(value for name, value in losses.items() if name.startswith("loss/")).backward()  # pyright: ignore
    gradients = {golden.names[n]: p.grad for n, p in model.named_parameters() if p.grad is not None}
    size = torch.stack([g.norm() for g in gradients.values()]).norm().item()
    assert size == pytest.approx(record["gradients"]["global_norm"], rel=1e-3)
    norms = {name: gradients[name].norm().item() for name in record["gradients"]["norms"]}
    assert norms == pytest.approx(record["gradients"]["norms"], rel=1e-3)


@torch.no_grad()
def test_assignments(golden: Golden) -> None:
    """How many priors and proposals of each image are positive and negative, exactly."""
    model, record, batch = golden.model.train(), golden.record, golden.batch
    if not record["assignments"]:
        return
    targets = batch.targets
    assert targets is not None
    features = model.features(batch.images, batch.sizes)
    head = model.head if isinstance(model, OneStageDetector) else model.rpn
    priors = head.place_priors(features, golden.canvas)
    assert head.criterion.area is not None
    assignments = [head.criterion.assigner(head.criterion.area(priors, batch.sizes), targets)]
    if isinstance(model, TwoStageDetector):
        to_scores = head.criterion.class_loss.scores
        made = model.train_proposals(head(features), priors, batch.sizes, head.coder, to_scores)
        boxes = torch.cat((made.boxes, targets.boxes), 1)
        valid = torch.cat((made.valid, targets.valid), 1)
        proposals = Priors(boxes, boxes.new_ones(boxes.shape[1]), (boxes.shape[1],), valid)
        assignments.append(model.roi.stages[0].criterion.assigner(proposals, targets))  # pyright: ignore
    objects = targets.valid.sum(1).tolist()
    found = [
        [count, int(a.positive[i].sum()), int(a.negative[i].sum())]
        for a in assignments
        for i, count in enumerate(objects)
    ]
    assert found == [entry[1:] for entry in record["assignments"]]


@torch.no_grad()
def test_predictions(golden: Golden) -> None:
    model, record, batch = golden.model.eval(), golden.record, golden.batch
    if isinstance(model, TwoStageDetector):
        made = model.propose(model.features(batch.images, batch.sizes), batch.sizes, golden.canvas)
        for i, expected in enumerate(record["proposals"]):
            assert int(made.valid[i].sum()) == expected["count"]
            best = torch.tensor(expected["boxes"])
            distance = (made.boxes[i, made.valid[i]] - best[:, None]).abs().amax(-1).amin(1)
            assert distance.max() < 0.01
    found = model.predict(batch.images, batch.sizes)
    for i, expected in enumerate(record["predictions"]):
        valid = found.valid[i]
        assert int(valid.sum()) == expected["count"]
        boxes, scores, labels = (torch.tensor(expected[key]) for key in ("boxes", "scores", "labels"))
        distance = (found.boxes[i, valid] - boxes[:, None]).abs().amax(-1)
        distance[found.labels[i, valid] != labels[:, None]] = torch.inf
        distance[(found.scores[i, valid] - scores[:, None]).abs() > 1e-4] = torch.inf
        nearest, slot = distance.min(1)
        same = nearest < 0.01
        # An IoU at the threshold may fall on the other side in NMS.
        assert int((~same).sum()) <= 2
        assert len(slot[same].unique()) == int(same.sum())
        if found.masks is not None:
            pasted = paste(found.masks[i, valid][slot], found.boxes[i, valid][slot], *golden.canvas)
            area, expected_area = pasted.sum((1, 2)), torch.tensor(expected["masks"])[:, 0]
            wrong = (area - expected_area).abs() > (expected_area * 0.005).clamp(min=5)
            assert not (wrong & same).any()
