"""Optimisers with parameter groups made from the kinds of modules, and the linear scaling rule.

`sgd` and `adamw` take the model first, so that a recipe holds a `fiddle.Partial` of them.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import nn

from ..errors import ConfigError

_NORMS = (nn.modules.batchnorm._NormBase, nn.GroupNorm, nn.LayerNorm, nn.LocalResponseNorm, nn.RMSNorm)
BACKBONE = "backbone."


def sgd(
    model: nn.Module,
    lr: float,
    momentum: float = 0.9,
    weight_decay: float = 1e-4,
    nesterov: bool = False,
    norm_decay: float | None = None,
    bias_decay: float | None = None,
    bias_lr_factor: float = 1.0,
    backbone_lr_factor: float = 1.0,
    lr_factors: Mapping[str, float] | None = None,
) -> torch.optim.SGD:
    """Stochastic gradient descent with momentum.

    Args:
        model: whose trainable parameters are optimised.
        lr: learning rate for the base batch size.
        momentum: of the velocity.
        weight_decay: of all that has none of its own.
        nesterov: whether to look ahead.
        norm_decay: weight decay of the parameters of normalisation layers; None for `weight_decay`.
        bias_decay: weight decay of the biases of other layers; None for `weight_decay`.
        bias_lr_factor: multiplies the learning rate of those biases.
        backbone_lr_factor: multiplies the learning rate of what stands under `model.backbone`.
        lr_factors: by parts of parameters' names, such as `{"conv_offset": 0.1}`: multiply the learning rate
            of those whose names contain them, on top of the other factors.
    """
    groups = parameter_groups(
        model, lr, weight_decay, norm_decay, bias_decay, bias_lr_factor, backbone_lr_factor, lr_factors
    )
    return torch.optim.SGD(
        groups, lr, momentum, weight_decay=weight_decay, nesterov=nesterov, fused=_can_fuse(groups)
    )


def adamw(
    model: nn.Module,
    lr: float,
    betas: tuple[float, float] = (0.9, 0.999),
    weight_decay: float = 0.05,
    eps: float = 1e-8,
    norm_decay: float | None = 0.0,
    bias_decay: float | None = 0.0,
    bias_lr_factor: float = 1.0,
    backbone_lr_factor: float = 1.0,
    lr_factors: Mapping[str, float] | None = None,
) -> torch.optim.AdamW:
    """Adam with decoupled weight decay (arXiv 1711.05101, algorithm 2); arguments as in `sgd`.

    Normalisation layers and biases are not decayed by default, as is usual with this optimiser.
    """
    groups = parameter_groups(
        model, lr, weight_decay, norm_decay, bias_decay, bias_lr_factor, backbone_lr_factor, lr_factors
    )
    return torch.optim.AdamW(
        groups, lr, (betas[0], betas[1]), eps, weight_decay=weight_decay, fused=_can_fuse(groups)
    )


def parameter_groups(
    model: nn.Module,
    lr: float,
    weight_decay: float,
    norm_decay: float | None = None,
    bias_decay: float | None = None,
    bias_lr_factor: float = 1.0,
    backbone_lr_factor: float = 1.0,
    lr_factors: Mapping[str, float] | None = None,
) -> list[dict[str, Any]]:
    """Trainable parameters by kind (weight, bias, norm) and place (backbone or not), arguments as in `sgd`.

    Returns:
        Groups with `name`, `params`, `lr`, `initial_lr` and `weight_decay`; frozen and shared parameters
        are left out and counted once.

    Raises:
        ConfigError: the model has no trainable parameter, or none that one of `lr_factors` is for.
    """
    factors = dict(lr_factors or {})
    decay_of = {"weight": weight_decay, "bias": bias_decay, "norm": norm_decay}
    groups: dict[str, dict[str, Any]] = {}
    unused = set(factors)
    for name, kind, parameter in _trainable(model):
        own = [part for part in factors if part in name]
        unused.difference_update(own)
        in_backbone = name.startswith(BACKBONE)
        decay = decay_of[kind]
        scale = (bias_lr_factor if kind == "bias" else 1.0) * (backbone_lr_factor if in_backbone else 1.0)
        scale *= math.prod(factors[part] for part in own)
        key = " ".join([f"{BACKBONE if in_backbone else ''}{kind}", *own])
        group = groups.setdefault(key, {
            "name": key, "params": [], "lr": lr * scale, "initial_lr": lr * scale,
            "weight_decay": weight_decay if decay is None else decay,
        })  # fmt: skip
        group["params"].append(parameter)
    if not groups:
        raise ConfigError("the model has no trainable parameter: all are frozen")
    if unused:
        raise ConfigError(f"lr_factors: no trainable parameter has {', '.join(sorted(unused))} in its name")
    return list(groups.values())


def scale_lr(lr: float, batch_size: int, base_batch_size: int | None) -> float:
    """The linear scaling rule (arXiv 1706.02677, section 2.1): `lr * batch_size / base_batch_size`.

    Args:
        lr: learning rate that suits `base_batch_size`.
        batch_size: images of one optimiser step, over all ranks and accumulated batches.
        base_batch_size: images of one step in the recipe; None leaves `lr` as it is.

    Raises:
        ConfigError: `base_batch_size` is no number of images.
    """
    if base_batch_size is not None and base_batch_size < 1:
        raise ConfigError(f"base_batch_size={base_batch_size} must be at least 1, or None for no scaling")
    return lr if base_batch_size is None else lr * batch_size / base_batch_size


def scale_optimizer(optimizer: torch.optim.Optimizer, batch_size: int, base_batch_size: int | None) -> str:
    """Apply `scale_lr` to every group of an optimiser; says in words what it did, for the log."""
    for group in optimizer.param_groups:
        group["lr"] = scale_lr(group["lr"], batch_size, base_batch_size)
        group["initial_lr"] = group["lr"]
    lr = max(group["lr"] for group in optimizer.param_groups)
    if base_batch_size is None or base_batch_size == batch_size:
        return f"learning rate {lr:g} for {batch_size} images a step"
    return (
        f"learning rate {lr:g}: scaled by {batch_size}/{base_batch_size}, "
        "images of a step to images in the recipe (linear rule)"
    )


def _trainable(model: nn.Module) -> Iterator[tuple[str, str, nn.Parameter]]:
    seen: set[int] = set()
    for prefix, module in model.named_modules():
        for name, parameter in module.named_parameters(recurse=False):
            if not parameter.requires_grad or id(parameter) in seen:
                continue
            seen.add(id(parameter))
            kind = "norm" if _is_norm(module, parameter) else "bias" if name == "bias" else "weight"
            yield (f"{prefix}.{name}" if prefix else name), kind, parameter


def _is_norm(module: nn.Module, parameter: nn.Parameter) -> bool:
    # Normalisations that derive from none of PyTorch's (as timm has) are known by their class name.
    return isinstance(module, _NORMS) or ("norm" in type(module).__name__.lower() and parameter.ndim <= 1)


def _can_fuse(groups: list[dict[str, Any]]) -> bool | None:
    parameters = [p for group in groups for p in group["params"]]
    fused = all(p.device.type in ("cpu", "cuda") and p.is_floating_point() for p in parameters)
    return True if fused else None  # None: PyTorch chooses foreach where it can
