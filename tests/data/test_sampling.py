from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from boxwright.data.sampling import count_batches, orientation_groups, plan_batches

SETTINGS = st.fixed_dictionaries(
    {
        "wide": st.integers(0, 40),
        "tall": st.integers(0, 40),
        "batch_size": st.integers(1, 7),
        "world": st.integers(1, 4),
        "shuffle": st.booleans(),
        "seed": st.integers(0, 2**63 - 1),
        "epoch": st.integers(0, 10**6),
    }
).filter(lambda s: s["wide"] + s["tall"])


def plans_of(s, drop_last=False):
    ratios = np.concatenate([np.full(s["wide"], 1.5), np.full(s["tall"], 0.7)])
    groups = orientation_groups(ratios)
    keys = ("batch_size", "world", "shuffle", "seed", "epoch")
    arguments = {k: s[k] for k in keys}
    plans = [plan_batches(groups, rank=r, drop_last=drop_last, **arguments) for r in range(s["world"])]
    return plans, groups, ratios


@settings(max_examples=60, deadline=None)
@given(SETTINGS)
def test_ranks_share_every_image_exactly_once(s):
    plans, groups, ratios = plans_of(s)
    seen = Counter(
        i for rank in plans for p in rank for i, r in zip(p.indices, p.repeated, strict=True) if not r
    )
    assert seen == Counter(range(len(ratios)))
    length = count_batches([len(g) for g in groups], s["batch_size"], s["world"])
    assert all(len(rank) == length for rank in plans)
    for rank in plans:
        for plan in rank:
            assert len(plan.indices) == len(plan.repeated) == s["batch_size"]
            assert plan.epoch == s["epoch"]
    for step in zip(*plans, strict=True):  # all ranks work on one orientation at a time
        assert len({ratios[i] for plan in step for i in plan.indices}) == 1
    assert plans == plans_of(s)[0]


@settings(max_examples=40, deadline=None)
@given(SETTINGS, st.sampled_from([(1, 12), (2, 6), (3, 4), (4, 1), (12, 1)]), st.booleans())
def test_the_images_of_a_step_rest_on_their_number_alone(s, shares, drop_last):
    """One rank that takes 12 images at once, or ranks and accumulated batches that share them out."""
    groups = plans_of(s)[1]
    order = {"shuffle": s["shuffle"], "seed": s["seed"], "epoch": s["epoch"], "drop_last": drop_last}
    whole = plan_batches(groups, 12, **order)
    world, batch_size = shares
    accumulate = 12 // world // batch_size
    ranks = [
        plan_batches(groups, batch_size, rank=r, world=world, accumulate=accumulate, **order)
        for r in range(world)
    ]
    sizes = [len(group) for group in groups]
    assert len(ranks[0]) == count_batches(sizes, batch_size, world, drop_last, accumulate)
    for number, plan in enumerate(whole):
        parts = [rank[number * accumulate + place] for place in range(accumulate) for rank in ranks]
        assert plan.indices == tuple(i for part in parts for i in part.indices)
        assert plan.repeated == tuple(r for part in parts for r in part.repeated)


@settings(max_examples=40, deadline=None)
@given(SETTINGS)
def test_drop_last_leaves_out_and_repeats_only_in_tiny_groups(s):
    plans, groups, _ = plans_of(s, drop_last=True)
    whole = s["batch_size"] * s["world"]
    assert all(
        len(rank) == count_batches([len(g) for g in groups], s["batch_size"], s["world"], True)
        for rank in plans
    )
    seen = Counter(i for rank in plans for p in rank for i in p.indices)
    for group in groups:
        counts = [seen[i] for i in group.tolist()]
        if len(group) >= whole:
            assert max(counts) == 1
            assert sum(counts) == len(group) // whole * whole
        else:
            assert min(counts) >= 1


def test_epochs_and_seeds_differ():
    groups = [np.arange(50)]
    orders = {tuple(plan_batches(groups, 5, seed=s, epoch=e)) for s in range(3) for e in range(3)}
    assert len(orders) == 9


def test_groups_are_mixed_in_order_of_time():
    groups = orientation_groups(np.array([1.5] * 40 + [0.5] * 40))
    wide = [plan.indices[0] < 40 for plan in plan_batches(groups, 4)]
    assert wide not in ([True] * 10 + [False] * 10, [False] * 10 + [True] * 10)


def test_without_shuffling_the_order_of_the_table():
    plans = plan_batches([np.arange(7)], 2, shuffle=False)
    assert [p.indices for p in plans] == [(0, 1), (2, 3), (4, 5), (6, 0)]
    assert [p.repeated for p in plans] == [(False, False)] * 3 + [(False, True)]


def test_square_images_are_wide_and_empty_groups_left_out():
    assert [g.tolist() for g in orientation_groups(np.array([1.0, 2.0]))] == [[0, 1]]
    assert [g.tolist() for g in orientation_groups(np.array([0.9, 2.0]))] == [[1], [0]]
    assert plan_batches([], 3) == []


@pytest.mark.parametrize(
    ("sizes", "drop_last", "expected"), [([10, 3], False, 4), ([10, 3], True, 3), ([0], True, 0)]
)
def test_count(sizes, drop_last, expected):
    assert count_batches(sizes, 4, 1, drop_last) == expected
