"""Docstrings have single backquotes around code, as in Markdown; the reference shows them as code."""

from __future__ import annotations

import re

from sphinx.application import Sphinx

_CODE = re.compile(r"(?<![`:\w])`([^`\n]+)`(?!`)")
_ALIAS = re.compile(r"TypeAliasForwardRef\('(\w+)'\)")


def as_literals(text: str) -> str:
    """The same line with reStructuredText's double backquotes; a letter may follow at once (`Partial`s)."""
    return _CODE.sub(r"``\1``\\ ", text) if "`" in text else text


def mark_code(app: Sphinx, what: str, name: str, obj: object, options: object, lines: list[str]) -> None:
    """Change the lines of one docstring in place."""
    lines[:] = [as_literals(line) for line in lines]


def skip_foreign(app: Sphinx, what: str, name: str, obj: object, skip: bool, options: object) -> bool | None:
    """Leave out functions of other libraries that are the default of a dataclass's field."""
    home = getattr(obj, "__module__", None) or ""
    foreign = callable(obj) and not isinstance(obj, type) and not home.startswith("boxwright")
    return True if what == "class" and foreign and not name.startswith("__") else None


def name_aliases(
    app: Sphinx, what: str, name: str, obj: object, options: object, given: str | None, returned: str | None
) -> tuple[str | None, str | None]:
    """Show `autodoc_type_aliases` by name within other types, too, as Sphinx does where they stand alone."""
    return _ALIAS.sub(r"\1", given) if given else given, returned


def setup(app: Sphinx) -> dict[str, object]:
    """Hook into autodoc, before napoleon reads the sections."""
    app.connect("autodoc-process-docstring", mark_code, priority=100)
    app.connect("autodoc-process-signature", name_aliases)
    app.connect("autodoc-skip-member", skip_foreign)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
