"""What this machine and installation offer: versions, devices, precision, operators and their errors."""

from __future__ import annotations

import importlib.metadata
import os
import platform
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from . import __version__
from .engine.precision import resolve_precision
from .ops import doctor as operators

if TYPE_CHECKING:
    from rich.console import Group

BASE = (
    "torch",
    "torchvision",
    "timm",
    "fiddle",
    "pyarrow",
    "faster-coco-eval",
    "safetensors",
    "numpy",
    "pillow",
)
EXTRAS = {
    "plot": ("matplotlib",),
    "demo": ("scikit-learn",),
    "track": ("tensorboard",),
    "ray": ("ray",),
}
LARGEST_ERROR = 1e-3
"""Difference from the reference (float32, values of about 1) from which on an operator counts as wrong."""


@dataclass(frozen=True)
class OperatorCheck:
    """One operator on one device.

    Args:
        name: of the operator.
        device: where it ran.
        backend: how it runs there, in words.
        error: largest difference from its plain reference (of `nms`, the share of slots that differ).
    """

    name: str
    device: str
    backend: str
    error: float

    @property
    def right(self) -> bool:
        """Whether the operator agrees with its reference."""
        return self.error <= LARGEST_ERROR


@dataclass(frozen=True)
class Examination:
    """Everything that `boxwright doctor` tells; `rich.print(examination)` shows tables.

    Args:
        versions: of the packages that are always there.
        extras: versions of optional packages, None where absent, by the extra that brings them.
        devices: each device in words.
        precisions: what `precision="auto"` takes on each device, and why.
        checks: the operators.
    """

    versions: dict[str, str]
    extras: dict[str, dict[str, str | None]]
    devices: dict[str, str]
    precisions: dict[str, str]
    checks: tuple[OperatorCheck, ...]

    @property
    def healthy(self) -> bool:
        """Whether every operator agrees with its reference."""
        return all(check.right for check in self.checks)

    def __rich__(self) -> Group:
        from rich.console import Group
        from rich.table import Table

        installed = Table("package", "version", title="Installation", title_justify="left")
        for name, version in self.versions.items():
            installed.add_row(name, version)
        for extra, packages in self.extras.items():
            for name, version in packages.items():
                remedy = f"absent: pip install 'boxwright\\[{extra}]'"
                installed.add_row(name, version or remedy, style=None if version else "dim")
        devices = Table("device", "what", "precision=auto", title="Devices", title_justify="left")
        for name, text in self.devices.items():
            devices.add_row(name, text, self.precisions[name])
        checked = Table("operator", "device", "backend", "error", "", title="Operators", title_justify="left")
        for check in self.checks:
            verdict = "[green]right[/]" if check.right else "[bold red]WRONG[/]"
            checked.add_row(check.name, check.device, check.backend, f"{check.error:.1e}", verdict)
        return Group(installed, devices, checked)


def examine() -> Examination:
    """Look at the installation and devices, and hold each operator to its reference on each device."""
    devices = {"cpu": _cpu()}
    for index in range(torch.cuda.device_count()):
        memory = torch.cuda.get_device_properties(index).total_memory / 2**30
        devices[f"cuda:{index}"] = f"{torch.cuda.get_device_name(index)}, {memory:.0f} GiB"
    checks: list[OperatorCheck] = []
    for device in dict.fromkeys(
        name.replace("cuda:0", "cuda") for name in devices if name in ("cpu", "cuda:0")
    ):
        backends = operators.backends(device)
        for name, error in operators.errors(device).items():
            backend = backends.get(name) or backends.get(name.removesuffix("_backward"), "")
            checks.append(OperatorCheck(name, device, backend, error))
    precisions = {}
    for name in devices:
        precision = resolve_precision("auto", name)
        precisions[name] = f"{precision.name}: {precision.reason}"
    return Examination(
        versions={"boxwright": __version__, "python": platform.python_version()}
        | {name: _version(name) or "absent" for name in BASE},
        extras={extra: {name: _version(name) for name in names} for extra, names in EXTRAS.items()},
        devices=devices,
        precisions=precisions,
        checks=tuple(checks),
    )


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _cpu() -> str:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return f"{platform.machine()}, {cores} cores, {torch.get_num_threads()} threads of PyTorch"
