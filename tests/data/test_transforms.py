import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torchvision import tv_tensors

from boxwright.data.sample import Resizing, Sample, as_boxes, image_tensor
from boxwright.data.transforms import (
    Expand,
    HorizontalFlip,
    MinIoURandomCrop,
    PhotometricDistortion,
    RandomCrop,
    Resize,
    ResizeByRange,
    ResizeByValue,
    ResizeFixed,
)
from boxwright.data.transforms.functional import crop, mask_boxes
from boxwright.data.transforms.photometric import shift_colours
from boxwright.errors import ConfigError

SPATIAL = (
    Resize(60, 90),
    Resize(17, 400),
    ResizeFixed((40, 24)),
    ResizeByValue((20, 50, 80), 120),
    ResizeByRange((20, 80), 120),
    ResizeByRange((20, 80), (20, 120)),
    HorizontalFlip(1.0),
    RandomCrop(size=(20, 25)),
    RandomCrop(share=(0.5, 0.7)),
    RandomCrop(scale=(0.4, 1.0)),
    MinIoURandomCrop(),
    Expand(p=1.0),
)


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


def make(height=48, width=64, count=5, seed=0, masks=True, ellipses=False) -> Sample:
    """A random image with `count` objects whose masks fill their boxes (or the ellipses in them)."""
    random = np.random.default_rng(seed)
    pixels = Image.fromarray(random.integers(0, 256, (height, width, 3), dtype=np.uint8))
    bitmaps = np.zeros((count, height, width), np.uint8)
    y, x = np.mgrid[:height, :width] + 0.5
    for bitmap in bitmaps:
        w, h = random.integers(2, width + 1), random.integers(2, height + 1)
        x1, y1 = random.integers(0, width - w + 1), random.integers(0, height - h + 1)
        bitmap[y1 : y1 + h, x1 : x1 + w] = 1
        if ellipses:
            bitmap *= ((x - x1 - w / 2) / w * 2) ** 2 + ((y - y1 - h / 2) / h * 2) ** 2 <= 1
    bitmaps = torch.from_numpy(bitmaps)
    sample = {
        "image": image_tensor(pixels),
        "boxes": as_boxes(mask_boxes(bitmaps), (height, width)),
        "labels": torch.arange(count),
        "ignore": torch.from_numpy(random.random(count) < 0.2),
        "masks": tv_tensors.Mask(bitmaps),
        "image_id": 7,
        "original_size": (height, width),
        "file": "a.png",
    }
    if not masks:
        del sample["masks"]
    return sample  # pyright: ignore[reportReturnType]


def assert_sound(sample):
    height, width = sample["image"].shape[-2:]
    count = len(sample["boxes"])
    assert sample["image"].dtype == torch.uint8
    assert isinstance(sample["image"], tv_tensors.Image)
    assert isinstance(sample["boxes"], tv_tensors.BoundingBoxes)
    assert sample["boxes"].canvas_size == (height, width)
    assert sample["boxes"].dtype == torch.float32
    assert sample["boxes"].shape == (count, 4)
    assert len(sample["labels"]) == len(sample["ignore"]) == count
    x1, y1, x2, y2 = sample["boxes"].as_subclass(torch.Tensor).unbind(1)
    assert (x1 >= 0).all()
    assert (y1 >= 0).all()
    assert (x2 <= width).all()
    assert (y2 <= height).all()
    assert (x2 > x1).all()
    assert (y2 > y1).all()
    if "masks" in sample:
        assert sample["masks"].shape == (count, height, width)
        assert sample["masks"].dtype == torch.uint8


