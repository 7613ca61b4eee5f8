"""What the messages of errors are made of."""

from __future__ import annotations

import pytest
import torch.distributed as dist

from boxwright.engine.watch import Watch
from boxwright.errors import first_line, some_of


@pytest.mark.parametrize(
    ("names", "told"),
    [([], ""), (["a"], "a"), ([1, 2], "1, 2"), (iter("abc"), "a, b and 1 more")],
)
def test_a_message_lists_the_first_names_and_counts_the_rest(names: object, told: str) -> None:
    assert some_of(names, 2) == told  # pyright: ignore[reportArgumentType]


def test_the_first_line_of_an_error_is_its_class_where_it_says_nothing() -> None:
    assert first_line(ValueError("\n one \ntwo")) == "one "
    assert first_line(ConnectionResetError()) == "ConnectionResetError"


def test_a_broken_exchange_without_words_is_told_all_the_same() -> None:
    watch = Watch(dist.HashStore(), 0, 1, 60.0)
    try:
        told = watch.judge(dist.DistError())
    finally:
        watch.stop()
    assert "an exchange with other ranks failed (DistError: " in str(told)
