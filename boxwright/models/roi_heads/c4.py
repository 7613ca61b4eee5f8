"""Region heads that hold the backbone's last stage ("C4": ResNet, arXiv:1512.03385, App. A)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Self

from torch import Tensor, nn

from ...errors import ConfigError
from ..backbones.resnet import ResNet
from ..layers import set_batch_norm_eval


class ResNetTrunk(nn.Module):
    """The fourth stage of a ResNet (conv5), run on each region, whose outputs are averaged over the places.

    The backbone in front of it ends at the third stage (conv4, stride 16), so that each layer of the network
    is run once: over the image up to there, over the regions from there on. Its name in the state dict is
    `layer4`, as in the network.

    Args:
        channels: of the regions, those of the third stage.
        size: side of the regions; its maps have half of it, where the stage has stride 2.
        network: makes the ResNet that the stage is taken from, with its weights, called with `out_stages` and
            `frozen_stages`; the arguments that the backbone has fit here.

    Raises:
        ConfigError: the regions do not have the channels that the stage takes.
    """

    def __init__(self, channels: int, size: int, *, network: Callable[..., ResNet] = ResNet) -> None:
        super().__init__()
        whole = network(out_stages=(3, 4), frozen_stages=0)
        before, after = whole.specs
        if channels != before.channels:
            raise ConfigError(
                f"regions have {channels} channels, the last stage of this ResNet takes {before.channels}: "
                "pool from the third stage of a backbone of the same kind"
            )
        self.layer4 = whole.get_submodule("layer4")
        self.norm_eval, self.out_features = whole.norm_eval, after.channels
        self.train()

    def maps(self, regions: Tensor) -> Tensor:
        """`(F, channels, size, size)` to `(F, out_features, S, S)`."""
        return self.layer4(regions)

    def forward(self, regions: Tensor) -> Tensor:
        """`(F, channels, size, size)` to `(F, out_features)`."""
        return self.maps(regions).mean((2, 3))

    def train(self, mode: bool = True) -> Self:
        """Change the mode, except of batch norms where the network keeps their statistics (`norm_eval`)."""
        super().train(mode)
        if self.norm_eval:
            set_batch_norm_eval(self)
        return self
