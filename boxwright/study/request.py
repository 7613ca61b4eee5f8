"""What a study was asked for, in words: kept in its folder, so that it can go on, and told on its page."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeAlias

import fiddle as fdl

from ..errors import ConfigError, DataError
from .plan import Variant, parse_variant

Variants: TypeAlias = Sequence[str | Variant] | Mapping[str, str | fdl.Buildable]
_PLAIN = re.compile(r"[\w.:=,+/-]+")


@dataclass(frozen=True)
class Request:
    """The arguments of `study` that make its runs what they are.

    Args:
        variants: as on the command line.
        complete: whether this says all; not where a variant or the data was given as an object.
        named: a ready-made list of variants.
        data: the data set's folder.
        overrides: assignments common to all.
        vary: `path=value,value` each.
        weights: a file or a name.
        seeds: runs of each variant.
        minutes: of training.
        split: what is measured on.
    """

    variants: tuple[str, ...] = ()
    complete: bool = True
    named: str | None = None
    data: str | None = None
    overrides: tuple[str, ...] = ()
    vary: tuple[str, ...] = ()
    weights: str | None = None
    seeds: int = 1
    minutes: float | None = None
    split: str | None = None

    def command(self, out: Path) -> str:
        """The command that makes this study; nothing where words cannot say it."""
        if not self.complete:
            return ""
        words = ["boxwright study", *map(_quoted, self.variants)]
        words += [f"--study {self.named}"] if self.named else []
        words += [_quoted(f"data.root={self.data}")] if self.data else []
        words += map(_quoted, self.overrides)
        words += [_quoted(f"weights={self.weights}")] if self.weights else []
        words += [f"--vary {_quoted(text)}" for text in self.vary]
        words += [f"--seeds {self.seeds}"] if self.seeds != 1 else []
        words += [f"--minutes {self.minutes:g}"] if self.minutes is not None else []
        words += [f"--split {self.split}"] if self.split else []
        return " ".join([*words, _quoted(f"out={out}")])

    def check_can_go_on(self, out: Path) -> None:
        """Whether the study may be made from what its folder says.

        Raises:
            ConfigError: it does not say all, or would run a file of Python code.
        """
        if not self.complete:
            raise ConfigError(f"the study in {out} was made of objects in Python: call it with them again")
        if any(".py" in str(parse_variant(text).recipe) for text in self.variants):
            raise ConfigError(
                f"the study in {out} has recipes in Python files, which are not run because a folder says "
                "so: give the variants again"
            )


def read_request(content: Mapping[str, Any], path: Path) -> Request:
    """The request as JSON has it.

    Raises:
        DataError: it is damaged.
    """
    try:
        values: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in content.items()}
        return Request(**values)
    except TypeError as error:
        raise DataError(f"{path}: its request cannot be read ({error}); give the variants again") from error


def variants_of(given: Variants) -> list[Variant]:
    """Variants in any of the forms in which they are given."""
    if not isinstance(given, Mapping):
        return [parse_variant(v) if isinstance(v, str) else v for v in given]
    parsed = {n: parse_variant(v) if isinstance(v, str) else Variant(v) for n, v in given.items()}
    return [replace(variant, name=name) for name, variant in parsed.items()]


def as_text(variant: Variant) -> str | None:
    """A variant as it is written on the command line; None for a description in Python."""
    if not isinstance(variant.recipe, str):
        return None
    words = [*variant.overrides, *([f"name={variant.name}"] if variant.name else [])]
    return f"{variant.recipe}:{' '.join(words)}" if words else variant.recipe


def grid_texts(vary: Mapping[str, Sequence[Any]] | Sequence[str]) -> tuple[str, ...]:
    """A grid of values as it is written on the command line."""
    if not isinstance(vary, Mapping):
        return tuple(vary)
    return tuple(
        f"{path}={','.join(v if isinstance(v, str) else repr(v) for v in values)}"
        for path, values in vary.items()
    )


def _quoted(text: str) -> str:
    return text if _PLAIN.fullmatch(text) else "'" + text.replace("'", "'\"'\"'") + "'"
