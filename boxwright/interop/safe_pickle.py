"""Reading other toolboxes' pickled files without running what they hold.

A pickle names functions to call and classes to make. Here only those that make tensors, arrays and plain
containers are let through; any other name becomes an inert `Unread` that takes what it is given and does
nothing, so that a checkpoint whose optimiser or log has classes of its own still gives its weights.
"""

from __future__ import annotations

import collections
import os
import pickle
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import _utils

from ..errors import CheckpointError, first_line

_NUMPY = (
    "numpy",
    "numpy.core.multiarray",
    "numpy._core.multiarray",
    "numpy.core.numeric",
    "numpy._core.numeric",
)
_ALLOWED: dict[tuple[str, str], Any] = {
    ("collections", "OrderedDict"): collections.OrderedDict,
    ("collections", "defaultdict"): collections.defaultdict,
    ("_codecs", "encode"): lambda text, encoding: _latin(text, encoding),
    ("torch", "Size"): torch.Size,
    ("torch", "device"): torch.device,
    ("torch._utils", "_rebuild_tensor"): _utils._rebuild_tensor,
    ("torch._utils", "_rebuild_tensor_v2"): _utils._rebuild_tensor_v2,
    ("torch._utils", "_rebuild_parameter"): _utils._rebuild_parameter,
    ("builtins", "set"): set,
    ("builtins", "frozenset"): frozenset,
    ("builtins", "slice"): slice,
    ("builtins", "complex"): complex,
    ("builtins", "bytearray"): bytearray,
}
for _module in _NUMPY:
    _ALLOWED |= {
        (_module, "_reconstruct"): lambda kind, shape, code: np.ndarray.__new__(np.ndarray, shape, code),
        (_module, "_frombuffer"): lambda data, kind, shape, order: np.frombuffer(data, kind).reshape(
            shape, order=order
        ),
        (_module, "scalar"): lambda kind, data=None: np.frombuffer(data, kind)[0] if data else kind.type(),
        (_module, "ndarray"): np.ndarray,
        (_module, "dtype"): np.dtype,
    }
_STORAGES = {
    f"{kind}Storage"
    for kind in ("Double", "Float", "Half", "BFloat16", "Long", "Int", "Short", "Char", "Byte", "Bool")
}


class Unread:
    """Stands for an object of a class that is not let through."""

    def __init__(self, *_: Any, **__: Any) -> None:
        """Take anything."""

    def __call__(self, *_: Any, **__: Any) -> Unread:
        """Take anything."""
        return self

    def __setstate__(self, state: Any) -> None:
        """Take anything."""

    def __setitem__(self, key: Any, value: Any) -> None:
        """Take anything."""

    def append(self, item: Any) -> None:
        """Take anything."""

    def extend(self, items: Any) -> None:
        """Take anything."""


class SafeUnpickler(pickle.Unpickler):
    """An unpickler that knows the names above and no others."""

    def find_class(self, module: str, name: str) -> Any:
        """What a name in the file stands for."""
        if module == "torch" and (name in _STORAGES or name.endswith(("16", "32", "64", "int8"))):
            return getattr(torch, name)
        return _ALLOWED.get((module, name), Unread)


def read_pickle(path: str | os.PathLike[str]) -> Any:
    """The contents of a file of `torch.save` or `pickle.dump`.

    Raises:
        CheckpointError: missing, damaged, or neither of the two.
    """
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f"no file {path}")
    if path.suffix == ".safetensors":
        raise CheckpointError(
            f"{path} is in the format of Boxwright's own checkpoints, which `boxwright predict` and "
            "boxwright.load take as they are; what is converted are .pth, .pt and Detectron2's .pkl"
        )
    try:
        with path.open("rb") as file:
            if path.suffix == ".pkl":
                return SafeUnpickler(file, encoding="latin1").load()
            module: Any = SimpleNamespace(Unpickler=SafeUnpickler, load=_load, __name__="safe_pickle")
            return torch.load(file, map_location="cpu", pickle_module=module, weights_only=False)
    except Exception as error:  # damaged files raise what they like
        raise CheckpointError(
            f"{path} cannot be read as a checkpoint: {first_line(error)[:200]}. What can be read are "
            "files of torch.save (.pth, .pt) and Detectron2's .pkl; if it is one, it is damaged: get it again"
        ) from error


def _load(file: Any, **arguments: Any) -> Any:
    return SafeUnpickler(file, **arguments).load()


def _latin(text: str, encoding: str) -> bytes:
    if encoding not in ("latin1", "latin-1"):
        raise pickle.UnpicklingError(f"bytes in encoding {encoding!r}")
    return text.encode("latin1")
