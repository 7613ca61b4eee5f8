import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from boxwright.errors import DataError
from boxwright.ops import masks as module
from boxwright.ops.doctor import random_boxes
from boxwright.ops.masks import mask_targets, mask_targets_reference, pack, paste, paste_reference, unpack
from boxwright.structures import MaskCrops

CANVAS = (40, 56)


def random_masks(g: torch.Generator, count: int) -> torch.Tensor:
    """Blobs in boxes; many touch the canvas' border, some are empty."""
    masks = torch.zeros(count, *CANVAS, dtype=torch.uint8)
    for i, box in enumerate(random_boxes(1, count, 56.0, g)[0].clamp(min=0).int().tolist()):
        x1, y1, x2, y2 = box
        part = masks[i, y1:y2, x1:x2]
        part.copy_(torch.rand(part.shape, generator=g) < 0.7)
    return masks


def make(seed: int = 0, regions: int = 10):
    g = torch.Generator().manual_seed(seed)
    crops = pack([random_masks(g, 3), random_masks(g, 1)], 4)
    boxes = random_boxes(2, regions, 56.0, g)
    best = torch.randint(0, 4, (2, regions), generator=g)
    return crops, boxes, best, torch.rand(2, regions, generator=g) < 0.7


@settings(deadline=None, max_examples=25)
@given(st.integers(0, 10**6), st.integers(0, 5), st.integers(0, 5))
def test_pack_and_unpack_return_the_masks(seed, n, m):
    g = torch.Generator().manual_seed(seed)
    masks = [random_masks(g, n), random_masks(g, m)[:, :30, :50]]
    result = unpack(pack(masks, 5), *CANVAS)
    assert result.dtype == torch.uint8
    assert torch.equal(result[0, :n], masks[0])
    assert torch.equal(result[1, :m, :30, :50], masks[1])
    assert result.sum() == masks[0].sum() + masks[1].sum()


def test_pack_crops_to_the_extent_and_rounds_up():
    mask = torch.zeros(2, 10, 12, dtype=torch.uint8)
    mask[1, 2:5, 3:9] = 255
    crops = pack([mask, mask[:0]], 2)
    assert crops.boxes.tolist() == [[[0, 0, 0, 0], [3, 2, 9, 5]], [[0] * 4, [0] * 4]]
    assert crops.pixels.sum() == 18
    assert crops.pixels.dtype == torch.uint8
    assert [module._rounded(n) for n in (0, 4096, 4097, 6145, 8193)] == [4096, 4096, 6144, 8192, 12288]


def test_pack_without_images_or_masks():
    crops = pack([torch.zeros(0, 0, 0, dtype=torch.uint8)], 4)
    assert crops.boxes.shape == (1, 4, 4)
    assert pack([], 4).offset.shape == (0, 4)


def test_too_many_masks():
    with pytest.raises(DataError, match="image 1 of the batch has 3 masks but 2 slots"):
        pack([torch.zeros(1, 4, 4), torch.zeros(3, 4, 4)], 2)


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 10**6), st.booleans())
def test_targets_are_roi_align_on_full_bitmaps(seed, aligned):
    arguments = (*make(seed), CANVAS, 7, aligned)
    torch.testing.assert_close(
        mask_targets(*arguments), mask_targets_reference(*arguments), atol=2e-5, rtol=1e-4
    )


@pytest.mark.parametrize("aligned", [True, False])
def test_targets_at_the_border_of_the_canvas(aligned):
    crops = pack([torch.ones(1, *CANVAS, dtype=torch.uint8)], 1)
    boxes = torch.tensor([[[-8.0, -8, 8, 8], [48, 32, 64, 48], [-3, -3, 60, 43], [50, 10, 56, 40]]])
    arguments = (crops, boxes, torch.zeros(1, 4).long(), torch.ones(1, 4).bool(), CANVAS, 8, aligned)
    torch.testing.assert_close(mask_targets(*arguments), mask_targets_reference(*arguments))


def test_box_around_its_mask_gives_ones():
    mask = torch.zeros(1, *CANVAS, dtype=torch.uint8)
    mask[0, 10:30, 20:40] = 1
    box = torch.tensor([[[20.0, 10, 40, 30], [0, 0, 10, 10]]])
    every = torch.ones(1, 2).bool()
    targets = mask_targets(pack([mask], 1), box, torch.zeros(1, 2).long(), every, CANVAS, 5)
    assert targets[0, 0].eq(1).all()
    assert not targets[0, 1].any()


def test_targets_without_positives_or_slots():
    crops, boxes, best, positive = make()
    assert not mask_targets(crops, boxes, best, torch.zeros_like(positive), CANVAS, 5).any()
    none = pack([torch.zeros(0, 4, 4)] * 2, 0)
    assert not mask_targets(none, boxes, best, torch.zeros_like(positive), CANVAS, 5).any()