@pytest.mark.parametrize("transform", SPATIAL, ids=repr)
@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 10**6), count=st.integers(0, 6), masks=st.booleans(), ellipses=st.booleans())
def test_boxes_inside_masks_agree_and_input_unchanged(transform, seed, count, masks, ellipses):
    size = np.random.default_rng(seed).integers(30, 70, 2)
    sample = make(*size, count=count, seed=seed, masks=masks, ellipses=ellipses)
    before = {k: v.clone() if isinstance(v, torch.Tensor) else v for k, v in sample.items()}
    out = transform(sample, rng(seed))
    assert_sound(out)
    for key, value in before.items():
        assert torch.equal(value, sample[key]) if isinstance(value, torch.Tensor) else value == sample[key]
    if masks and count:
        tight = mask_boxes(out["masks"].as_subclass(torch.Tensor))
        seen = out["masks"].flatten(1).bool().any(1)
        beyond = (out["boxes"] - tight).as_subclass(torch.Tensor)[seen]
        beyond[:, 2:] *= -1  # how far the masks stick out of their boxes, on each side
        assert (beyond <= 1.01).all()
        if not ellipses:  # whose tips are thinner than a pixel of a smaller image
            assert (beyond >= -1.01).all()


@pytest.mark.parametrize("transform", [*SPATIAL, PhotometricDistortion(p=1.0)], ids=repr)
def test_same_generator_same_result_and_empty_images(transform):
    first, second = (transform(make(), rng(3)) for _ in range(2))
    assert torch.equal(first["image"], second["image"])
    assert torch.equal(first["boxes"], second["boxes"])
    assert torch.equal(first["masks"], second["masks"])
    assert_sound(transform(make(count=0), rng(3)))
    assert_sound(transform(make(count=0, masks=False), rng(3)))


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10**6), count=st.integers(0, 4))
def test_flip_twice_is_identity(seed, count):
    sample = make(31, 45, count, seed)
    flip = HorizontalFlip(1.0)
    out = flip(flip(sample, rng()), rng())
    assert torch.equal(out["image"], sample["image"])
    assert torch.equal(out["masks"], sample["masks"])
    torch.testing.assert_close(out["boxes"], sample["boxes"], atol=1e-4, rtol=0)


def test_flip_probability():
    sample = make(8, 8, 1)
    generator = rng()
    flipped = sum(HorizontalFlip(0.25)(sample, generator) is not sample for _ in range(1000))
    assert 200 < flipped < 300


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        ((480, 640), (800, 1067)),
        ((640, 480), (1067, 800)),
        ((300, 900), (444, 1333)),
        ((427, 640), (800, 1199)),
    ],
)
def test_resize_sizes_of_mmdetection(size, expected):
    sample = make(*size, count=2, masks=False)
    out = Resize(800, 1333)(sample, rng())
    assert tuple(out["image"].shape[1:]) == expected
    factors = torch.tensor([expected[1] / size[1], expected[0] / size[0]] * 2)
    torch.testing.assert_close(out["boxes"].as_subclass(torch.Tensor), sample["boxes"] * factors)


@pytest.mark.parametrize("size", [(30, 20), (111, 93)])
def test_resize_equals_pillow_and_keeps_the_memory_layout(size):
    sample = make(67, 83)
    out = ResizeFixed(size)(sample, rng())["image"]
    pixels = Image.fromarray(sample["image"].permute(1, 2, 0).numpy())
    expected = np.asarray(pixels.resize(size[::-1], Image.Resampling.BILINEAR)).astype(int)
    assert np.abs(out.permute(1, 2, 0).numpy().astype(int) - expected).max() <= 1
    assert out.stride() == (1, 3 * size[1], 3)


