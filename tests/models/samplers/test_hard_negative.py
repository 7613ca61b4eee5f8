"""Hard negative mining against a slow reference."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from boxwright.models.samplers import HardNegativeSampler
from boxwright.structures import Assignment


def case(
    seed: int, images: int = 3, priors: int = 40, positives: float = 0.1
) -> tuple[Assignment, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    kind = torch.rand(images, priors, generator=generator)
    positive, ignore = kind < positives, kind > 0.8
    index = torch.randint(0, 5, (images, priors), generator=generator)
    # Few different values, so that there are ties.
    losses = torch.randint(0, 12, (images, priors), generator=generator) / 4
    return Assignment(index, positive, ignore), losses


@given(
    st.integers(0, 10_000),
    st.sampled_from([0.0, 0.1, 0.5]),
    st.sampled_from([1.0, 2.5, 3.0]),
    st.integers(1, 3),
)
@settings(max_examples=60, deadline=None)
def test_it_takes_the_hardest(seed: int, share: float, ratio: float, images: int):
    assignment, losses = case(seed, images, positives=share)
    sample = HardNegativeSampler(ratio)(assignment, lambda: losses)
    assert sample.index is None
    assert torch.equal(sample.positive, assignment.positive)
    assert torch.equal(sample.gt_index, assignment.gt_index)
    for image in range(images):
        negatives = assignment.negative[image].nonzero().flatten().tolist()
        quota = int(max(int(assignment.positive[image].sum()), 1) * ratio)
        hardest = sorted(negatives, key=lambda prior: -losses[image, prior].item())[:quota]
        assert sample.negative[image].nonzero().flatten().tolist() == sorted(hardest)


@given(st.integers(0, 1000))
@settings(max_examples=20, deadline=None)
def test_images_and_ignored_priors_do_not_matter_to_each_other(seed: int):
    assignment, losses = case(seed)
    whole = HardNegativeSampler()(assignment, lambda: losses)
    one = Assignment(assignment.gt_index[1:2], assignment.positive[1:2], assignment.ignore[1:2])
    alone = HardNegativeSampler()(one, lambda: losses[1:2])
    assert torch.equal(whole.negative[1], alone.negative[0])
    changed = torch.where(assignment.ignore | assignment.positive, 100.0, losses)
    assert torch.equal(whole.negative, HardNegativeSampler()(assignment, lambda: changed).negative)


def test_without_losses_it_says_what_it_needs():
    with pytest.raises(ValueError, match="ranks by loss"):
        HardNegativeSampler()(case(0)[0])
