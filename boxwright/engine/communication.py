"""How the ranks of a run exchange gradients: the settings, and what a training step asks of them."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from .. import distributed
from ..errors import ConfigError
from .exchange import Exchange, average_bucket
from .memory import blocks
from .messages import notify
from .powersgd import PowerSGD
from .sharding import is_sharded, rebind, shard

NARROW = {"fp16": torch.float16, "bf16": torch.bfloat16}
BLOCKS = 8
"""Most blocks whose parameters are gathered at once."""


@dataclass(frozen=True)
class Communication:
    """Settings of the exchange between processes; with one process they have no effect.

    Args:
        bucket_mb: MiB of gradients that are exchanged together, while the backward pass goes on
            (arXiv:2006.15704, Sec. 3.2.3); None for PyTorch's 25, the first bucket being of 1.
        compress: what travels: gradients as they are ("none"), rounded to "fp16" or "bf16", or as products
            of thin matrices ("powersgd", arXiv:1905.13727).
        powersgd_rank: columns of these matrices.
        powersgd_start: first steps that exchange whole gradients; no fewer than the warm-up.
        static_graph: promise that each step uses the same parameters, which spares DDP its looking.
        gradient_as_bucket_view: gradients lie in the buckets, which saves one copy of all of them.
        find_unused: look through the graph of each step for parameters that it does not use.
        timeout_s: seconds that a rank may stand still before the others name it and end; None for PyTorch's
            (gloo 1800, NCCL 600).
        shard: "fsdp" spreads parameters, gradients and optimiser states over the ranks.

    Raises:
        ConfigError: a value makes no sense, or two exclude each other.
    """

    bucket_mb: float | None = None
    compress: Literal["none", "fp16", "bf16", "powersgd"] = "none"
    powersgd_rank: int = 4
    powersgd_start: int = 1000
    static_graph: bool = False
    gradient_as_bucket_view: bool = True
    find_unused: bool = False
    timeout_s: float | None = None
    shard: Literal["none", "fsdp"] = "none"

    def __post_init__(self) -> None:
        for name, value, choices in (
            ("compress", self.compress, ("none", "fp16", "bf16", "powersgd")),
            ("shard", self.shard, ("none", "fsdp")),
        ):
            if value not in choices:
                raise ConfigError(f"communication.{name}={value!r}: choose one of {', '.join(choices)}")
        for name, number in (("bucket_mb", self.bucket_mb), ("timeout_s", self.timeout_s)):
            if number is not None and not number > 0:
                raise ConfigError(f"communication.{name}={number} must be positive, or None")
        if self.powersgd_rank < 1 or self.powersgd_start < 0:
            raise ConfigError(
                f"communication.powersgd_rank={self.powersgd_rank} must be at least 1 and "
                f"powersgd_start={self.powersgd_start} at least 0"
            )
        if self.static_graph and self.find_unused:
            raise ConfigError(
                "communication.static_graph finds unused parameters in the first step, find_unused in every "
                "step: set one of them"
            )
        asked = {
            "compress=powersgd": self.compress == "powersgd",
            "static_graph": self.static_graph,
            "find_unused": self.find_unused,
            "bucket_mb": self.bucket_mb is not None,
        }
        if self.shard == "fsdp" and any(asked.values()):
            names = ", ".join(name for name, set_ in asked.items() if set_)
            raise ConfigError(
                f"communication.shard=fsdp exchanges no whole gradients, so {names} cannot be had with it: "
                "leave these out, or set shard=none"
            )


class Connected(DistributedDataParallel):
    """DistributedDataParallel that knows whether its graph has still to be learnt."""

    def __init__(self, model: nn.Module, **arguments: Any) -> None:
        super().__init__(model, **arguments)
        self.learning = self.static_graph


def check_communication(settings: Communication, precision: str, compile: bool, steps: int) -> None:
    """Refuse settings that do not fit the run.

    Args:
        settings: of a run with several processes.
        precision: resolved, "fp32", "bf16" or "fp16".
        compile: whether the loss is compiled.
        steps: optimiser steps of the run.

    Raises:
        ConfigError: says which, and what to do.
    """
    if settings.compress == "powersgd" and precision == "fp16":
        raise ConfigError(
            "communication.compress=powersgd would keep in its error feedback the infinite gradients that "
            "the loss scaling of precision=fp16 brings about: use precision=bf16, or compress=fp16"
        )
    if settings.compress == "powersgd" and settings.powersgd_start >= steps:
        raise ConfigError(
            f"communication.powersgd_start={settings.powersgd_start}, but the run has {steps} steps: nothing "
            "would be compressed; start earlier or set compress=none"
        )
    if settings.shard == "fsdp" and precision == "fp16":
        raise ConfigError("communication.shard=fsdp goes without loss scaling: use precision=bf16 or fp32")
    if settings.shard == "fsdp" and compile:
        raise ConfigError(
            "communication.shard=fsdp gathers parameters between layers, which compile=true would join to "
            "one graph: set one of them"
        )


def connect(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    device: torch.device,
    settings: Communication,
    average: nn.Module | None = None,
) -> tuple[nn.Module, Exchange]:
    """Let a model exchange gradients with those of the other ranks; every rank calls it.

    Args:
        model: placed on `device`.
        optimizer: of its parameters; holds their shards afterwards where there are any.
        device: of this rank.
        settings: how.
        average: a copy of the model that follows it, to be spread likewise.

    Returns:
        What a step calls, and what it has to do itself.
    """
    if not distributed.is_distributed():
        if settings != Communication():
            notify("one process: the settings of `communication` have no effect")
        return model, Exchange()
    names = {parameter: name for name, parameter in model.named_parameters()}
    if settings.shard == "fsdp":
        unsharded = shard(model, stages(model), device, NARROW.get(settings.compress))
        rebind(optimizer, names, model)
        if average is not None:
            shard(average, (), device)
        trained = tuple((name, p) for name, p in model.named_parameters() if p.requires_grad)
        return model, Exchange(trained, tuple(p for p in unsharded if p.requires_grad))
    forward = Connected(
        model,
        device_ids=[device] if device.type == "cuda" else None,
        bucket_cap_mb=settings.bucket_mb,
        find_unused_parameters=settings.find_unused,
        gradient_as_bucket_view=settings.gradient_as_bucket_view,
        static_graph=settings.static_graph,
    )
    powersgd = None
    if settings.compress == "powersgd":
        powersgd = PowerSGD(names, settings.powersgd_rank, settings.powersgd_start)
        forward.register_comm_hook(powersgd, PowerSGD.reduce)
    elif settings.compress != "none":
        forward.register_comm_hook(NARROW[settings.compress], _narrow)
    tolerated = settings.find_unused or settings.static_graph
    required = () if tolerated else tuple((n, p) for p, n in names.items() if p.requires_grad)
    return forward, Exchange(required, powersgd=powersgd)


def stages(model: nn.Module) -> list[list[nn.Module]]:
    """The groups of layers whose parameters are gathered, used and freed together.

    A stage are the blocks (`memory.blocks`: residual or transformer blocks of which some weights train) that
    stand in one container of `model.backbone`, at most `BLOCKS` of them. What is in no stage (stem, frozen
    blocks, neck, heads) is gathered for the whole step.
    """
    modules = dict(model.named_modules())
    containers: dict[str, list[nn.Module]] = {}
    for name in blocks(model):
        if name.startswith("backbone.") and name in modules:
            containers.setdefault(name.rpartition(".")[0], []).append(modules[name])
    return [items[i : i + BLOCKS] for items in containers.values() for i in range(0, len(items), BLOCKS)]


def exchanging(forward: nn.Module, last: bool) -> AbstractContextManager:
    """Context of one of a step's forward and backward passes: ranks exchange gradients in the last alone."""
    if isinstance(forward, Connected):
        # A static graph is learnt in the first pass, which has to be exchanged for that; no harm is done,
        # since what it leaves in the gradients is then the same on all ranks.
        now, forward.learning = last or forward.learning, False
        return nullcontext() if now else forward.no_sync()
    if is_sharded(forward):
        forward.set_requires_gradient_sync(last)  # pyright: ignore[reportCallIssue]
    return nullcontext()


def _narrow(dtype: torch.dtype, bucket):
    return average_bucket(bucket.buffer(), dtype)
