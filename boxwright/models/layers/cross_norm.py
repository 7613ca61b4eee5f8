"""Batch norm over the images of several processes (MegDet, arXiv:1711.07240, Sec. 3.3)."""

from __future__ import annotations

from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional as F

from ...distributed import is_distributed, share_group, sum_over, world_size
from ...errors import ConfigError


class CrossBatchNorm2d(nn.BatchNorm2d):
    """Batch norm with the mean and variance of all images that a group of ranks holds.

    In training it equals one process's batch norm on the joined batch, values and gradients, also where ranks
    hold different numbers of pixels or none. Padding counts as it does there: each pixel of a rank's canvas
    is one. With one process, and in evaluation, it is `nn.BatchNorm2d`; the state dict is always the same.
    Groups see different images, so their running statistics differ: those of rank 0 are kept, unless
    `PreciseNormHook` gathers them from all.

    On CUDA PyTorch's `nn.SyncBatchNorm` computes it; in a compiled graph, which that cannot be part of, and
    on other devices it is algorithm 1 of the paper in plain operations.

    Args:
        channels: channels of the input.
        ranks: how many neighbouring ranks share statistics, "node" for those of one machine, None for all.
        eps: added to the variance.
        momentum: weight of the new statistics in the running ones.
        images: how many images share statistics (the paper's BN size), instead of `ranks`; `join` makes
            ranks of it.

    Raises:
        ConfigError: both `ranks` and `images` are given, or one is below 1.
    """

    def __init__(
        self,
        channels: int,
        ranks: int | Literal["node"] | None = None,
        eps: float = 1e-5,
        momentum: float = 0.1,
        images: int | None = None,
    ) -> None:
        super().__init__(channels, eps=eps, momentum=momentum)
        if ranks is not None and images is not None:
            raise ConfigError(
                f"CrossBatchNorm2d: ranks={ranks} and images={images} are two ways to say the same; give one"
            )
        for name, value, words in (("ranks", ranks, ("node",)), ("images", images, ())):
            if value not in (None, *words) and (isinstance(value, str) or value < 1):
                allowed = ", ".join(["a number from 1 on", *map(repr, words), "None"])
                raise ConfigError(f"CrossBatchNorm2d: {name}={value!r} must be one of: {allowed}")
        self.ranks: int | Literal["node"] | None = ranks
        self.process_group: dist.ProcessGroup | None = None
        self.images = images
        self.images_of_rank: int | None = None

    def join(self, images_of_rank: int | None = None) -> None:
        """Find the ranks to share with; every rank calls it, in the same order of layers.

        Args:
            images_of_rank: images of a forward pass on one rank; needed the first time where `images` is set.

        Raises:
            ConfigError: the number of processes is no multiple of `ranks`, or `images` cannot be made of what
                the ranks hold.
        """
        ranks = self.ranks
        if images_of_rank is None:
            images_of_rank = self.images_of_rank  # of an earlier time, or of the layer that this is a copy of
        if self.images is not None:
            if images_of_rank is None:
                raise ConfigError(
                    f"CrossBatchNorm2d: images={self.images} has to be shared by ranks of how many images? "
                    "Call join_norms(model, images_of_rank) before training, as boxwright.train does"
                )
            ranks, rest = divmod(self.images, images_of_rank)
            world = world_size()
            if rest or not ranks or world % ranks:
                possible = [str(images_of_rank * n) for n in range(1, world + 1) if world % n == 0]
                raise ConfigError(
                    f"batch norm over images={self.images} cannot be made of ranks with {images_of_rank} "
                    f"images each, of which there are {world}: choose images={' or '.join(possible)}, or "
                    "another batch size"
                )
        self.process_group, self.images_of_rank = share_group(ranks), images_of_rank

    def forward(self, input: Tensor) -> Tensor:
        """`(B, C, H, W)` to the same shape and dtype."""
        assert self.running_mean is not None
        assert self.running_var is not None
        assert self.num_batches_tracked is not None
        momentum = self.momentum or 0.0
        together = self.training and is_distributed()
        if together and self.process_group is None:
            self.join()
        if together and input.is_cuda and not torch.compiler.is_compiling():
            # No subclass of it, which DistributedDataParallel refuses on a CPU.
            return nn.SyncBatchNorm.forward(self, input)  # pyright: ignore[reportArgumentType]
        if self.training:
            self.num_batches_tracked.add_(1)
        if not together:
            return F.batch_norm(
                input, self.running_mean, self.running_var, self.weight, self.bias,
                self.training, momentum, self.eps,
            )  # fmt: skip
        output, mean, variance, count = _CrossNorm.apply(
            input, self.weight, self.bias, self.eps, self.process_group
        )
        with torch.no_grad():
            unbiased = variance * count / (count - 1).clamp(min=1)
            share = momentum * (count > 0).to(mean.dtype)  # without a pixel on any rank nothing is learnt
            self.running_mean.add_(share * (mean - self.running_mean))
            self.running_var.add_(share * (unbiased - self.running_var))
        return output

    _check_non_zero_input_channels = nn.SyncBatchNorm._check_non_zero_input_channels

    def extra_repr(self) -> str:
        """Channels, epsilon, momentum, and who shares."""
        return f"{super().extra_repr()}, ranks={self.ranks!r}, images={self.images!r}"

    def __getstate__(self) -> dict[str, Any]:
        # A group belongs to a process and cannot be copied: a copy (the moving average) joins again.
        return {**self.__dict__, "process_group": None}


