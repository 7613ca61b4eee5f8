import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from boxwright.ops import soft_nms as module
from boxwright.ops.doctor import random_boxes
from boxwright.ops.nms import nms
from boxwright.ops.soft_nms import soft_nms, soft_nms_reference

DECAYS = [("linear", 0.25), ("linear", 0.0), ("gaussian", 0.5)]


def rounds(boxes, scores, groups, valid, decay, parameter, min_score, max_output):
    """The way of an accelerator, on the CPU: all slots, all rounds."""
    output = module._empty_output(boxes, max_output)
    module._rounds(boxes, scores, groups, valid, decay, parameter, min_score, output)
    return output


BACKENDS = (soft_nms, rounds)


def make(seed: int, batch: int = 2, count: int = 30, groups: int = 3):
    g = torch.Generator().manual_seed(seed)
    boxes = random_boxes(batch, count, 40.0, g)
    scores = torch.rand(batch, count, generator=g)
    return (
        boxes,
        scores,
        torch.randint(0, groups, (batch, count), generator=g),
        torch.rand(batch, count, generator=g) < 0.8,
    )


def same(a, b):
    assert torch.equal(a[0], b[0])
    torch.testing.assert_close(a[1], b[1], rtol=1e-5, atol=1e-6)
    assert torch.equal(a[2], b[2])


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("decay", "parameter"), DECAYS)
@settings(deadline=None, max_examples=12)
@given(
    seed=st.integers(0, 10**6),
    count=st.integers(0, 30),
    groups=st.integers(1, 4),
    min_score=st.sampled_from([0.0, 0.001, 0.3]),
    limit=st.integers(0, 40),
)
def test_agrees_with_reference(backend, decay, parameter, seed, count, groups, min_score, limit):
    arguments = (*make(seed, 3, count, groups), decay, parameter, min_score, limit)
    same(backend(*arguments), soft_nms_reference(*arguments))


def three():
    """Three boxes in a row, 10 wide: IoU 1/3 from one to the next, none from the first to the last."""
    boxes = torch.tensor([[[0.0, 0, 10, 10], [5, 0, 15, 10], [10, 0, 20, 10]]])
    return boxes, torch.tensor([[0.9, 0.8, 0.6]]), torch.zeros(1, 3).long(), torch.ones(1, 3).bool()


def test_linear_decay_by_hand():
    # 0.9 goes first; 0.8 (1 - 1/3) = 0.533 then comes after 0.6, which lowers it once more, to 0.356.
    index, scores, keep = soft_nms(*three(), "linear", 0.3, 0.001, 3)
    assert index.tolist() == [[0, 2, 1]]
    torch.testing.assert_close(scores, torch.tensor([[0.9, 0.6, 0.8 * 4 / 9]]))
    assert keep.all()
    # Below the threshold of 0.4 nothing decays.
    index, scores, keep = soft_nms(*three(), "linear", 0.4, 0.001, 3)
    assert index.tolist() == [[0, 1, 2]]
    torch.testing.assert_close(scores, torch.tensor([[0.9, 0.8, 0.6]]))


def test_gaussian_decay_by_hand():
    index, scores, keep = soft_nms(*three(), "gaussian", 0.5, 0.001, 3)
    factor = math.exp(-((1 / 3) ** 2) / 0.5)
    assert index.tolist() == [[0, 1, 2]]
    torch.testing.assert_close(scores, torch.tensor([[0.9, 0.8 * factor, 0.6 * factor]]))
    index, _, keep = soft_nms(*three(), "gaussian", 0.5, 0.6, 3)
    assert index.tolist() == [[0, 1, 0]]
    assert keep.tolist() == [[True, True, False]]


def test_a_duplicate_goes_and_other_groups_stay():
    boxes = torch.tensor([[0.0, 0, 10, 10]]).repeat(1, 3, 1)
    scores, groups = torch.tensor([[0.9, 0.8, 0.7]]), torch.tensor([[0, 0, 1]])
    index, found, keep = soft_nms(boxes, scores, groups, torch.ones(1, 3).bool(), "linear", 0.5, 0.01, 3)
    assert index.tolist() == [[0, 2, 0]]
    torch.testing.assert_close(found, torch.tensor([[0.9, 0.7, 0.0]]))
    assert keep.tolist() == [[True, True, False]]


