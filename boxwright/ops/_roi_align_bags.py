"""RoIAlign on the CPU: a sparse matrix product over all levels at once.

A bin's mean over its bilinear samples is a weighted sum of a few feature cells. With the cells of all
levels and images laid one after another as rows `(N, C)`, RoIAlign is `output = W @ cells` with a sparse `W`
and its gradient `W.T @ grad`. Both are sums over "bags" of rows (`torch.nn.functional.embedding_bag`), whose
inner loop runs along the channels: several times faster than visiting each channel's plane by itself, and in
the gradient no two threads write to one place.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F


@dataclass(frozen=True)
class Layout:
    """Where regions are pooled from, and how.

    Args:
        strides: pixels between neighbouring cells, per level.
        heights: of the levels, in cells.
        widths: the same.
        size: S, bins along each side.
        sampling_ratio: samples along each side of a bin; 0 for one a cell.
        aligned: whether coordinates are those of cell centres.
    """

    strides: Sequence[int]
    heights: Sequence[int]
    widths: Sequence[int]
    size: int
    sampling_ratio: int
    aligned: bool


@dataclass(frozen=True)
class Bags:
    """The non-zero elements of `W`, row by row.

    Args:
        row: `(n,)` int64, the slot (of all images) that each pooled region stands in.
        cell: `(m,)` int32, the column of each element.
        weight: `(m,)` float.
        start: `(n * S * S,)` int32, where each row of `W` begins.
    """

    row: Tensor
    cell: Tensor
    weight: Tensor
    start: Tensor

    def every_slot(self, slots: int) -> bool:
        """Whether the regions are all slots in their order."""
        return len(self.row) == slots and bool((self.row == torch.arange(slots)).all())


def forward(features: Sequence[Tensor], boxes: Tensor, level: Tensor, layout: Layout) -> Tensor:
    """`(B, R, C, S, S)` with the channels innermost in memory."""
    dtype = _computed_in(features[0])
    step = 1 if dtype != features[0].dtype else max(1, len(boxes))  # copies in float32 are of one image
    parts = zip(boxes.split(step), level.split(step), *(f.split(step) for f in features), strict=True)
    pooled = [_pool(maps, box.to(dtype), at, layout) for box, at, *maps in parts]
    output = pooled[0] if len(pooled) == 1 else torch.cat(pooled)
    return output.permute(0, 1, 4, 2, 3)


def backward(grad: Tensor, boxes: Tensor, level: Tensor, layout: Layout) -> list[Tensor]:
    """Gradient of each level's features, `(B, C, H_l, W_l)` with the channels innermost in memory."""
    dtype = _computed_in(grad)
    # All activations are held now: the regions' rows and their order are of one image at a time.
    parts = zip(grad.split(1), boxes.split(1), level.split(1), strict=True)
    grads = [_spread(part, box.to(dtype), at, layout) for part, box, at in parts]
    levels = []
    for _ in layout.strides:
        images = [of_image.pop(0) for of_image in grads]  # which are given free level by level
        levels.append((images[0] if len(images) == 1 else torch.cat(images)).permute(0, 3, 1, 2))
    return levels


def _computed_in(values: Tensor) -> torch.dtype:
    return torch.promote_types(values.dtype, torch.float32)


def _pool(features: Sequence[Tensor], boxes: Tensor, level: Tensor, layout: Layout) -> Tensor:
    """`(B, R, S, S, C)` in the features' dtype, computed in that of the boxes."""
    channels, size = features[0].shape[1], layout.size
    bags = _bags(boxes, level, layout)
    cells = features[0].new_empty(sum(f[:, 0].numel() for f in features), channels, dtype=boxes.dtype)
    for part, f in zip(cells.split([f[:, 0].numel() for f in features]), features, strict=True):
        rows = f.permute(0, 2, 3, 1)
        part.view(rows.shape).copy_(rows)
    pooled = _sum_bags(cells, bags.cell, bags.weight, bags.start).to(features[0].dtype)
    output = pooled
    if not bags.every_slot(level.numel()):
        bins = size * size * channels
        output = pooled.new_zeros(level.numel(), bins)
        output[bags.row] = pooled.view(len(bags.row), bins)
    return output.view(*level.shape, size, size, channels)


