"""Anchors: boxes of several sizes and shapes at every place (Faster R-CNN, arXiv:1506.01497, Sec. 3.1.1)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ...ops.constants import constant
from ...structures import Priors
from ...values import AllPositive
from .grid import grid_steps, repeat_over_grid


@dataclass(frozen=True)
class Anchors:
    """Anchors of every scale and ratio at each place, ratio by ratio, within a ratio scale by scale.

    Args:
        scales: side of a square anchor in strides of its level. RetinaNet (arXiv:1708.02002, Sec. 4)
            has `4 * 2**(k/3)`, FPN's RPN (arXiv:1612.03144, Sec. 4.1) has 8.
        ratios: height over width; all anchors of one scale have the same area.
        sizes: sides in pixels, for each level a tuple, instead of `scales`.
        offset: place of the anchors within their cell, 0 the corner (the field's habit) or 0.5 the centre.
        whole_pixels: round the corners of the base anchors, as torchvision does.
        step_from_canvas: distance between places is `canvas // places`, as torchvision has it; it differs
            from the stride where the canvas is not a multiple of it.
    """

    scales: AllPositive = (8.0,)
    ratios: AllPositive = (0.5, 1.0, 2.0)
    sizes: tuple[tuple[float, ...], ...] | None = None
    offset: float = 0.0
    whole_pixels: bool = False
    step_from_canvas: bool = False

    def num_per_place(self, level: int = 0) -> int:
        """Anchors at one place of a level."""
        return len(self.ratios) * len(self.scales if self.sizes is None else self.sizes[level])

    def base(self, level: int, stride: int, device: torch.device | None = None) -> Tensor:
        """`(N, 4)` anchors of a level around the origin."""
        sides = [s * stride for s in self.scales] if self.sizes is None else self.sizes[level]
        size = constant(sides, device)
        root = constant(self.ratios, device).sqrt()
        widths = (size / root[:, None]).flatten()
        heights = (size * root[:, None]).flatten()
        boxes = torch.stack((-widths, -heights, widths, heights), dim=-1) / 2
        return boxes.round() if self.whole_pixels else boxes

    def __call__(
        self,
        shapes: Sequence[tuple[int, int]],
        strides: Sequence[int],
        canvas: tuple[int, int],
        device: torch.device | None = None,
    ) -> Priors:
        """Anchors for feature maps of these shapes, levels one behind the other."""
        base = [self.base(level, stride, device) for level, stride in enumerate(strides)]
        steps = grid_steps(shapes, strides, canvas if self.step_from_canvas else None)
        return repeat_over_grid(base, shapes, steps, strides, self.offset)
