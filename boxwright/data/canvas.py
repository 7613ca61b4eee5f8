"""The canvas: which padded shape the images of a batch share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ..errors import ConfigError, DataError


@dataclass(frozen=True)
class Canvas:
    """Chooses the padded shape of a batch, from few shapes so that few graphs are compiled.

    With `shapes`, the one of smallest area into which every image of the batch fits; without, the
    largest height and the largest width in the batch, each rounded up to a multiple of `divisor`.
    Images lie in the upper left corner; padding is at the right and at the bottom.

    Args:
        shapes: allowed (height, width) in pixels, each a multiple of `divisor`. Shapes for wide and for tall
            images (`((800, 1344), (1344, 800))`) work because the loader groups images by orientation.
        divisor: the largest stride of the detector, in pixels.

    Raises:
        ConfigError: a shape is not two positive multiples of `divisor`.
    """

    shapes: tuple[tuple[int, int], ...] = ()
    divisor: int = 32

    def __post_init__(self) -> None:
        if self.divisor < 1:
            raise ConfigError(f"Canvas: divisor must be at least 1, but is {self.divisor}")
        object.__setattr__(self, "shapes", tuple(tuple(shape) for shape in self.shapes))
        for shape in self.shapes:
            if len(shape) != 2 or any(side < 1 or side % self.divisor for side in shape):
                up = tuple(max(1, -(-int(side) // self.divisor)) * self.divisor for side in shape)
                raise ConfigError(
                    f"Canvas: shape {shape} must be (height, width) in multiples of the divisor "
                    f"{self.divisor}; the next such shape is {up}"
                )

    @property
    def varies(self) -> bool:
        """Whether batches can have different shapes, so that grouping images by orientation saves padding."""
        return len(self.shapes) != 1

    def shape_for(self, sizes: Sequence[tuple[int, int]], names: Sequence[str] = ()) -> tuple[int, int]:
        """Height and width of the canvas for images of the given sizes.

        Args:
            sizes: (height, width) of each image of the batch.
            names: what to call each image in an error.

        Raises:
            DataError: an image fits no shape, or no shape holds all of them together.
        """
        height, width = max(s[0] for s in sizes), max(s[1] for s in sizes)
        if not self.shapes:
            return _up(height, self.divisor), _up(width, self.divisor)
        fitting = [shape for shape in self.shapes if shape[0] >= height and shape[1] >= width]
        if fitting:
            return min(fitting, key=lambda shape: shape[0] * shape[1])
        for i, (image_height, image_width) in enumerate(sizes):
            if not any(shape[0] >= image_height and shape[1] >= image_width for shape in self.shapes):
                name = names[i] if i < len(names) else f"image {i} of the batch"
                raise DataError(
                    f"{name}: after the transforms it is {image_height} x {image_width} (height x width) "
                    f"and fits none of the canvas shapes {self.shapes}: let the last transform resize to a "
                    f"shape's size, add the shape ({_up(image_height, self.divisor)}, "
                    f"{_up(image_width, self.divisor)}), or give no shapes"
                )
        raise DataError(
            f"a batch with images of sizes {sorted(set(sizes))} fits none of the canvas shapes "
            f"{self.shapes} as a whole, though each image fits one: wide and tall images are mixed because "
            f"a transform changes the orientation; add the shape ({_up(height, self.divisor)}, "
            f"{_up(width, self.divisor)}), resize to a fixed size after cropping, or give no shapes"
        )


def _up(side: int, divisor: int) -> int:
    return -(-side // divisor) * divisor
