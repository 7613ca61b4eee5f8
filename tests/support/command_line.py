"""Commands as a user types them, in this process."""

from __future__ import annotations

import pytest

from boxwright.cli import main


def call(*words: object) -> int:
    """Exit code of a command."""
    with pytest.raises(SystemExit) as stop:
        main([str(word) for word in words])
    return int(stop.value.code or 0)
