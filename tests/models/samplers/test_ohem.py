"""Mining by loss: the hardest are chosen, shares hold, duplicates count once."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from boxwright.models.assigners import MaxIoUAssigner
from boxwright.models.coders import DeltaCoder
from boxwright.models.dense_heads import DenseCriterion, Samples
from boxwright.models.losses import BinaryCrossEntropy, SmoothL1
from boxwright.models.samplers import HardestSampler, OHEMSampler, RandomSampler
from boxwright.ops.boxes import pairwise_iou
from boxwright.structures import Assignment, DensePredictions, Priors, Targets


def make(seed: int, batch: int = 2, count: int = 30) -> tuple[Assignment, torch.Tensor, Priors]:
    g = torch.Generator().manual_seed(seed)
    kind = torch.multinomial(torch.tensor([0.6, 0.3, 0.1]), batch * count, True, generator=g)
    kind = kind.reshape(batch, count)
    losses = torch.rand(batch, count, generator=g)
    corner = torch.rand(batch, count, 2, generator=g) * 20
    boxes = torch.cat((corner, corner + 15), -1)
    index = torch.arange(count).expand(batch, count)
    priors = Priors(boxes, torch.ones(count), (count,))
    return Assignment(index, kind == 1, kind == 2), losses, priors


def chosen(sample, image: int, which: str) -> list[int]:
    """Priors of an image, in the order of the slots."""
    return sample.index[image][getattr(sample, which)[image]].tolist()


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 10**6), st.integers(1, 40), st.sampled_from([0.0, 0.25, 0.5, 1.0]))
def test_the_hardest_positives_and_negatives(seed: int, number: int, share: float):
    a, losses, _ = make(seed)
    sample = OHEMSampler(number, share)(a, lambda: losses)
    for image in range(2):
        order = losses[image].argsort(descending=True).tolist()
        positives = [i for i in order if a.positive[image, i]][: int(number * share)]
        negatives = [i for i in order if a.negative[image, i]][: min(number, 30) - len(positives)]
        assert chosen(sample, image, "positive") == positives
        assert chosen(sample, image, "negative") == negatives
        assert sample.positive[image, : len(positives)].all()


def test_negatives_are_bounded_by_positives():
    a, losses, _ = make(0)
    sample = OHEMSampler(30, 0.5, negatives_per_positive=1.0)(a, lambda: losses)
    assert (sample.negative.sum(1) <= sample.positive.sum(1).clamp(min=1)).all()


def test_it_takes_what_random_sampling_takes_where_all_fit():
    a, losses, _ = make(1)
    mined, random = OHEMSampler(30, 1.0)(a, lambda: losses), RandomSampler(30, 1.0)(a)
    for image in range(2):
        for which in ("positive", "negative"):
            assert set(chosen(mined, image, which)) == set(chosen(random, image, which))


def hardest_by_hand(a: Assignment, losses: torch.Tensor, boxes: torch.Tensor, iou: float, number: int):
    """Greedy suppression with the loss as score (Sec. 4.2), one image, one prior after the other."""
    overlap = pairwise_iou(boxes, boxes)
    kept: list[int] = []
    for i in losses.argsort(descending=True).tolist():
        if a.ignore[0, i] or len(kept) == number or any(overlap[i, j] > iou for j in kept):
            continue
        kept.append(i)
    return kept


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 10**6), st.integers(1, 40), st.sampled_from([0.1, 0.5, 0.7]))
def test_the_hardest_without_duplicates(seed: int, number: int, iou: float):
    a, losses, priors = make(seed, 1)
    sample = HardestSampler(number, iou)(a, lambda: losses, priors)
    kept = hardest_by_hand(a, losses[0], priors.boxes[0], iou, number)
    assert chosen(sample, 0, "positive") == [i for i in kept if a.positive[0, i]]
    assert chosen(sample, 0, "negative") == [i for i in kept if a.negative[0, i]]
    assert sample.positive[0, : int(sample.positive.sum())].all()


def test_the_hardest_with_duplicates():
    a, losses, priors = make(3)
    sample = HardestSampler(10, None)(a, lambda: losses, priors)
    for image in range(2):
        order = [i for i in losses[image].argsort(descending=True).tolist() if not a.ignore[image, i]]
        found = chosen(sample, image, "positive") + chosen(sample, image, "negative")
        assert sorted(found) == sorted(order[:10])


def test_shared_priors_are_the_same_for_every_image():
    a, losses, priors = make(4)
    shared = Priors(priors.boxes[0], priors.strides, priors.num_per_level)
    every = Priors(priors.boxes[:1].expand(2, -1, -1), priors.strides, priors.num_per_level)
    one, two = (HardestSampler(10)(a, lambda: losses, p) for p in (shared, every))
    torch.testing.assert_close(vars(one), vars(two))


def test_nothing_to_choose_from():
    a, losses, priors = make(5)
    none = Assignment(a.gt_index, torch.zeros_like(a.positive), torch.ones_like(a.ignore))
    for sampler in (OHEMSampler(8), HardestSampler(8), HardestSampler(8, None)):
        sample = sampler(none, lambda: losses, priors)
        assert sample.gt_index.shape == (2, 8)
        assert not sample.valid.any()


def test_without_losses_there_is_nothing_to_rank_by():
    a, losses, _ = make(6)
    with pytest.raises(ValueError, match="OHEMSampler ranks by loss"):
        OHEMSampler()(a)
    with pytest.raises(ValueError, match="HardestSampler ranks priors by loss"):
        HardestSampler()(a, lambda: losses)


def test_a_dense_head_is_mined_too():
    g = torch.Generator().manual_seed(8)
    corner = torch.rand(40, 2, generator=g) * 40
    priors = Priors(torch.cat((corner, corner + 16), 1), torch.full((40,), 8.0), (40,))
    there = torch.tensor([[True], [False]])
    targets = Targets(priors.boxes[:2].reshape(2, 1, 4) + 1, there.long() * 0, there, ~there & False)
    predictions = DensePredictions(
        torch.randn(2, 40, 1, generator=g), torch.randn(2, 40, 4, generator=g) * 0.1
    )
    criterion = DenseCriterion(
        MaxIoUAssigner(0.5, 0.4), BinaryCrossEntropy(), HardestSampler(6, None), SmoothL1(), divisor=Samples()
    )
    losses = criterion(predictions, priors, targets, torch.tensor([[64, 64]] * 2), DeltaCoder())
    a = criterion.assigner(priors, targets)
    each = BinaryCrossEntropy()(predictions.class_logits, a.gt_index * 0, a.positive.float())
    hardest = each.masked_fill(a.ignore, -1).topk(6, dim=1).values
    torch.testing.assert_close(losses["loss/class"], hardest.mean())


@pytest.mark.parametrize("sampler", [OHEMSampler(8), HardestSampler(8), HardestSampler(8, None)], ids=repr)
def test_it_is_one_graph(sampler):
    a, losses, priors = make(7)

    def take(positive, ignore, losses, boxes):
        sample = sampler(
            Assignment(a.gt_index, positive, ignore), lambda: losses, Priors(boxes, priors.strides, (30,))
        )
        return sample.index, sample.positive, sample.negative

    arguments = (a.positive, a.ignore, losses, priors.boxes)
    compiled = torch.compile(take, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(*arguments), take(*arguments))
