"""Initialisers. Each walks a module, sets its convolutions and linear layers, and zeroes their biases.

Any other layer that has a `reset_parameters` of its own (a deformable convolution) keeps what that set,
down to the layers inside it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

from torch import nn

Weighted = nn.Conv2d | nn.ConvTranspose2d | nn.Linear


def _weighted(module: nn.Module) -> Iterator[Weighted]:
    if isinstance(module, Weighted):
        if module.bias is not None:
            nn.init.zeros_(module.bias)
        yield module
    elif not hasattr(module, "reset_parameters"):
        for child in module.children():
            yield from _weighted(child)


def init_normal(module: nn.Module, std: float = 0.01) -> None:
    """Weights from a normal distribution with mean 0 and deviation `std`."""
    for layer in _weighted(module):
        nn.init.normal_(layer.weight, std=std)


def init_xavier(module: nn.Module) -> None:
    """Xavier's uniform weights (Glorot and Bengio, 2010, Eq. 16)."""
    for layer in _weighted(module):
        nn.init.xavier_uniform_(layer.weight)


def init_kaiming(module: nn.Module) -> None:
    """Kaiming's normal weights for ReLU, by fan out (arXiv:1502.01852, Eq. 14)."""
    for layer in _weighted(module):
        nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")


def bias_for_prior(probability: float) -> float:
    """Bias with which a sigmoid starts at `probability`: -log((1 - p) / p) (arXiv:1708.02002, Sec. 4.1).

    Raises:
        ValueError: `probability` does not lie between 0 and 1.
    """
    if not 0 < probability < 1:
        raise ValueError(f"probability is {probability}; it has to lie between 0 and 1")
    return -math.log((1 - probability) / probability)
