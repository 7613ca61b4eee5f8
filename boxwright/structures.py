"""The data that the parts of a detector hand to each other: dataclasses of padded tensors.

Letters in shapes: B images, G ground truths, A priors, R regions, K detections, C classes, L levels.
Boxes are `xyxy` in absolute pixels of the network input, float32, continuous: a pixel covers [x, x+1).
Sizes are `(height, width)`. Things that vary in number from image to image are padded to a fixed
number of slots; a boolean mask says which slots are filled. Labels are 0 .. C-1 without background.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor

NO_CLASS = 255
"""In a map of semantic classes: a pixel without one, and the padding."""


@dataclass(frozen=True)
class FeatureSpec:
    """Channels and stride of one feature level, declared by backbones and necks."""

    channels: int
    stride: int


@dataclass(frozen=True)
class MaskCrops:
    """Instance masks of a batch, each cropped to its own extent, one behind the other.

    A full bitmap of every object on the canvas would weigh B x G x H x W bytes; the crops hold exactly
    the same pixels in the sum of the objects' areas.

    Args:
        pixels: `(P,)` uint8, 0 or 1; the rows of each crop. P is rounded up, the rest is 0.
        boxes: `(B, G, 4)` int64, x1, y1, x2, y2 of each crop on the canvas, x2 and y2 exclusive.
        offset: `(B, G)` int64, where in `pixels` a crop begins.
    """

    pixels: Tensor
    boxes: Tensor
    offset: Tensor

    @property
    def present(self) -> Tensor:
        """`(B, G)` bool, the object has a mask: a crop of some area."""
        return self.boxes[..., 2] > self.boxes[..., 0]


@dataclass(frozen=True)
class Targets:
    """Ground truth of a batch.

    Args:
        boxes: `(B, G, 4)` float32.
        labels: `(B, G)` int64; 0 in empty slots.
        valid: `(B, G)` bool, the slot holds an object to be found.
        ignore: `(B, G)` bool, the slot holds a region (crowd, difficult) that counts neither way.
            Never true together with `valid`; neither is true in an empty slot.
        masks: the objects' masks, where the data has them.
        semantic: `(B, H, W)` uint8, the semantic class (things and stuff) of each pixel of the canvas, where
            the data has maps of them; `NO_CLASS` where there is none and in the padding. A head that predicts
            at a stride takes the pixels that it needs.
    """

    boxes: Tensor
    labels: Tensor
    valid: Tensor
    ignore: Tensor
    masks: MaskCrops | None = None
    semantic: Tensor | None = None


@dataclass(frozen=True)
class Batch:
    """Images of one step, padded at the right and at the bottom to one canvas.

    Args:
        images: `(B, 3, H, W)` uint8 (or float in 0..255), RGB, not normalised; 0 in the padding.
        sizes: `(B, 2)` int64, height and width of each image on the canvas.
        targets: ground truth in pixels of the canvas; None for prediction.
        image_ids: identity of each image in its data set. Never read inside a model.
        original_sizes: `(B, 2)` int64, height and width of the image file (after EXIF orientation).
    """

    images: Tensor
    sizes: Tensor
    targets: Targets | None = None
    image_ids: tuple[int, ...] = ()
    original_sizes: Tensor | None = None


@dataclass(frozen=True)
class Detections:
    """Predictions of a batch, padded to K slots, in decreasing order of score.

    Args:
        boxes: `(B, K, 4)` float32, clipped to the image.
        scores: `(B, K)` float32, 0 in empty slots.
        labels: `(B, K)` int64.
        valid: `(B, K)` bool.
        masks: `(B, K, S, S)` float32, probability of the object inside its box, or None.
    """

    boxes: Tensor
    scores: Tensor
    labels: Tensor
    valid: Tensor
    masks: Tensor | None = None


@dataclass(frozen=True)
class Priors:
    """What a detector predicts relative to: anchors, points (as squares of one stride), proposals.

    Args:
        boxes: `(A, 4)` where all images share them (anchors, points) or `(B, A, 4)` (proposals, anchors that
            the network predicts), float32.
        strides: `(A,)` float32, stride of each prior's level; proposals have 1.
        num_per_level: how many priors each level has; they sum to A.
        valid: `(B, A)` bool, priors that take part; None for all.
        num_per_place: priors at one place of the feature map.
    """

    boxes: Tensor
    strides: Tensor
    num_per_level: tuple[int, ...]
    valid: Tensor | None = None
    num_per_place: int = 1


@dataclass(frozen=True)
class Assignment:
    """What each prior is trained for. A prior that is neither positive nor ignored is negative.

    Args:
        gt_index: `(B, A)` int64, slot of the ground truth (best overlap where not positive; any if none).
        positive: `(B, A)` bool.
        ignore: `(B, A)` bool, counts neither way. Never true together with `positive`.
        score: `(B, A)` float32, the target of the class score for soft assigners, or None (it is 1).
        overlap: `(B, A)` float32, largest IoU with any ground truth, -1 for priors that take no part and
            where there are no ground truths; None where the rule does not ask for it.
    """

    gt_index: Tensor
    positive: Tensor
    ignore: Tensor
    score: Tensor | None = None
    overlap: Tensor | None = None

    @property
    def negative(self) -> Tensor:
        """`(B, A)` bool."""
        return ~(self.positive | self.ignore)


@dataclass(frozen=True)
class DensePredictions:
    """Raw outputs of a dense head over all A priors, levels one behind the other.

    Args:
        class_logits: `(B, A, C)`.
        codes: `(B, A, coder.size)`.
        quality_logits: `(B, A)` centreness, IoU or objectness; None without such a branch.
    """

    class_logits: Tensor
    codes: Tensor
    quality_logits: Tensor | None = None


Structure = TypeVar("Structure", MaskCrops, Targets, Batch, Detections, Priors, Assignment, DensePredictions)


def to_device(structure: Structure, device: torch.device | str, non_blocking: bool = True) -> Structure:
    """The same structure with every tensor in it on `device`; other fields are untouched."""

    def move(value: object) -> object:
        if isinstance(value, Tensor):
            return value.to(device, non_blocking=non_blocking)
        return to_device(value, device, non_blocking) if dataclasses.is_dataclass(value) else value  # pyright: ignore

    fields = {f.name: move(getattr(structure, f.name)) for f in dataclasses.fields(structure)}
    return dataclasses.replace(structure, **fields)


def pin_memory(structure: Structure) -> Structure:
    """The same structure in page-locked memory, from which copies to a GPU run in the background."""

    def pin(value: object) -> object:
        if isinstance(value, Tensor):
            return value.pin_memory()
        return pin_memory(value) if dataclasses.is_dataclass(value) else value  # pyright: ignore

    fields = {f.name: pin(getattr(structure, f.name)) for f in dataclasses.fields(structure)}
    return dataclasses.replace(structure, **fields)


def slot_count(count: int, sizes: tuple[int, ...] = (4, 8, 16, 32, 64, 128, 256, 512, 1024)) -> int:
    """Slots for `count` objects: the next of a few sizes, so that few graphs are compiled."""
    return next((size for size in sizes if size >= count), -(-count // sizes[-1]) * sizes[-1])
