"""Anchors of given widths and heights, as clustered from a data set (YOLOv3, arXiv:1804.02767, Sec. 2.3)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from ...errors import ConfigError
from ...ops.constants import constant
from ...structures import Priors
from .grid import grid_steps, repeat_over_grid


@dataclass(frozen=True)
class SizedAnchors:
    """Anchors of exactly these sizes at each place.

    Args:
        sizes: `(width, height)` in pixels of each anchor, a tuple for each level, from fine to coarse.
        offset: place of the anchors within their cell, 0 the upper left corner or 0.5 the centre.
    """

    sizes: tuple[tuple[tuple[float, float], ...], ...]
    offset: float = 0.5

    def num_per_place(self, level: int = 0) -> int:
        """Anchors at one place of a level."""
        return len(self.sizes[level])

    def __call__(
        self,
        shapes: Sequence[tuple[int, int]],
        strides: Sequence[int],
        canvas: tuple[int, int],
        device: torch.device | None = None,
    ) -> Priors:
        """Anchors for feature maps of these shapes, levels one behind the other.

        Raises:
            ConfigError: `sizes` are not for as many levels.
        """
        if len(shapes) != len(self.sizes):
            raise ConfigError(
                f"SizedAnchors: sizes are for {len(self.sizes)} levels, the head has {len(shapes)}"
            )
        sizes = [constant(level, device) for level in self.sizes]
        base = [torch.cat((-size, size), dim=-1) / 2 for size in sizes]
        return repeat_over_grid(base, shapes, grid_steps(shapes, strides, None), strides, self.offset)
