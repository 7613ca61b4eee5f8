"""Reading annotated folders, transforming samples, and loading batches of fixed shape.

Names are imported on first use, so that nothing heavy is loaded before it is needed.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .folder import Data as Data
    from .folder import folder as folder
    from .images import decode_image as decode_image
    from .images import image_size as image_size
    from .masks import to_bitmap as to_bitmap
    from .table import Record as Record
    from .table import Table as Table

_WHERE = {
    "Data": "folder",
    "folder": "folder",
    "decode_image": "images",
    "image_size": "images",
    "to_bitmap": "masks",
    "Record": "table",
    "Table": "table",
}
__all__ = ["Data", "Record", "Table", "decode_image", "folder", "image_size", "to_bitmap"]


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{_WHERE[name]}"), name)
    globals()[name] = value  # the module `folder` must not hide the function of that name
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_WHERE})
