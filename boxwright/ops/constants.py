"""Small tensors of given numbers, made once."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

_MADE: dict[tuple[Any, torch.dtype, torch.device], Tensor] = {}


def constant(
    values: Any, device: torch.device | str | None = None, dtype: torch.dtype = torch.float32
) -> Tensor:
    """The numbers as a tensor; the same one each time, so do not change it.

    Making a tensor of numbers copies them from host memory, for which a GPU waits; here it does so once. In a
    compiled graph they are constants anyway.

    Args:
        values: numbers, in nested tuples or lists.
        device: where to.
        dtype: of the tensor.
    """
    if torch.compiler.is_compiling():
        return torch.tensor(values, dtype=dtype, device=device)
    key = (_hashable(values), dtype, torch.device("cpu" if device is None else device))
    if key not in _MADE:
        with torch.inference_mode(False):  # a tensor of inference mode could not be trained with later
            made = torch.tensor(values, dtype=dtype, device=device)
        if type(made) is not Tensor:  # one that only stands for a tensor, while a program is traced
            return made
        _MADE[key] = made
    return _MADE[key]


def _hashable(values: Any) -> Any:
    return tuple(_hashable(v) for v in values) if isinstance(values, (list, tuple)) else values
