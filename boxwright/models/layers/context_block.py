"""The global context block of GCNet (arXiv:1904.11492)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from ...errors import ConfigError

Fusion = Literal["add", "scale"]


class ContextBlock(nn.Module):
    """Adds to every place what one look at the whole map gives (GCNet, Sec. 4.3, Eq. 5).

    With H * W places, `z_i = x_i + W2 relu(LN(W1 sum_j a_j x_j))`, where `a = softmax_j(w . x_j)` or, with
    average pooling, `a_j = 1 / (H * W)`. The last convolution of each transform starts at 0: with the "add"
    fusion alone, training starts from the network without the block.

    Padding beside an image takes part in the pooling, as everywhere in a convolutional network.

    Args:
        channels: of the map.
        ratio: channels inside the transform as a share of `channels`; the paper has 1/16 and 1/4.
        pooling: "attention" learns where to look, "average" looks everywhere alike.
        fusions: "add" adds the context, "scale" multiplies by its sigmoid, before the addition if both.

    Raises:
        ConfigError: `ratio` leaves no channels, or `pooling` or `fusions` is something else.
    """

    def __init__(
        self,
        channels: int,
        ratio: float = 1 / 16,
        pooling: Literal["attention", "average"] = "attention",
        fusions: Sequence[Fusion] = ("add",),
    ) -> None:
        super().__init__()
        width = int(channels * ratio)
        if width < 1:
            raise ConfigError(f"ratio is {ratio}; of {channels} channels that leaves none")
        if pooling not in ("attention", "average"):
            raise ConfigError(f'pooling is {pooling!r}; it is "attention" or "average"')
        if not fusions or not {"add", "scale"}.issuperset(fusions):
            raise ConfigError(f'fusions is {fusions!r}; it takes "add", "scale" or both')
        self.attention = nn.Conv2d(channels, 1, 1) if pooling == "attention" else None
        self.scale = _transform(channels, width) if "scale" in fusions else None
        self.add = _transform(channels, width) if "add" in fusions else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Kaiming's normal weights for the attention; the last convolution of each transform is 0."""
        if self.attention is not None:
            nn.init.kaiming_normal_(self.attention.weight, mode="fan_in", nonlinearity="relu")
            nn.init.zeros_(self.attention.bias)  # pyright: ignore[reportArgumentType]
        for transform in (self.scale, self.add):
            if transform is not None:
                last = transform[-1]
                nn.init.zeros_(last.weight)  # pyright: ignore[reportArgumentType]
                nn.init.zeros_(last.bias)  # pyright: ignore[reportArgumentType]

    def forward(self, x: Tensor) -> Tensor:
        """`(B, channels, H, W)` to the same shape."""
        context = self.pool(x)
        if self.scale is not None:
            x = x * self.scale(context).sigmoid()
        return x if self.add is None else x + self.add(context)

    def pool(self, x: Tensor) -> Tensor:
        """`(B, channels, 1, 1)`: the mean of the map, weighted by the attention."""
        if self.attention is None:
            return x.mean((2, 3), keepdim=True)
        weights = self.attention(x).flatten(2).softmax(-1)
        return torch.matmul(x.flatten(2), weights.to(x.dtype).transpose(1, 2))[..., None]


def _transform(channels: int, width: int) -> nn.Sequential:
    """Bottleneck with layer norm, which eases training (Sec. 4.3)."""
    return nn.Sequential(
        nn.Conv2d(channels, width, 1),
        nn.LayerNorm([width, 1, 1]),
        nn.ReLU(inplace=True),
        nn.Conv2d(width, channels, 1),
    )
