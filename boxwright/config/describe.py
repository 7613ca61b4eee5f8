"""What a configuration holds: paths, values, defaults, annotations, and who set each value."""

from __future__ import annotations

import dataclasses
import functools
import inspect
import sys
import types
import typing
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import fiddle as fdl
from fiddle._src import history as fiddle_history  # the public module does not export the change kinds

MISSING = object()
"""Stands for an argument that has neither a value nor a default."""


@dataclass(frozen=True)
class Call:
    """A call that a configuration describes: the value shown at the path of a nested `Config`.

    Args:
        name: dotted name of the class or function, e.g. `boxwright.models.necks.fpn.FPN`.
        partial: whether some arguments are still to come (`fiddle.Partial`).
    """

    name: str
    partial: bool = False

    def __repr__(self) -> str:
        return f"{'partial ' if self.partial else ''}{self.name}(...)"


def callable_name(target: Any) -> str:
    """Dotted name of a class or function, the module first."""
    module = getattr(target, "__module__", None)
    name = getattr(target, "__qualname__", None) or repr(target)
    return f"{module}.{name}" if module not in (None, "builtins") else name


def shown(value: Any) -> str:
    """A value as text that is the same in every process: classes and functions by name, not by address."""
    if isinstance(value, functools.partial):
        given = [shown(v) for v in value.args] + [f"{k}={shown(v)}" for k, v in value.keywords.items()]
        return f"partial({', '.join([callable_name(value.func), *given])})"
    if isinstance(value, type | types.FunctionType | types.BuiltinFunctionType):
        return callable_name(value)
    if isinstance(value, list | tuple):
        inside = ", ".join(shown(item) for item in value)
        return f"[{inside}]" if isinstance(value, list) else f"({inside}{',' * (len(value) == 1)})"
    return repr(value)


def parameters(node: fdl.Buildable) -> dict[str, inspect.Parameter]:
    """The named arguments that a described call accepts, in order of its signature."""
    kinds = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    signature = node.__signature_info__.signature
    return {name: p for name, p in signature.parameters.items() if p.kind in kinds}


def argument(node: fdl.Buildable, name: str | int) -> Any:
    """Value of an argument: what was set, else the constructor's default, else `MISSING`."""
    if name in node.__arguments__:
        return node.__arguments__[name]
    target = fdl.get_callable(node)
    if dataclasses.is_dataclass(target):
        for field in dataclasses.fields(target):
            if field.name == name and field.default_factory is not dataclasses.MISSING:
                return field.default_factory()
    parameter = node.__signature_info__.signature.parameters.get(str(name))
    return MISSING if parameter is None or parameter.default is inspect.Parameter.empty else parameter.default


def annotation(node: fdl.Buildable, name: str) -> Any:
    """The resolved annotation of an argument, or `MISSING` where there is none that can be resolved."""
    parameter = node.__signature_info__.signature.parameters.get(name)
    if parameter is None or parameter.annotation is inspect.Parameter.empty:
        return MISSING
    hint = parameter.annotation
    if not isinstance(hint, str):
        return hint
    namespace = vars(sys.modules.get(getattr(fdl.get_callable(node), "__module__", ""), typing))
    try:
        holder = type("Holder", (), {"__annotations__": {name: hint}})
        return typing.get_type_hints(holder, dict(namespace), include_extras=True)[name]
    except (NameError, AttributeError, TypeError):  # a name imported for the type checker only
        return MISSING


def is_settings(value: Any) -> bool:
    """Whether a value is a ready dataclass of plain values: its fields are shown and set like arguments."""
    if isinstance(value, type | fdl.Buildable) or not dataclasses.is_dataclass(value):
        return False
    fields = [getattr(value, f.name) for f in dataclasses.fields(value) if f.init]
    return bool(fields) and all(is_plain(field) or is_settings(field) for field in fields)


def is_plain(value: Any) -> bool:
    """Whether a value is text, a number, a path, True, False or None, or a list of these."""
    if isinstance(value, list | tuple):
        return all(is_plain(item) for item in value)
    return value is None or isinstance(value, bool | int | float | str | Path)


def children(value: Any) -> Iterator[tuple[str | int, Any]]:
    """Names and values directly under a value: arguments of a call, items of a list, entries of a dict."""
    if is_settings(value):
        yield from ((f.name, getattr(value, f.name)) for f in dataclasses.fields(value) if f.init)
    elif isinstance(value, fdl.Buildable):
        named = parameters(value)
        extra = [name for name in value.__arguments__ if name not in named]
        for name in [*named, *extra]:
            item = argument(value, name)
            if item is not MISSING:
                yield name, item
    elif isinstance(value, Mapping) and holds_calls(value):
        yield from value.items()
    elif isinstance(value, list | tuple) and holds_calls(value):
        yield from enumerate(value)


