"""Folding the fixed norms of any network into the convolutions before them, whoever wrote the network."""

from __future__ import annotations

import copy
from collections import Counter
from types import MethodType

from torch import Tensor, fx, nn
from torch.fx.proxy import TraceError

from ..layers import CONVOLUTIONS, FrozenBatchNorm2d, folded, folds, is_fixed

_NORMS = (nn.BatchNorm2d, FrozenBatchNorm2d)
_ACTIVATIONS = (nn.ReLU, nn.ReLU6, nn.LeakyReLU)


def fold_norms(net: nn.Module) -> int:
    """Let convolutions take over batch norms that stand right behind them, and the activations behind those.

    Names, parameters and values stay; as in `layers.conv_norm`, a norm is folded while its statistics are
    fixed and called while it learns them. Pairs are found in the traced graph: the norm's input is the
    convolution's output, which nothing else reads.

    Args:
        net: a network that `torch.fx` can trace; another is left as it is.

    Returns:
        How many norms were folded.
    """
    try:
        graph = _Tracer().trace(net)
    except (TypeError, ValueError, RuntimeError, AttributeError, TraceError):
        return 0  # control flow that depends on values: nothing is known of such a network
    modules, count = dict(net.named_modules()), 0
    calls = Counter(str(node.target) for node in graph.nodes if node.op == "call_module")
    for node in graph.nodes:
        norm = modules.get(str(node.target)) if node.op == "call_module" else None
        before = node.args[0] if norm is not None and node.args else None
        if not isinstance(norm, _NORMS) or not isinstance(before, fx.Node):
            continue
        conv = modules.get(str(before.target)) if before.op == "call_module" else None
        once = len(before.users) == calls[str(node.target)] == calls[str(before.target)] == 1
        if once and isinstance(conv, nn.Conv2d) and type(conv) in CONVOLUTIONS:
            activation = _activation_after(node, norm, modules, calls)
            # Not children: their parameters have their names already.
            conv.__dict__["following"], norm.__dict__["preceding"] = (
                (norm, copy.copy(activation)),
                (conv, norm),
            )
            conv.forward = MethodType(_conv_with_norm, conv)
            norm.forward = MethodType(_rest_of_norm, norm)
            if activation is not None and activation is not getattr(norm, "act", None):
                activation.__dict__["preceding"] = (conv, norm)
                activation.forward = MethodType(_nothing_left, activation)
            count += 1
    return count


def _activation_after(
    node: fx.Node, norm: nn.Module, modules: dict[str, nn.Module], calls: Counter[str]
) -> nn.Module | None:
    """The activation that alone reads what a norm gives: inside it (timm's have one) or behind it."""
    if _dropout_of(norm) is not None:
        return None
    own = getattr(norm, "act", None)
    if own is not None and not isinstance(own, nn.Identity):
        return own
    user = next(iter(node.users)) if len(node.users) == 1 else node
    layer = modules.get(str(user.target)) if user.op == "call_module" else None
    return layer if isinstance(layer, _ACTIVATIONS) and calls[str(user.target)] == 1 else None


def _dropout_of(norm: nn.Module) -> nn.Module | None:
    drop = getattr(norm, "drop", None)
    return None if isinstance(drop, nn.Identity) else drop


class _Tracer(fx.Tracer):
    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        known = isinstance(m, (*_NORMS, nn.Conv2d))
        return known or super().is_leaf_module(m, module_qualified_name)


def _conv_with_norm(conv: nn.Conv2d, x: Tensor) -> Tensor:
    norm, activation = conv.__dict__["following"]
    output = folded(conv, norm, x, activation) if folds(conv, x) else None
    return type(conv).forward(conv, x) if output is None else output


def _rest_of_norm(norm: nn.BatchNorm2d, x: Tensor) -> Tensor:
    """What is left of a norm once its convolution has done it: a dropout and what is behind it."""
    conv, _ = norm.__dict__["preceding"]
    if not folds(conv, x) or not is_fixed(norm):
        return type(norm).forward(norm, x)
    drop = _dropout_of(norm)
    return x if drop is None else norm.act(drop(x))  # pyright: ignore[reportCallIssue]


def _nothing_left(activation: nn.Module, x: Tensor) -> Tensor:
    """An activation that the convolution has done, where it has done the norm."""
    conv, norm = activation.__dict__["preceding"]
    return x if folds(conv, x) and is_fixed(norm) else type(activation).forward(activation, x)
