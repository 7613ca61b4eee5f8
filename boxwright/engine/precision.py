"""Which number format a training step computes in, and why."""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import dataclass

import torch

from ..errors import ConfigError

PRECISIONS = ("auto", "fp32", "bf16", "fp16")


@dataclass(frozen=True)
class Precision:
    """A resolved precision.

    Args:
        name: "fp32", "bf16" or "fp16".
        reason: why, in words for a person (`boxwright doctor` prints it).
        channels_last: whether convolutions run faster here with the channels innermost in memory.
    """

    name: str
    reason: str
    channels_last: bool

    @property
    def dtype(self) -> torch.dtype:
        """Type that matrix products and convolutions compute in."""
        return {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[self.name]

    def autocast(self, device: torch.device) -> AbstractContextManager:
        """Context in which the forward pass runs."""
        return torch.autocast(device.type, dtype=self.dtype, enabled=self.name != "fp32")


def resolve_precision(precision: str, device: torch.device | str) -> Precision:
    """What a wish for a precision means on a device.

    "auto" is bf16 only where the hardware computes it fast: CUDA from compute capability 8.0 on, a CPU with
    avx512_bf16 or amx_bf16; else fp32. Channels go last on CUDA and where a CPU's convolutions are oneDNN's.
    Weights stay float32 in every precision.

    Raises:
        ConfigError: no such precision, or fp16 on a device that is not CUDA.
    """
    device = torch.device(device)
    if precision not in PRECISIONS:
        raise ConfigError(f"precision={precision!r}: choose one of {', '.join(PRECISIONS)}")
    if precision == "fp16" and device.type != "cuda":
        raise ConfigError(
            f"precision='fp16' needs a CUDA device, not {device.type}: choose bf16, fp32 or auto"
        )
    fast, reason = bf16_support(device)
    if precision == "auto":
        precision = "bf16" if fast else "fp32"
    elif precision == "bf16":
        reason = f"asked for; {reason}"
    else:
        reason = "asked for"
    onednn = device.type == "cpu" and torch.backends.mkldnn.is_available()
    return Precision(precision, reason, channels_last=device.type == "cuda" or onednn)


def bf16_support(device: torch.device) -> tuple[bool, str]:
    """Whether the device computes bf16 faster than fp32, and the reason in words."""
    if device.type == "cuda":
        major, minor = torch.cuda.get_device_capability(device)
        name = f"{torch.cuda.get_device_name(device)}, compute capability {major}.{minor}"
        return major >= 8, f"{name} {'has' if major >= 8 else 'lacks'} bf16 units"
    if device.type == "cpu":
        if not torch.backends.mkldnn.is_available():
            return False, "this build of PyTorch has no oneDNN, so bf16 on the CPU is slow"
        features = _cpu_bf16_features()
        return bool(
            features
        ), f"the CPU has {features[0]}" if features else "the CPU has no avx512_bf16 or amx_bf16"
    return False, f"bf16 is not known to be faster on {device.type}"


def _cpu_bf16_features() -> list[str]:
    ask = getattr(torch.cpu, "get_capabilities", None)
    if ask is not None:  # the public question, in newer versions of PyTorch
        capabilities = ask()
        return [name for name in ("amx_bf16", "avx512_bf16") if capabilities.get(name)]
    checks = (("amx_bf16", "_is_amx_tile_supported"), ("avx512_bf16", "_is_avx512_bf16_supported"))
    return [name for name, check in checks if getattr(torch.cpu, check, bool)()]
