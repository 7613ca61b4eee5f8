"""PoolFormer (arXiv:2111.11418): a backbone from outside the package, and a recipe that stands on it."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Annotated

import torch.nn.functional as F
from fiddle import Config, Partial
from torch import Tensor, nn

import boxwright as bw
from boxwright.config import Norm, Pretrained
from boxwright.engine.optim import adamw
from boxwright.models.backbones.pretrained import load_backbone_weights
from boxwright.models.layers import NormLayer
from boxwright.structures import FeatureSpec

one_group = partial(nn.GroupNorm, 1)
"""Over the channels and the places of each image alone, so that nothing depends on the batch."""


class PoolBlock(nn.Module):
    """Neighbours are averaged, then each place is transformed by itself; both are added (Sec. 3).

    Args:
        channels: of input and output.
        norm: makes a norm from a number of channels.
        ratio: how many times wider the hidden layer is.
    """

    def __init__(self, channels: int, norm: NormLayer = one_group, ratio: int = 4) -> None:
        super().__init__()
        self.norm1, self.norm2 = norm(channels), norm(channels)
        self.conv1 = nn.Conv2d(channels, ratio * channels, 1)
        self.conv2 = nn.Conv2d(ratio * channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """`(B, channels, H, W)` to the same shape."""
        y = self.norm1(x)
        # The block adds its input, so the mean is given without the place itself.
        x = x + F.avg_pool2d(y, 3, stride=1, padding=1, count_include_pad=False) - y
        return x + self.conv2(F.gelu(self.conv1(self.norm2(x))))


class PoolFormer(nn.Module):
    """Four stages of such blocks, of strides 4, 8, 16 and 32, each behind a strided convolution.

    Without the layer scale and the stochastic depth that the paper trains its deep networks with.

    Args:
        blocks: of each stage; the default is the paper's S12.
        channels: of each stage.
        out_stages: stages whose outputs are given, counted from 1, ascending.
        norm: makes a norm from a number of channels.
        weights: None (random), a file or an address; see `pretrained.read_weights`.

    Raises:
        CheckpointError: the weights cannot be had or do not fit.
    """

    specs: tuple[FeatureSpec, ...]

    def __init__(
        self,
        blocks: Sequence[int] = (2, 2, 6, 2),
        channels: Sequence[int] = (64, 128, 320, 512),
        out_stages: Sequence[int] = (2, 3, 4),
        norm: Annotated[NormLayer, Norm] = one_group,
        weights: Annotated[str | Path | None, Pretrained] = None,
    ) -> None:
        super().__init__()
        self.stages = nn.ModuleList()
        previous = 3
        for count, width in zip(blocks, channels, strict=True):
            first = previous == 3
            embed = nn.Conv2d(previous, width, 7 if first else 3, 4 if first else 2, 2 if first else 1)
            self.stages.append(nn.Sequential(embed, *(PoolBlock(width, norm) for _ in range(count))))
            previous = width
        self.out_stages = tuple(out_stages)
        self.specs = tuple(FeatureSpec(channels[stage - 1], 2 ** (stage + 1)) for stage in out_stages)
        if weights is not None:
            load_backbone_weights(self, weights)

    def forward(self, x: Tensor) -> list[Tensor]:
        """Normalised images `(B, 3, H, W)` to one `(B, C, H / stride, W / stride)` for each of `specs`."""
        features = []
        for number, stage in enumerate(self.stages, start=1):
            x = stage(x)
            if number in self.out_stages:
                features.append(x)
        return features


def fcos_poolformer_320() -> Config[bw.Experiment]:
    """FCOS on a PoolFormer-S12 of random weights at 320 pixels, by AdamW."""
    recipe = bw.recipe("fcos_mnv2_320")
    recipe.model.backbone = Config(PoolFormer)
    recipe.optimizer = Partial(adamw, lr=2e-4)
    return recipe
