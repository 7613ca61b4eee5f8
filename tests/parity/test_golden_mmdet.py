"""Our recipes against recorded figures of MMDetection 3.3.0; see `golden_figures.py`."""

from __future__ import annotations

import golden_inputs
import pytest
import torch
import torch.nn.functional as F
from golden_figures import Golden, agree, as_maps, check_gradients, check_trained, load, matched

from boxwright.models.coders import DistanceCoder
from boxwright.models.detectors import OneStageDetector, TwoStageDetector
from boxwright.ops.masks import paste
from boxwright.structures import Priors

RECIPES = {
    "retinanet_r50_fpn_1x_coco": "retinanet_r50_fpn_1x",
    "fcos_r50-caffe_fpn_gn-head_1x_coco": "fcos_r50_fpn_1x",
    "atss_r50_fpn_1x_coco": "atss_r50_fpn_1x",
    "rpn_r50_fpn_1x_coco": "rpn_r50_fpn_1x",
    "faster-rcnn_r50_fpn_1x_coco": "faster_rcnn_r50_fpn_1x",
    "mask-rcnn_r50_fpn_1x_coco": "mask_rcnn_r50_fpn_1x",
    "faster-rcnn_r50-mdconv-c3-c5_fpn_1x_coco": "faster_rcnn_r50_fpn_mdconv_c3_c5_1x",
    "mask-rcnn_r50-syncbn-gcb-r16-c3-c5_fpn_1x_coco": "mask_rcnn_r50_fpn_gcb_r16_c3_c5_1x",
    "mask-rcnn_r50_fpn_gn-ws-all_2x_coco": "mask_rcnn_r50_fpn_gn_ws_2x",
    "faster-rcnn_hrnetv2p-w18-1x_coco": "faster_rcnn_hrnetv2p_w18_1x",
    "dynamic-rcnn_r50_fpn_1x_coco": "dynamic_rcnn_r50_fpn_1x",
    "ssd300_coco": "ssd300",
}


@pytest.fixture(scope="module", params=RECIPES)
def golden(request: pytest.FixtureRequest) -> Golden:
    return load(request.param, RECIPES[request.param])


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
    if isinstance(head.coder, DistanceCoder):  # MMDetection's head gives distances, ours their logarithms
        codes = head.coder.activation(codes)
    columns = [outputs.class_logits, codes]
    if outputs.quality_logits is not None:
        columns.append(outputs.quality_logits[..., None])
    shapes = [(f.shape[2], f.shape[3]) for f in features]
    per_place = [head.priors.num_per_place(level) for level in range(len(shapes))]
    for number, column in enumerate(columns):
        for level, maps in enumerate(as_maps(column, shapes, per_place)):
            agree(maps, record["head"][f"head.{number}.{level}"])


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
    check_trained(golden)
    losses = model.loss(golden.batch)
    expected = {LOSSES[name]: entry["value"] for name, entry in record["losses"].items() if "loss" in name}
    if isinstance(model, OneStageDetector):  # where a proposal network is the whole detector
        expected = {name.replace("rpn_", ""): value for name, value in expected.items()}
    found = {name: value.item() for name, value in losses.items() if name.startswith("loss/")}
    assert found == pytest.approx(expected, rel=1e-4)
    check_gradients(golden, losses)


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
        class_loss = head.criterion.class_loss
        made = model.train_proposals(head(features), priors, batch.sizes, head.coder, class_loss)
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
        slot, same = matched(found, i, expected)
        if found.masks is not None:
            valid = found.valid[i]
            pasted = paste(found.masks[i, valid][slot], found.boxes[i, valid][slot], *golden.canvas)
            area, expected_area = pasted.sum((1, 2)), torch.tensor(expected["masks"])[:, 0]
            wrong = (area - expected_area).abs() > (expected_area * 0.005).clamp(min=5)
            assert not (wrong & same).any()
