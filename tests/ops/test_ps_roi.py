import pytest
import torch
import torchvision
from hypothesis import given, settings
from hypothesis import strategies as st

from boxwright.ops import ps_roi as module
from boxwright.ops.doctor import random_boxes
from boxwright.ops.ps_roi import (
    ps_crop_and_resize,
    ps_crop_and_resize_reference,
    ps_roi_align,
    ps_roi_align_reference,
    ps_roi_pool,
    ps_roi_pool_reference,
)

STRIDE, BINS, DEPTH = 4, 3, 2
VARIANTS = [
    (ps_roi_pool, ps_roi_pool_reference, ()),
    (ps_roi_align, ps_roi_align_reference, (2,)),
    (ps_roi_align, ps_roi_align_reference, (0,)),
    (ps_crop_and_resize, ps_crop_and_resize_reference, (2,)),
    (ps_crop_and_resize, ps_crop_and_resize_reference, (5,)),
]
each = pytest.mark.parametrize(("pool", "reference", "more"), VARIANTS)


def make(seed: int = 0, batch: int = 2, regions: int = 7, dtype: torch.dtype = torch.float32):
    """Maps of 12 x 16 cells; some regions reach beyond them, some slots are empty."""
    g = torch.Generator().manual_seed(seed)
    maps = torch.randn(batch, DEPTH * BINS**2, 12, 16, generator=g).to(dtype)
    boxes = random_boxes(batch, regions, 56.0, g)
    return maps, boxes, torch.rand(batch, regions, generator=g) < 0.8


@each
def test_agrees_with_reference(pool, reference, more):
    for seed in range(3):
        arguments = (*make(seed), STRIDE, BINS, *more)
        torch.testing.assert_close(pool(*arguments), reference(*arguments), atol=2e-5, rtol=1e-4)


@each
def test_gradients_are_those_of_the_reference(pool, reference, more):
    maps, boxes, valid = make(1)
    weight = torch.randn(2, 7, DEPTH, BINS, BINS, generator=torch.Generator().manual_seed(1))
    grads = []
    for function in (pool, reference):
        own = maps.clone().requires_grad_()
        (function(own, boxes, valid, STRIDE, BINS, *more) * weight).sum().backward()
        grads.append(own.grad)
    torch.testing.assert_close(*grads, atol=2e-5, rtol=1e-4)


def test_gradcheck():
    maps, boxes, valid = make(3, 1, 3, torch.float64)
    maps = maps[:, :, :6, :7].clone().requires_grad_()
    assert torch.autograd.gradcheck(lambda m: ps_roi_pool(m, boxes / 2, valid, STRIDE, BINS), maps)


def test_pooling_by_hand():
    # One output, 2 x 2 bins. The region is 3 x 2 cells from (1, 0); its columns split into cells 1-2 and 2-3.
    cells = torch.arange(20.0).reshape(4, 5)
    maps = torch.stack([cells, cells * 10, cells * 100, cells * 1000])[None]
    boxes = torch.tensor([[[8.0, 0, 32, 16]]])
    found = ps_roi_pool(maps, boxes, torch.ones(1, 1).bool(), 8, 2)
    expected = torch.tensor([[(1 + 2) / 2, (2 + 3) / 2 * 10], [(6 + 7) / 2 * 100, (7 + 8) / 2 * 1000]])
    torch.testing.assert_close(found[0, 0, 0], expected)


def test_pooling_reads_the_last_row_and_column():
    maps = torch.zeros(1, 1, 3, 3)
    maps[..., 2, 2] = 9.0
    box = torch.tensor([[[0.0, 0, 3, 3]]])
    assert ps_roi_pool(maps, box, torch.ones(1, 1).bool(), 1, 1).item() == 1.0


def linear(height: int, width: int) -> torch.Tensor:
    """A map whose value at x, y in cells, where cell 0 has its centre at 0.5, is x + 100 y."""
    return (torch.arange(width) + 0.5) + 100 * (torch.arange(height)[:, None] + 0.5)


@pytest.mark.parametrize("pool", [ps_roi_align, ps_crop_and_resize])
def test_a_linear_map_gives_the_middle_of_each_bin(pool):
    maps = linear(12, 16).expand(1, 4, 12, 16)
    boxes = torch.tensor([[[8.0, 12, 40, 36]]])  # 2..10 and 3..9 in cells
    found = pool(maps, boxes, torch.ones(1, 1).bool(), STRIDE, 2)
    torch.testing.assert_close(found[0, 0, 0], torch.tensor([[454.0, 458.0], [754.0, 758.0]]))


