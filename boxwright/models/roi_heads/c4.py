"""Region heads that hold the backbone's last stage ("C4": ResNet, arXiv:1512.03385, App. A)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Self

from torch import Tensor, nn

from ...errors import ConfigError
from ..layers import set_batch_norm_eval


class StageTrunk(nn.Module):
    """The last stage of a backbone, run on each region, whose outputs are averaged over the places.

    Of ResNet it is the fourth (conv5). The backbone in front of it ends before that stage (conv4, stride 16),
    so that each layer of the network is run once: over the image up to there, over the regions from there on.

    Args:
        channels: of the regions, those of the level before the last.
        size: side of the regions; the maps have half of it, where the stage has stride 2.
        network: makes the network that the stage is taken from, with its weights. Its last two levels are
            those before and behind the stage, and none of it is frozen.

    Raises:
        ConfigError: the regions do not have the channels that the stage takes.
    """

    def __init__(self, channels: int, size: int, *, network: Callable[[], Any]) -> None:
        super().__init__()
        whole = network()
        *_, before, after = whole.specs
        if channels != before.channels:
            raise ConfigError(
                f"regions have {channels} channels, the last stage of this network takes {before.channels}: "
                "pool from the level before the last of a network of the same kind"
            )
        self.stage: nn.Module = whole.last_stage()
        self.norm_eval, self.out_features = bool(whole.norm_eval), int(after.channels)
        self.train()

    def maps(self, regions: Tensor) -> Tensor:
        """`(F, channels, size, size)` to `(F, out_features, S, S)`."""
        return self.stage(regions)

    def forward(self, regions: Tensor) -> Tensor:
        """`(F, channels, size, size)` to `(F, out_features)`."""
        return self.maps(regions).mean((2, 3))

    def train(self, mode: bool = True) -> Self:
        """Change the mode, except of batch norms where the network keeps their statistics (`norm_eval`)."""
        super().train(mode)
        if self.norm_eval:
            set_batch_norm_eval(self)
        return self
