"""A configuration as JSON, and back: reading one constructs only what an allow-list of modules names."""

from __future__ import annotations

import dataclasses
import enum
import functools
import json
import traceback
import types
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import fiddle as fdl
from fiddle import daglish
from fiddle.experimental import serialization

from ..errors import BoxwrightError, ConfigError, some_of
from .describe import holds_calls, walk
from .overrides import MOST, check_values

ALLOWED = (
    "boxwright.config",
    "boxwright.data.canvas",
    "boxwright.data.dataset",
    "boxwright.data.transforms",
    "boxwright.engine.communication",
    "boxwright.engine.hooks",
    "boxwright.engine.memory",
    "boxwright.engine.optim",
    "boxwright.engine.schedule",
    "boxwright.labels",
    "boxwright.models",
    "boxwright.ops.boxes",
    "boxwright.recipes.experiment",
    "boxwright.structures",
    "torch.nn",
    "torch.optim",
    "torchvision.ops",
    "torchvision.transforms.v2",
)
"""Modules (with what lies below them) that a configuration file may name. The command line, functions that
run a file, and `torch.hub` are not among them."""

PLAIN = frozenset({bool, bytes, dict, float, frozenset, functools.partial, int, list, set, slice, str, tuple})
DESCRIPTIONS = frozenset({fdl.Config, fdl.Partial, fdl.ArgFactory, fdl.BuildableTraverserMetadata})


def to_json(config: fdl.Buildable) -> str:
    """A configuration as indented JSON that `from_json` reads.

    Ready dataclass instances and `functools.partial`s in it are written as the calls that make them, paths
    as strings. Who set a value is not kept.

    Raises:
        ConfigError: it holds a value that cannot be written, such as a lambda; the path is named.
    """
    try:
        return serialization.dump_json(describe_values(config), indent=1)
    except (serialization.UnserializableValueError, AttributeError, ModuleNotFoundError) as error:
        raise ConfigError(
            f"this configuration cannot be written to a file: {error}. Give it classes and functions that "
            "can be imported by name, not lambdas, local functions or built modules"
        ) from error


def from_json(text: str, trust: Sequence[str] = ()) -> fdl.Buildable:
    """The configuration that `to_json` wrote.

    Nothing is imported beyond the modules of `ALLOWED` and of `trust`, and no name is followed out of them.

    Args:
        text: JSON.
        trust: further modules (with what lies below them) that the file may name: your own package, say.
            Their functions will be called with arguments from the file when it is built.

    Raises:
        ConfigError: the text is no configuration, or names something outside the allowed modules.
    """
    policy = _AllowList((*ALLOWED, *trust))
    try:
        config = serialization.load_json(text, policy)
    except serialization.PyrefPolicyError as error:
        raise ConfigError(
            f"the configuration file names {error.module}.{error.symbol}, which is not among the allowed "
            f"modules ({', '.join(policy.modules)}); if it is your own code, name its module to `trust`"
        ) from error
    except (json.JSONDecodeError, serialization.DeserializationError) as error:
        raise ConfigError(f"not a configuration file: {error}") from error
    except Exception as error:  # whatever a damaged or foreign file makes the reader stumble over
        raise ConfigError(
            f"the configuration file cannot be read by this version: {type(error).__name__}: {error}"
        ) from error
    if not isinstance(config, fdl.Buildable):
        raise ConfigError(f"not a configuration file: it describes a {type(config).__name__}, not a call")
    return daglish.MemoizedTraversal.run(_partials, config)


def read_config(path: str | Path, trust: Sequence[str] = ()) -> Any:
    """The configuration in a file that `to_json` wrote.

    Args:
        path: such as a run's `config.json`.
        trust: as `from_json`.

    Raises:
        ConfigError: as `from_json` and `check_values`, or the file cannot be read; it names the file.
    """
    try:
        config = from_json(Path(path).read_text(encoding="utf-8"), trust)
        check_values(config)
        return config
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} cannot be read: {error}") from error
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from error


def _partials(value: Any, state: daglish.State) -> Any:
    """A `functools.partial` in the place of its description, as it stood before `to_json`."""
    value = state.map_children(value) if state.is_traversable(value) else value
    described = isinstance(value, fdl.Config) and fdl.get_callable(value) is functools.partial
    if not described or any(holds_calls(item) for item in value.__arguments__.values()):
        return value
    return fdl.build(value)


