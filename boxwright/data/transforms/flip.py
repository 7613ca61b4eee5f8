"""Mirroring."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torchvision import tv_tensors
from torchvision.transforms.v2 import functional as F

from ...values import Share
from ..sample import Sample, as_boxes
from .functional import chance, image_size


@dataclass(frozen=True)
class HorizontalFlip:
    """Mirror the image left to right with probability `p`, and all that lies on it.

    In continuous coordinates x becomes `width - x`, without a "- 1".
    """

    p: Share = 0.5

    def __call__(self, sample: Sample, generator: torch.Generator) -> Sample:
        """Return the sample, mirrored or as it is."""
        if not chance(generator, self.p):
            return sample
        out = sample.copy()
        out["image"] = tv_tensors.Image(F.horizontal_flip(sample["image"]))
        out["boxes"] = as_boxes(F.horizontal_flip(sample["boxes"]), image_size(sample))
        if "masks" in sample:
            out["masks"] = tv_tensors.Mask(sample["masks"].flip(-1))
        if "semantic" in sample:
            out["semantic"] = tv_tensors.Mask(sample["semantic"].flip(-1))
        return out
