"""The cost of saying "no" for every class, which nearly all logits of a dense head are trained for.

A focal loss has `p^gamma * softplus(x)` for a class that is not there, with `p = sigmoid(x)`
(arXiv:1708.02002, Eq. 4); cross entropy is the same with gamma 0. Step by step, each of half a dozen
operations and of their gradients goes through a matrix of all priors and classes. Here value and slope come
out of one pass.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

BLOCK = 1 << 15
"""Logits that a CPU looks at together: the steps in between stay in a core's cache."""


def towards_no(logits: Tensor, labels: Tensor, gamma: float) -> tuple[Tensor, Tensor]:
    """What "no" costs, summed over the classes, and the logits of the labels, where it may have to be "yes".

    Differentiable once. Computed in float32; what is kept for the gradient has the logits' own dtype.

    Args:
        logits: `(..., C)`.
        labels: `(...)` int64.
        gamma: the focusing parameter; 0 for plain cross entropy.

    Returns:
        `(...)` and `(...)` float32.
    """
    if torch.compiler.is_compiling():  # the compiler makes one pass of the plain steps, and their gradient
        values = logits.float()
        return _cost(values, gamma).sum(-1), values.gather(-1, labels[..., None])[..., 0]
    costs, at_label = _TowardsNo.apply(logits.reshape(-1, logits.shape[-1]), labels.flatten(), gamma)
    return costs.view(labels.shape), at_label.view(labels.shape)


def _cost(logits: Tensor, gamma: float) -> Tensor:
    cost = F.softplus(logits)
    return cost if gamma == 0 else logits.sigmoid().pow(gamma) * cost


def _rows_of_block(logits: Tensor) -> int:
    rows, classes = logits.shape
    return max(1, BLOCK // classes if logits.device.type == "cpu" else rows)


class _TowardsNo(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, logits: Tensor, labels: Tensor, gamma: float) -> tuple[Tensor, Tensor]:
        rows = len(logits)
        costs = logits.new_empty(rows, dtype=torch.float32)
        slope = torch.empty_like(logits) if ctx.needs_input_grad[0] else None
        step = _rows_of_block(logits)
        for first in range(0, rows, step):
            part = slice(first, first + step)
            values = logits[part].float()
            cost = F.softplus(values)
            if slope is None:
                costs[part] = _cost(values, gamma).sum(-1)
                continue
            p = values.sigmoid()
            if gamma == 0:
                slope[part] = p
                costs[part] = cost.sum(-1)
                continue
            weight = p.pow(gamma)
            costs[part] = (weight * cost).sum(-1)
            # With s for the softplus, whose slope is p: (p^g s)' = p^g (g (1 - p) s + p).
            slope[part] = cost.mul_(1 - p).mul_(gamma).add_(p).mul_(weight)
        ctx.save_for_backward(slope, labels)
        return costs, logits.gather(1, labels[:, None])[:, 0].float()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_costs: Tensor, grad_at_label: Tensor):  # pyright: ignore[reportIncompatibleMethodOverride]
        slope, labels = ctx.saved_tensors
        # Beside all activations there is no second matrix of this size, unless the slope is wanted once more.
        keep = torch._C._autograd._get_current_graph_task_keep_graph()  # pyright: ignore
        grad = slope.clone() if keep else slope
        # By blocks here, too: low precision is multiplied in float32.
        for first in range(0, len(grad), step := _rows_of_block(grad)):
            part = slice(first, first + step)
            grad[part].mul_(grad_costs[part, None])
        grad.scatter_add_(1, labels[:, None], grad_at_label[:, None].to(slope.dtype))
        return grad, None, None
