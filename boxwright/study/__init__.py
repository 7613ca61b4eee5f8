"""Studies: many trainings with one budget on one data set, as a table and as pictures.

The package is callable: `boxwright.study(...)` is `boxwright.study.study(...)`.
"""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any

from .plan import READY, Variant
from .rows import Row
from .run import study

__all__ = ["READY", "Row", "Variant", "study"]


class _Study(ModuleType):
    """This package, callable: `boxwright.study` is a package to Python and a verb to a user."""

    def __call__(self, *arguments: Any, **named: Any) -> list[Row]:
        """The same as `study.study()`."""
        return study(*arguments, **named)


sys.modules[__name__].__class__ = _Study
