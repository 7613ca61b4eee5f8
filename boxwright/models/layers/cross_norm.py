"""Batch norm over the images of several processes (MegDet, arXiv:1711.07240, Sec. 3.3)."""

from __future__ import annotations

from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional as F

from ...distributed import is_distributed, share_group, sum_over


class CrossBatchNorm2d(nn.SyncBatchNorm):
    """Batch norm with the mean and variance of all images that a group of ranks holds.

    In training it equals one process's batch norm on the joined batch, values and gradients, also where ranks
    hold different numbers of pixels or none. With one process, and in evaluation, it is `nn.BatchNorm2d`; the
    state dict is always the same. On CUDA PyTorch's own kernels compute it.

    Args:
        channels: channels of the input.
        ranks: how many neighbouring ranks share statistics (the paper's BN size over the images of a rank),
            "node" for those of one machine, None for all.
        eps: added to the variance.
        momentum: weight of the new statistics in the running ones.
    """

    def __init__(
        self,
        channels: int,
        ranks: int | Literal["node"] | None = None,
        eps: float = 1e-5,
        momentum: float = 0.1,
    ) -> None:
        super().__init__(channels, eps=eps, momentum=momentum)
        self.ranks: int | Literal["node"] | None = ranks

    def join(self) -> None:
        """Find the ranks to share with; every rank calls it, in the same order of layers.

        Raises:
            ConfigError: the number of processes is no multiple of `ranks`.
        """
        self.process_group = share_group(self.ranks) if is_distributed() else None

    def forward(self, input: Tensor) -> Tensor:
        """`(B, C, H, W)` to the same shape and dtype."""
        if not self.training or not is_distributed():
            return F.batch_norm(
                input, self.running_mean, self.running_var, self.weight, self.bias,
                self.training, self.momentum or 0.0, self.eps,
            )  # fmt: skip
        if self.process_group is None:
            self.join()
        if input.is_cuda:
            return super().forward(input)
        output, mean, variance, count = _CrossNorm.apply(
            input, self.weight, self.bias, self.eps, self.process_group
        )
        with torch.no_grad():
            assert self.running_mean is not None
            assert self.running_var is not None
            assert self.num_batches_tracked is not None
            unbiased = variance * count / (count - 1).clamp(min=1)
            self.running_mean.lerp_(mean, self.momentum or 0.0)
            self.running_var.lerp_(unbiased, self.momentum or 0.0)
            self.num_batches_tracked += 1
        return output


class _CrossNorm(torch.autograd.Function):
    """Algorithm 1 of MegDet: the mean is summed over the ranks, then the variance around it."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, eps: float, group: dist.ProcessGroup
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        values = x.float()
        local = values.new_full((1,), float(x.numel() // x.shape[1]))
        total = sum_over(torch.cat((values.sum((0, 2, 3)), local)), group)
        count = total[-1:].clamp(min=1)
        mean = total[:-1] / count
        centred = values - mean[:, None, None]
        variance = sum_over(centred.square().sum((0, 2, 3)), group) / count
        scale = (variance + eps).rsqrt()
        ctx.save_for_backward(x, weight, mean, scale, count)
        ctx.group = group
        output = centred * (scale * weight)[:, None, None] + bias[:, None, None]
        ctx.mark_non_differentiable(mean, variance, count)
        return output.to(x.dtype), mean, variance, count

    @staticmethod
    def backward(ctx: Any, grad: Tensor, *_: Tensor):  # pyright: ignore[reportIncompatibleMethodOverride]
        x, weight, mean, scale, count = ctx.saved_tensors
        normal = (x.float() - mean[:, None, None]) * scale[:, None, None]
        grad = grad.float()
        grad_bias, grad_weight = grad.sum((0, 2, 3)), (grad * normal).sum((0, 2, 3))
        # The statistics depend on every rank's input, so each input's gradient has a share of all outputs'.
        summed = sum_over(torch.cat((grad_bias, grad_weight)), ctx.group) / count
        of_mean, of_normal = summed.chunk(2)
        grad_x = grad - of_mean[:, None, None] - normal * of_normal[:, None, None]
        grad_x = grad_x * (scale * weight)[:, None, None]
        return grad_x.to(x.dtype), grad_weight, grad_bias, None, None
