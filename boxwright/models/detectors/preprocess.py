"""From uint8 images to what a backbone was trained on; it belongs to the weights, so it is in the model."""

from __future__ import annotations

import torch
from torch import Tensor, nn

IMAGENET_MEAN = (123.675, 116.28, 103.53)
IMAGENET_STD = (58.395, 57.12, 57.375)


class Normalise(nn.Module):
    """Subtract the mean, divide by the deviation, and make the padding exactly zero.

    Args:
        mean: of each channel of an RGB image in 0..255.
        std: likewise.
        bgr: give the backbone blue, green, red, as weights from Caffe expect.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        mean: tuple[float, float, float] = IMAGENET_MEAN,
        std: tuple[float, float, float] = IMAGENET_STD,
        bgr: bool = False,
    ) -> None:
        super().__init__()
        self.bgr = bgr
        self.register_buffer("mean", torch.tensor(mean).reshape(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).reshape(3, 1, 1), persistent=False)

    def forward(self, images: Tensor, sizes: Tensor) -> Tensor:
        """`(B, 3, H, W)` RGB in 0..255 to float32; `sizes (B, 2)` say where each image ends."""
        # One copy, changed in place: fresh memory takes longer than the arithmetic.
        x = images.to(torch.float32, copy=True)
        mean, std, pixels = self.mean, self.std, x.permute(0, 2, 3, 1)
        if pixels.is_contiguous():  # channels innermost: whole rows at a time, not three numbers
            mean, std = (value.flatten().repeat(images.shape[3]) for value in (mean, std))
            pixels.flatten(2).sub_(mean).div_(std)
        else:
            x.sub_(mean).div_(std)
        rows = torch.arange(images.shape[2], device=images.device) < sizes[:, :1]
        columns = torch.arange(images.shape[3], device=images.device) < sizes[:, 1:]
        x.mul_(rows[:, None, :, None] & columns[:, None, None, :])
        return x.flip(1) if self.bgr else x
