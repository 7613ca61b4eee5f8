"""A learnt factor."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Scale(nn.Module):
    """Multiplies by one learnt number (FCOS, arXiv:1904.01355, Sec. 3.2: one for each level).

    Args:
        value: what the factor starts with.
    """

    def __init__(self, value: float = 1.0) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(value, dtype=torch.float32))

    def forward(self, x: Tensor) -> Tensor:
        """Any shape in, the same shape and dtype out (a scalar does not promote the dtype)."""
        return x * self.scale
