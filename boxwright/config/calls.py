"""A call as it is written on the command line: a name, with named arguments or without."""

from __future__ import annotations

import ast
from typing import Any


def parse_call(text: str) -> tuple[str, dict[str, Any]]:
    """Name and arguments of `name` or `name(a=1, b=word)`.

    Args:
        text: arguments are named; their values are Python literals, or a bare word for a string.

    Raises:
        ValueError: it is written otherwise.
    """
    try:
        written = ast.parse(text.strip(), mode="eval").body
        call = written if isinstance(written, ast.Call) else ast.Call(written, [], [])
        arguments = {str(word.arg): _value(word.value) for word in call.keywords if word.arg}
    except SyntaxError as error:
        raise ValueError(text) from error
    if not isinstance(call.func, ast.Name) or call.args or len(arguments) < len(call.keywords):
        raise ValueError(text)
    return call.func.id, arguments


def _value(node: ast.expr) -> Any:
    return node.id if isinstance(node, ast.Name) else ast.literal_eval(node)
