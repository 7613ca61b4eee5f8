import pytest
import torch
import torchvision
from hypothesis import given, settings
from hypothesis import strategies as st

from boxwright.ops import _roi_align_bags
from boxwright.ops import roi_align as module
from boxwright.ops.doctor import random_boxes
from boxwright.ops.roi_align import assign_levels, roi_align, roi_align_reference

STRIDES = [4, 8]


def layout_of(features, strides, size, ratio=0, aligned=True):
    heights, widths = [f.shape[2] for f in features], [f.shape[3] for f in features]
    return module.Layout(strides, heights, widths, size, ratio, aligned)


def by_bags(features, boxes, level, *settings):
    return _roi_align_bags.forward(features, boxes, level, layout_of(features, *settings))


def masked(features, boxes, level, *settings):
    return module._forward_masked(features, boxes, level, layout_of(features, *settings))


FORWARDS = (roi_align, by_bags, masked)


def make(seed: int = 0, batch: int = 2, regions: int = 9, dtype: torch.dtype = torch.float32):
    g = torch.Generator().manual_seed(seed)
    features = [torch.randn(batch, 3, 48 // s, 64 // s, generator=g).to(dtype) for s in STRIDES]
    boxes = random_boxes(batch, regions, 60.0, g)
    level = torch.randint(-1, 2, (batch, regions), generator=g)
    return features, boxes, level


@pytest.mark.parametrize("aligned", [True, False])
@pytest.mark.parametrize("ratio", [0, 2])
@pytest.mark.parametrize("forward", FORWARDS)
def test_agrees_with_reference(forward, ratio, aligned):
    arguments = (*make(), STRIDES, 5, ratio, aligned)
    torch.testing.assert_close(forward(*arguments), roi_align_reference(*arguments), atol=2e-5, rtol=1e-4)


def test_agrees_with_torchvision_on_one_level():
    features, boxes, level = make(1)
    ours = roi_align(features, boxes, torch.ones_like(level), STRIDES, 7, 2)
    theirs = torchvision.ops.roi_align(features[1], list(boxes), 7, 1 / 8, 2, True)
    torch.testing.assert_close(ours.flatten(0, 1), theirs)


@pytest.mark.parametrize("ratio", [0, 2])
def test_features_that_have_their_channels_innermost_are_pooled_so(ratio):
    features, boxes, level = make(3, regions=20)
    boxes[:, ::4] = torch.tensor([-20.0, 3.0, 70.0, 50.0])  # larger than the image: many samples a bin
    inputs = [f.contiguous(memory_format=torch.channels_last).requires_grad_() for f in features]
    pooled = roi_align(inputs, boxes, level, STRIDES, 5, ratio)
    assert pooled.permute(0, 1, 3, 4, 2).is_contiguous()
    expected = roi_align_reference(inputs, boxes, level, STRIDES, 5, ratio)
    torch.testing.assert_close(pooled, expected, atol=2e-5, rtol=1e-4)
    weight = torch.randn(pooled.shape, generator=torch.Generator().manual_seed(1))
    grads = [torch.autograd.grad((y * weight).sum(), inputs) for y in (pooled, expected)]
    for a, b in zip(*grads, strict=True):
        torch.testing.assert_close(a, b, atol=2e-5, rtol=1e-4)
    compiled = torch.compile(roi_align, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(inputs, boxes, level, STRIDES, 5, ratio), pooled)


@pytest.mark.parametrize("by_mask", [False, True])
def test_gradients_are_those_of_the_reference(by_mask):
    features, boxes, level = make(2)
    weight = torch.randn(2, 9, 3, 4, 4, generator=torch.Generator().manual_seed(1))
    inputs = [f.requires_grad_() for f in features]
    expected = torch.autograd.grad(
        (roi_align_reference(inputs, boxes, level, STRIDES, 4) * weight).sum(), inputs
    )
    if by_mask:
        result = module._backward_masked(weight, boxes, level, layout_of(inputs, STRIDES, 4))
    else:
        result = torch.autograd.grad((roi_align(inputs, boxes, level, STRIDES, 4) * weight).sum(), inputs)
    for a, b in zip(result, expected, strict=True):
        torch.testing.assert_close(a, b, atol=2e-5, rtol=1e-4)


def test_gradcheck():
    features, boxes, level = make(3, 1, 4, torch.float64)
    inputs = [f[:, :1].clone().requires_grad_() for f in features]
    assert torch.autograd.gradcheck(lambda *f: roi_align(f, boxes, level, STRIDES, 2), inputs)


def test_only_the_level_in_use_gets_gradient():
    features, boxes, level = make(4)
    inputs = [f.requires_grad_() for f in features]
    roi_align(inputs, boxes, torch.zeros_like(level), STRIDES, 2).sum().backward()
    assert inputs[0].grad is not None
    assert inputs[1].grad is not None
    assert inputs[0].grad.any()
    assert not inputs[1].grad.any()


def test_bfloat16_features_and_gradients():
    features, boxes, level = make(5)
    low = [f.bfloat16().requires_grad_() for f in features]
    output = roi_align(low, boxes, level, STRIDES, 4)
    assert output.dtype == torch.bfloat16
    expected = roi_align([f.detach().float() for f in low], boxes, level, STRIDES, 4)
    torch.testing.assert_close(output, expected.bfloat16())
    output.sum().backward()
    assert all(f.grad is not None and f.grad.dtype == torch.bfloat16 for f in low)
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(
            roi_align(features, boxes, level, STRIDES, 4).float(), expected, atol=0.05, rtol=0.05
        )


@settings(deadline=None, max_examples=15)
@given(st.integers(0, 10**6))
def test_properties(seed):
    features, boxes, level = make(seed)
    result = roi_align(features, boxes, level, STRIDES, 3)
    assert not result[level < 0].any()
    order = torch.randperm(9, generator=torch.Generator().manual_seed(seed))
    permuted = roi_align(features, boxes[:, order], level[:, order], STRIDES, 3)
    torch.testing.assert_close(permuted, result[:, order])
    padded = roi_align(
        features,
        torch.cat((boxes, torch.full((2, 4, 4), float("nan"))), 1),
        torch.cat((level, torch.full((2, 4), -1)), 1),
        STRIDES,
        3,
    )
    torch.testing.assert_close(padded[:, :9], result)
    assert not padded[:, 9:].any()
    alone = roi_align([f[1:] for f in features], boxes[1:], level[1:], STRIDES, 3)
    torch.testing.assert_close(alone, result[1:])


@pytest.mark.parametrize("ratio", [0, 2])
@pytest.mark.parametrize("forward", FORWARDS)
def test_no_regions(forward, ratio):
    features, boxes, level = make()
    assert forward(features, boxes[:, :0], level[:, :0], STRIDES, 3, ratio, True).shape == (2, 0, 3, 3, 3)
    assert not forward(features, boxes, torch.full_like(level, -1), STRIDES, 3, ratio, True).any()


def test_levels_follow_the_published_rule():
    side = torch.tensor([1.0, 55, 56, 111, 112, 223, 224, 447, 448, 2000])
    boxes = torch.stack((torch.zeros(10), torch.zeros(10), side, side), -1)[None]
    valid = torch.ones(1, 10).bool()
    assert assign_levels(boxes, valid, 4).tolist() == [[0, 0, 0, 0, 1, 1, 2, 2, 3, 3]]
    mapper = torchvision.ops.poolers.LevelMapper(2, 5)
    assert assign_levels(boxes, valid, 4)[0].tolist() == mapper([boxes[0]]).tolist()
    valid[0, 3:] = False
    assert assign_levels(boxes, valid, 4).tolist() == [[0, 0, 0] + [-1] * 7]


def test_opcheck():
    features, boxes, level = make()
    inputs = [f.requires_grad_() for f in features]
    torch.library.opcheck(module._roi_align_op, (inputs, boxes, level, STRIDES, 3, 0, True))
    grad = torch.randn(2, 9, 3, 3, 3)
    arguments = (grad, boxes, level, STRIDES, [12, 6], [16, 8], 0, True)
    torch.library.opcheck(module._roi_align_backward_op, arguments)


def test_compiles_and_exports_whole():
    class Pool(torch.nn.Module):
        def forward(self, fine, coarse, boxes, valid):
            level = assign_levels(boxes, valid, 2, finest_scale=12.0)
            return roi_align([fine * 2, coarse], boxes, level, STRIDES, 3)

    features, boxes, level = make()
    model, arguments = Pool(), (*features, boxes, level >= 0)
    exported = torch.export.export(model, arguments).module()
    batch = torch.export.Dim("batch", min=1, max=64)
    dynamic = torch.export.export(model, arguments, dynamic_shapes=[{0: batch}] * 4).module()
    other_features, other_boxes, other_level = make(1, 3)
    others = (*other_features, other_boxes, other_level >= 0)
    torch.testing.assert_close(dynamic(*others), model(*others))
    torch.testing.assert_close(exported(*arguments), model(*arguments))
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    results = []
    for function in (model, compiled):
        inputs = [f.clone().requires_grad_() for f in features]
        output = function(*inputs, boxes, level >= 0)
        output.square().sum().backward()
        results.append((output.detach(), *(f.grad for f in inputs)))
    torch.testing.assert_close(results[0], results[1])
