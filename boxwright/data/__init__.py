"""Reading annotated folders, transforming samples, and loading batches of fixed shape.

Names are imported on first use, so that nothing heavy is loaded before it is needed.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .browse import contact_sheets as contact_sheets
    from .canvas import Canvas as Canvas
    from .checks import check as check
    from .conversion import convert as convert
    from .dataset import Data as Data
    from .dataset import folder as folder
    from .findings import CheckReport as CheckReport
    from .images import decode_image as decode_image
    from .images import image_size as image_size
    from .loader import Loader as Loader
    from .masks import to_bitmap as to_bitmap
    from .records import Record as Record
    from .stats import statistics as statistics
    from .table import Table as Table

# No name here is that of a submodule: importing that would put the module in the name's place.
_WHERE = {
    "Canvas": "canvas",
    "CheckReport": "findings",
    "Data": "dataset",
    "Loader": "loader",
    "decode_image": "images",
    "image_size": "images",
    "to_bitmap": "masks",
    "Record": "records",
    "Table": "table",
    "check": "checks",
    "contact_sheets": "browse",
    "convert": "conversion",
    "folder": "dataset",
    "statistics": "stats",
}
__all__ = [
    "Canvas",
    "CheckReport",
    "Data",
    "Loader",
    "Record",
    "Table",
    "check",
    "contact_sheets",
    "convert",
    "decode_image",
    "folder",
    "image_size",
    "statistics",
    "to_bitmap",
]


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_WHERE[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_WHERE})
