"""`boxwright recipes` and `boxwright config`."""

from __future__ import annotations

from typing import Annotated

import typer

from ..errors import ConfigError
from .options import Trust
from .words import take


def recipes(
    words: Annotated[
        list[str] | None, typer.Argument(metavar="[WORD ...]", help="Only names with these words in them.")
    ] = None,
) -> None:
    """List the recipes: complete trainings to start from.

        boxwright recipes

        boxwright recipes mask r50

    The name goes to `boxwright train` and `boxwright config`.
    """  # fmt: skip
    from ..recipes import recipes as list_recipes

    known = {n: line for n, line in list_recipes().items() if all(w in n for w in words or ())}
    if not known:
        raise ConfigError(
            f"no recipe has {' and '.join(words or ())} in its name; `boxwright recipes` lists all"
        )
    width = max(map(len, known))
    for name, line in known.items():
        typer.echo(f"{name:<{width}}  {line}")


def config(
    name: Annotated[
        str,
        typer.Argument(metavar="RECIPE", help="Name, file.py:function, or a run folder.", show_default=False),
    ],
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="[a.b.c=value ...]", show_default=False)
    ] = None,
    history: Annotated[bool, typer.Option("--history", help="Say beside each value who set it.")] = False,
    diff: Annotated[
        str | None, typer.Option(metavar="RECIPE", help="Show only what differs from another recipe or run.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the JSON that a run keeps.")] = False,
    trust: Trust = None,
) -> None:
    """Print every value of a recipe, with the defaults of all constructors.

        boxwright config fcos_mnv2_320

        boxwright config fcos_mnv2_320 optimizer.lr=0.01 --history

        boxwright config mask_rcnn_r50_fpn_1x --diff faster_rcnn_r50_fpn_1x

    The paths are those that `boxwright train` sets with `path=value`.
    """  # fmt: skip
    from ..config import diff as differences
    from ..config import flatten, shown, to_json
    from ..config import history as tell
    from ..recipes.norms import override

    _, words = take(overrides or (), ())
    described = _described(name, trust or ())
    override(described, words)  # pyright: ignore[reportArgumentType]
    if as_json and (history or diff is not None):
        raise ConfigError("--json prints values alone: leave out --history and --diff")
    if as_json:
        typer.echo(to_json(described))
        return
    if diff is not None:
        lines = differences(_described(diff, trust or ()), described)
        typer.echo(lines or f"{name} and {diff} hold the same values")
        return
    lines = {path: f"{path} = {shown(value)}" for path, value in flatten(described).items()}
    told = tell(described) if history else {}
    width = min(70, max(map(len, lines.values())))
    for path, line in lines.items():
        typer.echo(f"{line:<{width}}  # {told[path]}" if history else line)


def _described(name: str, trust: list[str] | tuple[str, ...]):
    """The configuration of a recipe, or of a run folder."""
    from pathlib import Path

    from ..config import read_config
    from ..recipes import recipe

    path = Path(name) / "config.json"
    return read_config(path, trust) if path.is_file() else recipe(name)
