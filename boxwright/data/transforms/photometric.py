"""Changes of colour that leave boxes and masks where they are."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torchvision import tv_tensors

from ...values import Share
from ..sample import Sample
from .functional import chance, uniform


@dataclass(frozen=True)
class PhotometricDistortion:
    """The photometric distortion of SSD (arXiv:1512.02325, Sec. 2.2, after Howard, arXiv:1312.5402).

    Brightness (add), contrast (multiply), saturation (multiply), hue (turn) and a permutation of the
    channels each happen with probability `p`, in this order, except that contrast comes after the hue in
    half of the images.

    The image is uint8; the steps are computed in float32 in 0..255 without rounding or clipping between
    them, and the result is clipped to 0..255 and rounded once. Saturation and hue are those of HSV.

    Args:
        brightness: the summand is drawn from [-brightness, brightness], in grey levels of 0..255.
        contrast: range of the factor.
        saturation: range of the factor.
        hue: the angle is drawn from [-hue, hue], in degrees.
        p: probability of each step.
        permute: whether the channels may be permuted, too.
    """

    brightness: float = 32.0
    contrast: tuple[float, float] = (0.5, 1.5)
    saturation: tuple[float, float] = (0.5, 1.5)
    hue: float = 18.0
    p: Share = 0.5
    permute: bool = True

    def __call__(self, sample: Sample, generator: torch.Generator) -> Sample:
        """Return the sample with another image."""
        happens = [chance(generator, self.p) for _ in range(5)]
        brightness = uniform(generator, -self.brightness, self.brightness) if happens[0] else 0.0
        contrast = uniform(generator, *self.contrast) if happens[1] else 1.0
        saturation = uniform(generator, *self.saturation) if happens[2] else 1.0
        angle = uniform(generator, -self.hue, self.hue) if happens[3] else 0.0
        contrast_first = chance(generator, 0.5)
        order = torch.randperm(3, generator=generator) if happens[4] and self.permute else None
        if not any(happens[:4]) and order is None:
            return sample

        image = sample["image"].as_subclass(Tensor).to(torch.float32, memory_format=torch.contiguous_format)
        if contrast_first:
            image = (image + brightness) * contrast
        elif brightness:
            image = image + brightness
        if saturation != 1.0 or angle:
            image = shift_colours(image, saturation, angle)
        if not contrast_first and contrast != 1.0:
            image = image * contrast
        if order is not None:
            image = image[order]
        out = sample.copy()
        out["image"] = tv_tensors.Image(image.clamp(0, 255).round().to(torch.uint8))
        return out


def shift_colours(image: Tensor, saturation: float, angle: float) -> Tensor:
    """Multiply the HSV saturation of an RGB image `(3, H, W)` float and turn its hue by `angle` degrees.

    With value V and chroma C, a channel of HSV is `V - C * f(hue)` with f in [0, 1]: multiplying the
    saturation multiplies C, which needs no conversion, and turning the hue needs only f anew. A result
    below 0 (saturation beyond 1) is left for the caller to clip.
    """
    value, lowest = image.amax(0), image.amin(0)
    if not angle:
        return value - (value - image) * saturation
    chroma = value - lowest
    red, green, blue = image.unbind(0)
    divisor = torch.where(chroma > 0, chroma, 1.0)
    hue = torch.where(  # in sixths of a turn
        value == red,
        (green - blue) / divisor,
        torch.where(value == green, (blue - red) / divisor + 2, (red - green) / divisor + 4),
    )
    hue = hue + angle / 60
    chroma = chroma * saturation
    channels = []
    for offset in (5, 3, 1):
        place = (hue + offset) % 6
        channels.append(value - chroma * torch.minimum(place, 4 - place).clamp(0, 1))
    return torch.stack(channels)
