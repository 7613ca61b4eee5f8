import pytest
import torch
import torchvision
from hypothesis import given, settings
from hypothesis import strategies as st

from boxwright.ops import nms as module
from boxwright.ops.doctor import random_boxes
from boxwright.ops.nms import nms, nms_reference

BACKENDS = (nms, module._nms_by_blocks, module._nms_by_offsets)


def make(seed: int, batch: int = 2, count: int = 30, groups: int = 3):
    g = torch.Generator().manual_seed(seed)
    boxes = random_boxes(batch, count, 40.0, g).round()  # whole numbers: equal boxes and exact ties occur
    scores = torch.randint(0, 12, (batch, count), generator=g) / 12
    return (
        boxes,
        scores,
        torch.randint(0, groups, (batch, count), generator=g),
        torch.rand(batch, count, generator=g) < 0.8,
    )


def same(a, b):
    torch.testing.assert_close(a[0], b[0], rtol=0, atol=0)
    torch.testing.assert_close(a[1], b[1])


@pytest.mark.parametrize("backend", BACKENDS)
@settings(deadline=None, max_examples=25)
@given(
    seed=st.integers(0, 10**6),
    count=st.integers(0, 40),
    groups=st.integers(1, 5),
    threshold=st.sampled_from([0.0, 0.25, 0.5, 0.7, 1.0]),
    limit=st.integers(0, 50),
)
def test_agrees_with_reference(backend, seed, count, groups, threshold, limit):
    arguments = (*make(seed, 3, count, groups), threshold, limit)
    same(backend(*arguments), nms_reference(*arguments))


@pytest.mark.parametrize("backend", BACKENDS)
def test_one_group_agrees_with_torchvision(backend):
    boxes, scores, _, _ = make(3, 1, 60)
    index, keep = backend(boxes, scores, torch.zeros(1, 60).long(), torch.ones(1, 60).bool(), 0.5, 60)
    assert index[keep].tolist() == torchvision.ops.nms(boxes[0], scores[0], 0.5).tolist()


@pytest.mark.parametrize("limit", [5, 60, 400])
def test_many_blocks_agree_with_torchvision_group_by_group(monkeypatch, limit):
    monkeypatch.setattr(module, "BLOCK", 32)
    boxes, _, groups, valid = make(4, 2, 400, 4)
    scores = torch.rand(2, 400, generator=torch.Generator().manual_seed(4))
    index, keep = nms(boxes, scores, groups, valid, 0.4, limit)
    for b in range(2):
        there = valid[b].nonzero()[:, 0]
        kept = torchvision.ops.boxes._batched_nms_vanilla(
            boxes[b, there], scores[b, there], groups[b, there], 0.4
        )
        assert index[b][keep[b]].tolist() == there[kept][:limit].tolist()


def test_a_threshold_is_compared_as_it_was_written():
    # The nearest float32 to 0.7 is below it, that to 0.3 above: both kernels compare with the number itself.
    boxes = torch.tensor([[[0.0, 0, 1, 1], [0, 0, 1, 0.7]]])
    scores, ones = torch.tensor([[0.9, 0.8]]), torch.ones(1, 2, dtype=torch.bool)
    for threshold in (0.7, 0.69999995, 0.70000005, 0.1, 0.3):
        index, keep = nms(boxes, scores, ones.long(), ones, threshold, 2)
        assert index[keep].tolist() == torchvision.ops.nms(boxes[0], scores[0], threshold).tolist()
    for number in (0.1, 0.3, 0.5, 0.7, 1 / 3):
        below = torch.tensor(module._below(number), dtype=torch.float32)
        assert below.item() <= number < torch.nextafter(below, torch.tensor(2.0)).item()


def test_a_chain_of_boxes_that_suppress_each_other():
    start = torch.arange(300) * 0.3
    boxes = torch.stack((start, torch.zeros(300), start + 1, torch.ones(300)), -1)[None]
    scores, ones = torch.linspace(1, 0.1, 300)[None], torch.ones(1, 300, dtype=torch.bool)
    index, keep = nms(boxes, scores, ones.long(), ones, 0.5, 300)
    assert index[keep].tolist() == list(range(0, 300, 2))


