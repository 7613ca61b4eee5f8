"""Fixtures shared by all tests."""

from pathlib import Path

import pytest

SHARED = Path(__file__).resolve().parents[2] / "shared"


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Folder of small real data sets beside the checkout; tests that use it skip where it is absent."""
    path = SHARED / "data"
    if not path.is_dir():
        pytest.skip("no shared data beside the checkout")
    return path
