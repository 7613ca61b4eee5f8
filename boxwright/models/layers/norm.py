"""Norm layers, chosen anywhere by a callable `norm(channels) -> nn.Module`.

The settings of batch norm that MMDetection compares (arXiv:1906.07155, Sec. 5.2, Table 6) are a choice
of class here and of `norm_eval` in the backbone:

| affine weights | running statistics | `norm` | `norm_eval` |
| --- | --- | --- | --- |
| frozen | frozen | `FrozenBatchNorm2d` | no effect |
| trained | frozen | `nn.BatchNorm2d` | `True` (the usual one) |
| trained | of the batch | `nn.BatchNorm2d`, or `CrossBatchNorm2d` over ranks | `False` |
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

NormLayer = Callable[[int], nn.Module]
"""Makes the norm layer of a number of channels."""


class FrozenBatchNorm2d(nn.Module):
    """Batch norm whose statistics and affine weights never change: `y = x * scale + shift` per channel.

    The state dict is that of `nn.BatchNorm2d` (a `num_batches_tracked` in it is ignored), so either
    loads the other's weights. Scale and shift are worked out in float32 and applied in the input's dtype.

    Args:
        channels: channels of the input.
        eps: added to the variance.
    """

    weight: Tensor
    bias: Tensor
    running_mean: Tensor
    running_var: Tensor

    def __init__(self, channels: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.eps = eps
        self.register_buffer("weight", torch.ones(channels))
        self.register_buffer("bias", torch.zeros(channels))
        self.register_buffer("running_mean", torch.zeros(channels))
        self.register_buffer("running_var", torch.ones(channels))

    def forward(self, x: Tensor) -> Tensor:
        """`(B, C, H, W)` in, the same shape, dtype and memory format out."""
        scale, shift = self.scale_and_shift()
        return x * scale.to(x.dtype)[:, None, None] + shift.to(x.dtype)[:, None, None]

    def scale_and_shift(self) -> tuple[Tensor, Tensor]:
        """The map of each channel, `(C,)` and `(C,)` float32."""
        scale = self.weight.float() * (self.running_var.float() + self.eps).rsqrt()
        return scale, self.bias.float() - self.running_mean.float() * scale

    def extra_repr(self) -> str:
        """Channels and epsilon."""
        return f"{self.weight.numel()}, eps={self.eps}"

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any
    ) -> None:
        state_dict.pop(f"{prefix}num_batches_tracked", None)  # nn.BatchNorm2d counts, we do not
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)


def group_norm(channels: int, groups: int = 32, eps: float = 1e-5) -> nn.GroupNorm:
    """Group norm (arXiv:1803.08494), to be passed as `norm=group_norm`.

    Raises:
        ValueError: `channels` is no multiple of `groups`.
    """
    if channels % groups:
        divisor = _divisor(channels, groups)
        raise ValueError(
            f"group norm over {channels} channels cannot have {groups} groups: choose a divisor, such as "
            f"functools.partial(group_norm, groups={divisor}) or, on the command line, "
            f"'group_norm(groups={divisor})'"
        )
    return nn.GroupNorm(groups, channels, eps=eps)


def _divisor(channels: int, at_most: int) -> int:
    return next(n for n in range(min(at_most, channels), 0, -1) if channels % n == 0)
