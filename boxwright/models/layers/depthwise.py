"""Strided depthwise convolutions in bf16 on a CPU, whose input gradient oneDNN computes very slowly."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class StridedDepthwiseConv2d(nn.Conv2d):
    """A depthwise `nn.Conv2d` with a stride; the same values, a faster gradient.

    The gradient of a strided convolution's input is the convolution, with the kernel turned round and
    stride 1, of the output's gradient spread out with zeros in between. In bf16 on a CPU the direct kernel
    is ten times slower than that.
    """

    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        low = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else input.dtype
        if input.device.type != "cpu" or low != torch.bfloat16 or not torch.is_grad_enabled():
            return super()._conv_forward(input, weight, bias)
        output = _Depthwise.apply(input.to(low), weight.to(low), self.stride, self.padding, self.dilation)
        return output if bias is None else output + bias.to(low)[:, None, None]


def use_fast_depthwise(module: nn.Module) -> None:
    """Exchange the strided depthwise convolutions in a module, in place; parameters and names stay."""
    for parent in list(module.modules()):
        for name, child in list(parent.named_children()):
            if type(child) is nn.Conv2d and _is_strided_depthwise(child):
                with torch.device("meta"):
                    fast = StridedDepthwiseConv2d(
                        child.in_channels,
                        child.out_channels,
                        child.kernel_size,  # pyright: ignore[reportArgumentType]
                        child.stride,  # pyright: ignore[reportArgumentType]
                        child.padding,  # pyright: ignore[reportArgumentType]
                        child.dilation,  # pyright: ignore[reportArgumentType]
                        child.groups,
                    )
                fast.weight, fast.bias = child.weight, child.bias
                setattr(parent, name, fast.train(child.training))


def _is_strided_depthwise(conv: nn.Conv2d) -> bool:
    return (
        conv.groups == conv.in_channels == conv.out_channels
        and max(conv.stride) > 1
        and not isinstance(conv.padding, str)
        and conv.padding_mode == "zeros"
    )


class _Depthwise(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, stride, padding, dilation) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.settings = stride, padding, dilation
        return F.conv2d(x, weight, None, stride, padding, dilation, groups=len(weight))

    @staticmethod
    def backward(ctx: Any, grad: Tensor):  # pyright: ignore[reportIncompatibleMethodOverride]
        x, weight = ctx.saved_tensors
        stride, padding, dilation = ctx.settings
        grad_x = grad_weight = None
        if ctx.needs_input_grad[0]:
            reach = [d * (k - 1) for d, k in zip(dilation, weight.shape[2:], strict=True)]
            size = [n + 2 * p - r for n, p, r in zip(x.shape[2:], padding, reach, strict=True)]
            last = grad.is_contiguous(memory_format=torch.channels_last)
            layout = torch.channels_last if last else torch.contiguous_format
            spread = torch.empty(
                (*grad.shape[:2], *size), dtype=grad.dtype, device=grad.device, memory_format=layout
            ).zero_()
            spread[:, :, :: stride[0], :: stride[1]] = grad
            around = [r - p for p, r in zip(padding, reach, strict=True)]
            grad_x = F.conv2d(spread, weight.flip(2, 3), None, 1, around, dilation, groups=len(weight))
        if ctx.needs_input_grad[1]:
            _, grad_weight, _ = torch.ops.aten.convolution_backward(
                *(grad, x, weight, None, stride, padding, dilation, False, (0, 0), len(weight)),
                (False, True, False),
            )
        return grad_x, grad_weight, None, None, None
