"""Hybrid Task Cascade: order of its parts, flow of mask features, semantic branch."""

from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from roi_parts import CLASSES, SIZES, SPECS, box_head, inputs, mask_head
from torch import Tensor

from boxwright.errors import DataError
from boxwright.models.roi_heads import HTC, BoxHead, FusedExtractor, MaskHead, RoIExtractor, SemanticBranch
from boxwright.models.roi_heads.heads import refined
from boxwright.structures import NO_CLASS, Targets

SEMANTIC_CLASSES = 5
BOX, MASK = (FusedExtractor(size, 2, 0, 16.0, semantic_size=12) for size in (4, 6))


def semantic_branch(specs: Any) -> SemanticBranch:
    return SemanticBranch(specs, num_classes=SEMANTIC_CLASSES, level=1, convs=2)


def htc(semantic: bool = False) -> HTC:
    torch.manual_seed(0)
    stages: Any = [partial(box_head, iou=iou, extractor=BOX if semantic else None) for iou in (0.5, 0.6, 0.7)]
    masks: Any = [partial(mask_head, extractor=MASK if semantic else None)] * 3
    branch = semantic_branch if semantic else None
    return HTC(SPECS, stages=stages, mask=masks, semantic=branch, loss_weights=(1.0, 0.5, 0.25))


def with_maps(targets: Targets) -> Targets:
    maps = torch.randint(0, SEMANTIC_CLASSES, (2, 48, 64), generator=torch.Generator().manual_seed(2))
    maps[1, 40:], maps[1, :, 50:] = NO_CLASS, NO_CLASS
    return replace(targets, semantic=maps.byte())


def test_features_are_summed():
    features, proposals, _ = inputs()
    semantic = torch.randn(2, 8, 6, 8)
    strides, boxes, valid = [4, 8, 8], proposals.boxes, proposals.valid
    found = BOX([*features, semantic], strides, boxes, valid)
    plain = RoIExtractor(4, 2, 0, 16.0)(features, strides, boxes, valid)
    fine = RoIExtractor(12, 1, 0)([semantic], [8], boxes, valid)
    expected = plain + fine.unflatten(-1, (4, 3)).unflatten(-3, (4, 3)).mean((-1, -3))
    torch.testing.assert_close(found, expected)
    assert not found[~valid].any()


def test_mask_features_flow_from_stage_to_stage():
    features, proposals, _ = inputs()
    roi, boxes = htc(), proposals.boxes
    labels, valid = torch.ones(2, 7, dtype=torch.long), torch.ones(2, 7, dtype=torch.bool)
    first: MaskHead = roi.masks[0]
    pooled = first.extractor(features, first.strides, boxes, valid).flatten(0, 1)
    before: Any = None
    for number, head in roi.masks.items():
        x = pooled
        if number:
            flow: Any = roi.flow[str(number)]
            x = pooled + F.relu(F.conv2d(before, flow.conv.weight, flow.conv.bias))
        before = head.convs(x)
        logits = head.predictor(F.relu(head.upsample(before)))[:, 1].unflatten(0, (2, 7))
        found = roi.mask_logits(features, boxes, labels, valid, number)
        torch.testing.assert_close(found, logits, atol=1e-5, rtol=1e-4)
    before.sum().backward()
    assert all(p.grad is not None and p.grad.any() for p in first.convs.parameters())
    assert set(roi.flow) == {"1", "2"}


@pytest.mark.parametrize("semantic", [False, True])
def test_masks_are_trained_in_the_boxes_just_refined(semantic: bool, monkeypatch: pytest.MonkeyPatch):
    features, proposals, targets = inputs()
    roi = htc(semantic)
    seen: list[tuple[str, Tensor]] = []
    passed = [proposals.boxes]
    compare, run = MaskHead.compare, BoxHead.forward

    def compared(self: MaskHead, logits: Tensor, boxes: Tensor, *rest: Any) -> Any:
        seen.append(("mask", boxes))
        return compare(self, logits, boxes, *rest)

    def ran(self: BoxHead, shared: Any, boxes: Tensor, valid: Tensor) -> Any:
        seen.append(("box", boxes))
        return run(self, shared, boxes, valid)

    def recorded(*arguments: Any) -> Any:
        boxes, valid = refined(*arguments)
        passed.append(boxes)
        return boxes, valid

    monkeypatch.setattr(MaskHead, "compare", compared)
    monkeypatch.setattr(BoxHead, "forward", ran)
    monkeypatch.setattr("boxwright.models.roi_heads.htc.refined", recorded)
    losses = roi.loss(features, proposals, with_maps(targets), SIZES, (48, 64))
    assert [kind for kind, _ in seen] == ["box", "mask"] * 3
    parts = {f"loss/stage{i}_{part}" for i in range(3) for part in ("class", "box", "mask")}
    assert {n for n in losses if n.startswith("loss/")} == parts | ({"loss/semantic"} if semantic else set())

    for number, (kind, regions) in enumerate(seen):
        given = torch.cat((passed[number // 2 + (kind == "mask")], targets.boxes), 1)
        assert (regions[:, :, None] == given[:, None]).all(-1).any(-1).all()
        other = torch.cat((passed[number // 2 + (kind == "box")], targets.boxes), 1)
        assert not (regions[:, :, None] == other[:, None]).all(-1).any(-1).all()


def test_the_mask_is_the_last_heads():
    features, proposals, _ = inputs()
    roi = htc(semantic=True).eval()
    with torch.no_grad():
        found = roi.predict(features, proposals, SIZES)
        assert roi.semantic is not None
        levels = [*features, roi.semantic(features)[1]]
        expected = roi.mask_logits(levels, found.boxes, found.labels, found.valid, 2).sigmoid()
    assert found.masks is not None
    assert found.masks.shape == (2, 6, 12, 12)
    torch.testing.assert_close(found.masks, expected)
    assert int(found.labels.max()) < CLASSES


def test_the_semantic_loss():
    _, _, targets = inputs()
    branch, targets = semantic_branch(SPECS), with_maps(targets)
    logits = torch.randn(2, SEMANTIC_CLASSES, 6, 8)
    assert targets.semantic is not None
    expected, log_p = 0.0, logits.log_softmax(1)
    for image in range(2):
        for row in range(6):
            for column in range(8):
                label = int(targets.semantic[image, 8 * row + 4, 8 * column + 4])
                if label != NO_CLASS:
                    expected -= float(log_p[image, label, row, column])
    found = branch.loss(logits, targets)["loss/semantic"]
    assert float(found) == pytest.approx(0.2 * expected / (2 * 6 * 8), rel=1e-5)


def test_a_data_set_without_maps_is_told_the_remedy():
    features, proposals, targets = inputs()
    with pytest.raises(DataError, match=r"folder\(\.\.\., semantic=.*htc_without_semantic_r50_fpn_1x"):
        htc(semantic=True).loss(features, proposals, targets, SIZES, (48, 64))


def test_every_stage_needs_masks():
    stages: Any = [box_head, box_head]
    masks: Any = [mask_head, None]
    with pytest.raises(ValueError, match="HTC needs a mask head in each of 2 stages, not 1"):
        HTC(SPECS, stages=stages, mask=masks)