@pytest.mark.parametrize("backend", BACKENDS)
def test_groups_do_not_change_overlaps_however_many_and_whatever_their_ids(backend):
    # Two small boxes far out, IoU just over the threshold: a float32 shift by the group would round it.
    boxes = torch.tensor([[[9000.0, 0, 9001.0, 1.0], [9000.0, 0, 9001.0, 0.7002]]]).repeat(1, 50, 1)
    scores = torch.linspace(1, 0.01, 100)[None]
    groups = (torch.arange(100)[None] // 2) * 1_000_003 - 7
    index, keep = backend(boxes, scores, groups, torch.ones(1, 100).bool(), 0.7, 100)
    assert index[keep].tolist() == list(range(0, 100, 2))


@pytest.mark.parametrize("backend", BACKENDS)
def test_nothing_valid_and_no_slots(backend):
    boxes, scores, groups, valid = make(0)
    index, keep = backend(boxes, scores, groups, torch.zeros_like(valid), 0.5, 5)
    assert index.shape == keep.shape == (2, 5)
    assert not index.any()
    assert not keep.any()
    index, keep = backend(boxes[:, :0], scores[:, :0], groups[:, :0], valid[:, :0], 0.5, 5)
    assert index.shape == keep.shape == (2, 0)


@settings(deadline=None, max_examples=15)
@given(st.integers(0, 10**6))
def test_padding_changes_nothing(seed):
    boxes, scores, groups, valid = make(seed)
    other_boxes, other_scores, other_groups, _ = make(seed + 1)
    result = nms(
        torch.cat((boxes, other_boxes), 1),
        torch.cat((scores, other_scores), 1),
        torch.cat((groups, other_groups), 1),
        torch.cat((valid, torch.zeros_like(valid)), 1),
        0.5,
        30,
    )
    same(result, nms(boxes, scores, groups, valid, 0.5, 30))


def test_batch_gives_what_images_give_alone(monkeypatch):
    boxes, scores, groups, valid = make(5, 4)
    for backend, joint in ((nms, 32768), (module._nms_by_offsets, 32768), (module._nms_by_offsets, 70)):
        monkeypatch.setattr(module, "MAX_JOINT_BOXES", joint)
        index, keep = backend(boxes, scores, groups, valid, 0.5, 10)
        for b in range(4):
            i = slice(b, b + 1)
            same(backend(boxes[i], scores[i], groups[i], valid[i], 0.5, 10), (index[i], keep[i]))


def test_order_of_slots_does_not_matter():
    boxes, _, groups, valid = make(6)
    g = torch.Generator().manual_seed(0)
    scores = torch.stack([torch.randperm(30, generator=g) for _ in range(2)]) / 30  # no ties
    order = torch.randperm(30, generator=g)
    index, keep = nms(boxes, scores, groups, valid, 0.5, 30)
    permuted, permuted_keep = nms(
        boxes[:, order], scores[:, order], groups[:, order], valid[:, order], 0.5, 30
    )
    same((torch.where(permuted_keep, order[permuted], 0), permuted_keep), (index, keep))


def test_half_precision_inputs_and_gradients_pass_by():
    boxes, scores, groups, valid = make(7)
    expected = nms(boxes.half(), scores.bfloat16().float(), groups, valid, 0.5, 30)
    result = nms(boxes.half().requires_grad_(), scores.bfloat16().requires_grad_(), groups, valid, 0.5, 30)
    same(result, expected)


def test_opcheck():
    torch.library.opcheck(module._nms_op, (*make(1), 0.5, 10))


def test_compiles_and_exports_whole():
    class Suppress(torch.nn.Module):
        def forward(self, boxes, scores, groups, valid):
            index, keep = nms(boxes * 2, scores, groups, valid, 0.5, 10)
            return scores.gather(1, index) * keep

    arguments, model = make(2), Suppress()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(*arguments), model(*arguments))
    exported = torch.export.export(model, arguments).module()
    torch.testing.assert_close(exported(*arguments), model(*arguments))
    batch = torch.export.Dim("batch", min=1, max=64)
    dynamic = torch.export.export(model, arguments, dynamic_shapes=[{0: batch}] * 4).module()
    three = make(3, 3)
    torch.testing.assert_close(dynamic(*three), model(*three))