def test_crop_and_resize_takes_its_samples_from_edge_to_edge():
    # x squared at samples 2, 6 and 10 of the only bin: each halfway between the squares of its neighbours.
    centres = torch.arange(16) + 0.5
    maps = (centres**2).expand(1, 1, 12, 16)
    boxes = torch.tensor([[[8.0, 12, 40, 36]]])
    found = ps_crop_and_resize(maps, boxes, torch.ones(1, 1).bool(), STRIDE, 1, 3)
    expected = sum(((x - 0.5) ** 2 + (x + 0.5) ** 2) / 2 for x in (2, 6, 10)) / 3
    assert found.item() == pytest.approx(expected)


def test_align_agrees_with_torchvision():
    maps, boxes, _ = make(2)
    ours = ps_roi_align(maps, boxes, torch.ones(2, 7).bool(), STRIDE, BINS, 2)
    theirs = torchvision.ops.ps_roi_align(maps, list(boxes), BINS, 1 / STRIDE, 2)
    torch.testing.assert_close(ours.flatten(0, 1), theirs, atol=2e-5, rtol=1e-4)


def test_pool_agrees_with_torchvision_away_from_the_last_cells():
    maps, boxes, _ = make(2)
    boxes = boxes.clamp(0, 40)
    ours = ps_roi_pool(maps, boxes, torch.ones(2, 7).bool(), STRIDE, BINS)
    theirs = torchvision.ops.ps_roi_pool(maps, list(boxes), BINS, 1 / STRIDE)
    torch.testing.assert_close(ours.flatten(0, 1), theirs)


@each
def test_bfloat16(pool, reference, more):
    maps, boxes, valid = make(5)
    low = maps.bfloat16().requires_grad_()
    output = pool(low, boxes, valid, STRIDE, BINS, *more)
    assert output.dtype == torch.bfloat16
    torch.testing.assert_close(
        output, pool(low.detach().float(), boxes, valid, STRIDE, BINS, *more).bfloat16()
    )
    output.sum().backward()
    assert low.grad is not None
    assert low.grad.dtype == torch.bfloat16


@each
@settings(deadline=None, max_examples=8)
@given(seed=st.integers(0, 10**6))
def test_properties(pool, reference, more, seed):
    maps, boxes, valid = make(seed)
    result = pool(maps, boxes, valid, STRIDE, BINS, *more)
    assert not result[~valid].any()
    padded = pool(
        maps,
        torch.cat((boxes, torch.full((2, 4, 4), float("nan"))), 1),
        torch.cat((valid, torch.zeros(2, 4).bool()), 1),
        STRIDE,
        BINS,
        *more,
    )
    torch.testing.assert_close(padded[:, :7], result)
    assert not padded[:, 7:].any()
    alone = pool(maps[1:], boxes[1:], valid[1:], STRIDE, BINS, *more)
    torch.testing.assert_close(alone, result[1:])


@each
def test_no_regions_and_wrong_channels(pool, reference, more):
    maps, boxes, valid = make()
    assert pool(maps, boxes[:, :0], valid[:, :0], STRIDE, BINS, *more).shape == (2, 0, DEPTH, BINS, BINS)
    assert not pool(maps, boxes, torch.zeros_like(valid), STRIDE, BINS, *more).any()
    with pytest.raises(ValueError, match="multiple of 4"):
        pool(maps, boxes, valid, STRIDE, 4, *more)


def test_a_crop_has_two_edges():
    with pytest.raises(ValueError, match="at least 2"):
        ps_crop_and_resize(*make(), STRIDE, BINS, 1)


def test_opcheck():
    maps, boxes, valid = make()
    torch.library.opcheck(module._ps_roi_pool_op, (maps.requires_grad_(), boxes, valid, 4, BINS))
    grad = torch.randn(2, 7, DEPTH, BINS, BINS)
    torch.library.opcheck(module._ps_roi_pool_backward_op, (grad, boxes, valid, 4, 12, 16))


@each
def test_compiles_and_exports_whole(pool, reference, more):
    class Pool(torch.nn.Module):
        def forward(self, maps, boxes, valid):
            return pool(maps * 2, boxes, valid, STRIDE, BINS, *more).mean((-2, -1))

    model, arguments = Pool(), make()
    batch = torch.export.Dim("batch", min=1, max=64)
    dynamic = torch.export.export(model, arguments, dynamic_shapes=[{0: batch}] * 3).module()
    others = make(1, 3)
    torch.testing.assert_close(dynamic(*others), model(*others))
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    results = []
    for function in (model, compiled):
        maps = arguments[0].clone().requires_grad_()
        output = function(maps, *arguments[1:])
        output.square().sum().backward()
        results.append((output.detach(), maps.grad))
    torch.testing.assert_close(results[0], results[1])
