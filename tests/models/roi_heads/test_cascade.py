"""A cascade of stages: what passes from one to the next, whose masks, how scores are averaged."""

from functools import partial
from typing import Any

import pytest
import torch
from roi_parts import CLASSES, SIZES, SPECS, box_head, inputs, mask_head

from boxwright.models.losses import BinaryCrossEntropy, CrossEntropy
from boxwright.models.roi_heads import MeanLogits, MeanScores, RoIHeads
from boxwright.models.roi_heads.heads import refined
from boxwright.models.roi_heads.predictions import RoIPredictions
from boxwright.models.samplers import AllSampler, RandomSampler


def heads(**arguments: Any) -> RoIHeads:
    torch.manual_seed(0)
    stages = [partial(box_head, iou=iou) for iou in (0.5, 0.6, 0.7)]
    return RoIHeads(SPECS, stages=stages, **arguments)


@pytest.mark.parametrize("sampler", [RandomSampler(1000, 1.0), AllSampler()])
@pytest.mark.parametrize("class_agnostic", [False, True])
def test_what_passes_to_the_next_stage(sampler: Any, class_agnostic: bool):
    """Proposals, not the ground truths added to them; positives regressed for their object's class."""
    torch.manual_seed(0)
    stage = box_head(sampler=sampler, class_agnostic=class_agnostic)
    features, proposals, targets = inputs()
    regions, sample = stage.criterion.sample(proposals.boxes, proposals.valid, targets)
    outputs = stage(features, regions, sample.valid)
    outputs = RoIPredictions(outputs.class_logits * 50, torch.randn_like(outputs.codes))
    boxes, valid = refined(stage, outputs, regions, sample, targets, SIZES, 7)
    assert int(valid.sum()) == int(proposals.valid.sum())
    assert not boxes.requires_grad
    for image in range(2):
        for slot in range(regions.shape[1]):
            source = slot if sample.index is None else int(sample.index[image, slot])
            of_proposal = source < 7 and bool(sample.valid[image, slot])
            assert bool(valid[image, slot]) == of_proposal
            if of_proposal:
                best = int(outputs.class_logits[image, slot, :CLASSES].argmax())
                true = int(targets.labels[image, sample.gt_index[image, slot]])
                label = 0 if class_agnostic else true if sample.positive[image, slot] else best
                region, code = regions[image, slot], outputs.codes[image, slot, label]
                expected = stage.coder.decode(code, region, region.new_ones(()))
                expected = torch.minimum(expected.clamp(min=0), SIZES[image, [1, 0, 1, 0]])
                torch.testing.assert_close(boxes[image, slot], expected)


def test_averages():
    first, second = torch.tensor([[[2.0, 0, 1, -1]]]), torch.tensor([[[0.0, 4, 1, 1]]])
    loss = CrossEntropy()
    scores = (loss.scores(first) + loss.scores(second)) / 2
    torch.testing.assert_close(MeanScores()([first, second], loss), scores)
    mean = torch.tensor([[[1.0, 2, 1, 0]]]).softmax(-1)[..., :3]
    torch.testing.assert_close(MeanLogits()([first, second], loss), mean)
    for average in (MeanScores(), MeanLogits()):
        torch.testing.assert_close(average([first], BinaryCrossEntropy()), first.sigmoid())


def test_losses_of_each_stage_have_its_weight():
    features, proposals, targets = inputs()
    sizes_and_canvas = (SIZES, (48, 64))
    plain, weighted = heads(mask=[mask_head] * 3), heads(mask=[mask_head] * 3, loss_weights=(1.0, 0.5, 0.25))
    torch.manual_seed(3)
    one = plain.loss(features, proposals, targets, *sizes_and_canvas)
    torch.manual_seed(3)
    other = weighted.loss(features, proposals, targets, *sizes_and_canvas)
    names = {f"loss/stage{i}_{part}" for i in range(3) for part in ("class", "box", "mask")}
    assert {name for name in one if name.startswith("loss/")} == names
    for name in names:
        torch.testing.assert_close(other[name], one[name] * (1.0, 0.5, 0.25)[int(name[10])])
    with pytest.raises(ValueError, match="3 stages but 2 loss weights"):
        heads(loss_weights=(1.0, 0.5))


@pytest.mark.parametrize(
    ("mask", "stages"),
    [(None, []), (mask_head, [2]), ([mask_head, None, None], [0]), ([mask_head] * 3, [0, 1, 2])],
)
def test_where_masks_are_trained(mask: Any, stages: list[int]):
    features, proposals, targets = inputs()
    roi = heads(mask=mask)
    assert list(roi.masks) == stages
    losses = roi.loss(features, proposals, targets, SIZES, (48, 64))
    assert [int(name[10]) for name in losses if name.endswith("_mask")] == stages
    found = roi.eval().predict(features, proposals, SIZES)
    if not stages:
        assert found.masks is None
        return
    assert found.masks is not None
    each = torch.stack([head.predict(features, found) for head in roi.masks.values()])
    torch.testing.assert_close(found.masks, each.mean(0))


def test_masks_for_some_stages_only_are_refused():
    with pytest.raises(ValueError, match="3 stages but 2 mask heads"):
        heads(mask=[mask_head] * 2)


def test_prediction_follows_the_stages():
    """Each stage looks at the boxes of the one before it; the last decodes; all score."""
    features, proposals, _ = inputs()
    roi = heads(average=MeanLogits()).eval()
    with torch.no_grad():
        for stage in roi.stages:
            torch.nn.init.normal_(stage.box_predictor.weight, std=0.5)  # pyright: ignore
        boxes, logits, outputs = proposals.boxes, [], None
        for number, stage in enumerate(roi.stages):
            if outputs is not None:
                label = outputs.class_logits[..., :CLASSES].argmax(-1)
                one = boxes.new_ones(boxes.shape[:2])
                boxes = roi.stages[number - 1].coder.decode(outputs.codes_of(label), boxes, one)  # pyright: ignore
                boxes = torch.minimum(boxes.clamp(min=0), SIZES[:, None, [1, 0, 1, 0]])
            outputs = stage(features, boxes, proposals.valid)
            logits.append(outputs.class_logits)
        last: Any = roi.stages[2]
        score = torch.stack(logits).mean(0).softmax(-1)[..., :CLASSES]
        assert outputs is not None
        expected = last.postprocess(score, outputs.codes, boxes, proposals.valid, SIZES, last.coder)
        torch.testing.assert_close(vars(roi.predict(features, proposals, SIZES)), vars(expected))
