"""YOLOv3's head, losses and post-process: by hand, and against loops over the priors."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from boxwright.errors import ConfigError
from boxwright.models.assigners import GridAssigner
from boxwright.models.coders import GridCoder
from boxwright.models.dense_heads import (
    DenseCriterion,
    DensePostprocess,
    Objectness,
    Summed,
    YOLOHead,
    criterion,
)
from boxwright.models.losses import BinaryCrossEntropy, GridCodeLoss
from boxwright.models.priors import SizedAnchors
from boxwright.models.suppression import GreedyNMS
from boxwright.structures import DensePredictions, FeatureSpec, Targets

SPECS = (FeatureSpec(4, 8), FeatureSpec(6, 16))
ANCHORS = SizedAnchors(sizes=(((10, 13), (33, 23)), ((30, 61), (62, 45))))
CRITERION = DenseCriterion(
    assigner=GridAssigner(),
    class_loss=BinaryCrossEntropy(),
    class_negatives=False,
    code_loss=GridCodeLoss(),
    quality=Objectness(),
    divisor=Summed(),
)
POSTPROCESS = DensePostprocess(
    score_threshold=0.05, quality_threshold=0.2, candidates_of="image", nms=GreedyNMS(iou=0.45)
)
PRIORS = ANCHORS([(8, 8), (4, 4)], [8, 16], (64, 64))


def make_head(**changes) -> YOLOHead:
    arguments = {"priors": ANCHORS, "coder": GridCoder(), "criterion": CRITERION, "postprocess": POSTPROCESS}
    return YOLOHead(SPECS, num_classes=3, **(arguments | changes))


def random_predictions(images: int = 2, seed: int = 0) -> DensePredictions:
    generator = torch.Generator().manual_seed(seed)
    count = len(PRIORS.boxes)
    shapes = ((images, count, 3), (images, count, 4), (images, count))
    return DensePredictions(*(torch.randn(shape, generator=generator) for shape in shapes))


def some_targets() -> Targets:
    """Two objects and one; a crowd in the second image."""
    boxes = torch.zeros(2, 3, 4)
    boxes[0, :2] = torch.tensor([[4.0, 8.0, 13.0, 22.0], [20.0, 2.0, 60.0, 62.0]])
    boxes[1, :2] = torch.tensor([[30.0, 30.0, 58.0, 50.0], [0.0, 0.0, 24.0, 64.0]])
    labels = torch.tensor([[2, 0, 0], [1, 0, 0]])
    valid = torch.tensor([[True, True, False], [True, False, False]])
    ignore = torch.tensor([[False, False, False], [False, True, False]])
    return Targets(boxes, labels, valid, ignore)


def test_outputs_of_an_untrained_head():
    head = make_head().eval()
    features = [torch.randn(2, s.channels, 64 // s.stride, 64 // s.stride) for s in SPECS]
    outputs = head(features)
    assert outputs.class_logits.shape == (2, 160, 3)
    assert outputs.codes.shape == (2, 160, 4)
    assert outputs.quality_logits is not None
    assert [b.conv.out_channels for b in head.bridges] == [8, 12]  # pyright: ignore
    for level, stride in ((slice(0, 128), 8), (slice(128, 160), 16)):
        expected = 8 / (608 / stride) ** 2
        torch.testing.assert_close(
            outputs.quality_logits[:, level].sigmoid().mean().item(), expected, rtol=0.05, atol=0
        )
    torch.testing.assert_close(outputs.class_logits.sigmoid().mean().item(), 0.01, rtol=0.05, atol=0)


def test_channels_of_a_predictor_are_prior_by_prior():
    head = make_head(norm=None).eval()
    features = [torch.randn(1, s.channels, 64 // s.stride, 64 // s.stride) for s in SPECS]
    outputs = head(features)
    joint = head.predictors[1](head.bridges[1](features[1]))[0]  # (2 * (4 + 1 + 3), 4, 4)
    row, column, anchor = 2, 3, 1
    prior = 128 + (row * 4 + column) * 2 + anchor
    at = joint[:, row, column].view(2, 8)[anchor]
    assert outputs.quality_logits is not None
    torch.testing.assert_close(at[:4], outputs.codes[0, prior])
    torch.testing.assert_close(at[4], outputs.quality_logits[0, prior])
    torch.testing.assert_close(at[5:], outputs.class_logits[0, prior])


def test_losses_equal_a_loop_over_the_priors():
    predictions, targets, sizes = random_predictions(), some_targets(), torch.tensor([[64, 64]] * 2)
    losses = CRITERION(predictions, PRIORS, targets, sizes, GridCoder())
    assignment = CRITERION.assigner(PRIORS, targets)
    assert predictions.quality_logits is not None
    assert assignment.ignore.any()
    expected = dict.fromkeys(("loss/class", "loss/quality", "loss/box"), 0.0)
    for image in range(2):
        for a in range(len(PRIORS.boxes)):
            objectness = predictions.quality_logits[image, a]
            if assignment.ignore[image, a]:
                continue
            positive = assignment.positive[image, a].float()
            expected["loss/quality"] += F.binary_cross_entropy_with_logits(objectness, positive).item()
            if not positive:
                continue
            gt = assignment.gt_index[image, a]
            label = F.one_hot(targets.labels[image, gt], 3).float()
            logits, code = predictions.class_logits[image, a], predictions.codes[image, a]
            expected["loss/class"] += F.binary_cross_entropy_with_logits(
                logits, label, reduction="sum"
            ).item()
            box, prior, stride = targets.boxes[image, gt], PRIORS.boxes[a], PRIORS.strides[a]
            place = ((box[:2] + box[2:]) / 2 / stride) % 1
            size = ((box[2:] - box[:2]) / (prior[2:] - prior[:2])).log()
            place_loss = F.binary_cross_entropy_with_logits(code[:2], place, reduction="sum")
            expected["loss/box"] += 2 * (place_loss + F.mse_loss(code[2:], size, reduction="sum")).item()
    assert assignment.positive.sum() == 3
    assert {name: losses[name].item() for name in expected} == pytest.approx(expected, rel=1e-5)


def test_ranks_sum_their_losses(monkeypatch: pytest.MonkeyPatch):
    sizes = torch.tensor([[64, 64]] * 2)
    arguments = (random_predictions(), PRIORS, some_targets(), sizes, GridCoder())
    alone = CRITERION(*arguments)
    monkeypatch.setattr(criterion, "world_size", lambda: 4)  # DDP takes the mean of four such gradients
    of_four = CRITERION(*arguments)
    for name in ("loss/class", "loss/quality", "loss/box"):
        torch.testing.assert_close(of_four[name], 4 * alone[name])


def test_only_objectness_trains_on_images_without_objects():
    targets = some_targets()
    targets = replace(targets, valid=torch.zeros_like(targets.valid), ignore=torch.zeros_like(targets.ignore))
    predictions = random_predictions()
    losses = CRITERION(predictions, PRIORS, targets, torch.tensor([[64, 64]] * 2), GridCoder())
    assert predictions.quality_logits is not None
    assert losses["loss/class"] == 0
    assert losses["loss/box"] == 0
    torch.testing.assert_close(losses["loss/quality"], F.softplus(predictions.quality_logits).sum())


def test_detections_equal_a_loop_over_the_priors():
    predictions, sizes = random_predictions(1, seed=3), torch.tensor([[64, 64]])
    postprocess = replace(POSTPROCESS, candidates=40, score_threshold=0.3, nms=GreedyNMS(iou=1.0))
    found = postprocess(predictions, PRIORS, sizes, GridCoder(), BinaryCrossEntropy())
    assert predictions.quality_logits is not None
    objectness = predictions.quality_logits[0].sigmoid().tolist()
    pairs = [
        (score, label, a)
        for a, scores in enumerate(predictions.class_logits[0].sigmoid().tolist())
        for label, score in enumerate(scores)
        if score > 0.3 and objectness[a] >= 0.2
    ]
    assert len(pairs) > 40
    best = sorted(pairs, reverse=True)[:40]  # of all levels together, by the class score alone
    expected = sorted(((score * objectness[a], label) for score, label, a in best), reverse=True)
    boxes = GridCoder().decode(predictions.codes, PRIORS.boxes, PRIORS.strides)[0].clamp(0, 64)
    inside = [(boxes[a, 2:] > boxes[a, :2]).all() for _, _, a in best]
    assert all(inside)
    count = int(found.valid.sum())
    assert count == len(expected)
    torch.testing.assert_close(found.scores[0, :count], torch.tensor([score for score, _ in expected]))
    assert found.labels[0, :count].tolist() == [label for _, label in expected]


def test_a_quality_threshold_drops_all_that_is_below():
    predictions = random_predictions(1)
    low = replace(predictions, quality_logits=torch.full_like(predictions.quality_logits, -5.0))  # pyright: ignore
    for threshold in (0.05, None):
        found = replace(POSTPROCESS, score_threshold=threshold)(
            low, PRIORS, torch.tensor([[64, 64]]), GridCoder(), BinaryCrossEntropy()
        )
        assert not found.valid.any()
        assert not found.scores.any()


def test_arguments_that_do_not_fit():
    with pytest.raises(ConfigError, match="objectness"):
        make_head(criterion=replace(CRITERION, quality=None))
    with pytest.raises(ConfigError, match="1 numbers, there are 2 levels"):
        make_head(channels=(8,))
    with pytest.raises(ConfigError, match="candidates_of"):
        replace(POSTPROCESS, nms_groups="level")
