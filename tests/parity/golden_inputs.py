# Copyright The Boxwright authors.
# SPDX-License-Identifier: Apache-2.0
"""Deterministic weights, images and targets, as the recorded figures in `golden/` were made with.

Two programs that build the same network and call these functions hold the same numbers, without a
file passing between them. Only uniform numbers of numpy's frozen ``RandomState`` stream are drawn,
and only added, multiplied and compared after that, so the values are the same to the last bit on
every platform and with every version of numpy and torch. torch's own generator is never used.

Boxes are ``(x1, y1, x2, y2)`` in pixels, continuous coordinates; labels count from 0.
"""

from __future__ import annotations

import math
import re
import zlib
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

HEIGHT, WIDTH = 320, 416
NUM_CLASSES = 80

# The rules for `fill_state_dict`. The first pattern found in the name decides.
# Weights with two dimensions or more: the variance of the output relative to the mean square of the
# input. 2 keeps the scale through a ReLU (He et al. 2015), 1 keeps it where no ReLU follows.
WEIGHT_GAINS: tuple[tuple[str, float], ...] = (
    (r"conv_offset|sampling_offsets", 0.02),  # offsets of deformable sampling: a fraction of a pixel
    (r"attention_weights|in_proj_weight|out_proj", 1.0),
    (r"content_encoder", 0.2),  # logits of CARAFE's kernels
    (r"fuse_layers", 0.3),  # branches that are summed
    (r"lateral_convs|fpn_convs|pafpn_convs", 0.5),  # summed over the levels, no ReLU
    (r"fc_reg|_reg\.weight|reg_branches\.\d+\.4", 0.05),
    (r"fc_cls|_cls\.weight|cls_branches|centerness|conv_logits|fc_logits", 1.0),
)
# Classifiers weigh differences: the second half of their input channels has the first half's weights
# with the sign changed. What all places have in common cancels, so that many classes win somewhere.
CONTRASTS = r"(fc_cls|_cls|cls_out|cls_branches\.\d+|(cls_convs|convs_pred|conv_cls)\.\d+(\.\d+)?)\.weight$"
EMBEDDINGS = r"(query|label)_embedding|query_feat|level_embed|tgt_embed"
# Buffers that a constructor computes or a loss counts, and no optimiser changes.
CONSTANTS = r"integral\.project|\.edges$|\.acc_sum$|relative_position_index"
# The norm that ends a residual branch is damped, so that deep stacks keep their scale.
RESIDUAL_LAST = (
    r"\.(bn|gn)3\.weight$|conv_res_block.*conv2\.bn\.weight$|linear_conv\.bn\.weight$"
    r"|\.blocks\.\d+\.conv2(\.pointwise_conv)?\.bn\.weight$"
)
RESIDUAL_GAIN = 0.3


def _random(key: str, seed: int = 0) -> np.random.RandomState:
    return np.random.RandomState(zlib.crc32(key.encode(), seed))


def uniform(key: str, shape: Sequence[int], low: float = 0.0, high: float = 1.0, seed: int = 0) -> np.ndarray:
    """Float64 numbers in ``[low, high)`` that depend only on ``key``, ``shape`` and ``seed``."""
    return np.asarray(low + (high - low) * _random(key, seed).random_sample(tuple(shape)))


def _centred(key: str, shape: Sequence[int], std: float, seed: int) -> np.ndarray:
    return uniform(key, shape, -math.sqrt(3.0) * std, math.sqrt(3.0) * std, seed)


def _is_last_norm(key: str, keys: Iterable[str]) -> bool:
    """Whether the norm ends a residual branch: bn3 of a bottleneck, bn2 of a block without bn3."""
    if re.search(RESIDUAL_LAST, key):
        return True
    found = re.fullmatch(r"(.*\.\d+)\.(bn|gn)2\.weight", key)
    return found is not None and f"{found[1]}.{found[2]}3.weight" not in keys


