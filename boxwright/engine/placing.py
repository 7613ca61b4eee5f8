"""Where a batch and a model lie: device and memory format."""

from __future__ import annotations

import dataclasses
import os

import torch
from torch import nn

from ..distributed import local_rank
from ..errors import ConfigError
from ..ops.linear import use_fast_linear
from ..structures import Batch, to_device


def resolve_device(device: str | torch.device = "auto") -> torch.device:
    """The device of this rank: "auto" is the rank's GPU where there is CUDA, else the CPU.

    Raises:
        ConfigError: the device does not exist here.
    """
    if str(device) == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        chosen = torch.device(device)
    except RuntimeError:
        raise ConfigError(f"device={str(device)!r}: choose auto, cpu, cuda, cuda:N or mps") from None
    if chosen.type == "cuda":
        if not torch.cuda.is_available():
            raise ConfigError(f"device={str(device)!r}: PyTorch finds no CUDA device; choose auto or cpu")
        return _cuda(chosen)
    try:
        torch.zeros(1, device=chosen).cpu()
    except (RuntimeError, AssertionError, NotImplementedError) as error:  # each kind of device has its own
        reason = str(error).strip().partition("\n")[0][:200]
        raise ConfigError(
            f"device={str(device)!r}: PyTorch cannot compute there ({reason}); choose auto or cpu"
        ) from error
    return chosen


def _cuda(chosen: torch.device) -> torch.device:
    """The GPU of this process, which becomes its current one."""
    count, processes = torch.cuda.device_count(), int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    if chosen.index is None and processes > count:  # every process says so, not only those without a GPU
        raise ConfigError(
            f"{processes} processes on this machine, but {count} CUDA devices: start torchrun with "
            f"--nproc_per_node {count}, or choose device cpu"
        )
    chosen = torch.device("cuda", local_rank() if chosen.index is None else chosen.index)
    if chosen.index >= count:  # pyright: ignore[reportOptionalOperand]
        raise ConfigError(f"device={str(chosen)!r}: there are {count} CUDA devices here")
    torch.cuda.set_device(chosen)
    return chosen


def place_model(model: nn.Module, device: torch.device, channels_last: bool) -> None:
    """Put a model where and how it computes fastest, in place; values change in the last bits alone.

    Its parts compute as other implementations do, to the last decimal; from here on they compute as fast as
    they can: on a CPU fully connected layers do so by `ops.linear`.

    Args:
        model: a detector, or any module.
        device: where to.
        channels_last: whether convolutions have the channels innermost in memory (`Precision`).
    """
    model.to(device)
    if channels_last:
        model.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    if device.type == "cpu":
        use_fast_linear(model)


def place(batch: Batch, device: torch.device, channels_last: bool) -> Batch:
    """The batch on the device, its images in the memory format that the convolutions want."""
    batch = to_device(batch, device)
    wanted = torch.channels_last if channels_last else torch.contiguous_format
    return dataclasses.replace(batch, images=batch.images.contiguous(memory_format=wanted))