def test_padding_batch_and_order_change_nothing():
    crops, boxes, best, positive = make(3)
    result = mask_targets(crops, boxes, best, positive, CANVAS, 6)
    order = torch.randperm(10, generator=torch.Generator().manual_seed(0))
    permuted = mask_targets(crops, boxes[:, order], best[:, order], positive[:, order], CANVAS, 6)
    torch.testing.assert_close(permuted, result[:, order])
    more = MaskCrops(crops.pixels, F.pad(crops.boxes, (0, 0, 0, 3)), F.pad(crops.offset, (0, 3)))
    torch.testing.assert_close(mask_targets(more, boxes, best, positive, CANVAS, 6), result)
    alone = MaskCrops(crops.pixels, crops.boxes[1:], crops.offset[1:])
    torch.testing.assert_close(mask_targets(alone, boxes[1:], best[1:], positive[1:], CANVAS, 6), result[1:])


def test_opcheck():
    crops, boxes, best, positive = make()
    parts = (boxes, best, positive, 6, True, *CANVAS, crops.pixels, crops.boxes, crops.offset)
    torch.library.opcheck(module._mask_targets_op, parts)


def test_compiles_and_exports_whole():
    class Target(torch.nn.Module):
        def forward(self, pixels, crop_boxes, offset, boxes, best, positive):
            crops = MaskCrops(pixels, crop_boxes, offset)
            return mask_targets(crops, boxes * 1.5, best, positive, CANVAS, 6) >= 0.5

    crops, *rest = make()
    model, arguments = Target(), (crops.pixels, crops.boxes, crops.offset, *rest)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(*arguments), model(*arguments))
    assert torch.equal(torch.export.export(model, arguments).module()(*arguments), model(*arguments))


def published_paste(mask: torch.Tensor, box: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """One mask, pixel centres mapped to [-1, 1] over the box, as the published implementations do it."""
    x1, y1, x2, y2 = box
    x = (torch.arange(width) + 0.5 - x1) / (x2 - x1) * 2 - 1
    y = (torch.arange(height) + 0.5 - y1) / (y2 - y1) * 2 - 1
    grid = torch.stack(torch.meshgrid(x, y, indexing="xy"), -1)
    return F.grid_sample(mask[None, None], grid[None], align_corners=False)[0, 0]


@pytest.mark.parametrize("threshold", [0.5, 0.2])
@pytest.mark.parametrize("run", [paste, module._paste_in_chunks, paste_reference])
def test_paste_agrees_with_the_published_way(run, threshold):
    g = torch.Generator().manual_seed(0)
    boxes, masks = random_boxes(1, 12, 56.0, g)[0], torch.rand(12, 7, 7, generator=g)
    result = run(masks, boxes, *CANVAS, threshold)
    assert result.shape == (12, *CANVAS)
    assert result.dtype == torch.bool
    for k in range(12):
        value = published_paste(masks[k], boxes[k], *CANVAS)
        open_to_rounding = (value - threshold).abs() < 1e-5
        assert open_to_rounding.float().mean() < 0.01
        assert ((result[k] == (value >= threshold)) | open_to_rounding).all()


def test_paste_in_several_chunks(monkeypatch):
    g = torch.Generator().manual_seed(0)
    boxes, masks = random_boxes(1, 5, 56.0, g)[0], torch.rand(5, 7, 7, generator=g)
    monkeypatch.setattr(module, "_CHUNK_PIXELS", 2 * CANVAS[0] * CANVAS[1])
    assert torch.equal(module._paste_in_chunks(masks, boxes, *CANVAS, 0.5), paste(masks, boxes, *CANVAS))


@pytest.mark.parametrize("run", [paste, module._paste_in_chunks])
def test_paste_degenerate_and_distant_boxes(run):
    boxes = torch.tensor([[5.0, 5, 5, 20], [30, 20, 10, 5], [500, 500, 600, 600], [-90, -90, -50, -50]])
    assert not run(torch.ones(4, 7, 7), boxes, *CANVAS, 0.5).any()
    assert run(torch.ones(0, 7, 7), torch.zeros(0, 4), *CANVAS, 0.5).shape == (0, *CANVAS)


def test_pasted_full_mask_fills_its_box():
    result = paste(torch.ones(1, 14, 14), torch.tensor([[10.0, 5, 30, 25]]), *CANVAS)
    expected = torch.zeros(1, *CANVAS, dtype=torch.bool)
    expected[0, 5:25, 10:30] = True
    assert torch.equal(result, expected)
