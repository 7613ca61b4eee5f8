"""MMDetection's configurations of models, as recorded with its figures, and changes of them."""

from __future__ import annotations

import copy
import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

GOLDEN = Path(__file__).parents[1] / "parity" / "golden"


@pytest.fixture(scope="session")
def _records() -> dict[str, dict[str, Any]]:
    return {}


@pytest.fixture
def recorded(_records: dict[str, dict[str, Any]]) -> Callable[..., dict[str, Any]]:
    """`recorded(NAME, {PATH: VALUE})`: the `model` of the configuration whose name begins so, changed.

    A path has its words and numbers joined by points; the value `...` takes the entry out.
    """

    def read(name: str, changes: dict[str, Any] | None = None) -> dict[str, Any]:
        if name not in _records:
            path = next(iter(sorted(GOLDEN.glob(f"{name}*.json.gz"))))
            _records[name] = json.loads(gzip.decompress(path.read_bytes()))["model"]
        model = copy.deepcopy(_records[name])
        for path, value in (changes or {}).items():
            *parents, last = path.split(".")
            place: Any = model
            for step in parents:
                place = place[int(step)] if isinstance(place, list) else place[step]
            if value is ...:
                place.pop(last, None)
            else:
                place[int(last) if isinstance(place, list) else last] = value
        return model

    return read
