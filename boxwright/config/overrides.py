"""Changing a configuration: `a.b.c=value` by path, and one value everywhere by tag."""

from __future__ import annotations

import ast
import contextlib
import dataclasses
import difflib
import json
import re
import types
import typing
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import fiddle as fdl
from fiddle import daglish
from fiddle._src import history as fiddle_history  # no public name for the place of a change

from ..errors import ConfigError
from ..values import Rule
from .describe import (
    MISSING,
    accepts_any_name,
    annotation,
    argument,
    callable_name,
    is_plain,
    join,
    names_below,
    walk,
)

MISMATCH = object()
MOST = 3
"""Paths that a hint names."""


def apply_overrides(config: fdl.Buildable, overrides: Sequence[str]) -> None:
    """Set arguments by path, in place.

    A path names arguments from the outside to the inside; items of lists are named by their index
    (`train_transforms.0.short=640`). A value is read as a Python literal or JSON (`0.02`, `[1, 2]`,
    `None`, `true`), else it is a string. A part given as a ready dataclass can be entered as well.

    Args:
        config: what a recipe returned; changed in place.
        overrides: assignments such as `optimizer.lr=0.02`.

    Raises:
        ConfigError: an assignment has no `=`, names an argument that does not exist (the nearest existing
            one is named), or gives a value that the argument's annotation excludes.
    """
    for override in overrides:
        path, equals, text = override.partition("=")
        if not equals or not path.strip():
            raise ConfigError(f"{override!r} is not an assignment; write path.to.argument=value")
        with located(f"command line: {override}"):
            _assign(config, path.strip().split("."), text.strip())


def set_tagged(config: fdl.Buildable, tag: type[fdl.Tag], value: Any) -> int:
    """Set every argument that carries a tag, in place.

    Args:
        config: what a recipe returned; changed in place.
        tag: `NumClasses`, `Norm`, `Pretrained` or a tag of your own.
        value: the new value of all of them.

    Returns:
        How many arguments were set; 0 where nothing carries the tag.
    """
    count = 0
    for node, _ in daglish.iterate(config):
        if isinstance(node, fdl.Buildable):
            tagged = [
                name for name, tags in node.__argument_tags__.items() if any(issubclass(t, tag) for t in tags)
            ]
            with located(f"tag {tag.__name__}"):
                for name in tagged:
                    setattr(node, str(name), value)
            count += len(tagged)
    return count


def check_values(config: fdl.Buildable) -> None:
    """Whether each plain value of a description is one that its argument's annotation allows.

    What the command line sets is looked at when it is set; this is for what came from Python or from a file.

    Raises:
        ConfigError: the first value that is not; the path is named.
    """
    for path, node in [("", config), *walk(config)]:
        if not isinstance(node, fdl.Buildable):
            continue
        for name, value in node.__arguments__.items():
            checked = is_plain(value) and not isinstance(value, Path)  # a path may stand for its text
            hint = annotation(node, str(name)) if checked else MISSING
            if hint is not MISSING and _fit(value, hint) is MISMATCH:
                raise ConfigError(f"{join(path, name)} {_refusal(value, value, hint)}")


