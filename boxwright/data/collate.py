"""From samples to a batch: images padded to one canvas, objects padded to a number of slots."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from ..errors import DataError
from ..ops.masks import pack
from ..structures import NO_CLASS, Batch, MaskCrops, Targets, slot_count
from .canvas import Canvas
from .sample import Sample


def collate(samples: Sequence[Sample], canvas: Canvas) -> Batch:
    """Pad samples to a batch.

    Args:
        samples: at least one; masks must be in all of them or in none, and semantic maps likewise.
        canvas: chooses the padded shape from the sizes of the images.

    Returns:
        A batch of B images in the order of the samples: uint8, 0 in the padding, and `G = slot_count(most
        objects of an image)` slots. The images lie in memory with the channels innermost (`channels_last`),
        as decoded images do: whole rows are copied, and convolutions in low precision want it so. A slot
        whose object is an `ignore` region is not `valid`. The batch has masks where the samples have, also
        when none of its images holds an object; semantic maps are padded with `NO_CLASS`.

    Raises:
        DataError: an image does not fit the canvas, masks or maps are in some of the samples only, the
            samples' boxes, labels, ignore flags and masks differ in number, or boxes or a map are of another
            size than their image.
    """
    sizes = [(int(s["image"].shape[-2]), int(s["image"].shape[-1])) for s in samples]
    height, width = canvas.shape_for(sizes, [_name(s) for s in samples])
    images = torch.zeros((len(samples), height, width, 3), dtype=torch.uint8).permute(0, 3, 1, 2)
    for image, sample, (h, w) in zip(images, samples, sizes, strict=True):
        image[:, :h, :w] = sample["image"]
    return Batch(
        images=images,
        sizes=torch.tensor(sizes, dtype=torch.int64),
        targets=_targets(samples, (height, width)),
        image_ids=tuple(s["image_id"] for s in samples),
        original_sizes=torch.tensor([s["original_size"] for s in samples], dtype=torch.int64),
    )


def _targets(samples: Sequence[Sample], canvas: tuple[int, int]) -> Targets:
    for sample in samples:
        lengths = [len(sample["boxes"]), len(sample["labels"]), len(sample["ignore"])]
        if "masks" in sample:
            lengths.append(len(sample["masks"]))
        if len(set(lengths)) > 1:
            raise DataError(
                f"{_name(sample)}: a transform returned different numbers of boxes, labels, ignore flags "
                f"and masks: {lengths}"
            )
        size, canvas_size = tuple(sample["image"].shape[-2:]), tuple(sample["boxes"].canvas_size)
        if size != canvas_size:
            raise DataError(
                f"{_name(sample)}: the image has {size} (height, width) pixels, but its boxes lie on "
                f"{canvas_size}: a transform resized one of them only"
            )
    count = len(samples)
    slots = slot_count(max(len(s["boxes"]) for s in samples))
    boxes = torch.zeros((count, slots, 4))
    labels = torch.zeros((count, slots), dtype=torch.int64)
    valid = torch.zeros((count, slots), dtype=torch.bool)
    ignore = torch.zeros((count, slots), dtype=torch.bool)
    for i, sample in enumerate(samples):
        filled = len(sample["boxes"])
        boxes[i, :filled] = sample["boxes"].as_subclass(torch.Tensor)
        labels[i, :filled] = sample["labels"]
        valid[i, :filled] = ~sample["ignore"]
        ignore[i, :filled] = sample["ignore"]
    return Targets(boxes, labels, valid, ignore, _masks(samples, slots), _semantic(samples, canvas))


def _masks(samples: Sequence[Sample], slots: int) -> MaskCrops | None:
    lacking = [s for s in samples if "masks" not in s]
    if len(lacking) == len(samples):
        return None
    if lacking:
        raise DataError(
            f"{_name(lacking[0])}: has no masks, but other images of the batch have; give every object a "
            "mask, or train a detector of boxes (`with_masks=False`)"
        )
    return pack([s["masks"].as_subclass(torch.Tensor) for s in samples if "masks" in s], slots)


def _semantic(samples: Sequence[Sample], canvas: tuple[int, int]) -> torch.Tensor | None:
    lacking = [s for s in samples if "semantic" not in s]
    if len(lacking) == len(samples):
        return None
    if lacking:
        raise DataError(
            f"{_name(lacking[0])}: has no semantic map, but other images of the batch have; let transforms "
            "keep it"
        )
    maps = torch.full((len(samples), *canvas), NO_CLASS, dtype=torch.uint8)
    for padded, sample in zip(maps, samples, strict=True):
        assert "semantic" in sample
        height, width = sample["semantic"].shape
        if (height, width) != tuple(sample["image"].shape[-2:]):
            raise DataError(f"{_name(sample)}: a transform moved the image but not its semantic map")
        padded[:height, :width] = sample["semantic"].as_subclass(torch.Tensor)
    return maps


def _name(sample: Sample) -> str:
    return f"{sample['file']} (image id {sample['image_id']})"