def test_multi_scale_draws_every_value_and_both_ends():
    sample = make(40, 80, 1, masks=False)
    generator = rng()
    values = {ResizeByValue((10, 14, 18), 100)(sample, generator)["image"].shape[1] for _ in range(50)}
    assert values == {10, 14, 18}
    ranged = {ResizeByRange((10, 14), 100)(sample, generator)["image"].shape[1] for _ in range(100)}
    assert ranged == {10, 11, 12, 13, 14}
    limited = {ResizeByRange((30, 40), 50)(sample, generator)["image"].shape[2] for _ in range(10)}
    assert limited == {50}
    square = make(30, 30, 1, masks=False)
    lower = {ResizeByRange((10, 12), (9, 11))(square, generator)["image"].shape[1] for _ in range(100)}
    assert lower == {9, 10, 11}  # the smaller of two numbers


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10**6), size=st.tuples(st.integers(1, 50), st.integers(1, 50)))
def test_random_crop_keeps_an_object(seed, size):
    sample = make(40, 60, 3, seed)
    if sample["ignore"].all():
        return
    out = RandomCrop(size=size, min_visible=0.25)(sample, rng(seed))
    assert tuple(out["image"].shape[1:]) == (min(size[0], 40), min(size[1], 60))
    assert (~out["ignore"]).any()


def test_random_crop_drops_by_the_visible_part():
    sample = make(100, 100, 0, masks=False)
    sample["boxes"] = as_boxes(
        torch.tensor([[0.0, 0, 90, 90], [40, 40, 60, 60], [95, 95, 100, 100]]), (100, 100)
    )
    sample["labels"], sample["ignore"] = torch.arange(3), torch.tensor([False, False, True])
    for seed in range(20):
        out = RandomCrop(size=(50, 50), min_visible=0.2)(sample, rng(seed))
        assert_sound(out)
        areas = (out["boxes"][:, 2:] - out["boxes"][:, :2]).prod(1)
        least = {0: 0.2 * 2500, 1: 0.2 * 400, 2: 1.0}
        assert all(
            area >= least[label] for area, label in zip(areas.tolist(), out["labels"].tolist(), strict=True)
        )


def test_crop_draws_the_box_in_to_the_visible_mask():
    sample = make(20, 20, 0)
    mask = torch.zeros(1, 20, 20, dtype=torch.uint8)
    mask[0, :, :4] = 1  # an L: a bar at the left, a foot at the bottom
    mask[0, 16:, :] = 1
    sample["masks"] = tv_tensors.Mask(mask)
    sample["boxes"] = as_boxes(torch.tensor([[0.0, 0, 20, 20]]), (20, 20))
    sample["labels"], sample["ignore"] = torch.tensor([4]), torch.tensor([False])
    seen = set()
    for seed in range(60):
        out = RandomCrop(size=(18, 10), min_visible=0)(sample, rng(seed))
        if len(out["boxes"]):
            assert torch.equal(mask_boxes(out["masks"].as_subclass(torch.Tensor)), out["boxes"])
            seen.add(tuple(out["boxes"][0].tolist()))
    assert (0.0, 14.0, 10.0, 18.0) in seen  # the foot alone


def test_crop_drops_objects_without_visible_mask_but_not_ignore_regions():
    sample = make(20, 20, 0)
    masks = torch.zeros(3, 20, 20, dtype=torch.uint8)
    masks[:2, 12:, 12:] = 1  # the third bitmap is empty from the start
    sample["masks"] = tv_tensors.Mask(masks)
    sample["boxes"] = as_boxes(torch.tensor([[0.0, 0, 20, 20]] * 3), (20, 20))
    sample["labels"], sample["ignore"] = torch.arange(3), torch.tensor([False, True, False])
    out = crop(sample, (0, 0, 10, 10), torch.ones(3, dtype=torch.bool))
    assert out["labels"].tolist() == [1, 2]
    assert_sound(out)


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10**6))
def test_min_iou_crop_keeps_objects_by_their_centre(seed):
    sample = make(50, 60, 4, seed, masks=False)
    sample["ignore"][:] = False
    out = MinIoURandomCrop()(sample, rng(seed))
    assert len(out["boxes"])
    height, width = out["image"].shape[1:]
    if (height, width) != (50, 60):
        assert height >= int(0.3 * 50)
        assert width >= int(0.3 * 60)
        assert 0.5 <= height / width <= 2


