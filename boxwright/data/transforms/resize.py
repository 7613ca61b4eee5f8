"""Resizing: keeping the ratio, to a fixed size, and the two multi-scale modes of MMDetection.

All sizes are `(height, width)` in pixels. Boxes and masks follow the image; no object is dropped. Each says
with `largest_size` how many pixels it needs at most, so that a JPEG file may be decoded at a reduced size.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from ...errors import ConfigError
from ..sample import Sample, Size
from .functional import full_size, integer, resize, scaled_size


def _check(name: str, field: str, numbers: Sequence[int]) -> None:
    if not numbers or any(int(number) != number or number < 1 for number in numbers):
        raise ConfigError(f"{name}: {field} must hold whole numbers of pixels from 1 on, but is {numbers}")


@dataclass(frozen=True)
class Resize:
    """Scale the image so that its short side is at most `short` and its long side at most `long` pixels.

    The ratio is kept up to rounding, one of the two limits is reached, and small images grow. The
    sizes are those of MMDetection's `Resize` with `keep_ratio=True` (arXiv:1906.07155).
    """

    short: int = 800
    long: int = 1333

    def __post_init__(self) -> None:
        _check("Resize", "short and long", (self.short, self.long))

    def largest_size(self, size: Size) -> Size:
        """The size that an image of `size` gets."""
        return scaled_size(size, self.short, self.long)

    def __call__(self, sample: Sample, generator: torch.Generator) -> Sample:
        """Return the resized sample; nothing is drawn from `generator`."""
        return resize(sample, self.largest_size(full_size(sample)))


@dataclass(frozen=True)
class ResizeFixed:
    """Scale the image to exactly `size` (height, width), whatever its ratio."""

    size: tuple[int, int] = (320, 320)

    def __post_init__(self) -> None:
        _check("ResizeFixed", "size", self.size)
        if len(self.size) != 2:
            raise ConfigError(f"ResizeFixed: size must be (height, width), but is {self.size}")

    def largest_size(self, size: Size) -> Size:
        """The size that every image gets."""
        return int(self.size[0]), int(self.size[1])

    def __call__(self, sample: Sample, generator: torch.Generator) -> Sample:
        """Return the resized sample; nothing is drawn from `generator`."""
        return resize(sample, self.largest_size(full_size(sample)))


@dataclass(frozen=True)
class ResizeByValue:
    """Multi-scale training over a list: one of `shorts` is drawn for each image, with `long` fixed.

    "value" mode of MMDetection (arXiv:1906.07155, Sec. 5.3); each value is equally likely.
    """

    shorts: tuple[int, ...] = (640, 672, 704, 736, 768, 800)
    long: int = 1333

    def __post_init__(self) -> None:
        _check("ResizeByValue", "shorts and long", (*self.shorts, self.long))
        if not self.shorts:
            raise ConfigError("ResizeByValue: shorts is empty; give at least one length of the short side")

    def largest_size(self, size: Size) -> Size:
        """The size that an image of `size` gets at the largest scale."""
        return scaled_size(size, max(self.shorts), self.long)

    def __call__(self, sample: Sample, generator: torch.Generator) -> Sample:
        """Return the sample at a drawn scale."""
        short = self.shorts[integer(generator, 0, len(self.shorts) - 1)]
        return resize(sample, scaled_size(full_size(sample), short, self.long))


@dataclass(frozen=True)
class ResizeByRange:
    """Multi-scale training over a range: the short side's limit is drawn from `shorts` = (lowest, highest).

    "range" mode of MMDetection (arXiv:1906.07155, Sec. 5.3); both ends are included.

    Args:
        shorts: range of the short side's limit.
        long: the long side's limit; or its range. Of two numbers that are drawn the larger is the long one.
    """

    shorts: tuple[int, int] = (640, 800)
    long: int | tuple[int, int] = 1333

    def __post_init__(self) -> None:
        long = (self.long, self.long) if isinstance(self.long, int) else self.long
        _check("ResizeByRange", "shorts and long", (*self.shorts, *long))
        for name, limits in (("shorts", self.shorts), ("long", long)):
            if len(limits) != 2 or limits[0] > limits[1]:
                raise ConfigError(f"ResizeByRange: {name} must be (lowest, highest), but is {limits}")

    def largest_size(self, size: Size) -> Size:
        """The size that an image of `size` gets at the largest scale."""
        long = self.long if isinstance(self.long, int) else max(self.long[1], self.shorts[1])
        return scaled_size(size, self.shorts[1], long)

    def __call__(self, sample: Sample, generator: torch.Generator) -> Sample:
        """Return the sample at a drawn scale."""
        short = integer(generator, self.shorts[0], self.shorts[1])
        if isinstance(self.long, int):
            long = self.long
        else:
            short, long = sorted((short, integer(generator, *self.long)))
        return resize(sample, scaled_size(full_size(sample), short, long))
