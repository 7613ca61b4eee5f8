"""What the transforms share: moving image, boxes and masks together, dropping objects, drawing numbers.

Everything here takes a sample and returns a new one; the tensors of the given sample are never written to.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as F

from ...ops import boxes as box_ops
from ..sample import Sample, as_boxes


def uniform(generator: torch.Generator, low: float, high: float) -> float:
    """One number from [low, high)."""
    return low + (high - low) * float(torch.rand((), generator=generator, dtype=torch.float64))


def integer(generator: torch.Generator, low: int, high: int) -> int:
    """One integer from low .. high, both included."""
    return int(torch.randint(low, high + 1, (), generator=generator))


def chance(generator: torch.Generator, probability: float) -> bool:
    """True with the given probability."""
    return uniform(generator, 0.0, 1.0) < probability


def image_size(sample: Sample) -> tuple[int, int]:
    """Height and width of the sample's image as it is now."""
    height, width = sample["image"].shape[-2:]
    return int(height), int(width)


def full_size(sample: Sample) -> tuple[int, int]:
    """Height and width that the boxes refer to; the image has fewer pixels where it was decoded reduced."""
    height, width = sample["boxes"].canvas_size
    return int(height), int(width)


def mask_boxes(masks: Tensor) -> Tensor:
    """The tightest boxes `(n, 4)` float32 around bitmaps `(n, H, W)`; zeros for an empty bitmap."""
    boxes = torch.zeros(len(masks), 4)
    for start, axis in ((0, 1), (1, 2)):  # columns give x1 and x2, rows give y1 and y2
        covered = masks.amax(axis).bool() if masks.numel() else torch.zeros(len(masks), 1, dtype=torch.bool)
        count = covered.shape[1]
        first = covered.int().argmax(1)
        last = count - covered.flip(1).int().argmax(1)
        found = covered.any(1)
        boxes[:, start] = torch.where(found, first, 0).float()
        boxes[:, start + 2] = torch.where(found, last, 0).float()
    return boxes


def select(sample: Sample, keep: Tensor) -> Sample:
    """The sample with those objects only that `keep` `(n,)` bool marks: boxes, labels, ignore and masks."""
    if bool(keep.all()):
        return sample
    out = sample.copy()
    out["boxes"] = as_boxes(sample["boxes"].as_subclass(Tensor)[keep], image_size(sample))
    out["labels"], out["ignore"] = sample["labels"][keep], sample["ignore"][keep]
    if "masks" in sample:
        out["masks"] = tv_tensors.Mask(sample["masks"].as_subclass(Tensor)[keep])
    return out


def resize(sample: Sample, size: tuple[int, int]) -> Sample:
    """Image, boxes, masks and semantic map at a new `size` (height, width).

    The image is resized bilinearly with antialiasing, which agrees with Pillow within one grey level; on
    the CPU torch does this on uint8 with vector instructions, fastest where the channels of a pixel lie side
    by side, as they do after decoding. Masks and maps take the nearest pixel by centres (`nearest-exact`):
    plain `nearest` shifts them by up to one output pixel against the boxes.
    """
    old = full_size(sample)
    if size == old == image_size(sample):
        return sample
    out = sample.copy()
    image = F.resize(sample["image"], list(size), InterpolationMode.BILINEAR, antialias=True)
    out["image"] = tv_tensors.Image(image)
    (old_height, old_width), (height, width) = old, size
    boxes = sample["boxes"].as_subclass(Tensor)
    ratio = torch.tensor([width / old_width, height / old_height] * 2)
    out["boxes"] = as_boxes(box_ops.clip(boxes * ratio, torch.tensor(size)), size)
    if "masks" in sample:
        masks = sample["masks"].as_subclass(Tensor)
        if len(masks):
            masks = F.resize_image(masks, list(size), InterpolationMode.NEAREST_EXACT)
        out["masks"] = tv_tensors.Mask(masks if len(masks) else masks.new_zeros((0, *size)))
    if "semantic" in sample:
        one = sample["semantic"].as_subclass(Tensor)[None]
        out["semantic"] = tv_tensors.Mask(F.resize_image(one, list(size), InterpolationMode.NEAREST_EXACT)[0])
    return out


