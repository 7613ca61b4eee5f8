"""Fully connected layers in float32 on a CPU by oneDNN.

PyTorch multiplies float32 matrices there with MKL, which on processors that are not Intel's takes about twice
as long. oneDNN, which computes the convolutions anyway, is fast on all of them; PyTorch's compiler calls the
same operator. Sums are rounded otherwise, in the last bit.
"""

from __future__ import annotations

from functools import cache
from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from boxwright.ops.backends import eager_on_cpu


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """`x @ weight.T + bias` for x `(N, I)`, weight `(O, I)`, bias `(O,)`: `F.linear`, but faster."""
    plain = x.dim() == 2 and x.dtype == weight.dtype == torch.float32 and x.numel() > 0
    if not plain or not eager_on_cpu(x.device) or torch.is_autocast_enabled("cpu") or not has_product():
        return F.linear(x, weight, bias)
    return _Linear.apply(x, weight, bias)  # pyright: ignore[reportReturnType]


def use_fast_linear(module: nn.Module) -> None:
    """Let the fully connected layers inside compute by `linear`, in place; parameters and names stay."""
    for layer in module.modules():
        if type(layer) is nn.Linear and "forward" not in layer.__dict__:
            layer.forward = MethodType(_forward, layer)


def _forward(layer: nn.Linear, x: Tensor) -> Tensor:
    return linear(x, layer.weight, layer.bias)


@cache
def has_product() -> bool:
    """Whether this build of PyTorch has oneDNN's matrix product."""
    return torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")


def _product(a: Tensor, b: Tensor, bias: Tensor | None = None) -> Tensor:
    """`a @ b.T + bias` for a `(N, K)` and b `(M, K)`, laid out in memory either way round."""
    return torch.ops.mkldnn._linear_pointwise(a, b, bias, "none", [], "")


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        return _product(x, weight, bias)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor):  # pyright: ignore[reportIncompatibleMethodOverride]
        x, weight = ctx.saved_tensors
        of_x, of_weight, of_bias = ctx.needs_input_grad
        return (
            _product(grad, weight.t()) if of_x else None,
            _product(grad.t(), x.t()) if of_weight else None,
            grad.sum(0) if of_bias else None,
        )
