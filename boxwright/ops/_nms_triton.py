"""Greedy suppression on a GPU without waiting for the host: pairs as bits, then one scan for each image."""

# Kernels are written in a language of their own, whose types a checker of Python does not know.
# pyright: reportArgumentType=false, reportOperatorIssue=false, reportCallIssue=false, reportIndexIssue=false
# pyright: reportAttributeAccessIssue=false, reportGeneralTypeIssues=false, reportReturnType=false

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

MAX_PAIR_BYTES = 2**28
"""Images are taken in chunks, so that their bit matrices stay below this."""

EXACTLY = {"enable_fp_fusion": False}
"""Products and sums are rounded one by one, so that an IoU has the very bits that it has on a CPU."""


def suppress(boxes: Tensor, groups: Tensor, valid: Tensor, limit: float) -> Tensor:
    """Which boxes stay, `(B, N)` bool, of boxes in decreasing order of score.

    Args:
        boxes: `(B, N, 4)` float32.
        groups: `(B, N)` int64; only boxes of one group suppress each other.
        valid: `(B, N)` bool.
        limit: a box is suppressed where the IoU, a float32, is above this float32.
    """
    batch, count = valid.shape
    keep = torch.zeros(batch, count, dtype=torch.int8, device=boxes.device)
    words = triton.cdiv(count, 32)
    if not valid.numel():
        return keep.bool()
    boxes, groups, valid = boxes.contiguous(), groups.contiguous(), valid.to(torch.int8).contiguous()
    step = max(1, MAX_PAIR_BYTES // (count * words * 4))
    for first in range(0, batch, step):
        chunk = slice(first, min(first + step, batch))
        images = chunk.stop - chunk.start
        bits = torch.empty(images, count, words, dtype=torch.int32, device=boxes.device)
        _pairs[(images, triton.cdiv(count, 32), words)](
            *(boxes[chunk], groups[chunk], bits, limit, count, words),
            **EXACTLY,
        )
        _scan[(images,)](
            bits, valid[chunk], keep[chunk], count, words, BLOCK=triton.next_power_of_2(words), **EXACTLY
        )
    return keep.bool()


@triton.jit
def _pairs(boxes, groups, bits, limit, count, words):
    """A word for each of 32 rows: which of 32 later boxes the row's box suppresses."""
    image, first, word = tl.program_id(0).to(tl.int64), tl.program_id(1) * 32, tl.program_id(2)
    row, column = first + tl.arange(0, 32), word * 32 + tl.arange(0, 32)
    boxes += image * count * 4
    groups += image * count
    in_rows, in_columns = row < count, column < count
    x1, y1 = tl.load(boxes + row * 4, in_rows, 0.0), tl.load(boxes + row * 4 + 1, in_rows, 0.0)
    x2, y2 = tl.load(boxes + row * 4 + 2, in_rows, 0.0), tl.load(boxes + row * 4 + 3, in_rows, 0.0)
    u1, v1 = tl.load(boxes + column * 4, in_columns, 0.0), tl.load(boxes + column * 4 + 1, in_columns, 0.0)
    u2, v2 = (
        tl.load(boxes + column * 4 + 2, in_columns, 0.0),
        tl.load(boxes + column * 4 + 3, in_columns, 0.0),
    )
    w = tl.minimum(x2[:, None], u2[None, :]) - tl.maximum(x1[:, None], u1[None, :])
    h = tl.minimum(y2[:, None], v2[None, :]) - tl.maximum(y1[:, None], v1[None, :])
    common = tl.maximum(w, 0.0) * tl.maximum(h, 0.0)
    union = ((x2 - x1) * (y2 - y1))[:, None] + ((u2 - u1) * (v2 - v1))[None, :] - common
    overlap = tl.where(union > 0, tl.div_rn(common, tl.where(union > 0, union, 1.0)), 0.0)
    same = tl.load(groups + row, in_rows, 0)[:, None] == tl.load(groups + column, in_columns, 0)[None, :]
    hit = (overlap > limit) & same & (column[None, :] > row[:, None]) & in_columns[None, :]
    found = tl.sum(hit.to(tl.int32) << tl.arange(0, 32)[None, :], 1)
    tl.store(bits + (image * count + row) * words + word, found, in_rows)


@triton.jit
def _either(a, b):
    return a | b


@triton.jit
def _scan(bits, valid, keep, count, words, BLOCK: tl.constexpr):
    """One image: boxes that nothing before them suppressed stay, 32 at a time."""
    image = tl.program_id(0).to(tl.int64)
    bits += image * count * words
    valid += image * count
    keep += image * count
    place = tl.arange(0, BLOCK)
    gone = tl.zeros((BLOCK,), tl.int32)
    lane = tl.arange(0, 32)
    for word in range(words):
        row = word * 32 + lane
        there = (tl.load(valid + row, row < count, 0) != 0).to(tl.int32)
        # Bits of boxes that are suppressed or empty; then, in order, what those that stay suppress here.
        dead = tl.sum(tl.where(place == word, gone, 0)) | tl.sum((1 - there) << lane)
        for i in range(32):
            here = tl.load(bits + (word * 32 + i) * words + word, word * 32 + i < count, 0)
            dead = tl.where((dead >> i) & 1 == 0, dead | here, dead)
        stays = ((dead >> lane) & 1) == 0
        tl.store(keep + row, stays.to(tl.int8), row < count)
        all_rows = bits + row[:, None] * words + place[None, :]
        usable = (stays & (row < count))[:, None] & (place < words)[None, :]
        gone |= tl.reduce(tl.load(all_rows, usable, 0), 0, _either)