def _value(key: str, shape: tuple[int, ...], keys: Iterable[str], seed: int) -> np.ndarray:
    name = key.rsplit(".", 1)[-1]
    if name == "running_mean":
        return _centred(key, shape, 0.1, seed)
    if name == "running_var":
        return uniform(key, shape, 0.9, 1.1, seed)
    if re.search(EMBEDDINGS, key):
        return _centred(key, shape, 0.5, seed)
    if name in ("scale", "gamma") or (name == "weight" and len(shape) < 2):  # a learnt scale, or a norm's
        damped = name == "gamma" or _is_last_norm(key, keys)
        scale = RESIDUAL_GAIN if damped else 20.0 if "l2_norm" in key else 1.0
        return scale * uniform(key, shape, 0.9, 1.1, seed)
    if len(shape) < 2:  # biases
        return _centred(key, shape, 0.05, seed)
    transposed = re.search(r"upsample|deconv", key) is not None and len(shape) == 4 and shape[-1] % 2 == 0
    fan_in = shape[0] if transposed else math.prod(shape[1:])
    gain = next((g for pattern, g in WEIGHT_GAINS if re.search(pattern, key)), 2.0)
    std = math.sqrt(gain / fan_in)
    if re.search(CONTRASTS, key) and shape[1] % 2 == 0:
        half = _centred(key, (shape[0], shape[1] // 2, *shape[2:]), std, seed)
        return np.concatenate([half, -half], 1)
    return _centred(key, shape, std, seed)


def fill_state_dict(
    shapes: Mapping[str, Sequence[int]],
    seed: int = 0,
    adjust: Iterable[tuple[str, float, float]] = (),
    aliases: Mapping[str, str] | None = None,
) -> dict[str, Tensor]:
    """Weights for a network, each from its name and shape alone.

    Args:
        shapes: name to shape, for every entry of the state dict.
        seed: another seed, other weights.
        adjust: ``(pattern, gain, shift)``: an entry whose whole name the regular expression matches
            becomes ``value * gain + shift``, in float64 before it is rounded to float32.
        aliases: names that share the tensor of another name.

    Returns:
        name to float32 tensor (``num_batches_tracked``: int64 zero). Constant buffers such as
        ``integral.project`` are left out: they keep the value their constructor gives them.
    """
    aliases = aliases or {}
    adjust = [(re.compile(pattern), gain, shift) for pattern, gain, shift in adjust]
    filled: dict[str, Tensor] = {}
    for key, shape in shapes.items():
        if re.search(CONSTANTS, key):
            continue
        if key.endswith("num_batches_tracked"):
            filled[key] = torch.zeros((), dtype=torch.int64)
            continue
        source = aliases.get(key, key)
        value = _value(source, tuple(shape), shapes.keys(), seed)
        for pattern, gain, shift in adjust:
            if pattern.fullmatch(source):
                value = value * gain + shift
        filled[key] = torch.from_numpy(np.asarray(value, dtype=np.float32))
    return filled


def _smooth(key: str, channels: int, height: int, width: int, cell: int) -> np.ndarray:
    """Random values at the corners of cells of ``cell`` pixels, bilinear in between."""
    rows, columns = height // cell + 2, width // cell + 2
    grid = uniform(key, (channels, rows, columns), -1.0, 1.0)
    y, x = np.arange(height) / cell, np.arange(width) / cell
    top, left = y.astype(int), x.astype(int)
    fy, fx = (y - top)[None, :, None], (x - left)[None, None, :]
    upper = grid[:, top][:, :, left] * (1 - fx) + grid[:, top][:, :, left + 1] * fx
    lower = grid[:, top + 1][:, :, left] * (1 - fx) + grid[:, top + 1][:, :, left + 1] * fx
    return upper * (1 - fy) + lower * fy


def valid_sizes(n: int = 2, h: int = HEIGHT, w: int = WIDTH) -> list[tuple[int, int]]:
    """(height, width) of each image inside the batch: the first fills it, the others do not."""
    return [(h, w) if i == 0 else (h - h // 10, w - w // 26) for i in range(n)]


def image_batch(n: int = 2, h: int = HEIGHT, w: int = WIDTH) -> Tensor:
    """Normalised float32 images ``(n, 3, h, w)``: smooth patterns at three scales and noise.

    Zero beyond the valid size of each image (`valid_sizes`).
    """
    images = np.zeros((n, 3, h, w))
    for i, (height, width) in enumerate(valid_sizes(n, h, w)):
        picture = sum(
            amplitude * _smooth(f"image/{i}/{cell}", 3, height, width, cell)
            for cell, amplitude in ((96, 1.6), (32, 1.2), (12, 0.8))
        )
        images[i, :, :height, :width] = picture + uniform(f"image/{i}/noise", (3, height, width), -0.6, 0.6)
    return torch.from_numpy(images.astype(np.float32))


# x1, y1, x2, y2 in an image of 416 x 320 pixels, label
_OBJECTS: tuple[tuple[tuple[float, float, float, float, int], ...], ...] = (
    (
        (16.25, 24.5, 148.75, 150.0, 17),
        (200.5, 40.25, 398.0, 300.75, 0),
        (120.0, 170.5, 190.25, 300.0, 62),
        (300.75, 8.5, 345.5, 50.25, 41),
        (60.25, 230.0, 84.5, 251.75, 79),
    ),
    (
        (30.5, 40.25, 280.75, 250.5, 5),
        (290.25, 150.75, 390.5, 280.25, 62),
    ),
)


def targets(
    n: int = 2, h: int = HEIGHT, w: int = WIDTH, num_classes: int = NUM_CLASSES
) -> list[dict[str, Tensor]]:
    """Ground truth of each image: ``boxes (G, 4)``, ``labels (G,)`` int64, ``masks (G, h, w)`` uint8.

    The masks are the ellipses inscribed in the boxes; pixel (row, column) is inside where its centre
    (column + 0.5, row + 0.5) is.
    """
    result = []
    for i in range(n):
        rows = np.array([o[:4] for o in _OBJECTS[i % len(_OBJECTS)]]) * np.array([w / WIDTH, h / HEIGHT] * 2)
        labels = np.array([o[4] for o in _OBJECTS[i % len(_OBJECTS)]], dtype=np.int64) % num_classes
        y, x = np.arange(h)[None, :, None] + 0.5, np.arange(w)[None, None, :] + 0.5
        x1, y1, x2, y2 = (c[:, None, None] for c in rows.T)
        inside = ((2 * x - x1 - x2) / (x2 - x1)) ** 2 + ((2 * y - y1 - y2) / (y2 - y1)) ** 2 <= 1.0
        result.append(
            {
                "boxes": torch.from_numpy(rows.astype(np.float32)),
                "labels": torch.from_numpy(labels),
                "masks": torch.from_numpy(inside.astype(np.uint8)),
            }
        )
    return result


def semantic_targets(
    n: int = 2, h: int = HEIGHT, w: int = WIDTH, stride: int = 8, num_classes: int = 183, ignore: int = 255
) -> Tensor:
    """Labels ``(n, h / stride, w / stride)`` int64 in blocks; ``ignore`` in the padding."""
    labels = np.full((n, h // stride, w // stride), ignore, dtype=np.int64)
    for i, (height, width) in enumerate(valid_sizes(n, h, w)):
        rows, columns = height // stride, width // stride
        blocks = (uniform(f"semantic/{i}", (rows // 6 + 1, columns // 6 + 1)) * num_classes).astype(np.int64)
        labels[i, :rows, :columns] = blocks.repeat(6, 0).repeat(6, 1)[:rows, :columns]
    return torch.from_numpy(labels)


def rois(n: int = 2, h: int = HEIGHT, w: int = WIDTH) -> Tensor:
    """Regions ``(4 n, 5)`` of all sizes: index of the image, then the box."""
    parts = ((0.05, 0.1, 0.15, 0.25), (0.3, 0.2, 0.62, 0.7), (0.55, 0.05, 0.7, 0.5), (0.02, 0.04, 0.96, 0.9))
    scale = np.array([w, h, w, h]) + np.array([0.25, 0.5, -0.75, 0.125])
    rows = [[i, *(np.array(p) * scale)] for i, (h_, w_) in enumerate(valid_sizes(n, h, w)) for p in parts]
    return torch.from_numpy(np.array(rows, dtype=np.float32))
