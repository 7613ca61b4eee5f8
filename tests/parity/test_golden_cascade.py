"""Cascade Mask R-CNN and Hybrid Task Cascade against figures of MMDetection 3.3.0, stage by stage."""

from __future__ import annotations

import golden_inputs
import pytest
import torch
import torch.nn.functional as F
from golden_figures import Golden, agree, check_gradients, check_trained, load
from test_golden_mmdet import test_features_and_head_outputs, test_predictions  # noqa: F401  with this fixture
from torch import Tensor

from boxwright.models.detectors import TwoStageDetector
from boxwright.models.roi_heads import HTC, BoxHead, MaskHead, RoICriterion
from boxwright.structures import Priors

RECIPES = {
    "cascade-mask-rcnn_r50_fpn_1x_coco": "cascade_mask_rcnn_r50_fpn_1x",
    "htc_r50_fpn_1x_coco": "htc_r50_fpn_1x",
}


@pytest.fixture(scope="module", params=RECIPES)
def golden(request: pytest.FixtureRequest) -> Golden:
    return load(request.param, RECIPES[request.param])


def every_mask(head: MaskHead, hidden: Tensor) -> Tensor:
    """The masks of all classes, as MMDetection computes them."""
    return head.predictor(F.relu(head.upsample(hidden)))


@torch.no_grad()
def test_region_outputs(golden: Golden) -> None:
    model, record = golden.model.eval(), golden.record
    assert isinstance(model, TwoStageDetector)
    rois = golden_inputs.rois(2, *golden.canvas)
    torch.testing.assert_close(rois, torch.tensor(record["roi"]["rois"]))
    boxes = rois[:, 1:].reshape(2, -1, 4)
    valid = torch.ones(boxes.shape[:2], dtype=torch.bool)
    features, outputs = model.features(golden.batch.images, golden.batch.sizes), record["roi"]["outputs"]
    roi = model.roi
    htc = isinstance(roi, HTC)
    if htc:
        assert roi.semantic is not None
        logits, semantic = roi.semantic(features)
        agree(logits, outputs["semantic.logits"])
        agree(semantic, outputs["semantic.feature"])
        features = [*features, semantic]
    hidden = torch.zeros(())
    labels = torch.arange(valid.numel()).reshape(valid.shape) * 9
    for number, stage in enumerate(roi.stages):
        assert isinstance(stage, BoxHead)
        found = stage(features, boxes, valid)
        agree(found.class_logits.flatten(0, 1), outputs[f"bbox.{number}.cls_score"])
        agree(found.codes.flatten(0, 1).flatten(1), outputs[f"bbox.{number}.bbox_pred"])
        mask = roi.masks[number]
        pooled = mask.extractor(features, mask.strides, boxes, valid).flatten(0, 1)
        if htc and number:
            pooled = pooled + roi.flow[str(number)](hidden)
        hidden = mask.convs(pooled)
        every = every_mask(mask, hidden)
        if not htc:
            agree(
                stage.extractor(features, stage.strides, boxes, valid).flatten(0, 1),
                outputs[f"bbox.{number}.bbox_feats"],
            )
            agree(every, outputs[f"mask.{number}.mask_preds"])
            one = mask(features, boxes, labels, valid)
        else:  # for each stage it recorded what it predicts with: the last head's masks
            if number == 2:
                agree(every, outputs["mask.2.mask_preds.0"])
            one = roi.mask_logits(features, boxes, labels, valid, number)
        of_label = every[torch.arange(len(every)), labels.flatten()]
        torch.testing.assert_close(one.flatten(0, 1), of_label, atol=1e-4, rtol=1e-4)


PARTS = {"loss_cls": "class", "loss_bbox": "box", "loss_mask": "mask"}
LOSSES = {"loss_rpn_cls": "rpn_class", "loss_rpn_bbox": "rpn_box", "loss_semantic_seg": "semantic"}
LOSSES |= {f"s{i}.{theirs}": f"stage{i}_{ours}" for i in range(3) for theirs, ours in PARTS.items()}


def test_losses_gradients_and_assignments(golden: Golden, monkeypatch: pytest.MonkeyPatch) -> None:
    """Losses, gradients, and how many regions of each stage are positive and negative, exactly."""
    model, record = golden.model.train(), golden.record
    assert isinstance(model, TwoStageDetector)
    check_trained(golden)
    targets = golden.batch.targets
    assert targets is not None
    objects = targets.valid.sum(1).tolist()
    counts: list[list[int]] = []
    sample = RoICriterion.sample

    def counted(self: RoICriterion, *args: object, **arguments: object) -> object:
        regions, found = sample(self, *args, **arguments)  # pyright: ignore[reportArgumentType]
        for i, count in enumerate(objects):
            counts.append([count, int(found.positive[i].sum()), int(found.negative[i].sum())])
        return regions, found

    monkeypatch.setattr(RoICriterion, "sample", counted)
    losses = model.loss(golden.batch)
    expected = {LOSSES[name]: entry["value"] for name, entry in record["losses"].items() if "loss" in name}
    found = {name[5:]: value.item() for name, value in losses.items() if name.startswith("loss/")}
    assert found == pytest.approx(expected, rel=1e-4)
    assert counts == [entry[1:] for entry in record["assignments"][2:]]
    check_gradients(golden, losses)


@torch.no_grad()
def test_assignments_of_the_proposal_network(golden: Golden) -> None:
    model, batch = golden.model.train(), golden.batch
    assert isinstance(model, TwoStageDetector)
    assert batch.targets is not None
    priors = model.rpn.place_priors(model.features(batch.images, batch.sizes), golden.canvas)
    area = model.rpn.criterion.area
    assert area is not None
    inside: Priors = area(priors, batch.sizes)
    assignment = model.rpn.criterion.assigner(inside, batch.targets)
    found = [
        [
            int(batch.targets.valid[i].sum()),
            int(assignment.positive[i].sum()),
            int(assignment.negative[i].sum()),
        ]
        for i in range(2)
    ]
    assert found == [entry[1:] for entry in golden.record["assignments"][:2]]
