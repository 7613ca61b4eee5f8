"""Arguments written as `name=value`: overrides of the configuration and a few words of the commands."""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Sequence

from ..errors import ConfigError

_ASSIGNMENT = re.compile(r"[A-Za-z_][\w.]*=")


def is_assignment(word: str) -> bool:
    """Whether a word is `name=value`."""
    return _ASSIGNMENT.match(word) is not None


def take(words: Sequence[str], known: Sequence[str]) -> tuple[dict[str, str], list[str]]:
    """Separate the words that a command itself knows (`out=...`) from overrides of the configuration.

    Args:
        words: `name=value` each.
        known: names of the command's own words.

    Returns:
        Values by name, `~` made the home folder, and the other words in order.

    Raises:
        ConfigError: something is no assignment, has no value, or stands twice.
    """
    refuse_options(words)
    values: dict[str, str] = {}
    others: list[str] = []
    for word in words:
        if not is_assignment(word):
            raise ConfigError(f"{word!r}: expected name=value, such as {known[0] if known else 'epochs'}=...")
        name, _, value = word.partition("=")
        if not value.strip():  # most often a variable of the shell that was never set
            raise ConfigError(f"{name}= has no value; an empty text is written {name}=\"''\"")
        if name not in known:
            others.append(word)
        elif name in values:
            raise ConfigError(f"{name}= is given twice")
        else:
            values[name] = os.path.expanduser(value)  # not every shell does so behind a "="
    return values, others


def refuse_options(words: Sequence[str]) -> None:
    """Stop at words that look like options, of which a command knows none that reaches its words.

    Raises:
        ConfigError: it says how a value is written, and where the options are listed.
    """
    for place, word in enumerate(words):
        if word.startswith("-") and len(word) > 1:
            name, _, value = word.lstrip("-").partition("=")
            after = words[place + 1] if place + 1 < len(words) else "..."
            value = value or ("..." if is_assignment(after) or after.startswith("-") else after)
            raise ConfigError(
                f"there is no option {word.partition('=')[0]} (--help lists them); values are set without "
                f"dashes: {name.replace('-', '_')}={value}"
            )


def only(words: Sequence[str], known: Sequence[str]) -> dict[str, str]:
    """Values of a command that takes nothing but its own words.

    Raises:
        ConfigError: another name; the nearest known one is given.
    """
    values, others = take(words, known)
    if others:
        name = others[0].partition("=")[0]
        near = difflib.get_close_matches(name, known, n=1)
        hint = f"did you mean {near[0]}=?" if near else f"there are: {', '.join(f'{k}=' for k in known)}"
        raise ConfigError(f"{name}= is not known here; {hint}")
    return values
