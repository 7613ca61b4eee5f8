"""What the messages of errors are made of."""

from __future__ import annotations

import pytest

from boxwright.errors import some_of


@pytest.mark.parametrize(
    ("names", "told"),
    [([], ""), (["a"], "a"), ([1, 2], "1, 2"), (iter("abc"), "a, b and 1 more")],
)
def test_a_message_lists_the_first_names_and_counts_the_rest(names: object, told: str) -> None:
    assert some_of(names, 2) == told  # pyright: ignore[reportArgumentType]
