"""What a study trains: variants, grids of values, seeds, and the ready-made lists."""

from __future__ import annotations

import hashlib
import itertools
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import fiddle as fdl
from fiddle import daglish

from ..assembly import describe_data, is_experiment
from ..config import Pretrained, clone, to_json
from ..config.describe import argument
from ..data import Data, folder
from ..errors import BoxwrightError, ConfigError
from ..recipes import recipe as recipe_named
from ..recipes import table
from ..recipes.norms import override

_VARIANT = re.compile(r"(?P<recipe>.+?)(?::\s*(?P<words>[A-Za-z_][\w.]*=.*))?", re.DOTALL)
_NEXT_ASSIGNMENT = re.compile(r"\s+(?=[A-Za-z_][\w.]*=)(?![^()]*\))")  # arguments in brackets are none


@dataclass(frozen=True)
class Variant:
    """One row of a study's table.

    Args:
        recipe: a name, `file.py:function`, or the description that a recipe returns.
        overrides: assignments that this variant alone has.
        name: in tables and folders; made of the recipe and the overrides where empty.
    """

    recipe: str | fdl.Buildable
    overrides: tuple[str, ...] = ()
    name: str = ""


@dataclass(frozen=True)
class Planned:
    """One run: a variant with one seed.

    Args:
        variant: name of the row.
        recipe: its recipe, as text.
        overrides: every assignment, the common ones first.
        seed: of the run.
        config: the description to train.
        digest: stands for all settings, so that a run is never taken for another one.
        folder: name of the run folder.
    """

    variant: str
    recipe: str
    overrides: tuple[str, ...]
    seed: int
    config: fdl.Buildable
    digest: str
    folder: str


def small_recipes() -> tuple[str, ...]:
    """The recipes made for two CPU cores, all at 320 pixels."""
    return tuple(name for name in table() if name.endswith(("_mnv2_320", "_small_320")))


def dynamic_recipes() -> tuple[str, ...]:
    """Faster R-CNN, with each part of Dynamic R-CNN alone, and with both (arXiv:2004.06002, Table 2)."""
    return (
        "faster_rcnn_mnv2_320",
        "dynamic_rcnn_dla_mnv2_320",
        "dynamic_rcnn_dsl_mnv2_320",
        "dynamic_rcnn_mnv2_320",
    )


READY: dict[str, Callable[[], tuple[str, ...]]] = {"methods": small_recipes, "dynamic_rcnn": dynamic_recipes}


def ready_made(name: str) -> tuple[Variant, ...]:
    """The variants of a study that has a name.

    Raises:
        ConfigError: there is no such study.
    """
    if name not in READY:
        raise ConfigError(f"no study is called {name!r}; there are: {', '.join(READY)}")
    return tuple(Variant(recipe) for recipe in READY[name]())


def parse_variant(text: str) -> Variant:
    """A variant as it is written: `RECIPE`, or `RECIPE:a.b=1 c=2`; `name=` among these names it."""
    match = _VARIANT.fullmatch(text.strip())
    if match is None:
        raise ConfigError("a variant is empty; write RECIPE or 'RECIPE:a.b=value'")
    words = _NEXT_ASSIGNMENT.split(match["words"].strip()) if match["words"] else []
    names = [word.partition("=")[2] for word in words if word.startswith("name=")]
    return Variant(
        match["recipe"], tuple(w for w in words if not w.startswith("name=")), names[-1] if names else ""
    )


def parse_grid(texts: Iterable[str]) -> dict[str, tuple[str, ...]]:
    """Values by path, of texts such as `model.backbone.depth=50,101`.

    Raises:
        ConfigError: a text is no assignment, has no value, or a path stands twice.
    """
    grid: dict[str, tuple[str, ...]] = {}
    for text in texts:
        path, equals, values = text.partition("=")
        parsed = tuple(split_values(values))
        if not equals or not path.strip() or not parsed:
            raise ConfigError(f"{text!r} is no list of values; write path.to.argument=value,value")
        if path in grid:
            raise ConfigError(f"{path} is varied twice; give all of its values at once")
        grid[path.strip()] = parsed
    return grid


def split_values(text: str) -> Iterator[str]:
    """The values between the commas that stand outside of brackets and quotes."""
    depth, quote, value = 0, "", ""
    for character in text:
        if quote:
            quote = "" if character == quote else quote
        elif character in "'\"":
            quote = character
        else:
            depth += (character in "([{") - (character in ")]}")
        if character == "," and not quote and depth == 0:
            yield value.strip()
            value = ""
        else:
            value += character
    if value.strip():
        yield value.strip()


