"""Transforms of samples: frozen dataclasses, called with a sample and the generator to draw from.

A transform moves image, boxes, labels, ignore flags and masks together, never writes to the sample it was
given, and is random through the generator alone. Padding to a canvas belongs to `boxwright.data.canvas`.
"""

from .crop import Expand, MinIoURandomCrop, RandomCrop
from .flip import HorizontalFlip
from .photometric import PhotometricDistortion
from .resize import Resize, ResizeByRange, ResizeByValue, ResizeFixed

__all__ = [
    "Expand",
    "HorizontalFlip",
    "MinIoURandomCrop",
    "PhotometricDistortion",
    "RandomCrop",
    "Resize",
    "ResizeByRange",
    "ResizeByValue",
    "ResizeFixed",
]
