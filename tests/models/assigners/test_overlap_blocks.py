"""Assignment in blocks against assignment by the whole matrix: equal to the last bit."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from boxwright.models.assigners import MaxIoUAssigner, blocks, max_iou
from boxwright.models.assigners.overlap import prior_overlaps
from boxwright.structures import Priors, Targets

RULES = [
    MaxIoUAssigner(0.5, 0.4),
    MaxIoUAssigner(0.5, 0.4, match_low_quality=True),
    MaxIoUAssigner(0.7, 0.3, match_low_quality=True, low_quality_keeps_best=True, min_positive_iou=0.3),
    MaxIoUAssigner(0.5, 0.5, match_low_quality=True, low_quality_ties=False),
]


def make(seed: int, own_priors: bool, images: int = 2, slots: int = 5, count: int = 700):
    """Boxes at whole pixels, so that overlaps are equal here and there; some slots are empty or ignored."""
    g = torch.Generator().manual_seed(seed)

    def boxes(*shape: int) -> torch.Tensor:
        start = torch.randint(0, 20, (*shape, 2), generator=g)
        return torch.cat((start, start + torch.randint(1, 12, (*shape, 2), generator=g)), -1).float()

    # An object, twice as often as empty or ignored; now and then all are objects.
    kind = torch.randint(0, 4, (images, slots), generator=g) * (seed % 4 > 0)
    targets = Targets(boxes(images, slots), torch.zeros(images, slots).long(), kind < 2, kind == 2)
    priors = Priors(boxes(count), torch.ones(count), (count,))
    if own_priors:
        valid = torch.rand(images, count, generator=g) < 0.8
        priors = replace(priors, boxes=boxes(images, count), valid=valid)
    return priors, targets


@pytest.mark.parametrize("rule", RULES)
@given(seed=st.integers(0, 10**6), own_priors=st.booleans())
@settings(max_examples=10, deadline=None)
def test_blocks_give_what_the_matrix_gives(rule: MaxIoUAssigner, seed: int, own_priors: bool):
    priors, targets = make(seed, own_priors)
    assert not max_iou.pays(priors, targets)
    whole = rule(priors, targets)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(blocks, "BLOCK", 1000)
        assert max_iou.pays(priors, targets)
        found = rule(priors, targets)
    for name, value in vars(whole).items():
        assert (value is None) == (getattr(found, name) is None), name
        assert value is None or torch.equal(getattr(found, name), value), name


def test_without_objects_nothing_is_positive(monkeypatch):
    priors, targets = make(0, False)
    targets = replace(targets, valid=torch.zeros_like(targets.valid))
    monkeypatch.setattr(blocks, "BLOCK", 1000)
    result = RULES[1](priors, targets)
    assert not result.positive.any()
    assert (result.overlap == -1).all()


def test_compiled_there_is_one_matrix(monkeypatch):
    monkeypatch.setattr(blocks, "BLOCK", 100)
    priors, targets = make(1, True)

    def assign(boxes: torch.Tensor) -> torch.Tensor:
        return RULES[1](replace(priors, boxes=boxes), targets).gt_index

    compiled = torch.compile(assign, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(priors.boxes), assign(priors.boxes))
    iou, _ = prior_overlaps(priors, targets, 0.5)
    assert iou.shape == (2, 5, 700)
