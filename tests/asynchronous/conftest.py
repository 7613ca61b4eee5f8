"""The tiny model and loader of the engine's tests."""

import importlib.util
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def toy():
    """`tests/engine/toy.py`."""
    path = Path(__file__).parents[1] / "engine" / "toy.py"
    spec = importlib.util.spec_from_file_location("boxwright_test_toy", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
