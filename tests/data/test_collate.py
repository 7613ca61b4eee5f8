import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchvision import tv_tensors

from boxwright.data.canvas import Canvas
from boxwright.data.collate import collate
from boxwright.data.sample import as_boxes
from boxwright.errors import DataError
from boxwright.ops.masks import unpack
from boxwright.structures import slot_count


def make(height, width, count, image_id=0, masks=True, seed=0):
    generator = torch.Generator().manual_seed(seed)
    bitmaps = torch.zeros(count, height, width, dtype=torch.uint8)
    boxes = torch.zeros(count, 4)
    for i in range(count):
        x1, y1 = (int(torch.randint(0, side - 2, (), generator=generator)) for side in (width, height))
        x2, y2 = min(x1 + 5, width), min(y1 + 7, height)
        bitmaps[i, y1:y2, x1:x2] = 1
        boxes[i] = torch.tensor([x1, y1, x2, y2])
    sample = {
        "image": tv_tensors.Image(
            torch.randint(1, 256, (3, height, width), generator=generator, dtype=torch.uint8)
        ),
        "boxes": as_boxes(boxes, (height, width)),
        "labels": torch.arange(count) + 1,
        "ignore": torch.arange(count) % 3 == 2,
        "image_id": image_id,
        "original_size": (2 * height, 2 * width),
        "file": f"{image_id}.jpg",
    }
    return {**sample, "masks": tv_tensors.Mask(bitmaps)} if masks else sample


@settings(max_examples=25, deadline=None)
@given(
    counts=st.lists(st.integers(0, 9), min_size=1, max_size=4), seed=st.integers(0, 1000), masks=st.booleans()
)
def test_padding_leaves_images_and_objects_as_they_are(counts, seed, masks):
    samples = [make(20 + 3 * i, 30 - i, n, 10 + i, masks, seed + i) for i, n in enumerate(counts)]
    batch = collate(samples, Canvas())
    slots = slot_count(max(counts))
    targets = batch.targets
    assert batch.images.shape == (len(counts), 3, 32, 32)
    assert batch.images.dtype == torch.uint8
    assert batch.image_ids == tuple(range(10, 10 + len(counts)))
    assert targets.boxes.shape == (len(counts), slots, 4)
    assert targets.labels.dtype == torch.int64
    full = unpack(targets.masks, 32, 32) if masks else None
    assert masks or targets.masks is None
    for i, (sample, n) in enumerate(zip(samples, counts, strict=True)):
        height, width = sample["image"].shape[1:]
        assert batch.sizes[i].tolist() == [height, width]
        assert batch.original_sizes[i].tolist() == [2 * height, 2 * width]
        assert torch.equal(batch.images[i, :, :height, :width], sample["image"])
        assert batch.images[i, :, height:].sum() == batch.images[i, :, :, width:].sum() == 0
        assert torch.equal(targets.boxes[i, :n], sample["boxes"])
        assert torch.equal(targets.labels[i, :n], sample["labels"])
        assert torch.equal(targets.ignore[i, :n], sample["ignore"])
        assert torch.equal(targets.valid[i, :n], ~sample["ignore"])
        assert not (targets.valid[i, n:] | targets.ignore[i, n:]).any()
        assert targets.boxes[i, n:].abs().sum() == targets.labels[i, n:].sum() == 0
        if full is not None:
            assert torch.equal(full[i, :n, :height, :width], sample["masks"])
            assert full[i, n:].sum() == 0


def test_images_without_objects_have_slots_and_masks():
    batch = collate([make(20, 20, 0), make(20, 20, 0)], Canvas(((64, 32),)))
    assert batch.images.shape == (2, 3, 64, 32)
    assert batch.targets.boxes.shape == (2, 4, 4)
    assert batch.targets.masks is not None
    assert not batch.targets.valid.any()


def test_errors_name_the_image():
    with pytest.raises(DataError, match=r"5\.jpg.*no masks"):
        collate([make(20, 20, 1), make(20, 20, 2, 5, masks=False)], Canvas())
    with pytest.raises(DataError, match=r"5\.jpg.*40 x 20"):
        collate([make(20, 20, 1), make(40, 20, 2, 5)], Canvas(((32, 32),)))
    wrong = make(20, 20, 2, 5)
    wrong["labels"] = wrong["labels"][:1]
    with pytest.raises(DataError, match=r"5\.jpg.*\[2, 1, 2, 2\]"):
        collate([wrong], Canvas())
