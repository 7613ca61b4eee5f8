"""Random crops that keep objects, and the zoom-out of SSD.

Rule for what a crop leaves over. Boxes are cut to the crop. An object is dropped, with its label and
mask, when less than one pixel of its width or height is visible or when the transform's own
condition (stated with each) fails. An `ignore` region stays as long as one pixel of it is visible, since
what is left of it still must not count. With masks, the box of an object that was cut is drawn in to the
visible part of its mask.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms.v2 import functional as F

from ...errors import ConfigError
from ...ops import boxes as box_ops
from ...structures import NO_CLASS
from ...values import Share
from ..sample import Sample, as_boxes
from .functional import (
    centres_inside,
    chance,
    crop,
    image_size,
    integer,
    remains,
    uniform,
    whole,
)

Window = tuple[int, int, int, int]


@dataclass(frozen=True)
class RandomCrop:
    """Cut a window of given size from a random place, such that at least one object stays visible.

    An object stays when the window shows at least `min_visible` of the largest part that a window
    of this size could show of it. Places are drawn until one object stays; after `tries` failures
    the window is laid around the centre of a random object. In an image without objects every place will do.
    A window larger than the image is cut to the image, so the result can be smaller than `size`.

    Args:
        size: height and width of the window in pixels; or None.
        share: height and width of the window as shares (0, 1] of the image's; or None.
        scale: lowest and highest share, drawn once for both sides, so that the window has the shape of the
            image; or None. Give exactly one of the three.
        min_visible: in [0, 0.25]; up to a quarter, the window around an object's centre always keeps it.
        tries: how many places are drawn.

    Raises:
        ConfigError: not exactly one of `size`, `share` and `scale` is given, or a value is out of range.
    """

    size: tuple[int, int] | None = None
    share: tuple[float, float] | None = None
    scale: tuple[float, float] | None = None
    min_visible: float = 0.1
    tries: int = 10

    def __post_init__(self) -> None:
        if [self.size, self.share, self.scale].count(None) != 2:
            raise ConfigError(
                "RandomCrop: give exactly one of size (pixels), share (each side) and scale (both sides)"
            )
        if self.size is not None and not (len(self.size) == 2 and whole(self.size)):
            raise ConfigError(f"RandomCrop: size must be (height, width) in whole pixels, but is {self.size}")
        if self.share is not None and not (len(self.share) == 2 and all(0 < s <= 1 for s in self.share)):
            raise ConfigError(f"RandomCrop: share must be two numbers in (0, 1], but is {self.share}")
        if self.scale is not None and not (len(self.scale) == 2 and 0 < self.scale[0] <= self.scale[1] <= 1):
            raise ConfigError(f"RandomCrop: scale must be (lowest, highest) in (0, 1], but is {self.scale}")
        if not 0 <= self.min_visible <= 0.25:
            raise ConfigError(f"RandomCrop: min_visible must lie in [0, 0.25], but is {self.min_visible}")
        if self.tries < 1:
            raise ConfigError(f"RandomCrop: tries must be at least 1, but is {self.tries}")

    def __call__(self, sample: Sample, generator: torch.Generator) -> Sample:
        """Return the cropped sample."""
        height, width = image_size(sample)
        if self.size is not None:
            window_height, window_width = min(self.size[0], height), min(self.size[1], width)
        else:
            share = self.share or (uniform(generator, *self.scale or (1.0, 1.0)),) * 2
            window_height = max(1, int(height * share[0] + 0.5))
            window_width = max(1, int(width * share[1] + 0.5))
        boxes, ignore = sample["boxes"].as_subclass(Tensor), sample["ignore"]
        for _ in range(self.tries):
            x = integer(generator, 0, width - window_width)
            y = integer(generator, 0, height - window_height)
            window = (x, y, x + window_width, y + window_height)
            keep = self._keep(boxes, ignore, window)
            if bool(ignore.all()) or bool((keep & ~ignore).any()):
                return crop(sample, window, keep)
        objects = (~ignore).nonzero().flatten()
        centre_x, centre_y = (
            boxes[objects[integer(generator, 0, len(objects) - 1)]].view(2, 2).mean(0).tolist()
        )
        x = min(max(int(centre_x - window_width / 2), 0), width - window_width)
        y = min(max(int(centre_y - window_height / 2), 0), height - window_height)
        window = (x, y, x + window_width, y + window_height)
        return crop(sample, window, self._keep(boxes, ignore, window))

    def _keep(self, boxes: Tensor, ignore: Tensor, window: Window) -> Tensor:
        visible, most = remains(boxes, window)
        return (visible > 0) & (ignore | (visible >= self.min_visible * most))


@dataclass(frozen=True)
class MinIoURandomCrop:
    """The sampling of training patches of SSD (arXiv:1512.02325, Sec. 2.2).

    One of three cases is drawn, all thresholds equally likely: the whole image; a patch that overlaps an
    object with IoU at least one of `min_ious`; any patch. An object stays when its centre is inside the
    patch. A patch in which no object stays is drawn again; after `tries` failures another case is drawn,
    until the whole image comes up. Images without objects are left whole.

    As in the authors' code, one object that reaches the IoU is enough, and patches are drawn by the lengths
    of their sides (from `min_side` of the image's) rather than by their area.

    Args:
        min_ious: thresholds to draw from.
        min_side: shortest side of a patch as a share of the image's, in (0, 1].
        ratios: allowed ratios height / width of a patch.
        tries: patches drawn before another case is drawn.
    """

    min_ious: tuple[float, ...] = (0.1, 0.3, 0.5, 0.7, 0.9)
    min_side: float = 0.3
    ratios: tuple[float, float] = (0.5, 2.0)
    tries: int = 50

    def __post_init__(self) -> None:
        if not 0 < self.min_side <= 1:
            raise ConfigError(f"MinIoURandomCrop: min_side must lie in (0, 1], but is {self.min_side}")
        if len(self.ratios) != 2 or not 0 < self.ratios[0] <= self.ratios[1]:
            raise ConfigError(f"MinIoURandomCrop: ratios must be (lowest, highest), but is {self.ratios}")

    def __call__(self, sample: Sample, generator: torch.Generator) -> Sample:
        """Return the sample, cropped or whole."""
        boxes, ignore = sample["boxes"].as_subclass(Tensor), sample["ignore"]
        if bool(ignore.all()):
            return sample
        cases = (None, *self.min_ious, 0.0)
        while (min_iou := cases[integer(generator, 0, len(cases) - 1)]) is not None:
            for _ in range(self.tries):
                window = self._draw(image_size(sample), generator)
                if (
                    window is None
                    or float(box_ops.iou(boxes[~ignore], boxes.new_tensor(window)).max()) < min_iou
                ):
                    continue
                visible, _ = remains(boxes, window)
                keep = (visible > 0) & (ignore | centres_inside(boxes, window))
                if bool((keep & ~ignore).any()):
                    return crop(sample, window, keep)
        return sample

    def _draw(self, size: tuple[int, int], generator: torch.Generator) -> Window | None:
        height, width = size
        patch_height = max(1, int(uniform(generator, self.min_side, 1.0) * height))
        patch_width = max(1, int(uniform(generator, self.min_side, 1.0) * width))
        if not self.ratios[0] <= patch_height / patch_width <= self.ratios[1]:
            return None
        x, y = integer(generator, 0, width - patch_width), integer(generator, 0, height - patch_height)
        return x, y, x + patch_width, y + patch_height


@dataclass(frozen=True)
class Expand:
    """Zoom out: put the image at a random place of a larger one (SSD, arXiv:1512.02325, Sec. 3.6).

    Args:
        p: probability.
        max_ratio: the sides grow by a factor drawn from [1, max_ratio].
        fill: RGB value of the new pixels; SSD's is the mean of ImageNet.
    """

    p: Share = 0.5
    max_ratio: float = 4.0
    fill: tuple[int, int, int] = (123, 117, 104)

    def __call__(self, sample: Sample, generator: torch.Generator) -> Sample:
        """Return the sample, zoomed out or as it is."""
        if not chance(generator, self.p):
            return sample
        height, width = image_size(sample)
        ratio = uniform(generator, 1.0, self.max_ratio)
        size = (int(height * ratio), int(width * ratio))
        x, y = integer(generator, 0, size[1] - width), integer(generator, 0, size[0] - height)
        padding = [x, y, size[1] - width - x, size[0] - height - y]
        out = sample.copy()
        out["image"] = tv_tensors.Image(F.pad(sample["image"], padding, fill=[float(v) for v in self.fill]))
        out["boxes"] = as_boxes(sample["boxes"].as_subclass(Tensor) + torch.tensor([x, y, x, y]), size)
        if "masks" in sample:
            masks = sample["masks"].as_subclass(Tensor)
            padded = masks.new_zeros((len(masks), *size))
            padded[:, y : y + height, x : x + width] = masks
            out["masks"] = tv_tensors.Mask(padded)
        if "semantic" in sample:
            labels = torch.full(size, NO_CLASS, dtype=torch.uint8)
            labels[y : y + height, x : x + width] = sample["semantic"].as_subclass(Tensor)
            out["semantic"] = tv_tensors.Mask(labels)
        return out