def join_norms(model: nn.Module, images_of_rank: int) -> int:
    """Let the batch norms of a model that share statistics find their ranks, before training starts.

    Every rank calls it, also a single process: what cannot be shared out is an error everywhere, at once.

    Args:
        model: whose layers join, in their order.
        images_of_rank: images of a forward pass on one rank.

    Returns:
        How many layers share statistics.

    Raises:
        ConfigError: a group does not divide the processes; the first such layer is named.
    """
    layers = {name: m for name, m in model.named_modules() if isinstance(m, CrossBatchNorm2d)}
    for name, layer in layers.items():
        try:
            layer.join(images_of_rank)
        except ConfigError as error:
            raise ConfigError(f"model.{name}: {error}") from error
    return len(layers)


class _CrossNorm(torch.autograd.Function):
    """Algorithm 1 of MegDet: the mean is summed over the ranks, then the variance around it."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, eps: float, group: dist.ProcessGroup
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        values = x.to(torch.promote_types(x.dtype, torch.float32))
        local = values.new_full((1,), float(x.numel() // x.shape[1]))
        total = sum_over(torch.cat((values.sum((0, 2, 3)), local)), group)
        pixels = total[-1:]
        count = pixels.clamp(min=1)
        mean = total[:-1] / count
        centred = values - mean[:, None, None]
        variance = sum_over(centred.square().sum((0, 2, 3)), group) / count
        scale = (variance + eps).rsqrt()
        ctx.save_for_backward(x, weight, mean, scale, count)
        ctx.group = group
        output = centred * (scale * weight)[:, None, None] + bias[:, None, None]
        ctx.mark_non_differentiable(mean, variance, pixels)
        if output.dtype != x.dtype:  # in graphs of torch 2.11 a `to` that does nothing cuts the gradient
            output = output.to(x.dtype)
        return output, mean, variance, pixels

    @staticmethod
    def backward(ctx: Any, grad: Tensor, *_: Tensor):  # pyright: ignore[reportIncompatibleMethodOverride]
        x, weight, mean, scale, count = ctx.saved_tensors
        normal = (x.to(mean.dtype) - mean[:, None, None]) * scale[:, None, None]
        grad = grad.to(mean.dtype)
        grad_bias, grad_weight = grad.sum((0, 2, 3)), (grad * normal).sum((0, 2, 3))
        # The statistics depend on every rank's input, so each input's gradient has a share of all outputs'.
        summed = sum_over(torch.cat((grad_bias, grad_weight)), ctx.group) / count
        of_mean, of_normal = summed.chunk(2)
        grad_x = grad - of_mean[:, None, None] - normal * of_normal[:, None, None]
        grad_x = grad_x * (scale * weight)[:, None, None]
        return grad_x.to(x.dtype), grad_weight.to(weight.dtype), grad_bias.to(weight.dtype), None, None
