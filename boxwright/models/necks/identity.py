"""No neck: for detectors whose heads look at the backbone's own levels (C4, atrous C5)."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from ...structures import FeatureSpec


class NoNeck(nn.Module):
    """Hands the backbone's levels on as they are."""

    specs: tuple[FeatureSpec, ...]

    def __init__(self, in_specs: Sequence[FeatureSpec]) -> None:
        super().__init__()
        self.specs = tuple(in_specs)

    def forward(self, features: Sequence[Tensor]) -> list[Tensor]:
        """The same levels."""
        return list(features)
