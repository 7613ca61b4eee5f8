"""Maps of semantic classes: an image file of class numbers beside each image, as COCO-Stuff has them."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np
import torch
from torchvision import tv_tensors

from ..errors import DataError
from .images import decode_class_map

_LOOKED_AT = 100
"""Images of a split whose maps are looked for, to learn how the folder is laid out."""


@dataclass(frozen=True)
class SemanticMaps:
    """Where the map of each image of a split lies.

    Args:
        folder: of the maps.
        parts: how many parts of an image's name, from its end, the map's path has in the folder. Its suffix
            is `.png`: with 2, the map of `images/train2017/9.jpg` is `train2017/9.png`.
    """

    folder: Path
    parts: int

    def path(self, file_name: str) -> Path:
        """The map of the image of this name (relative to the data set, with forward slashes)."""
        return self.folder.joinpath(*PurePosixPath(file_name).with_suffix(".png").parts[-self.parts :])


def find_maps(folder: Path, file_names: Sequence[str]) -> SemanticMaps | None:
    """The maps of images of these names, laid out as the images are or flatter; None if there are none."""
    names = file_names[:_LOOKED_AT]
    likely = layouts(folder, names)
    return next((maps for maps in likely if any(os.path.isfile(maps.path(name)) for name in names)), None)


def layouts(folder: Path, file_names: Sequence[str]) -> list[SemanticMaps]:
    """Every way in which the maps of images of these names may lie in a folder, the deepest first."""
    deepest = max((len(PurePosixPath(name).parts) for name in file_names), default=0)
    return [SemanticMaps(folder, parts) for parts in range(deepest, 0, -1)]


def load_map(path: Path, size: tuple[int, int]) -> tv_tensors.Mask:
    """Class numbers `(H, W)` uint8 of an image of `size` (height, width).

    Raises:
        DataError: the map is missing, is no image of one channel of 8 bits, or has another size.
    """
    image = decode_class_map(path)
    if (image.height, image.width) != size:
        raise DataError(
            f"{path}: the semantic map has {image.width} x {image.height} pixels, but its image "
            f"{size[1]} x {size[0]}; make the map again in the image's size"
        )
    return tv_tensors.Mask(torch.from_numpy(np.array(image, dtype=np.uint8)))
