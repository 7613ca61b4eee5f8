"""VGG (arXiv:1409.1556) as a feature extractor, with its fully connected layers turned into convolutions.

That is the network of SSD (arXiv:1512.02325, Sec. 3), after DeepLab (arXiv:1412.7062, Sec. 3.1). Parameters
are named as in torchvision's VGG (`features.0`, ...); fc6 and fc7 follow under the next numbers, which in
VGG-16 are `features.31` and `features.33`, as in MMDetection's checkpoints.
"""

from __future__ import annotations

import re
from itertools import pairwise
from pathlib import Path

from torch import Tensor, nn

from ...errors import ConfigError
from ...structures import FeatureSpec
from ..layers import init_kaiming
from .pretrained import load_exactly, read_weights

CONVOLUTIONS = {
    11: (1, 1, 2, 2, 2),
    13: (2, 2, 2, 2, 2),
    16: (2, 2, 3, 3, 3),
    19: (2, 2, 4, 4, 4),
}
"""Convolutions of each stage, by depth (VGG, Table 1, columns A, B, D, E)."""
CHANNELS = (64, 128, 256, 512, 512)
FC_CHANNELS, FC_STEP = 1024, 4
"""Channels of fc6 and fc7: every fourth of VGG's 4096."""
OUTPUTS = ("conv4", "fc")
"""Stages whose last layer is given."""
FULL = {"fc6": 0, "fc7": 3}
"""Numbers of the full layers in torchvision's classifier."""


def subsample(full: Tensor) -> Tensor:
    """Weight or bias of fc6 or fc7 with every fourth channel, as a convolution (SSD, Sec. 3).

    Args:
        full: `(4096, 25088)` (fc6, over 512 x 7 x 7 places), `(4096, 4096)` (fc7) or `(4096,)`.

    Returns:
        `(1024, 512, 3, 3)`, `(1024, 1024, 1, 1)` or `(1024,)`.
    """
    if full.dim() == 1:
        return full[::FC_STEP]
    if full.shape[1] == full.shape[0]:
        return full[::FC_STEP, ::FC_STEP, None, None]
    places = full.unflatten(1, (CHANNELS[-1], 7, 7))
    return places[::FC_STEP, :, ::3, ::3]


class VGG(nn.Module):
    """VGG up to fc7, which gives conv4's last layer (stride 8) and fc7 (stride 16).

    As in the authors' network pools round sizes up, pool5 has a kernel of 3 and stride 1, and fc6 is a
    3x3 convolution with dilation 6 (SSD, Sec. 3: "atrous").

    Weights may have the names of torchvision (`features.0`, `classifier.0`), the numbers alone (`0`, as the
    converted "fc_reduced" file of SSD's authors) or the layers' names (`conv1_1`, `fc6`, Caffe's). Of fully
    connected layers every fourth channel is taken, and of fc6's 7x7 places every third row and column.
    Where the weights have no such layers, fc6 and fc7 start from random ones.

    Args:
        depth: 11, 13, 16 or 19.
        weights: None (random), "torchvision" (its weights of this depth), another name or a file; see
            `pretrained.read_weights`. torchvision's "VGG16_Weights.IMAGENET1K_FEATURES" are those of
            VGG's authors: they have no fully connected layers and want images with deviation 1.

    Raises:
        ConfigError: no such depth.
        CheckpointError: the weights cannot be had or do not fit.
    """

    specs: tuple[FeatureSpec, ...]

    def __init__(self, depth: int = 16, *, weights: str | Path | None = None) -> None:
        super().__init__()
        if depth not in CONVOLUTIONS:
            raise ConfigError(f"depth is {depth}; VGG has {', '.join(map(str, CONVOLUTIONS))}")
        self.depth = depth
        layers: list[nn.Module] = []
        self.numbers: dict[str, int] = {}  # Caffe's name of each convolution to its place among the layers
        in_channels = 3
        for stage, (channels, count) in enumerate(zip(CHANNELS, CONVOLUTIONS[depth], strict=True), start=1):
            for i in range(1, count + 1):
                self.numbers[f"conv{stage}_{i}"] = len(layers)
                layers += [nn.Conv2d(in_channels, channels, 3, padding=1), nn.ReLU(inplace=True)]
                in_channels = channels
            last = stage == len(CHANNELS)
            layers.append(nn.MaxPool2d(3, 1, padding=1) if last else nn.MaxPool2d(2, 2, ceil_mode=True))
        self.numbers |= {"fc6": len(layers), "fc7": len(layers) + 2}
        layers += [nn.Conv2d(in_channels, FC_CHANNELS, 3, padding=6, dilation=6), nn.ReLU(inplace=True)]
        layers += [nn.Conv2d(FC_CHANNELS, FC_CHANNELS, 1), nn.ReLU(inplace=True)]
        self.features = nn.Sequential(*layers)
        # The same layers stage by stage, each but the first with the pool before it: no children, so that
        # parameters keep their names.
        pools = [i for i, layer in enumerate(layers) if isinstance(layer, nn.MaxPool2d)]
        parts = [layers[a:b] for a, b in pairwise([0, *pools, len(layers)])]
        names = [*(f"conv{stage}" for stage in range(1, len(CHANNELS) + 1)), "fc"]
        self.chains = {name: nn.Sequential(*part) for name, part in zip(names, parts, strict=True)}
        self.specs = (FeatureSpec(CHANNELS[3], 8), FeatureSpec(FC_CHANNELS, 16))
        init_kaiming(self)
        if weights is not None:
            self._load(weights)

    def forward(self, x: Tensor) -> list[Tensor]:
        """Normalised images `(B, 3, H, W)` to one map for each of `specs`, its sides rounded up."""
        features = []
        for name, layers in self.chains.items():
            x = layers(x)
            if name in OUTPUTS:
                features.append(x)
        return features

    def _load(self, weights: str | Path) -> None:
        if weights == "torchvision":
            weights = f"VGG{self.depth}_Weights.IMAGENET1K_V1"
        state = {self._name(name, value): value for name, value in read_weights(weights).items()}
        fc = {name: f"features.{number}" for name, number in self.numbers.items() if name in FULL}
        if not any(name.startswith(tuple(f"{ours}." for ours in fc.values())) for name in state):
            own = self.state_dict()
            for name, ours in fc.items():
                for part in ("weight", "bias"):
                    full, name_here = state.get(f"classifier.{FULL[name]}.{part}"), f"{ours}.{part}"
                    # torchvision fills layers that were not published with NaN.
                    if full is None or not bool(full.isfinite().all()):
                        state[name_here] = own[name_here]
                    else:
                        state[name_here] = subsample(full)
        load_exactly(self, state, weights, lambda name: name.startswith("classifier."))

    def _name(self, name: str, value: Tensor) -> str:
        """Our name for one of the three ways of naming."""
        layer, _, part = name.rpartition(".")
        if re.fullmatch(r"\d+", layer):
            return f"features.{name}"
        if layer in FULL and (value.dim() == 2 or len(value) == FC_CHANNELS * FC_STEP):
            return f"classifier.{FULL[layer]}.{part}"
        return f"features.{self.numbers[layer]}.{part}" if layer in self.numbers else name
