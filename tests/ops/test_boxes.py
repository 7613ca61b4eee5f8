import pytest
import torch
import torchvision
from hypothesis import given, settings
from hypothesis import strategies as st

from boxwright.ops import boxes as ops
from boxwright.ops.doctor import random_boxes

ALIGNED = (ops.iou, ops.giou, ops.diou, ops.ciou)


def make(count: int, seed: int = 0, batch: int = 1) -> torch.Tensor:
    return random_boxes(batch, count, 64.0, torch.Generator().manual_seed(seed))


def test_conversions_agree_with_torchvision_and_return():
    boxes = make(20)
    expected = torchvision.ops.box_convert(boxes, "xyxy", "cxcywh")
    torch.testing.assert_close(ops.to_cxcywh(boxes), expected)
    torch.testing.assert_close(ops.from_cxcywh(expected), boxes)


def test_area_of_box_turned_inside_out_is_zero():
    boxes = torch.tensor([[0, 0, 2, 3], [2, 3, 0, 0], [2, 0, 0, 3], [1, 1, 1, 1]])
    assert ops.area(boxes).tolist() == [6, 0, 0, 0]


def test_clip_takes_each_images_size():
    boxes = torch.tensor([[[-1.0, -2, 50, 60]], [[5, 6, 50, 60]]])
    clipped = ops.clip(boxes, torch.tensor([[40, 30], [100, 20]]))
    assert clipped.tolist() == [[[0, 0, 30, 40]], [[5, 6, 20, 60]]]
    assert ops.clip(boxes[0], torch.tensor([40, 30])).tolist() == [[0, 0, 30, 40]]


def test_centres():
    boxes = make(10, batch=2)
    torch.testing.assert_close(ops.centres(boxes), ops.to_cxcywh(boxes)[..., :2])
    assert ops.centres(torch.tensor([1, 2, 4, 8])).tolist() == [2.5, 5.0]


def test_pairwise_iou_agrees_with_torchvision():
    first, second = make(30, 1)[0], make(20, 2)[0]
    torch.testing.assert_close(ops.pairwise_iou(first, second), torchvision.ops.box_iou(first, second))


def test_pairwise_broadcasts_leading_dims():
    first, second = make(7, 1)[0], make(5, 2, batch=3)
    result = ops.pairwise_iou(first, second)
    assert result.shape == (3, 7, 5)
    torch.testing.assert_close(result[1], ops.pairwise_iou(first, second[1]))
    assert ops.pairwise_iou(first, second[:, :0]).shape == (3, 7, 0)


def test_intersection_over_first():
    first, second = torch.tensor([[0.0, 0, 2, 2], [1, 1, 1, 1]]), torch.tensor([[1.0, 0, 10, 10]])
    assert ops.pairwise_iof(first, second).tolist() == [[0.5], [0.0]]
    assert ops.pairwise_intersection(first, second).tolist() == [[2.0], [0.0]]


def test_aligned_is_the_diagonal_of_pairwise():
    first, second = make(12, 1)[0], make(12, 2)[0]
    torch.testing.assert_close(ops.iou(first, second), ops.pairwise_iou(first, second).diagonal())


@pytest.mark.parametrize("name", ["giou", "diou", "ciou"])
def test_aligned_agree_with_torchvision_in_value_and_gradient(name):
    loss = {
        "giou": torchvision.ops.generalized_box_iou_loss,
        "diou": torchvision.ops.distance_box_iou_loss,
        "ciou": torchvision.ops.complete_box_iou_loss,
    }[name]
    first, second = make(40, 1)[0].requires_grad_(), make(40, 2)[0]
    ours = 1 - getattr(ops, name)(first, second)
    theirs = loss(first, second)
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)
    (a,), (b,) = torch.autograd.grad(ours.sum(), first), torch.autograd.grad(theirs.sum(), first)
    torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("function", ALIGNED)
def test_gradients_are_those_of_finite_differences(function):
    first, second = make(6, 1)[0].double().requires_grad_(), make(6, 2)[0].double()
    if function is ops.ciou:  # alpha is held constant, so compare the part without it
        second = torch.cat((second[:, :2], second[:, :2] + first.detach()[:, 2:] - first.detach()[:, :2]), 1)
    assert torch.autograd.gradcheck(lambda x: function(x, second), (first,), atol=1e-5)


@pytest.mark.parametrize("function", ALIGNED)
def test_degenerate_boxes_are_finite(function):
    boxes = torch.tensor([[0.0, 0, 0, 0], [5, 5, 5, 9], [9, 9, 3, 3], [1, 2, 3, 4], [1, 2, 3, 2]])
    first = boxes[:, None].expand(-1, 5, -1).clone().requires_grad_()
    value = function(first, boxes[None].expand(5, -1, -1))
    value.sum().backward()
    assert value.isfinite().all()
    assert first.grad is not None
    assert first.grad.isfinite().all()
    assert ops.pairwise_iou(boxes, boxes).isfinite().all()
    assert ops.pairwise_iou(boxes, boxes)[:3].eq(0).all()


def test_float32_under_autocast_and_from_half():
    boxes = make(5)[0]
    with torch.autocast("cpu", torch.bfloat16):
        assert ops.pairwise_iou(boxes, boxes).dtype == torch.float32
        torch.testing.assert_close(ops.ciou(boxes, boxes), torch.ones(5))
    assert ops.area(boxes.half()).dtype == torch.float32


@settings(deadline=None, max_examples=25)
@given(st.integers(0, 10**6), st.floats(-50, 50), st.floats(0.1, 10))
def test_iou_family_properties(seed, shift, factor):
    first, second = make(8, seed)[0], make(8, seed + 1)[0]
    for function in ALIGNED:
        value = function(first, second)
        torch.testing.assert_close(function(first + shift, second + shift), value, atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(function(first * factor, second * factor), value, atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(function(first, first), torch.ones(8))
        assert (value <= ops.iou(first, second) + 1e-6).all()
    assert ((ops.giou(first, second) >= -1) & (ops.iou(first, second) >= 0)).all()
    torch.testing.assert_close(ops.pairwise_iou(first, second), ops.pairwise_iou(second, first).T)


@pytest.mark.parametrize("function", [*ALIGNED, ops.pairwise_iou, ops.pairwise_iof])
def test_compiles_whole(function):
    first, second = make(4, 1), make(4, 2)
    compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(first, second), function(first, second))