def test_expand_keeps_the_pixels_and_fills_the_rest():
    sample = make(10, 12, 2)
    out = Expand(p=1.0, fill=(1, 2, 3))(sample, rng(1))
    x, y = (out["boxes"] - sample["boxes"])[0, :2].int().tolist()
    assert torch.equal(out["image"][:, y : y + 10, x : x + 12], sample["image"])
    outside = torch.ones(out["image"].shape[1:], dtype=torch.bool)
    outside[y : y + 10, x : x + 12] = False
    assert (out["image"][:, outside] == torch.tensor([1, 2, 3])[:, None]).all()
    assert Expand(p=0.0)(sample, rng()) is sample


def test_colour_shift_equals_hsv():
    import colorsys

    image = torch.rand(3, 6, 7, generator=rng())
    image[:, 0, 0] = 0.5  # grey, without a hue
    for saturation, angle in ((0.7, 0.0), (0.5, 18.0), (1.0, -100.0), (0.9, 250.0)):
        out = shift_colours(image, saturation, angle).flatten(1).T.tolist()
        for pixel, result in zip(image.flatten(1).T.tolist(), out, strict=True):
            h, s, v = colorsys.rgb_to_hsv(*pixel)
            assert result == pytest.approx(
                colorsys.hsv_to_rgb((h + angle / 360) % 1, s * saturation, v), abs=1e-5
            )


def test_photometric_ranges_and_probability():
    grey = make(4, 4, 1)
    grey["image"] = tv_tensors.Image(torch.full((3, 4, 4), 100, dtype=torch.uint8))
    generator = rng()
    values = [
        PhotometricDistortion(p=1.0, contrast=(1.0, 1.0))(grey, generator)["image"].unique().tolist()
        for _ in range(200)
    ]
    assert all(len(v) == 1 for v in values)  # a grey image has neither saturation nor hue
    assert 68 <= min(values)[0] < 74
    assert 126 < max(values)[0] <= 132
    assert PhotometricDistortion(p=0.0)(grey, generator) is grey
    out = PhotometricDistortion(p=1.0)(make(), rng())
    assert torch.equal(out["boxes"], make()["boxes"])


@pytest.mark.parametrize(
    ("part", "arguments", "named"),
    [
        (RandomCrop, {}, "exactly one"),
        (RandomCrop, {"size": (3, 3), "share": (0.5, 0.5)}, "exactly one"),
        (RandomCrop, {"scale": (0.5, 1.5)}, "scale"),
        (RandomCrop, {"size": (3.5, 3)}, "whole"),
        (RandomCrop, {"share": (1.5, 1)}, "share"),
        (RandomCrop, {"size": (3, 3), "min_visible": 0.5}, "min_visible"),
        (MinIoURandomCrop, {"min_side": 0}, "min_side"),
        (ResizeByRange, {"shorts": (800, 640)}, "lowest"),
        (ResizeByRange, {"long": (800, 640)}, "long must be"),
        (ResizeByValue, {"shorts": ()}, "shorts"),
        (ResizeFixed, {"size": (3, 3, 3)}, "height"),
        (Resize, {"short": 0}, "short"),
    ],
)
def test_wrong_arguments_are_named(part, arguments, named):
    with pytest.raises(ConfigError, match=named):
        part(**arguments)


@pytest.mark.parametrize("transform", [t for t in SPATIAL if isinstance(t, Resizing)], ids=repr)
@settings(max_examples=30, deadline=None)
@given(height=st.integers(2, 200), width=st.integers(2, 200), seed=st.integers(0, 10**6))
def test_no_result_is_larger_than_said(transform, height, width, seed):
    sample = make(height, width, 0, masks=False)
    out = transform(sample, rng(seed))
    largest = transform.largest_size((height, width))
    assert all(side <= limit for side, limit in zip(out["image"].shape[-2:], largest, strict=True))
