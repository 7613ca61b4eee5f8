"""Reading a foreign configuration entry by entry, so that nothing in it is passed over in silence."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Self

from ..errors import ConfigError

REQUIRED = object()


class Settings:
    """One `dict(type=..., ...)` of a configuration: a context that fails if an entry was not read.

        with settings.part("backbone") as backbone:
            depth = backbone("depth")

    Args:
        values: the entries.
        path: where it stands, for messages.

    Raises:
        ConfigError: at the end of the `with`, for entries that nobody asked for.
    """

    def __init__(self, values: Mapping[str, Any], path: str) -> None:
        if not isinstance(values, Mapping):
            raise ConfigError(f"{path} is {values!r}, where settings were expected")
        self.values, self.path = dict(values), path
        self.unread = set(self.values) - {"type", "init_cfg", "_scope_"}

    @property
    def kind(self) -> str:
        """The name of the part's class there."""
        return str(self.values.get("type", "")).rpartition(".")[2]

    def __call__(self, name: str, default: Any = REQUIRED) -> Any:
        """The entry of that name; `default` where it is absent."""
        self.unread.discard(name)
        if name in self.values:
            return self.values[name]
        if default is REQUIRED:
            raise ConfigError(f"{self.path} has no entry {name!r}, which its {self.kind or 'reader'} needs")
        return default

    def part(self, name: str) -> Settings:
        """The settings that stand under that name."""
        return Settings(self(name), f"{self.path}.{name}")

    def optional(self, name: str) -> Settings | None:
        """The same, or None where it is absent or None."""
        return None if self(name, None) is None else self.part(name)

    def parts(self, name: str) -> list[Settings]:
        """A list of settings, or one alone as a list."""
        value = self(name)
        if isinstance(value, Mapping):
            return [Settings(value, f"{self.path}.{name}")]
        return [Settings(entry, f"{self.path}.{name}[{i}]") for i, entry in enumerate(value)]

    def expect(self, name: str, *allowed: Any) -> None:
        """Read an entry that has no counterpart here: it may be absent, or one of the values that we have."""
        if name in self.values and (value := self(name)) not in allowed:
            raise self._other(name, value, allowed)

    def choice(self, name: str, options: Mapping[Any, Any], default: Any = REQUIRED) -> Any:
        """What the entry of that name stands for here, of the values that we have."""
        value = self(name, default)
        for option, ours in options.items():
            if option == value:
                return ours
        raise self._other(name, value, options)

    def only(self, what: str, *kinds: str) -> None:
        """Fail unless it is of one of these classes; `what` says what it would be here."""
        if self.kind not in kinds:
            raise self.unknown(what, kinds)

    def ignore(self, *names: str) -> None:
        """Entries that mean nothing here: initial weights, debugging, memory."""
        self.unread.difference_update(names)

    def unknown(self, what: str, known: Iterable[str]) -> ConfigError:
        """The error for a part of a class that is not translated."""
        return ConfigError(
            f"{self.path} is a {self.kind or 'part without a type'}, {what} that Boxwright does not have; "
            f"it has {', '.join(known)}"
        )

    def _other(self, name: str, value: Any, allowed: Iterable[Any]) -> ConfigError:
        """The error for a value that has no counterpart."""
        of = f" of {self.kind}" if self.kind else ""
        options = " or ".join(repr(option) for option in allowed)
        return ConfigError(f"{self.path}.{name} is {value!r}; Boxwright has only {options}{of}")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None and self.unread:
            left = ", ".join(f"{name}={self.values[name]!r}" for name in sorted(self.unread))
            raise ConfigError(f"{self.path} ({self.kind}) has settings without a counterpart here: {left}")
