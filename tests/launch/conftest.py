"""The commands that the page on launching prints."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

PAGE = Path(__file__).resolve().parents[2] / "docs" / "launching.md"


@pytest.fixture(scope="session")
def printed() -> list[list[str]]:
    """Every command of the page, in words."""
    blocks = re.findall(r"^```bash\n(.*?)^```$", PAGE.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    lines = "".join(blocks).replace("\\\n", " ").splitlines()
    return [shlex.split(line) for line in lines]


@pytest.fixture(scope="session")
def small() -> list[str]:
    """What makes a printed training one of seconds, on a data set of eight images."""
    return ["epochs=1", "workers=0", "model.backbone.weights=None", "--device=cpu", "--no-report", "--quiet"]