def test_without_overlap_it_is_greedy_suppression():
    boxes = torch.arange(8.0)[None, :, None] * 20 + torch.tensor([0.0, 0, 10, 10])
    _, scores, groups, valid = make(0, 1, 8)
    index, found, keep = soft_nms(boxes, scores, groups, valid, "gaussian", 0.5, 0.0, 8)
    expected, expected_keep = nms(boxes, scores, groups, valid, 0.5, 8)
    assert torch.equal(index, expected)
    assert torch.equal(keep, expected_keep)
    torch.testing.assert_close(found, scores.gather(1, index) * keep)


@pytest.mark.parametrize("backend", BACKENDS)
def test_equal_scores_keep_their_order(backend):
    boxes = torch.arange(6.0)[None, :, None] * 20 + torch.tensor([0.0, 0, 10, 10])
    scores, groups = torch.full((1, 6), 0.5), torch.zeros(1, 6).long()
    index, _, keep = backend(boxes, scores, groups, torch.ones(1, 6).bool(), "linear", 0.5, 0.1, 4)
    assert index.tolist() == [[0, 1, 2, 3]]
    assert keep.all()


@pytest.mark.parametrize("backend", BACKENDS)
def test_nothing_valid_and_no_slots(backend):
    boxes, scores, groups, valid = make(0)
    for values in backend(boxes, scores, groups, torch.zeros_like(valid), "linear", 0.5, 0.0, 5):
        assert values.shape == (2, 5)
        assert not values.any()
    none = slice(0, 0)
    empty = (boxes[:, none], scores[:, none], groups[:, none], valid[:, none])
    assert all(v.shape == (2, 0) for v in backend(*empty, "linear", 0.5, 0.0, 5))


@settings(deadline=None, max_examples=10)
@given(st.integers(0, 10**6))
def test_padding_and_other_images_change_nothing(seed):
    first, other = make(seed), make(seed + 1)
    padded = [torch.cat(pair, 1) for pair in zip(first[:3], other[:3], strict=True)]
    valid = torch.cat((first[3], torch.zeros_like(other[3])), 1)
    expected = soft_nms(*first, "gaussian", 0.5, 0.01, 30)
    same(soft_nms(*padded, valid, "gaussian", 0.5, 0.01, 30), expected)
    for b in range(2):
        alone = soft_nms(*(v[b : b + 1] for v in first), "gaussian", 0.5, 0.01, 30)
        same(alone, tuple(v[b : b + 1] for v in expected))


def test_wrong_arguments():
    with pytest.raises(ValueError, match="decay is 'hard'"):
        soft_nms(*three(), "hard", 0.3, 0.001, 3)  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match="sigma"):
        soft_nms(*three(), "gaussian", 0.0, 0.001, 3)


def test_the_way_of_an_accelerator_asks_the_host_for_nothing():
    class Names(TorchDispatchMode):
        def __init__(self):
            super().__init__()
            self.seen = set()

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            self.seen.add(str(func).removeprefix("aten.").split(".")[0])
            return func(*args, **(kwargs or {}))

    with Names() as names:
        rounds(*make(0), "gaussian", 0.5, 0.01, 5)
    assert "gather" in names.seen
    assert not names.seen & {"_local_scalar_dense", "nonzero", "masked_select", "index", "equal"}


def test_opcheck():
    torch.library.opcheck(module._soft_nms_op, (*make(1), "linear", 0.3, 0.01, 10))


def test_compiles_and_exports_whole():
    class Suppress(torch.nn.Module):
        def forward(self, boxes, scores, groups, valid):
            index, score, keep = soft_nms(boxes * 2, scores, groups, valid, "gaussian", 0.5, 0.01, 10)
            return score, groups.gather(1, index) * keep

    arguments, model = make(2), Suppress()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(*arguments), model(*arguments))
    batch = torch.export.Dim("batch", min=1, max=64)
    dynamic = torch.export.export(model, arguments, dynamic_shapes=[{0: batch}] * 4).module()
    three_images = make(3, 3)
    torch.testing.assert_close(dynamic(*three_images), model(*three_images))
