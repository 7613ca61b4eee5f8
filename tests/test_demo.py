"""The demo's detector learns its digits (slow: it is the whole demo)."""

from pathlib import Path

import pytest

from boxwright.demo import run


@pytest.mark.slow
def test_demo_reaches_its_mark(tmp_path: Path):
    finished = run(tmp_path)
    assert finished.metrics["bbox/AP50"] >= 0.85
    page = (finished.path / "report.html").read_text()
    assert "http://" not in page.replace("http://www.w3.org", "")
    assert len(page) > 50_000
