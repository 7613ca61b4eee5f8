"""Class names and paths of YOLO folders: one name a line, or the keys of a YAML file."""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Iterator
from pathlib import Path

from . import fields
from .fields import fail

_REMEDY = (
    "write `names: [a, b]`, or one indented `- a` or `0: a` a line, or use a classes.txt with one name a line"
)


def read_names(path: Path) -> tuple[str, ...]:
    """Class names in the order of their numbers.

    Of YAML, just what such files use is understood: a top-level `names` that is a list or a mapping from
    0, 1, ..., in one line or over several; all other keys are passed over.

    Raises:
        DataError: the file is missing or empty, names a class twice, or is written in another way.
    """
    text = fields.decode_text(path, fields.read_bytes(path))
    if path.suffix.lower() in (".yaml", ".yml"):
        names = _yaml_names(path, text)
    else:
        names = [line.strip() for line in text.splitlines()]
        while names and not names[-1]:
            names.pop()
    for number, name in enumerate(names):
        if not name:
            fail(path, f"class {number}", "has no name", "write one name a line, without empty lines between")
        if names.index(name) < number:
            fail(path, f"class {number}", f"the name {name!r} stands twice", "give each class its own name")
    if not names:
        fail(path, "", "names no class", _REMEDY)
    return tuple(names)


def has_key(path: Path, key: str) -> bool:
    """Whether a YAML file has a top-level key."""
    return _line_of(fields.decode_text(path, fields.read_bytes(path)).splitlines(), key) is not None


def read_paths(path: Path, key: str) -> tuple[str, ...]:
    """The text, or list of texts, of a top-level key of a YAML file; nothing where it is absent or empty.

    Raises:
        DataError: the file cannot be read, or the key holds a mapping.
    """
    lines = fields.decode_text(path, fields.read_bytes(path)).splitlines()
    start = _line_of(lines, key)
    if start is None:
        return ()
    value = _inline(lines, start)
    if value.startswith("[") and value.endswith("]"):
        return tuple(_unquote(item) for item in _split_flow(value[1:-1]))
    if value:
        text = _unquote(value)
        return () if text in ("", "~", "null") else (text,)
    texts = []
    for number, line in _block(lines, start):
        if not line.lstrip().startswith("- "):
            shown = line.strip()[:40]
            fail(path, f"line {number + 1}", f"cannot understand {shown!r}", f"write `{key}: a path`")
        texts.append(_unquote(line.lstrip()[2:]))
    return tuple(texts)


def _yaml_names(path: Path, text: str) -> list[str]:
    lines = text.splitlines()
    start = _line_of(lines, "names")
    if start is None:
        fail(path, "", "has no `names`", _REMEDY)
    value = _inline(lines, start)
    pairs: list[tuple[int | None, str]] = []
    if value:
        if (value[0], value[-1]) not in (("[", "]"), ("{", "}")):
            fail(path, f"line {start + 1}", f"`names` is {value[:40]!r}, not a list or mapping", _REMEDY)
        items = _split_flow(value[1:-1])
        pairs = (
            [_pair(path, start, i) for i in items]
            if value[0] == "{"
            else [(None, _unquote(i)) for i in items]
        )
    else:
        for number, line in _block(lines, start):
            item = line.lstrip().startswith("- ")
            pairs.append((None, _unquote(line.lstrip()[2:])) if item else _pair(path, number, line))
    return _in_order(path, pairs)


def _line_of(lines: list[str], key: str) -> int | None:
    """The line at which a top-level key stands."""
    return next((i for i, line in enumerate(lines) if re.match(rf"{key}\s*:", line)), None)


def _inline(lines: list[str], start: int) -> str:
    """What follows the key of a line, to the end of the list or mapping that begins there."""
    value = _uncomment(lines[start].split(":", 1)[1]).strip()
    end = start
    while value and value[0] in "[{" and value[-1] not in "]}" and end + 1 < len(lines):
        end += 1
        value = f"{value} {_uncomment(lines[end]).strip()}".strip()
    return value


def _block(lines: list[str], start: int) -> Iterator[tuple[int, str]]:
    """Number and text of the lines that belong to the key of a line: indented, or items of a list."""
    for number in range(start + 1, len(lines)):
        line = _uncomment(lines[number]).rstrip()
        if not line.strip():
            continue
        if line[0] not in " \t" and not line.startswith("- "):
            return
        yield number, line


def _in_order(path: Path, pairs: list[tuple[int | None, str]]) -> list[str]:
    keys = [key for key, _ in pairs]
    if all(key is None for key in keys):
        return [name for _, name in pairs]
    named = {key: name for key, name in pairs if key is not None}
    if len(named) < len(pairs) or sorted(named) != list(range(len(pairs))):
        fail(path, "", "the keys of `names` are not 0, 1, 2, ... each once", _REMEDY)
    return [named[i] for i in range(len(pairs))]


def _pair(path: Path, line: int, text: str) -> tuple[int, str]:
    match = re.fullmatch(r"""\s*["']?(\d+)["']?\s*:\s*(.+?)\s*""", text)
    if match is None:
        fail(path, f"line {line + 1}", f"cannot understand {text.strip()[:40]!r}", _REMEDY)
    return int(match[1]), _unquote(match[2])


def _unquote(text: str) -> str:
    text = text.strip()
    if len(text) >= 2 and text[0] == text[-1] == "'":
        return text[1:-1].replace("''", "'")
    if len(text) >= 2 and text[0] == text[-1] == '"':
        with contextlib.suppress(ValueError):  # YAML knows more escapes than JSON: those stay as written
            return str(json.loads(text))
        return text[1:-1]
    return text


def _uncomment(line: str) -> str:
    """The line without a comment; a # inside quotes or a word is none."""
    match = re.match(r"""((?:"[^"]*"|'[^']*'|(?<!\s)\#|[^#"'])*?)(?:(?:^|\s)\#.*)?$""", line)
    return match[1] if match else line


def _split_flow(text: str) -> list[str]:
    """Parts of a one-line list, at the commas that stand outside of quotes."""
    parts = re.findall(r"""((?:"[^"]*"|'(?:[^']|'')*'|[^,"']|(?<=\w)['"])+)""", text)
    return [part.strip() for part in parts if part.strip()]
