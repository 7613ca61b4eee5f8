"""R-FCN's stage and the mining of its regions."""

from functools import partial
from typing import Any

import pytest
import torch

from boxwright.models.assigners import MaxIoUAssigner
from boxwright.models.coders import DeltaCoder
from boxwright.models.losses import CrossEntropy, SmoothL1
from boxwright.models.roi_heads import (
    PSCropResize,
    PSRoIAlign,
    PSRoIPool,
    RFCNHead,
    RoICriterion,
    RoIHeads,
    RoIPostprocess,
)
from boxwright.models.samplers import AllSampler, HardestSampler, OHEMSampler
from boxwright.ops.boxes import pairwise_iou
from boxwright.structures import Detections, FeatureSpec, Targets

POOLS = (PSRoIPool(), PSRoIAlign(), PSCropResize(3))
SPECS = (FeatureSpec(6, 16), FeatureSpec(8, 16))
CLASSES, BINS = 3, 2


def head(
    sampler: Any = None, class_agnostic: bool = True, pool: Any = POOLS[0], **criterion: Any
) -> RFCNHead:
    torch.manual_seed(0)
    return RFCNHead(
        SPECS,
        num_classes=CLASSES,
        coder=DeltaCoder(stds=(0.1, 0.1, 0.2, 0.2)),
        criterion=RoICriterion(
            MaxIoUAssigner(), sampler or AllSampler(), CrossEntropy(), SmoothL1(1.0), **criterion
        ),
        postprocess=RoIPostprocess(score_threshold=0.0),
        pool=pool,
        bins=BINS,
        channels=12,
        class_agnostic=class_agnostic,
    )


def inputs(regions: int = 12, seed: int = 0):
    g = torch.Generator().manual_seed(seed)
    features = [torch.randn(2, spec.channels, 5, 7, generator=g) for spec in SPECS]
    corner = torch.rand(2, regions, 2, generator=g) * 50
    boxes = torch.cat((corner, corner + torch.rand(2, regions, 2, generator=g) * 30 + 8), -1)
    valid = torch.rand(2, regions, generator=g) < 0.8
    truth = boxes[:, :3] + torch.randn(2, 3, 4, generator=g) * 2
    labels = torch.randint(0, CLASSES, (2, 3), generator=g)
    there = torch.tensor([[True, True, True], [True, False, False]])
    return features, boxes, valid, Targets(truth, labels, there, torch.zeros_like(there))


@pytest.mark.parametrize("class_agnostic", [True, False])
@pytest.mark.parametrize("pool", POOLS, ids=repr)
def test_bins_vote_with_their_own_maps(pool, class_agnostic):
    """The definition, bin by bin: each is pooled as a region of one bin from its own map."""
    features, boxes, valid, _ = inputs()
    stage = head(pool=pool, class_agnostic=class_agnostic)
    with torch.no_grad():
        shared = stage.shared(features)
        found = stage(shared, boxes, valid)
        columns, codes = CLASSES + 1, 1 if class_agnostic else CLASSES
        assert [m.shape[1] for m in shared] == [columns * BINS**2, 4 * codes * BINS**2]
        assert found.class_logits.shape == (2, 12, columns)
        assert found.codes.shape == (2, 12, codes, 4)
        hidden = (features[-1] * 1).permute(0, 2, 3, 1) @ stage.reduce.conv.weight[:, :, 0, 0].T  # pyright: ignore
        hidden = (hidden + stage.reduce.conv.bias).relu()
        maps = hidden @ stage.class_maps.weight[:, :, 0, 0].T + stage.class_maps.bias
        torch.testing.assert_close(maps.permute(0, 3, 1, 2), shared[0], atol=1e-5, rtol=1e-4)
        for c in range(columns):
            group = shared[0][:, c * BINS**2 : (c + 1) * BINS**2]
            bins = pool(group, boxes, valid, 16, BINS)[:, :, 0]
            torch.testing.assert_close(found.class_logits[..., c], bins.mean((-2, -1)))
    assert not found.class_logits[~valid].any()
    assert not found.codes[~valid].any()


def test_only_the_last_level_is_used_and_all_layers_are_trained():
    features, boxes, valid, targets = inputs()
    features = [f.requires_grad_() for f in features]
    stage = head()
    regions, sample = stage.criterion.sample(boxes, valid, targets)
    losses = stage.criterion(
        stage(stage.shared(features), regions, sample.valid), regions, sample, targets, stage.coder
    )
    (losses["loss/class"] + losses["loss/box"]).backward()
    assert features[0].grad is None
    assert features[1].grad is not None
    assert all(p.grad is not None and p.grad.isfinite().all() for p in stage.parameters())


