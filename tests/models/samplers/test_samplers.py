"""Random sampling: quotas, fixed slots, positives first, every eligible prior equally likely."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from boxwright.models.samplers import AllSampler, RandomSampler
from boxwright.models.targets import Filled
from boxwright.structures import Assignment


def assignment(positives: int, negatives: int, total: int) -> Assignment:
    order = torch.randperm(total)
    kind = torch.zeros(1, total, dtype=torch.int64)
    kind[0, order[:positives]] = 1
    kind[0, order[positives + negatives :]] = 2
    return Assignment(torch.arange(total)[None], kind == 1, kind == 2)


@given(st.integers(0, 40), st.integers(0, 60), st.integers(0, 9), st.sampled_from([None, 1.0, 3.0]))
@settings(max_examples=60, deadline=None)
def test_quotas(positives: int, negatives: int, ignored: int, bound: float | None):
    total = max(positives + negatives + ignored, 1)
    a = assignment(positives, negatives, total)
    sample = RandomSampler(32, 0.5, bound)(a)
    assert sample.index is not None
    slots = min(32, total)
    assert sample.index.shape == (1, slots)
    taken_positives = min(positives, 16)
    quota = slots - taken_positives
    if bound is not None:
        quota = min(quota, int(max(taken_positives, 1) * bound))
    available = a.negative.sum().item()
    assert sample.positive.sum() == taken_positives
    assert sample.negative.sum() == min(available, quota)
    assert sample.positive[0, :taken_positives].all()
    assert a.positive[0][sample.index[sample.positive]].all()
    assert a.negative[0][sample.index[sample.negative]].all()
    chosen = sample.index[sample.valid]
    assert chosen.unique().numel() == chosen.numel()


def test_every_negative_is_as_likely():
    a = assignment(0, 10, 10)
    counts = torch.zeros(10)
    for _ in range(2000):
        sample = RandomSampler(3)(a)
        assert sample.index is not None
        counts[sample.index[sample.valid]] += 1
    assert counts.sum() == 6000
    assert (counts - 600).abs().max() < 6 * (600 * 0.7) ** 0.5


def test_all_sampler_keeps_the_order():
    a = assignment(3, 4, 9)
    sample = AllSampler()(a)
    assert sample.index is None
    assert torch.equal(sample.positive, a.positive)
    assert torch.equal(sample.negative, a.negative)


@given(st.integers(0, 1000))
@settings(max_examples=20, deadline=None)
def test_filled_restores_what_it_drops(seed: int):
    generator = torch.Generator().manual_seed(seed)
    valid = torch.rand(3, 5, generator=generator) < 0.4
    values = torch.randn(3, 5, 2, generator=generator)
    expected = values * valid[..., None]
    picked = Filled.of(valid)
    kept = Filled(valid, None)  # as under compilation or on an accelerator
    for filled in (picked, kept):
        torch.testing.assert_close(filled.restore(filled.drop(values)), expected)
