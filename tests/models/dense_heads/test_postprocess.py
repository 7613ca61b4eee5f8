"""The choice of candidates against a sort of every (prior, class) pair."""

from dataclasses import replace

import pytest
import torch

from boxwright.models.coders import DeltaCoder
from boxwright.models.dense_heads import DensePostprocess
from boxwright.models.losses import CrossEntropy, FocalLoss
from boxwright.models.suppression import GreedyNMS
from boxwright.structures import DensePredictions, Priors

EVERY = DensePostprocess(score_threshold=None, candidates=10**6, nms=GreedyNMS(1.0), max_detections=1000)
CHOICES = [
    {"candidates": 12},
    {"candidates": 12, "score_threshold": 0.3},
    {"candidates": 12, "rank_with_quality": True, "quality_power": 0.5},
    {"candidates": 12, "candidates_of": "image", "quality_threshold": 0.4},
]


@pytest.mark.parametrize("class_loss", [FocalLoss(), CrossEntropy()])
@pytest.mark.parametrize("choice", CHOICES)
def test_candidates_are_the_best_pairs(choice, class_loss):
    g = torch.Generator().manual_seed(0)
    corner = torch.rand(90, 2, generator=g) * 40
    priors = Priors(torch.cat((corner, corner + 20), 1), torch.ones(90), (60, 30))
    priors = replace(priors, valid=torch.rand(2, 90, generator=g) < 0.8)
    predictions = DensePredictions(
        2 * torch.randn(2, 90, class_loss.columns(4), generator=g),
        torch.zeros(2, 90, 4),
        torch.randn(2, 90, generator=g),
    )
    arguments = (predictions, priors, torch.tensor([[64, 64]] * 2), DeltaCoder(), class_loss)
    found = replace(EVERY, **choice)(*arguments)
    scores, quality = (
        class_loss.scores(predictions.class_logits),
        predictions.quality_logits.sigmoid()[..., None],
    )  # pyright: ignore
    if "rank_with_quality" in choice:
        scores = (scores * quality).sqrt()
    counts = priors.valid[..., None] & (quality >= choice.get("quality_threshold", 0))  # pyright: ignore
    levels = (slice(90),) if "candidates_of" in choice else (slice(60), slice(60, 90))
    for image in range(2):
        expected = []
        for level in levels:
            ranked = torch.where(counts, scores, -1.0)[image, level].flatten()
            best = ranked.topk(12).indices
            best = best[ranked[best] > choice.get("score_threshold", 0.0)]
            final = scores if "rank_with_quality" in choice else scores * quality
            expected += final[image, level].flatten()[best].tolist()
        there = found.scores[image][found.valid[image]].tolist()
        assert there == pytest.approx(sorted(expected, reverse=True))


def test_boxes_compete_before_or_after_they_are_clipped():
    # Inside the image the two are the same box; as they are decoded they overlap with an IoU of 4 / 9.
    priors = Priors(torch.tensor([[44.0, 0, 84, 20], [44, 0, 134, 20]]), torch.ones(2), (2,))
    predictions = DensePredictions(torch.tensor([[[2.0], [1.0]]]), torch.zeros(1, 2, 4), None)
    arguments = (predictions, priors, torch.tensor([[64, 64]]), DeltaCoder(), FocalLoss())
    assert DensePostprocess()(*arguments).valid.sum() == 1
    found = DensePostprocess(clip_last=True)(*arguments)
    assert found.valid.sum() == 2
    torch.testing.assert_close(found.boxes[0, :2], torch.tensor([[44.0, 0, 64, 20]] * 2))
    beside = replace(priors, boxes=priors.boxes + 40)
    assert not DensePostprocess(clip_last=True)(predictions, beside, *arguments[2:]).valid.any()