def holds_calls(value: Any) -> bool:
    """Whether a value is a described call, or a list or dict with one somewhere in it."""
    if isinstance(value, Mapping):
        return any(holds_calls(item) for item in value.values())
    if isinstance(value, list | tuple):
        return any(holds_calls(item) for item in value)
    return isinstance(value, fdl.Buildable)


def join(path: str, name: str | int) -> str:
    """Path of an argument or item below `path`."""
    return f"{path}.{name}" if path else str(name)


def walk(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Every path below a configuration with its value, from the outside to the inside."""
    for name, item in children(value):
        yield join(path, name), item
        yield from walk(item, join(path, name))


def named_modules(config: fdl.Buildable) -> tuple[str, ...]:
    """The modules that define what a configuration names: the classes and functions it calls or holds."""
    values = [config, *(value for _, value in walk(config))]
    named = [fdl.get_callable(v) if isinstance(v, fdl.Buildable) else v for v in values]
    named = [v.func if isinstance(v, functools.partial) else v for v in named]
    found = (v.__module__ for v in named if isinstance(v, type | types.FunctionType))
    return tuple(sorted(set(found)))


def flatten(config: fdl.Buildable) -> dict[str, Any]:
    """All values of a configuration by path, the constructors' defaults among them.

    A nested description, or a ready dataclass of plain values, appears at its own path as a `Call`, its
    arguments below it; a list of plain values is one value, a list of descriptions one entry per item.

    Args:
        config: what a recipe returns.
    """
    flat: dict[str, Any] = {}
    for path, value in walk(config):
        if isinstance(value, fdl.Buildable):
            flat[path] = Call(callable_name(fdl.get_callable(value)), isinstance(value, fdl.Partial))
        elif is_settings(value):
            flat[path] = Call(callable_name(type(value)))
        elif not holds_calls(value):
            flat[path] = value
    return flat


def history(config: fdl.Buildable) -> dict[str, str]:
    """Who set each value: `file:line` of the statement, `command line`, or `default` of which constructor.

    The paths are those of `flatten`.
    """
    told: dict[str, str] = {}
    for path, node, name in _owners(config, ""):
        entries = [
            entry
            for entry in node.__argument_history__.get(name, ())
            if entry.kind is fiddle_history.ChangeKind.NEW_VALUE
        ]
        if name in node.__arguments__ and entries:
            told[path] = _place(entries[-1].location)
        elif name in node.__arguments__:
            told[path] = "loaded"
        else:
            told[path] = f"default of {callable_name(fdl.get_callable(node)).rpartition('.')[2]}"
    return {path: told[path] for path in flatten(config)}


def diff(first: fdl.Buildable, second: fdl.Buildable) -> str:
    """The values in which two configurations differ, one or two lines each; empty where they are equal.

    A line with `-` holds the value of the first, a line with `+` that of the second.
    """
    before, after = flatten(first), flatten(second)
    lines = []
    for path in dict.fromkeys([*before, *after]):
        old, new = before.get(path, MISSING), after.get(path, MISSING)
        if shown(old) == shown(new):
            continue
        lines += [f"- {path} = {shown(old)}"] if old is not MISSING else []
        lines += [f"+ {path} = {shown(new)}"] if new is not MISSING else []
    return "\n".join(lines)


def _owners(value: Any, path: str, owner: tuple[fdl.Buildable, str | int] | None = None) -> Iterator[tuple]:
    """Each path with the described call and the argument that its value came in by."""
    for name, item in children(value):
        source = (value, name) if isinstance(value, fdl.Buildable) else owner
        if source is not None:
            yield join(path, name), *source
        yield from _owners(item, join(path, name), source)


def _place(location: fiddle_history.Location) -> str:
    if location.line_number < 1:
        return location.filename
    path = Path(location.filename)
    shown = path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path
    return f"{shown}:{location.line_number}"


def names_below(value: Any) -> list[str]:
    """Names that a path may go on with below a value."""
    if isinstance(value, fdl.Buildable):
        return [*parameters(value)]
    if isinstance(value, Mapping):
        return [str(name) for name in value]
    return [str(index) for index in range(len(value))] if isinstance(value, list | tuple) else []


def accepts_any_name(node: fdl.Buildable) -> bool:
    """Whether the described call takes arguments of any name (`**kwargs`)."""
    return bool(node.__signature_info__.has_var_keyword)
