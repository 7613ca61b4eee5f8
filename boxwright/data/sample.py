"""From a record of the table to a sample: the decoded image and its objects as TVTensors."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NotRequired, Protocol, TypeAlias, TypedDict, runtime_checkable

import numpy as np
import torch
from PIL import Image
from torchvision import tv_tensors

from ..errors import ConfigError, DataError
from .images import decode_reduced
from .masks import to_bitmap
from .records import Record
from .semantic import load_map


class Sample(TypedDict):
    """One image with its n objects, as transforms take and return it.

    Before a `Resizing` transform the image can have fewer pixels than the `canvas_size` of the boxes says,
    which all else refers to.

    Keys:
        image: `(3, H, W)` uint8, RGB.
        boxes: `(n, 4)` float32 xyxy in pixels of the image, inside of it.
        labels: `(n,)` int64.
        ignore: `(n,)` bool, regions that count neither way.
        masks: `(n, H, W)` uint8, 0 or 1, all 0 for an object without a mask; absent where not asked for.
        semantic: `(H, W)` uint8, class of each pixel or `NO_CLASS`; absent where maps are not asked for.
        image_id: identity of the image in its split.
        original_size: height and width of the file, whatever the transforms do.
        file: path of the file, for messages.
    """

    image: tv_tensors.Image
    boxes: tv_tensors.BoundingBoxes
    labels: torch.Tensor
    ignore: torch.Tensor
    masks: NotRequired[tv_tensors.Mask]
    semantic: NotRequired[tv_tensors.Mask]
    image_id: int
    original_size: tuple[int, int]
    file: str


Transform: TypeAlias = Callable[[Sample, torch.Generator], Sample]
"""A weightless part that takes a sample and the generator to draw from, and returns a new sample."""


Size: TypeAlias = tuple[int, int]
"""Height and width in pixels."""


@runtime_checkable
class Resizing(Protocol):
    """A transform that only resizes, so that an image before it may be decoded at a reduced size."""

    def largest_size(self, size: Size) -> Size:
        """A size that it never exceeds on an image of `size`."""
        ...

    def __call__(self, sample: Sample, generator: torch.Generator) -> Sample:
        """Resize to a size that follows from the boxes' `canvas_size` and the generator."""
        ...


def needed_size(transforms: Sequence[Transform]) -> Callable[[Size], Size]:
    """How large an image must be decoded for these transforms: see `decode_reduced`.

    Raises:
        ConfigError: the first of them does not resize.
    """
    if transforms and isinstance(transforms[0], Resizing):
        return transforms[0].largest_size
    first = type(transforms[0]).__name__ if transforms else "none"
    raise ConfigError(
        f"reduced_decoding: the first transform must resize, but is {first}: put a Resize first in training "
        "and evaluation, or decode in full (reduced_decoding=false)"
    )


def image_tensor(image: Image.Image) -> tv_tensors.Image:
    """A PIL image of mode RGB as a `(3, H, W)` uint8 tensor.

    The channels of a pixel stay side by side in memory, as in the decoded image: nothing is transposed,
    and it is the layout that resizing reads fastest.
    """
    pixels = torch.from_numpy(np.array(image, dtype=np.uint8))
    return tv_tensors.Image(pixels.permute(2, 0, 1))


def as_boxes(boxes: torch.Tensor, size: tuple[int, int]) -> tv_tensors.BoundingBoxes:
    """Plain `(n, 4)` xyxy boxes as a TVTensor of an image of `size` (height, width)."""
    return tv_tensors.BoundingBoxes(boxes.float(), format="XYXY", canvas_size=size)  # pyright: ignore


def load_sample(
    record: Record,
    with_masks: bool = False,
    with_semantic: bool = False,
    needed: Callable[[Size], Size] | None = None,
) -> Sample:
    """Decode the image of a record and put its objects beside it.

    Args:
        record: one row of a table.
        with_masks: rasterise the masks too, which some object of the split must then have; the bitmap of an
            object without one is empty.
        with_semantic: read the map of semantic classes too, which the record must then name.
        needed: decode the image no larger than needed, see `decode_reduced`; a `Resizing` transform must
            come next. Boxes, masks and the map are in full.

    Raises:
        DataError: the image cannot be decoded or has another size than the record says, or a mask or the
            map is missing or damaged.
    """
    image, size = decode_reduced(record.file, needed)
    if size != (record.height, record.width):
        raise DataError(
            f"{record.file}: the image has {size[1]} x {size[0]} pixels, but its annotation says "
            f"{record.width} x {record.height}; correct the annotation's width and height (boxes may need "
            "scaling) or the file"
        )
    boxes = torch.tensor(record.boxes, dtype=torch.float32).reshape(-1, 4)
    sample: Sample = {
        "image": image_tensor(image),
        "boxes": as_boxes(boxes, size),
        "labels": torch.tensor(record.labels, dtype=torch.int64),
        "ignore": torch.tensor(record.ignore, dtype=torch.bool),
        "image_id": record.image_id,
        "original_size": size,
        "file": str(record.file),
    }
    if with_masks:
        sample["masks"] = _rasterise(record)
    if with_semantic:
        if record.semantic is None:
            raise DataError(
                f"{record.file}: has no semantic map; open the data set with folder(..., semantic=)"
            )
        sample["semantic"] = load_map(record.semantic, size)
    return sample


def _rasterise(record: Record) -> tv_tensors.Mask:
    if record.masks is None and not record.ignore.all():
        raise DataError(
            f"{record.file}: its split has no masks, but masks are asked for; annotate them, or train a "
            "detector of boxes (`with_masks=False`)"
        )
    bitmaps = torch.zeros((len(record.boxes), record.height, record.width), dtype=torch.uint8)
    for i, mask in enumerate(record.masks or ()):
        if not mask:
            continue
        try:
            bitmaps[i] = torch.from_numpy(to_bitmap(mask, record.height, record.width))
        except DataError as error:
            raise DataError(f"{record.file}: mask of object {i}: {error}") from error
    return tv_tensors.Mask(bitmaps)