def _spread(grad: Tensor, boxes: Tensor, level: Tensor, layout: Layout) -> list[Tensor]:
    """`(B, H_l, W_l, C)` of each level in the gradient's dtype, computed in that of the boxes."""
    batch, _, channels = grad.shape[:3]
    bags = _bags(boxes, level, layout)
    rows = grad.permute(0, 1, 3, 4, 2).flatten(0, 1)
    if not bags.every_slot(len(rows)):
        rows = rows[bags.row]
    if rows.dtype != boxes.dtype:
        rows = rows.new_empty(rows.shape, dtype=boxes.dtype).copy_(rows)
    rows = rows.reshape(-1, channels)
    cell, order = bags.cell.sort(stable=True)
    ends = torch.cat((bags.start[1:], bags.start.new_tensor([len(cell)])))
    owner = torch.arange(len(bags.start), dtype=torch.int32)
    owner = owner.repeat_interleave(ends - bags.start, output_size=len(cell))[order]
    weight = bags.weight[order]
    grads, done, first = [], 0, 0
    for height, width in zip(layout.heights, layout.widths, strict=True):
        last = first + batch * height * width
        start = torch.searchsorted(cell, torch.arange(first, last + 1, dtype=cell.dtype), out_int32=True)
        part, first, begin, done = slice(done, int(start[-1])), last, done, int(start[-1])
        sums = _sum_bags(rows, owner[part], weight[part], start[:-1] - begin).to(grad.dtype)
        grads.append(sums.view(batch, height, width, channels))
    return grads


def _sum_bags(table: Tensor, index: Tensor, weight: Tensor, start: Tensor) -> Tensor:
    if len(index) == 0:
        return table.new_zeros(len(start), table.shape[1])
    return F.embedding_bag(index, table, start, per_sample_weights=weight, mode="sum")


def _bags(boxes: Tensor, level: Tensor, layout: Layout) -> Bags:
    """All regions in use, those that take the same number of samples together."""
    batch, regions = level.shape
    stride, height, width = (
        torch.tensor(v, dtype=boxes.dtype) for v in (layout.strides, layout.heights, layout.widths)
    )
    first = torch.tensor([0, *(batch * h * w for h, w in zip(layout.heights, layout.widths, strict=True))])
    row = (level.flatten() >= 0).nonzero()[:, 0]
    at = level.flatten()[row]
    base = first.cumsum(0)[at] + row // regions * (height * width).long()[at]
    corners = boxes.flatten(0, 1)[row] / stride[at, None] - (0.5 if layout.aligned else 0.0)
    lengths = corners[:, 2:] - corners[:, :2]
    if not layout.aligned:
        lengths = lengths.clamp(min=1)
    if layout.sampling_ratio:
        groups = [(layout.sampling_ratio, torch.arange(len(row)))]
        samples = torch.full((len(row), 2), layout.sampling_ratio)
    else:
        samples = (lengths / layout.size).ceil().clamp(min=0).nan_to_num(0).long()
        most = samples.amax(1)
        groups = [(int(m), (most == m).nonzero()[:, 0]) for m in most.unique()]
    cells, weights, counts = [], [], []
    for most, chosen in groups:
        taps = [
            _axis_taps(
                corners[chosen, k], lengths[chosen, k], samples[chosen, k], extent[at[chosen]], most, layout
            )
            for k, extent in ((1, height), (0, width))
        ]
        (y, y_weight), (x, x_weight) = taps
        y = base[chosen].int()[:, None, None] + y * width[at[chosen]].int()[:, None, None]
        cells.append((y[:, :, None, :, None] + x[:, None, :, None, :]).flatten())
        weights.append((y_weight[:, :, None, :, None] * x_weight[:, None, :, None, :]).flatten())
        counts.append(torch.full((len(chosen) * layout.size**2,), x.shape[-1] ** 2, dtype=torch.int32))
    if len(row) == 0:
        return Bags(row, row.int(), boxes.new_zeros(0), row.int())
    start = F.pad(torch.cat(counts).cumsum(0, dtype=torch.int32)[:-1], (1, 0))
    return Bags(row[torch.cat([g for _, g in groups])], torch.cat(cells), torch.cat(weights), start)


def _axis_taps(
    corner: Tensor, length: Tensor, samples: Tensor, extent: Tensor, most: int, layout: Layout
) -> tuple[Tensor, Tensor]:
    """The cells along one axis that each bin reads and their weights, `(n, S, taps)` both."""
    sample = torch.arange(most, dtype=corner.dtype)
    used = samples.to(corner.dtype)[:, None, None]
    place = torch.arange(layout.size, dtype=corner.dtype)[:, None] + (sample + 0.5) / used.clamp(min=1)
    position = corner[:, None, None] + place * (length / layout.size)[:, None, None]
    extent = extent[:, None, None]
    counted = (position >= -1) & (position <= extent) & (sample < used)
    position = torch.minimum(position.nan_to_num(0.0).clamp(min=0), extent - 1)
    scale = counted / used.clamp(min=1)
    if layout.sampling_ratio:
        low = position.floor()
        high = torch.minimum(low + 1, extent - 1)
        share = position - low
        return torch.cat((low, high), -1).int(), torch.cat(((1 - share) * scale, share * scale), -1)
    # Samples are at most a cell apart, so m of them lie among m + 1 cells: each is read once.
    cell = position[..., :1].floor() + torch.arange(most + 1, dtype=corner.dtype)
    distance = (position[..., None, :] - cell[..., :, None]).abs()
    weight = ((1 - distance).clamp(min=0) * scale[..., None, :]).sum(-1)
    return torch.minimum(cell, extent - 1).int(), weight