def scaled_size(size: tuple[int, int], short: float, long: float) -> tuple[int, int]:
    """The largest size of the same ratio with short side at most `short` and long side at most `long`.

    Rounded as MMDetection does: `int(side * scale + 0.5)`, at least 1.
    """
    scale = min(long / max(size), short / min(size))
    return max(1, int(size[0] * scale + 0.5)), max(1, int(size[1] * scale + 0.5))


def crop(sample: Sample, window: tuple[int, int, int, int], keep: Tensor) -> Sample:
    """The part of a sample inside `window` (x1, y1, x2, y2, whole pixels) with the objects that `keep` marks.

    Boxes are cut to the window. Where there are masks, the box of an object that the window cuts is
    further drawn in to the visible part of its mask, and an object of whose mask nothing is left in the
    window is dropped.
    """
    x1, y1, x2, y2 = window
    size = (y2 - y1, x2 - x1)
    before = select(sample, keep)
    out = before.copy()
    out["image"] = tv_tensors.Image(F.crop(before["image"], y1, x1, *size))
    moved = before["boxes"].as_subclass(Tensor) - torch.tensor([x1, y1, x1, y1], dtype=torch.float32)
    boxes = box_ops.clip(moved, torch.tensor(size))
    if "semantic" in before:
        out["semantic"] = tv_tensors.Mask(before["semantic"].as_subclass(Tensor)[y1:y2, x1:x2])
    if "masks" not in before:
        out["boxes"] = as_boxes(boxes, size)
        return out
    masks = before["masks"].as_subclass(Tensor)[:, y1:y2, x1:x2]
    out["masks"] = tv_tensors.Mask(masks)
    tight = mask_boxes(masks)
    empty = box_ops.area(tight) <= 0
    cut = ((boxes != moved).any(1) & ~empty)[:, None]
    drawn_in = torch.cat([torch.maximum(boxes, tight)[:, :2], torch.minimum(boxes, tight)[:, 2:]], 1)
    # A mask that reaches out of its own box could leave less than a pixel: such a box is only cut.
    cut &= (drawn_in[:, 2:] - drawn_in[:, :2] >= 1).all(1, keepdim=True)
    out["boxes"] = as_boxes(torch.where(cut, drawn_in, boxes), size)
    # A bitmap can be empty before: an ignore region without a mask, an object thinner than a pixel.
    if bool(empty.any()):
        vanished = empty & before["masks"].as_subclass(Tensor).flatten(1).bool().any(1)
        return select(out, ~vanished | out["ignore"])
    return out


def remains(boxes: Tensor, window: tuple[int, int, int, int]) -> tuple[Tensor, Tensor]:
    """How much of each box a window shows: visible area, and the most that such a window could show, `(n,)`.

    The most is `min(width, window width) * min(height, window height)`: an object larger than the window
    is not judged by what could never fit. Visible parts less than one pixel wide or high count as nothing.
    """
    x1, y1, x2, y2 = window
    low = torch.maximum(boxes[:, :2], boxes.new_tensor([x1, y1]))
    high = torch.minimum(boxes[:, 2:], boxes.new_tensor([x2, y2]))
    sides = high - low
    visible = torch.where((sides >= 1).all(1), sides.prod(1), 0.0)
    most = torch.minimum(boxes[:, 2:] - boxes[:, :2], boxes.new_tensor([x2 - x1, y2 - y1])).prod(1)
    return visible, most


def centres_inside(boxes: Tensor, window: tuple[int, int, int, int]) -> Tensor:
    """Which boxes `(n,)` have their centre inside the window."""
    x1, y1, x2, y2 = window
    centres = (boxes[:, :2] + boxes[:, 2:]) / 2
    return ((centres >= centres.new_tensor([x1, y1])) & (centres < centres.new_tensor([x2, y2]))).all(1)


def whole(numbers: Sequence[float]) -> bool:
    """Whether all numbers are whole and positive."""
    return all(number >= 1 and math.floor(number) == number for number in numbers)