def losses_by_hand(stage: RFCNHead, features, boxes, valid, targets, image: int, with_box: bool):
    """Loss of each region, and of each added ground truth, of an image, one after the other."""
    boxes = torch.cat((boxes, targets.boxes), 1)
    valid = torch.cat((valid, targets.valid), 1)
    outputs = stage(stage.shared(features), boxes, valid)
    there = targets.boxes[image][targets.valid[image]]
    result = {}
    for r in range(boxes.shape[1]):
        if not valid[image, r]:
            continue
        overlap, which = pairwise_iou(boxes[image, r : r + 1], there)[0].max(0)
        positive = overlap >= 0.5
        label = int(targets.labels[image, which]) if positive else CLASSES
        loss = -outputs.class_logits[image, r].log_softmax(-1)[label]
        if positive and with_box:
            one = boxes.new_ones(())
            target = stage.coder.encode(there[which], boxes[image, r], one)
            distance = (outputs.codes[image, r, 0] - target).abs()
            loss = loss + torch.where(distance < 1, distance**2 / 2, distance - 0.5).sum()
        result[r] = (loss.item(), bool(positive))
    return result


@pytest.mark.parametrize("with_box", [True, False])
@pytest.mark.parametrize("sampler", [HardestSampler(4, None), OHEMSampler(4, 0.25)], ids=repr)
@torch.no_grad()
def test_the_hardest_regions_are_trained(sampler, with_box):
    features, boxes, valid, targets = inputs()
    stage = head(sampler, rank_with_box_loss=with_box)
    for parameter in stage.parameters():
        parameter.normal_(0, 0.5)  # losses well apart
    predict = partial(stage, stage.shared(features))
    regions, sample = stage.criterion.sample(boxes, valid, targets, predict, stage.coder)
    assert sample.index is not None
    for image in range(2):
        losses = losses_by_hand(stage, features, boxes, valid, targets, image, with_box)
        order = sorted(losses, key=lambda r: -losses[r][0])
        expected = order[:4]
        if isinstance(sampler, OHEMSampler):
            positives = [r for r in order if losses[r][1]][:1]
            expected = positives + [r for r in order if not losses[r][1]][: 4 - len(positives)]
        assert set(sample.index[image][sample.valid[image]].tolist()) == set(expected)
    torch.testing.assert_close(
        regions, torch.cat((boxes, targets.boxes), 1).gather(1, sample.index[..., None].expand(-1, -1, 4))
    )


def test_the_maps_are_made_once_a_step(monkeypatch):
    features, boxes, valid, targets = inputs()
    heads = RoIHeads(SPECS, stages=[lambda specs: head(HardestSampler(4))])
    calls = []
    original = RFCNHead.shared
    monkeypatch.setattr(RFCNHead, "shared", lambda self, f: calls.append(1) or original(self, f))
    proposals = Detections(boxes, torch.ones(2, 12), torch.zeros(2, 12).long(), valid)
    sizes = torch.tensor([[80, 112], [80, 112]])
    losses = heads.loss(features, proposals, targets, sizes, (80, 112))
    assert len(calls) == 1
    assert all(value.isfinite() for value in losses.values())
    found = heads.predict(features, proposals, sizes)
    assert found.valid.any()


def test_mining_does_not_train():
    """Ranking leaves no gradient: it is that of any other way to choose the same regions."""
    features, boxes, valid, targets = inputs()
    stage = head(HardestSampler(64, None))
    every = head(AllSampler())
    grads = []
    for one in (stage, every):
        shared = one.shared(features)
        regions, sample = one.criterion.sample(boxes, valid, targets, partial(one, shared), one.coder)
        losses = one.criterion(one(shared, regions, sample.valid), regions, sample, targets, one.coder)
        (losses["loss/class"] + losses["loss/box"]).backward()
        grads.append([p.grad for p in one.parameters()])
    torch.testing.assert_close(grads[0], grads[1])


def test_a_sampler_that_ranks_by_loss_needs_outputs():
    _, boxes, valid, targets = inputs()
    with pytest.raises(AssertionError, match="ranks by loss"):
        head(OHEMSampler(4)).criterion.sample(boxes, valid, targets)
