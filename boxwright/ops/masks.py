"""Instance masks: packing into crops, training targets from crops, pasting predictions onto the image."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torchvision  # registers torch.ops.torchvision.roi_align  # noqa: F401
from torch import Tensor
from torch.nn import functional as F

from boxwright.errors import DataError
from boxwright.ops.backends import use_triton
from boxwright.structures import MaskCrops

_MIN_PIXELS = 4096
_CHUNK_PIXELS = 1 << 26  # of one intermediate in `paste` beside the CPU: 256 MiB of float32


def pack(masks: Sequence[Tensor], slots: int) -> MaskCrops:
    """Crop each mask to its own extent and lay the crops one behind the other.

    Args:
        masks: one `(n_i, H_i, W_i)` uint8 or bool per image, in pixels of the canvas (padding at the right
            and at the bottom may be missing). A mask may be empty: its crop has no area.
        slots: G, ground truth slots of an image.

    Returns:
        Crops for `(B, G)` slots; the number of pixels is rounded up to 2^k or 3 * 2^k.

    Raises:
        DataError: an image has more masks than there are slots.
    """
    boxes = torch.zeros(len(masks), slots, 4, dtype=torch.int64)
    offset = torch.zeros(len(masks), slots, dtype=torch.int64)
    pieces: list[Tensor] = []
    total = 0
    for b, mask in enumerate(masks):
        if len(mask) > slots:
            raise DataError(f"image {b} of the batch has {len(mask)} masks but {slots} slots: raise `slots`")
        boxes[b, : len(mask)] = _extents(mask)
        for g, (x1, y1, x2, y2) in enumerate(boxes[b, : len(mask)].tolist()):
            pieces.append((mask[g, y1:y2, x1:x2] != 0).to(torch.uint8).flatten())
            offset[b, g] = total
            total += len(pieces[-1])
    pixels = torch.zeros(_rounded(total), dtype=torch.uint8)
    if pieces:
        torch.cat(pieces, out=pixels[:total])
    return MaskCrops(pixels, boxes, offset)


def unpack(crops: MaskCrops, height: int, width: int) -> Tensor:
    """Full bitmaps `(B, G, height, width)` uint8 of all slots: for tests and drawing, it is large."""
    batch, slots = crops.offset.shape
    masks = crops.pixels.new_zeros(batch, slots, height, width)
    for b in range(batch):
        for g in range(slots):
            x1, y1, x2, y2 = crops.boxes[b, g].tolist()
            masks[b, g, y1:y2, x1:x2] = _crop(crops.pixels, crops.offset[b, g].item(), (x1, y1, x2, y2))
    return masks


def mask_targets(
    crops: MaskCrops,
    boxes: Tensor,
    gt_index: Tensor,
    positive: Tensor,
    canvas: tuple[int, int],
    size: int,
    aligned: bool = True,
) -> Tensor:
    """What the mask branch is trained for: each positive region's object, pooled to the mask's resolution.

    The values are those of RoIAlign (stride 1, adaptive sampling) on the object's full bitmap, without
    ever making it. Mask R-CNN (arXiv:1703.06870 sec. 3) trains for them thresholded at 0.5.

    Args:
        crops: the ground truths' masks.
        boxes: `(B, R, 4)` regions in pixels of the canvas.
        gt_index: `(B, R)` int64, slot of the object each region is matched to.
        positive: `(B, R)` bool.
        canvas: height and width of the canvas, where sampling ends.
        size: S, bins along each side.
        aligned: half-pixel shift, as in `ops.roi_align`.

    Returns:
        `(B, R, S, S)` float32 in [0, 1], 0 where not positive. No gradient.
    """
    return _mask_targets_op(
        *(boxes.detach().float(), gt_index, positive, size, aligned, canvas[0], canvas[1]),
        *(crops.pixels, crops.boxes, crops.offset),
    )


def mask_targets_reference(
    crops: MaskCrops,
    boxes: Tensor,
    gt_index: Tensor,
    positive: Tensor,
    canvas: tuple[int, int],
    size: int,
    aligned: bool = True,
) -> Tensor:
    """The definition of `mask_targets`: RoIAlign on full bitmaps."""
    bitmaps = unpack(crops, *canvas).float().flatten(0, 1)[:, None]
    slots = crops.offset.shape[1]
    image = torch.arange(boxes.shape[0], device=boxes.device)[:, None]
    rois = torch.cat(((image * slots + gt_index)[..., None].float(), boxes.float()), -1).flatten(0, 1)
    pooled = torch.ops.torchvision.roi_align(bitmaps, rois, 1.0, size, size, 0, aligned)
    return pooled.reshape(*gt_index.shape, size, size) * positive[..., None, None]


def paste(masks: Tensor, boxes: Tensor, height: int, width: int, threshold: float = 0.5) -> Tensor:
    """Resize predicted masks into their boxes on the image and threshold them.

    A pixel's value is sampled at its centre, bilinearly, with zeros around the mask: what Detectron2's and
    MMDetection's pasting give.

    Args:
        masks: `(K, S, S)` probabilities.
        boxes: `(K, 4)` pixels of the image; may reach beyond it. Boxes without area give empty masks.
        height: of the image.
        width: of the image.
        threshold: a pixel belongs to the object where its value is at least this.

    Returns:
        `(K, height, width)` bool.
    """
    run = _paste_in_boxes if masks.device.type == "cpu" else _paste_in_chunks
    return run(masks.detach().float(), boxes.detach().float(), height, width, threshold)


def paste_reference(masks: Tensor, boxes: Tensor, height: int, width: int, threshold: float = 0.5) -> Tensor:
    """The definition of `paste`: every mask sampled over the whole image."""
    values = _resample(masks.float(), boxes.float(), (0, 0, width, height))
    return (values >= threshold) & _has_area(boxes)[:, None, None]


@torch.library.custom_op("boxwright::mask_targets", mutates_args=())
def _mask_targets_op(
    boxes: Tensor,
    gt_index: Tensor,
    positive: Tensor,
    size: int,
    aligned: bool,
    height: int,
    width: int,
    pixels: Tensor,
    crop_boxes: Tensor,
    offset: Tensor,
) -> Tensor:
    if use_triton(boxes.device):
        from boxwright.ops import _mask_targets_triton

        crops = MaskCrops(pixels, crop_boxes, offset)
        return _mask_targets_triton.mask_targets(
            crops, boxes, gt_index, positive, (height, width), size, aligned
        )
    targets = boxes.new_zeros(*gt_index.shape, size, size, dtype=torch.float32)
    flat = targets.flatten(0, 1)
    slots = offset.shape[1]
    if slots == 0:
        return targets
    region = positive.flatten().nonzero()[:, 0]
    image = torch.arange(boxes.shape[0], device=boxes.device)[:, None]
    owner = (image * slots + gt_index).flatten()[region]
    owner, order = owner.sort()
    owners, counts = owner.unique_consecutive(return_counts=True)
    places = torch.cat((crop_boxes.reshape(-1, 4)[owners], offset.reshape(-1, 1)[owners]), 1).tolist()
    # One call per object, for all its regions: its crop is turned into floats once.
    for (*extent, start), regions in zip(places, region[order].split(counts.tolist()), strict=True):
        if extent[0] < extent[2]:
            bitmap, origin = _bordered(_crop(pixels, start, extent), extent, height, width)
            shifted = boxes.reshape(-1, 4)[regions].float() - torch.tensor(origin * 2, device=boxes.device)
            rois = F.pad(shifted, (1, 0))
            pooled = torch.ops.torchvision.roi_align(bitmap[None, None], rois, 1.0, size, size, 0, aligned)
            flat[regions] = pooled[:, 0]
    return targets


@_mask_targets_op.register_fake
def _mask_targets_fake(boxes: Tensor, gt_index: Tensor, positive: Tensor, size: int, *_: Any) -> Tensor:
    return boxes.new_empty(*gt_index.shape, size, size, dtype=torch.float32)


def _bordered(
    crop: Tensor, extent: Sequence[int], height: int, width: int
) -> tuple[Tensor, tuple[float, float]]:
    """The crop as floats with a pixel of zeros at each side, and the place (x, y) of its first pixel.

    RoIAlign goes on with the last pixel beyond the end of a map; the zeros make that right inside the
    canvas. At the canvas' own border the bitmap would go on with its last pixel too: no zeros there.
    """
    x1, y1, x2, y2 = extent
    left, top, right, bottom = int(x1 > 0), int(y1 > 0), int(x2 < width), int(y2 < height)
    return F.pad(crop.float(), (left, right, top, bottom)), (float(x1 - left), float(y1 - top))


def _crop(pixels: Tensor, start: int | float, extent: Sequence[int]) -> Tensor:
    x1, y1, x2, y2 = extent
    return pixels[int(start) : int(start) + (y2 - y1) * (x2 - x1)].view(y2 - y1, x2 - x1)


def _extents(masks: Tensor) -> Tensor:
    """`(n, 4)` int64: smallest box around the pixels of each mask `(n, H, W)`; zeros where there are none."""
    if masks.numel() == 0:
        return torch.zeros(len(masks), 4, dtype=torch.int64)
    (x1, x2), (y1, y2) = _ends((masks != 0).any(1)), _ends((masks != 0).any(2))
    return torch.stack((x1, y1, x2, y2), 1)


def _ends(occupied: Tensor) -> tuple[Tensor, Tensor]:
    """First and last + 1 of the true places in each row of `(n, length)`; 0 and 0 where there are none."""
    occupied = occupied.to(torch.uint8)
    first = occupied.argmax(1)
    last = occupied.shape[1] - occupied.flip(1).argmax(1)
    return first, torch.where(occupied.amax(1) > 0, last, 0)


def _rounded(count: int) -> int:
    """The next of 4096, 6144, 8192, 12288, ...: at most half too many, and few different graphs."""
    size = _MIN_PIXELS
    while size < count:
        size *= 2
    return size * 3 // 4 if size > _MIN_PIXELS and size * 3 // 4 >= count else size


def _paste_in_boxes(masks: Tensor, boxes: Tensor, height: int, width: int, threshold: float) -> Tensor:
    """Sample where a mask can reach only, one object after the other, columns first and then rows.

    Bilinear sampling is separable. The columns of the small mask are cheap; the rows of the result are then
    means of whole rows, which lie in one piece in memory.
    """
    output = torch.zeros(len(masks), height, width, dtype=torch.bool)
    padded = F.pad(masks, (1, 1, 1, 1))
    columns = _Taps.of(boxes[:, 0], boxes[:, 2], masks.shape[-1], width)
    rows = _Taps.of(boxes[:, 1], boxes[:, 3], masks.shape[-2], height)
    reach = torch.cat((columns.reach, rows.reach), 1).tolist()
    for mask, out, x, x_share, y, y_share, (x1, x2, y1, y2) in zip(
        *(padded, output, columns.low, columns.share, rows.low, rows.share, reach), strict=True
    ):
        if x1 < x2 and y1 < y2:
            x, y, y_share = x[x1:x2], y[y1:y2], y_share[y1:y2, None]
            lines = torch.lerp(mask.index_select(1, x), mask.index_select(1, x + 1), x_share[x1:x2])
            values = torch.lerp(lines.index_select(0, y), lines.index_select(0, y + 1), y_share)
            torch.ge(values, threshold, out=out[y1:y2, x1:x2])
    return output


class _Taps(NamedTuple):
    """Where the pixels of one axis are sampled from, in cells of masks with a border of one zero.

    Args:
        reach: `(K, 2)` int64, the first pixel that a mask reaches and the first behind it.
        low: `(K, pixels)` int64, the cell before the pixel's centre; right within the reach.
        share: `(K, pixels)` float32, weight of the cell after it.
    """

    reach: Tensor
    low: Tensor
    share: Tensor

    @classmethod
    def of(cls, start: Tensor, end: Tensor, side: int, pixels: int) -> _Taps:
        """For masks of `side` cells between `start` and `end`, both `(K,)`, on an image of so many pixels."""
        centres = torch.arange(pixels, dtype=torch.float32) + 0.5
        length = (end - start).clamp(min=1e-6)[:, None]
        position = (centres - start[:, None]) / length * side - 0.5
        last = (position < side).sum(1) * (end > start)
        low = position.floor()
        return cls(torch.stack(((position <= -1).sum(1), last), 1), low.long() + 1, position - low)


def _paste_in_chunks(masks: Tensor, boxes: Tensor, height: int, width: int, threshold: float) -> Tensor:
    """Sample the whole image, for as many objects at once as memory allows: few kernels, no waiting."""
    output = torch.zeros(len(masks), height, width, dtype=torch.bool, device=masks.device)
    step = max(1, _CHUNK_PIXELS // max(height * width, 1))
    for k in range(0, len(masks), step):
        output[k : k + step] = paste_reference(
            masks[k : k + step], boxes[k : k + step], height, width, threshold
        )
    return output


def _has_area(boxes: Tensor) -> Tensor:
    return (boxes[:, 2] > boxes[:, 0]) & (boxes[:, 3] > boxes[:, 1])


def _resample(masks: Tensor, boxes: Tensor, window: tuple[int, int, int, int]) -> Tensor:
    """Values `(K, h, w)` of masks `(K, S, S)` stretched over their boxes, at the window's pixel centres."""
    x1, y1, x2, y2 = window
    if x2 <= x1 or y2 <= y1 or len(masks) == 0:
        return masks.new_zeros(len(masks), max(y2 - y1, 0), max(x2 - x1, 0))
    axes = []
    for k, (first, last) in enumerate(((x1, x2), (y1, y2))):
        centres = torch.arange(first, last, device=masks.device, dtype=torch.float32) + 0.5
        start, length = boxes[:, k, None], (boxes[:, k + 2] - boxes[:, k]).clamp(min=1e-6)[:, None]
        axes.append((centres - start) / length * 2 - 1)
    x, y = axes
    grid = torch.stack(torch.broadcast_tensors(x[:, None, :], y[:, :, None]), -1)
    return F.grid_sample(masks[:, None], grid, mode="bilinear", padding_mode="zeros", align_corners=False)[
        :, 0
    ]
