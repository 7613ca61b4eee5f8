"""In-place activated batch norm: the norm's input is not kept (Rota Bulo et al., arXiv:1712.02616).

Batch norm keeps its input for the gradient and a ReLU behind it keeps its output, so two activations are
held where one would do. With an activation that can be inverted, the normalised input follows from the
output, which the next convolution holds anyway (Sec. 3). With `z` the norm's output and `y` the activation's,
of slope `a` below 0, and scale `g` and shift `b` of a channel with `m` values:

    z = y where y > 0, else y / a
    x_hat = (z - b) / g                                                  (Sec. 3.1, "InPlace-ABN I")
    dL/db = sum dL/dz,   dL/dg = sum dL/dz * x_hat
    dL/dx = g / sqrt(var + eps) * (dL/dz - (dL/db + x_hat * dL/dg) / m)
"""

from __future__ import annotations

from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional as F

from ...distributed import is_distributed, sum_over
from ...errors import ConfigError
from .cross_norm import CrossBatchNorm2d


class InPlaceBatchNorm2d(CrossBatchNorm2d):
    """Batch norm that keeps nothing but its output, and takes over the activation behind it.

    It is passed as any `norm`. Where an activation follows (`conv_norm_act`), a leaky ReLU stays what it is
    and a ReLU becomes a leaky one of slope `slope`; where none follows (the end of a residual branch), it is
    batch norm alone. Values and gradients are those of the two layers.

    To be inverted, a scale must not vanish: one closer to 0 than `smallest` counts as `smallest`, with its
    sign. (The authors' code takes `|g| + eps`; keeping the sign lets the weights of ordinary batch norm mean
    the same.) Statistics are shared over ranks as in `CrossBatchNorm2d`, and the state dict is the same.

    Args:
        channels: channels of the input.
        slope: of the leaky ReLU that takes a ReLU's place; the paper has 0.01.
        ranks: as in `CrossBatchNorm2d`.
        eps: added to the variance.
        momentum: weight of the new statistics in the running ones.
        images: as in `CrossBatchNorm2d`.
        smallest: magnitude of the smallest scale.
    """

    def __init__(
        self,
        channels: int,
        slope: float = 0.01,
        ranks: int | Literal["node"] | None = None,
        eps: float = 1e-5,
        momentum: float = 0.1,
        images: int | None = None,
        smallest: float = 1e-4,
    ) -> None:
        super().__init__(channels, ranks, eps, momentum, images)
        if not slope > 0 or not smallest > 0:
            raise ConfigError(
                f"InPlaceBatchNorm2d: slope={slope} and smallest={smallest} must be positive to be inverted"
            )
        self.slope, self.smallest = slope, smallest

    def forward(self, input: Tensor) -> Tensor:
        """`(B, C, H, W)` to the same shape and dtype, without an activation."""
        return self._normalised(input, 1.0)

    def activated(self, input: Tensor, activation: nn.Module) -> Tensor:
        """`(B, C, H, W)` to the same shape and dtype, the activation included.

        Raises:
            ConfigError: the activation cannot be inverted.
        """
        if isinstance(activation, nn.LeakyReLU) and activation.negative_slope > 0:
            return self._normalised(input, activation.negative_slope)
        if isinstance(activation, nn.ReLU):
            return self._normalised(input, self.slope)
        raise ConfigError(
            f"InPlaceBatchNorm2d cannot take over {type(activation).__name__}, whose input does not follow "
            "from its output: use ReLU or LeakyReLU there, or another norm"
        )

    def extra_repr(self) -> str:
        """Channels, epsilon, momentum, who shares, slope."""
        return f"{super().extra_repr()}, slope={self.slope}"

    def _normalised(self, x: Tensor, slope: float) -> Tensor:
        weight, bias, group = self.weight, self.bias, None
        if self.training and is_distributed() and self.ranks != 1:
            if self.process_group is None:
                self.join()
            group = self.process_group
        least = torch.copysign(torch.full_like(weight, self.smallest), weight)
        held = torch.where(weight.abs() < self.smallest, least, weight)
        weight = weight + (held - weight).detach()  # a scale that is held still learns
        if self.training:
            mean, variance, count = _statistics(x.detach(), group)
            self._learn(mean, variance, count)
        else:
            mean, variance, count = self.running_mean, self.running_var, None
        return _InPlaceNorm.apply(x, weight, bias, mean, variance, count, self.eps, slope, group)  # pyright: ignore

    @torch.no_grad()
    def _learn(self, mean: Tensor, variance: Tensor, count: Tensor) -> None:
        assert self.running_mean is not None
        assert self.running_var is not None
        assert self.num_batches_tracked is not None
        share = (self.momentum or 0.0) * (count > 0).to(mean.dtype)  # without a pixel nothing is learnt
        self.running_mean.add_(share * (mean - self.running_mean))
        self.running_var.add_(share * (variance * count / (count - 1).clamp(min=1) - self.running_var))
        self.num_batches_tracked.add_(1)


