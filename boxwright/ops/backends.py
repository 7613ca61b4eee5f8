"""Which kernels can run where."""

from __future__ import annotations

import importlib.util
from functools import cache

import torch


@cache
def has_triton() -> bool:
    """Whether Triton, which PyTorch's CUDA builds bring along, is installed."""
    return importlib.util.find_spec("triton") is not None


def use_triton(device: torch.device, dtype: torch.dtype = torch.float32) -> bool:
    """Whether an operator runs as a Triton kernel: on CUDA, except in float64, which those do not compute."""
    return device.type == "cuda" and dtype != torch.float64 and has_triton()


def eager_on_cpu(device: torch.device) -> bool:
    """Whether operations run one by one on a CPU, where one may look at values and take only needed steps."""
    return device.type == "cpu" and not torch.compiler.is_compiling()
