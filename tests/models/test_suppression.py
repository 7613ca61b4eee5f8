"""The choices for the slot `nms`: what each keeps, in both post-processes, and as one graph."""

from typing import Any

import pytest
import torch

from boxwright.models.coders import DeltaCoder
from boxwright.models.dense_heads import DensePostprocess
from boxwright.models.losses import FocalLoss
from boxwright.models.roi_heads import RoIPostprocess
from boxwright.models.suppression import GreedyNMS, SoftNMS, WeightedNMS
from boxwright.structures import DensePredictions, Priors

CHOICES = [GreedyNMS(0.5), SoftNMS("linear", iou=0.3), SoftNMS("gaussian", sigma=0.5), WeightedNMS(0.3, 0.5)]


def candidates():
    """Two boxes of IoU 3/5, one of another class at the first's place, an empty slot."""
    boxes = torch.tensor([[[0.0, 0, 8, 10], [2, 0, 10, 10], [0, 0, 8, 10], [50, 50, 60, 60]]])
    scores = torch.tensor([[0.75, 0.25, 0.5, 0.9]])
    groups = torch.tensor([[0, 0, 1, 0]])
    return boxes, scores, groups, torch.tensor([[True, True, True, False]])


def test_greedy():
    kept = GreedyNMS(0.5)(*candidates(), 3)
    assert kept.index.tolist() == [[0, 2, 0]]
    assert kept.keep.tolist() == [[True, True, False]]
    assert kept.scores.tolist() == [[0.75, 0.5, 0.0]]
    assert kept.boxes.tolist() == [[[0, 0, 8, 10], [0, 0, 8, 10], [0, 0, 0, 0]]]
    detections = kept.detections(torch.tensor([[3, 3, 5, 3]]))
    assert detections.labels.tolist() == [[3, 5, 0]]


def test_soft():
    kept = SoftNMS("linear", iou=0.3)(*candidates(), 3)
    assert kept.index.tolist() == [[0, 2, 1]]
    torch.testing.assert_close(kept.scores, torch.tensor([[0.75, 0.5, 0.25 * 0.4]]))
    assert kept.boxes[0, 2].tolist() == [2, 0, 10, 10]
    kept = SoftNMS("gaussian", sigma=0.5, min_score=0.2)(*candidates(), 3)
    assert kept.keep.tolist() == [[True, True, False]]
    assert not kept.boxes[0, 2].any()


def test_weighted():
    kept = WeightedNMS(0.5, 0.5)(*candidates(), 3)
    assert kept.index.tolist() == [[0, 2, 0]]
    assert kept.scores.tolist() == [[0.75, 0.5, 0.0]]
    # A quarter of the way to the second box; the one of the other class votes alone.
    torch.testing.assert_close(kept.boxes, torch.tensor([[[0.5, 0, 8.5, 10], [0, 0, 8, 10], [0, 0, 0, 0]]]))


def dense_inputs(batch: int = 2) -> tuple[Any, ...]:
    g = torch.Generator().manual_seed(0)
    corner = torch.rand(40, 2, generator=g) * 40
    priors = Priors(torch.cat((corner, corner + 20), 1), torch.full((40,), 8.0), (30, 10))
    predictions = DensePredictions(
        torch.randn(batch, 40, 3, generator=g), torch.randn(batch, 40, 4, generator=g) * 0.1
    )
    return predictions, priors, torch.tensor([[64, 64]]).repeat(batch, 1), DeltaCoder(), FocalLoss()


def roi_inputs(batch: int = 2) -> tuple[Any, ...]:
    g = torch.Generator().manual_seed(0)
    corner = torch.rand(batch, 30, 2, generator=g) * 40
    boxes = torch.cat((corner, corner + 20), -1)
    scores = torch.randn(batch, 30, 4, generator=g).softmax(-1)[..., :3]
    codes = torch.randn(batch, 30, 3, 4, generator=g) * 0.1
    valid = torch.rand(batch, 30, generator=g) < 0.8
    return scores, codes, boxes, valid, torch.tensor([[64, 64]]).repeat(batch, 1), DeltaCoder()


@pytest.mark.parametrize("choice", CHOICES, ids=repr)
def test_any_choice_fits_both_postprocesses(choice):
    for make, arguments in ((DensePostprocess, dense_inputs()), (RoIPostprocess, roi_inputs())):
        postprocess = make(nms=choice, max_detections=20, candidates=200)
        found = postprocess(*arguments)
        assert found.boxes.shape == (2, 20, 4)
        assert found.valid.any(1).all()
        assert (found.scores[:, 1:] <= found.scores[:, :-1]).all()
        assert not found.scores[~found.valid].any()
        assert not found.boxes[~found.valid].any()
        assert ((found.boxes >= 0) & (found.boxes <= 64)).all()
        greedy = make(max_detections=20, candidates=200)(*arguments)
        assert torch.equal(found.scores[:, 0], greedy.scores[:, 0])  # the best candidate stays the best


@pytest.mark.parametrize("choice", CHOICES, ids=repr)
def test_any_choice_is_one_graph(choice):
    scores, codes, boxes, valid, sizes, coder = roi_inputs()
    postprocess = RoIPostprocess(nms=choice, max_detections=10)

    def detect(scores, codes, boxes, valid):
        found = postprocess(scores, codes, boxes, valid, sizes, coder)
        return found.boxes, found.scores, found.labels, found.valid

    compiled = torch.compile(detect, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(scores, codes, boxes, valid), detect(scores, codes, boxes, valid))


def test_choices_apply_within_a_level_too():
    arguments = dense_inputs()
    by_level = DensePostprocess(nms=SoftNMS(), nms_groups="level", score_threshold=None, max_detections=120)
    found = by_level(*arguments)
    assert found.valid.any()
    assert len(found.labels[0].unique()) > 1