def cross(variants: Sequence[Variant], grid: Mapping[str, Sequence[str]]) -> list[Variant]:
    """Every variant with every combination of the grid's values, each with a name of its own.

    A path may be several, joined by `+`, which then all take the value.

    Raises:
        ConfigError: two variants have one name.
    """
    combinations = list(itertools.product(*([(path, v) for v in values] for path, values in grid.items())))
    paths = [word.partition("=")[0] for variant in variants for word in variant.overrides]
    short = short_names([*paths, *(path for path in grid)])
    made = []
    for variant, combination in itertools.product(variants, combinations):
        own = [word.partition("=") for word in variant.overrides] if not variant.name else []
        told = [f"{short[path]}={value}" for path, _, value in own]
        told += [f"{short[path]}={value}" for path, value in combination]
        added = [f"{one}={value}" for path, value in combination for one in path.split("+")]
        name = " ".join([variant.name or recipe_label(variant.recipe), *told])
        made.append(replace(variant, overrides=(*variant.overrides, *added), name=name))
    names = [variant.name for variant in made]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise ConfigError(
            f"two variants are called {twice!r}; leave one out, or name it: 'RECIPE:a.b=value name=NAME'"
        )
    return made


def short_names(paths: Iterable[str]) -> dict[str, str]:
    """The last names of each path, as many as tell it from the others."""
    known = list(dict.fromkeys(paths))
    short = {}
    for path in known:
        parts = path.split("+")[0].split(".")
        others = [other.split("+")[0].split(".") for other in known if other != path]
        count = next(
            (n for n in range(1, len(parts)) if all(o[-n:] != parts[-n:] for o in others)), len(parts)
        )
        short[path] = ".".join(parts[-count:])
    return short


def recipe_label(recipe: str | fdl.Buildable) -> str:
    """What a recipe is called in a table: of `file.py:function`, the function."""
    if not isinstance(recipe, str):
        return "experiment"
    path, colon, function = recipe.rpartition(":")
    return function if colon and path.endswith(".py") else Path(recipe).stem


def plan(
    variants: Sequence[Variant],
    grid: Mapping[str, Sequence[str]],
    *,
    data: Any = None,
    overrides: Sequence[str] = (),
    weights: str | None = None,
    seeds: int = 1,
    minutes: float | None = None,
) -> list[Planned]:
    """The runs of a study, seeds innermost; every description is made, so that a wrong word stops here.

    Args:
        variants: the rows.
        grid: values by path, crossed with the rows.
        data: what all are trained on; None for what their descriptions say.
        overrides: assignments common to all.
        weights: what every part that begins from pretrained weights takes instead of its own.
        seeds: runs of each row; they count on from the recipe's seed.
        minutes: of training, where that is the budget.

    Raises:
        ConfigError: no variant, an unknown recipe, a wrong assignment, two rows of one name.
    """
    if not variants:
        raise ConfigError("a study needs variants: recipes by name, or the name of a study")
    if seeds < 1 or (minutes is not None and minutes <= 0):
        raise ConfigError(f"seeds={seeds} must be at least 1, and minutes={minutes} positive or None")
    planned = []
    for variant in cross(variants, grid):
        try:
            config = _describe(variant, data, overrides, weights)
        except BoxwrightError as error:
            error.add_note(f"in variant {variant.name!r} of the study")
            raise
        first = int(argument(config, "seed"))
        for number in range(seeds):
            one = clone(config)
            one.seed = first + number
            planned.append(
                Planned(
                    variant=variant.name,
                    recipe=variant.recipe if isinstance(variant.recipe, str) else "",
                    overrides=(*overrides, *variant.overrides),
                    seed=one.seed,
                    config=one,
                    digest=digest(one, minutes),
                    folder=_folder(variant.name) + (f"-seed{one.seed}" if number else ""),
                )
            )
    folders = [run.folder for run in planned]
    if twice := next((f for f in folders if folders.count(f) > 1), None):
        raise ConfigError(f"two variants would share the folder {twice}; give one of them another name=")
    return planned


def digest(config: fdl.Buildable, minutes: float | None = None) -> str:
    """A short text that differs where any setting of two runs does."""
    text = f"{to_json(config)} {minutes}"
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def start_from(config: fdl.Buildable, weights: str) -> None:
    """Set the weights of each part that begins from pretrained ones, in place."""
    for node, _ in daglish.iterate(config):
        if isinstance(node, fdl.Buildable):
            for name, tags in node.__argument_tags__.items():
                pretrained = any(issubclass(tag, Pretrained) for tag in tags)
                if pretrained and argument(node, name) is not None:
                    setattr(node, str(name), weights)


def _describe(variant: Variant, data: Any, overrides: Sequence[str], weights: str | None) -> fdl.Buildable:
    """The description of one row."""
    given = variant.recipe
    config = recipe_named(given) if isinstance(given, str) else clone(given)
    if not is_experiment(config):
        raise ConfigError("a variant is the fiddle.Config of an Experiment, as a recipe returns it")
    if data is not None:
        config.data = data if isinstance(data, Data | fdl.Buildable) else fdl.Config(folder, root=str(data))
    if weights is not None:
        start_from(config, weights)
    override(config, (*overrides, *variant.overrides))  # pyright: ignore[reportArgumentType]
    if isinstance(config.data, Data):
        config.data = describe_data(config.data, None)
    return config


def _folder(name: str) -> str:
    """A variant's name as that of a folder."""
    return re.sub(r"[^\w.=+-]+", "_", name).strip("_.") or "variant"