def parse_value(text: str) -> Any:
    """A value written on the command line: Python literal, JSON, else the string itself."""
    for parse in (ast.literal_eval, json.loads):
        with contextlib.suppress(ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
            return parse(text)
    return text


def fit_value(text: str, hint: Any) -> Any:
    """The value of a text as an annotation wants it, or `MISMATCH` where the annotation excludes it."""
    value = parse_value(text)
    if hint is MISSING:
        return value
    for candidate in (value, text):
        fitted = _fit(candidate, hint)
        if fitted is not MISMATCH:
            return fitted
    return MISMATCH


def _assign(config: fdl.Buildable, names: Sequence[str], text: str) -> None:
    """Follow a path to its end and set the value there."""
    node: Any = config
    put: Callable[[Any], None] | None = None  # replaces `node` in what holds it
    done = ""
    for position, name in enumerate(names):
        key = _key(node, name, done)
        last = position == len(names) - 1
        if isinstance(node, tuple):  # immutable: put a list in its place
            assert put is not None
            node = list(node)
            put(node)
        if last:
            hint = annotation(node, name) if isinstance(node, fdl.Buildable) else MISSING
            value = fit_value(text, hint)
            if isinstance(node, list) and isinstance(node[key], fdl.Buildable):
                hint, value = "a call", MISMATCH
            if value is MISMATCH:
                told = _refusal(text, parse_value(text), hint)
                raise ConfigError(f"{join(done, name)} {told}{_below(node, key, done)}")
            _put(node, key, value)
            return
        child = argument(node, key) if isinstance(node, fdl.Buildable) else node[key]
        done = join(done, name)
        entered = _enterable(child)
        if entered is MISMATCH:
            shown = "is not set" if child is MISSING else f"is {child!r}"
            raise ConfigError(f"{done} {shown}: there is nothing below it to set {names[position + 1]!r} on")
        if entered is not child:
            _put(node, key, entered)
        holder = node
        put = lambda value, holder=holder, key=key: _put(holder, key, value)  # noqa: E731
        node = entered


def _below(node: Any, name: str | int, path: str) -> str:
    """A hint for who gives one value for what is made of several."""
    part = argument(node, name) if isinstance(node, fdl.Buildable) else node[name]
    names = names_below(part) if isinstance(part, fdl.Buildable) else []
    if names:
        return f"; set what is below it: {', '.join(join(join(path, name), n) for n in names)}"
    if isinstance(part, list | tuple) and is_plain(part):
        return f'; write it as a list, such as {join(path, name)}="{list(part)}"'
    return ""


def _key(node: Any, name: str, path: str) -> Any:
    """The key by which `node` knows `name`, after checking that it does."""
    known = names_below(node)
    where = f" of {path}" if path else ""
    if isinstance(node, list | tuple):
        if name.isdecimal() and int(name) < len(node):
            return int(name)
        raise ConfigError(f"no item {name!r}{where}: it has {len(node)} items, the first is {join(path, 0)}")
    if name in known or (isinstance(node, fdl.Buildable) and accepts_any_name(node) and name.isidentifier()):
        return name
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    deep = [below for below, _ in walk(node, path) if below.rpartition(".")[2] == name][:MOST]
    hint = f"did you mean {join(path, near[0])}?" if near else f"it has: {', '.join(known) or 'none'}"
    hint = f"did you mean {' or '.join(deep)}?" if deep else hint
    what = f" ({callable_name(fdl.get_callable(node))})" if isinstance(node, fdl.Buildable) else ""
    raise ConfigError(f"no argument {name!r}{where}{what}; {hint}")


def _enterable(value: Any) -> Any:
    """The value as something whose arguments can be set, or `MISMATCH`."""
    if isinstance(value, fdl.Buildable | dict | list):
        return value
    if isinstance(value, tuple):
        return value
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        given = {f.name: getattr(value, f.name) for f in dataclasses.fields(value) if f.init}
        return fdl.Config(type(value), **given)
    return MISMATCH


def _put(node: Any, key: Any, value: Any) -> None:
    if isinstance(node, fdl.Buildable):
        setattr(node, key, value)
    else:
        node[key] = value


@contextlib.contextmanager
def located(name: str) -> Iterator[None]:
    """Values set inside are told in the history as set by `name`."""
    with fiddle_history.custom_location(lambda: fiddle_history.Location(name, 0, None)):
        yield


def _fit(value: Any, hint: Any) -> Any:
    """A value converted to what a simple annotation wants; `MISMATCH` where it cannot be."""
    origin = typing.get_origin(hint)
    if origin is typing.Annotated:
        fit = _fit(value, typing.get_args(hint)[0])
        return MISMATCH if fit is MISMATCH or not all(rule.holds(fit) for rule in _rules(hint)) else fit
    if origin in (typing.Union, types.UnionType):
        fits = [_fit(value, option) for option in typing.get_args(hint)]
        exact = [fit for fit in fits if fit is not MISMATCH and type(fit) is type(value)]
        return next(iter(exact or [fit for fit in fits if fit is not MISMATCH]), MISMATCH)
    if origin is typing.Literal:
        return value if value in typing.get_args(hint) else MISMATCH
    if origin is tuple or hint is tuple:
        return _fit_tuple(value, typing.get_args(hint))
    base = origin or hint
    if base in (list, Sequence):
        inner = typing.get_args(hint)
        if not isinstance(value, list | tuple):
            return MISMATCH
        fits = [_fit(v, inner[0]) for v in value] if inner else list(value)
        return MISMATCH if any(fit is MISMATCH for fit in fits) else type(value)(fits)
    if base in (dict, Mapping):
        return value if isinstance(value, dict) else MISMATCH
    if base is Callable:
        return value if callable(value) or isinstance(value, fdl.Buildable) else MISMATCH
    return _fit_plain(value, hint)


def _fit_plain(value: Any, hint: Any) -> Any:
    if hint in (None, type(None)):
        return None if value is None else MISMATCH
    if hint is bool:
        return value if isinstance(value, bool) else MISMATCH
    if hint is int:
        return value if isinstance(value, int) and not isinstance(value, bool) else MISMATCH
    if hint is float:
        return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else MISMATCH
    if hint is str or hint is Path:
        return value if isinstance(value, str) else MISMATCH
    if isinstance(hint, type) and hint is not object and isinstance(value, str | bool | int | float | None):
        return value if isinstance(value, hint) else MISMATCH
    return value


def _fit_tuple(value: Any, inner: tuple) -> Any:
    if not isinstance(value, list | tuple):
        return MISMATCH
    if not inner:
        return tuple(value)
    options = [inner[0]] * len(value) if inner[-1] is Ellipsis else list(inner)
    if len(options) != len(value):
        return MISMATCH
    fits = tuple(_fit(v, option) for v, option in zip(value, options, strict=True))
    return MISMATCH if any(fit is MISMATCH for fit in fits) else fits


def _refusal(given: Any, value: Any, hint: Any) -> str:
    """Why an argument does not take `given`, which was read as `value`."""
    if _has_rule(hint):
        return f"takes {_hint_name(hint)}, not {value!r}"
    return f"takes {_hint_name(hint)}, but {given!r} is {type(value).__name__}"


def _rules(hint: Any) -> list[Rule]:
    """The rules in a `typing.Annotated`."""
    return [rule for rule in hint.__metadata__ if isinstance(rule, Rule)]


def _has_rule(hint: Any) -> bool:
    return isinstance(hint, Rule) or any(_has_rule(part) for part in typing.get_args(hint))


def _hint_name(hint: Any) -> str:
    if typing.get_origin(hint) is typing.Annotated:
        words = [rule.words for rule in _rules(hint)]
        return words[0] if words else _hint_name(typing.get_args(hint)[0])
    if _has_rule(hint):
        origin, inner = typing.get_origin(hint), typing.get_args(hint)
        each = " or ".join(dict.fromkeys(_hint_name(part) for part in inner if part is not Ellipsis))
        if origin in (typing.Union, types.UnionType):
            return each
        return f"a {_hint_name(origin)}{'' if Ellipsis in inner else f' of {len(inner)}'}, each {each}"
    if hint is type(None):
        return "None"
    if isinstance(hint, type) and not typing.get_args(hint):
        return hint.__name__
    return re.sub(r"\b(?:[a-z_]\w*\.)+(?=[A-Za-z_])", "", str(hint))  # classes without their modules
