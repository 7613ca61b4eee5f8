"""Default boxes of SSD (arXiv:1512.02325, Sec. 2.2): sizes by level, shapes by level."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ...errors import ConfigError
from ...ops.constants import constant
from ...structures import Priors
from ...values import AllPositive
from .grid import repeat_over_grid


def ssd_sizes(side: int, levels: int, *, first: int, lowest: int, highest: int = 90) -> tuple[float, ...]:
    """Sides of the default boxes (Eq. 4), in whole pixels of an image of `side`.

    The sizes grow evenly from the second level on, `s_k = lowest + (highest - lowest) / (m - 1) * (k - 1)`
    over the m levels behind the first, which has a size of its own (Sec. 3.1). As in the authors' code the
    step is rounded down to whole percents.

    Args:
        side: of the image, px.
        levels: L.
        first: size of the first level, in percent of the side.
        lowest: size of the second level, in percent.
        highest: size of the last level, in percent.

    Returns:
        L + 1 sizes: one for each level, and the one that would follow.
    """
    step = (highest - lowest) // (levels - 2)
    percents = [first, *(lowest + step * i for i in range(levels))]
    return tuple(float(side * percent // 100) for percent in percents)


@dataclass(frozen=True)
class SSDAnchors:
    """At each place a square of its level's size, one between this and the next size, and oblong ones.

    In this order: the square of size `s_k`; that of `sqrt(s_k * s_(k+1))`; then for each ratio r one of width
    `s_k * sqrt(r)` and height `s_k / sqrt(r)`, and the same turned upright.

    Args:
        sizes: one for each level and one more, px (`ssd_sizes`).
        ratios: of each level, longer over shorter side, without 1.
        steps: distance of neighbouring places of each level, px. None for the canvas divided by the number of
            places (the paper: centres at `(i + 0.5) / |f_k|`). The authors' code gives them, and where a
            map's size was rounded up they differ.

    Raises:
        ConfigError: the lengths do not fit each other.
    """

    sizes: AllPositive
    ratios: tuple[tuple[float, ...], ...]
    steps: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        levels = len(self.ratios)
        if len(self.sizes) != levels + 1 or (self.steps is not None and len(self.steps) != levels):
            steps = "" if self.steps is None else f" and {len(self.steps)} steps"
            raise ConfigError(
                f"SSDAnchors: ratios for {levels} levels want {levels + 1} sizes and, if steps are given, "
                f"{levels} of them, but there are {len(self.sizes)} sizes{steps}"
            )

    def num_per_place(self, level: int = 0) -> int:
        """Anchors at one place of a level."""
        return 2 + 2 * len(self.ratios[level])

    def base(self, level: int, device: torch.device | None = None) -> Tensor:
        """`(N, 4)` anchors of a level around the origin, px."""
        size, following = self.sizes[level], self.sizes[level + 1]
        shapes = [(size, size), (math.sqrt(size * following),) * 2]
        for ratio in self.ratios[level]:
            longer, shorter = size * math.sqrt(ratio), size / math.sqrt(ratio)
            shapes += [(longer, shorter), (shorter, longer)]
        half = constant(shapes, device) / 2
        return torch.cat((-half, half), dim=-1)

    def __call__(
        self,
        shapes: Sequence[tuple[int, int]],
        strides: Sequence[int],
        canvas: tuple[int, int],
        device: torch.device | None = None,
    ) -> Priors:
        """Anchors for feature maps of these shapes, levels one behind the other.

        The priors' stride is the distance of their places; `strides` of the network are not read.

        Raises:
            ConfigError: the number of levels is not that of `ratios`.
        """
        if len(shapes) != len(self.ratios):
            raise ConfigError(
                f"SSDAnchors has ratios for {len(self.ratios)} levels, the head has {len(shapes)}"
            )
        if self.steps is None:
            steps = [(canvas[0] / height, canvas[1] / width) for height, width in shapes]
        else:
            steps = [(float(step), float(step)) for step in self.steps]
        base = [self.base(level, device) for level in range(len(shapes))]
        return repeat_over_grid(base, shapes, steps, [(y + x) / 2 for y, x in steps], offset=0.5)