def describe_values(config: fdl.Buildable) -> fdl.Buildable:
    """A copy in which ready dataclasses and `functools.partial`s stand as descriptions, paths as strings."""

    def convert(value: Any, state: daglish.State) -> Any:
        if isinstance(value, Path):
            return str(value)
        if isinstance(value, functools.partial):
            value = fdl.Config(functools.partial, value.func, *value.args, **value.keywords)
        elif dataclasses.is_dataclass(value) and not isinstance(value, type | fdl.Buildable):
            given = {f.name: getattr(value, f.name) for f in dataclasses.fields(value) if f.init}
            value = fdl.Config(type(value), **given)
        return state.map_children(value) if state.is_traversable(value) else value

    return daglish.MemoizedTraversal.run(convert, config)


def clone(config: fdl.Buildable) -> Any:
    """A copy of the description, to change without touching the original; ready values in it are shared."""

    def copied(value: Any, state: daglish.State) -> Any:
        return state.map_children(value) if state.is_traversable(value) else value

    return daglish.MemoizedTraversal.run(copied, config)


def build(config: Any) -> Any:
    """Make the objects that a configuration describes.

    Args:
        config: a `fiddle.Config` or `Partial`, or a list or dict of them.

    Raises:
        ConfigError: as `check_values`, or a constructor failed; the message holds the path in the
            configuration and what the constructor said, and the original error is its cause.
        BoxwrightError: what a constructor raised of this family, with the path as a note.
    """
    if not holds_calls(config):
        return config  # ready values only, such as a list of built transforms
    check_values(config)
    try:
        return fdl.build(config)
    except Exception as error:
        original = getattr(error, "proxy_base_exception", error)
        where = _part_that_failed(config, original) or _call_that_failed(getattr(error, "proxy_message", ""))
        if isinstance(original, BoxwrightError):  # it says what is wrong already
            original.add_note(f"while building {where}")
            raise original from None
        raise ConfigError(f"cannot build {where}: {type(original).__name__}: {original}") from original


def _part_that_failed(config: Any, error: BaseException) -> str | None:
    """The innermost described class in whose methods an error was raised, and where it is described.

    The parts of a whole are described by `Partial`s, which its constructor calls: fiddle names the whole.
    """
    described: dict[Any, list[str]] = {}
    for path, value in [("the configuration", config), *walk(config)]:
        if isinstance(value, fdl.Buildable):
            described.setdefault(fdl.get_callable(value), []).append(path)
    for frame, _ in reversed(list(traceback.walk_tb(error.__traceback__))):
        made = type(frame.f_locals.get("self"))
        if made in described:
            return f"{some_of(described[made], MOST)} ({made.__name__})"
    return None


def _call_that_failed(told: str) -> str:
    """Where fiddle says that it was."""
    path, _, _ = told.partition(" at <root>")[2].partition(" with positional")
    name = told.partition("construct or call ")[2].partition(" at <root>")[0]
    return f"{path.lstrip('.') or 'the configuration'} ({name})" if name else "the configuration"


class _AllowList(serialization.PyrefPolicy):
    """Lets a configuration file name classes and functions defined in a few modules only."""

    def __init__(self, modules: Sequence[str]) -> None:
        self.modules = tuple(modules)

    def __repr__(self) -> str:
        return f"allow-list of {len(self.modules)} modules"

    def _below(self, module: str | None) -> bool:
        return module is not None and any(module == m or module.startswith(f"{m}.") for m in self.modules)

    def allows_import(self, module: str, symbol: str) -> bool:
        if "__" in symbol:  # no way from an allowed class to the interpreter's own
            return False
        return module in ("builtins", "functools") or module.split(".")[0] == "fiddle" or self._below(module)

    def allows_value(self, value: Any) -> bool:
        if isinstance(value, type) and value in PLAIN | DESCRIPTIONS:
            return True
        if isinstance(value, enum.Enum):
            value = type(value)
        # A module re-exports what it imported: what counts is where the value was defined.
        return isinstance(value, type | types.FunctionType | types.MethodType) and self._below(
            value.__module__
        )