def _statistics(x: Tensor, group: dist.ProcessGroup | None) -> tuple[Tensor, Tensor, Tensor]:
    """Mean and variance `(C,)` and the number of values `(1,)`, of all ranks of the group."""
    values = x.to(torch.promote_types(x.dtype, torch.float32))
    count = values.new_full((1,), float(x.numel() // x.shape[1]))
    if group is None:
        variance, mean = torch.var_mean(values, (0, 2, 3), correction=0)
        return torch.where(count > 0, mean, 0.0), torch.where(count > 0, variance, 0.0), count
    total = sum_over(torch.cat((values.sum((0, 2, 3)), count)), group)
    count = total[-1:]
    mean = total[:-1] / count.clamp(min=1)
    squares = (values - mean[:, None, None]).square().sum((0, 2, 3))
    return mean, sum_over(squares, group) / count.clamp(min=1), count


class _InPlaceNorm(torch.autograd.Function):
    """Norm and leaky ReLU; `count` is None where mean and variance are fixed."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, mean, variance, count, eps, slope, group):
        y = F.batch_norm(x, mean, variance, weight, bias, False, 0.0, eps)
        if slope != 1:
            y = F.leaky_relu(y, slope, inplace=True)
        ctx.save_for_backward(y, weight, bias, (variance + eps).rsqrt(), count)
        ctx.slope, ctx.group = slope, group
        return y

    @staticmethod
    def backward(ctx: Any, grad: Tensor):  # pyright: ignore[reportIncompatibleMethodOverride]
        y, weight, bias, inverse, count = ctx.saved_tensors
        normal = y
        if ctx.slope != 1:
            grad = torch.ops.aten.leaky_relu_backward(grad, y, ctx.slope, True)
            normal = F.leaky_relu(y, 1 / ctx.slope)
        normal = (normal - bias.to(y.dtype)[:, None, None]).div_(weight.to(y.dtype)[:, None, None])
        scale = weight * inverse.to(weight.dtype)
        zero, one = torch.zeros_like(weight), torch.ones_like(weight)
        alone = count is not None and ctx.group is None
        grad_x, grad_weight, grad_bias = torch.ops.aten.native_batch_norm_backward(
            grad, normal, scale, zero, one, zero, one, alone, 0.0, [True, True, True]
        )
        if count is not None and ctx.group is not None:
            # The statistics depend on every rank's input, so each input's gradient has a share of all.
            summed = sum_over(torch.cat((grad_bias, grad_weight)), ctx.group) / count.clamp(min=1)
            of_mean, of_normal = (scale * part for part in summed.chunk(2))
            grad_x = grad_x - of_mean[:, None, None] - normal * of_normal[:, None, None]
        return grad_x.to(y.dtype), grad_weight, grad_bias, None, None, None, None, None, None
