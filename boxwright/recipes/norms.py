"""The norm of backbone, neck or heads changed in one line, in Python and on the command line."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from typing import Any, Literal

import fiddle as fdl
from fiddle import Config, Partial, daglish
from torch import nn

from ..config import apply_overrides
from ..config.calls import parse_call
from ..config.describe import parameters
from ..config.overrides import located
from ..errors import ConfigError
from ..models import layers
from .experiment import Experiment
from .suppression import set_nms

Part = Literal["backbone", "neck", "heads"]
PARTS: tuple[Part, ...] = ("backbone", "neck", "heads")


def set_norm(experiment: Config[Experiment], norm: Any, *parts: Part) -> int:
    """Set the norm layers of a recipe, in place.

        bw.set_norm(experiment, Partial(CrossBatchNorm2d, ranks=4))     # in the place of every norm there is
        bw.set_norm(experiment, group_norm, "neck", "heads")            # where there was none, too

    A norm whose statistics ranks share has to learn them: `norm_eval` of the backbone becomes False with it.
    Pretrained weights are those of a norm: group norm needs a backbone that was trained with it (`weights`).

    Args:
        experiment: what a recipe returns; its `model` is changed.
        norm: a callable `norm(channels) -> nn.Module`, or a `fiddle.Partial` of one; None for no norm.
        *parts: "backbone", "neck", "heads" (all else); none for every norm of the model that is there.

    Returns:
        How many parts of the description have the norm now.

    Raises:
        ConfigError: there is no such part, or nothing in it has a norm to set.
    """
    unknown = [part for part in parts if part not in PARTS]
    if unknown:
        raise ConfigError(f"no part {unknown[0]!r} of a detector: norms are set in {', '.join(PARTS)}")
    count = dict.fromkeys(parts or PARTS, 0)
    for part, node in list(_with_norm(experiment.model)):
        if part not in count or (not parts and part != "backbone" and _current(node) is None):
            continue
        node.norm = norm
        count[part] += 1
        if _shares_statistics(norm) and "norm_eval" in parameters(node):
            node.norm_eval = False
    for part in parts or ("backbone",):
        if not count[part]:
            raise ConfigError(f"the {part} of this recipe has no norm to set: its layers take no `norm`")
    return sum(count.values())


def override(experiment: Config[Experiment], words: Sequence[str]) -> None:
    """Change a recipe by words of the command line, in place.

    Beside the assignments of `config.apply_overrides` these are `norm=NORM`, `norm.backbone=NORM`,
    `norm.neck=NORM` and `norm.heads=NORM`, and `nms=NMS`, which come first, so that the others can change
    what they set.

    Raises:
        ConfigError: as `set_norm`, `parse_norm`, `set_nms` and `apply_overrides`.
    """
    others = []
    for word in words:
        name, equals, text = word.partition("=")
        head, _, part = name.partition(".")
        if head == "norm" and equals:
            with located(f"command line: {word}"):
                set_norm(experiment, parse_norm(text), *([part] if part else []))  # pyright: ignore
        elif name == "nms" and equals:
            with located(f"command line: {word}"):
                set_nms(experiment, text)
        else:
            others.append(word)
    apply_overrides(experiment, others)


def parse_norm(text: str) -> Any:
    """A norm as it is written on the command line, such as `group_norm` or `CrossBatchNorm2d(ranks=4)`.

    Args:
        text: None, or a name of `boxwright.models.layers` or `torch.nn`, with arguments in brackets or
            without.

    Raises:
        ConfigError: it is neither.
    """
    if text.strip() == "None":
        return None
    try:
        name, arguments = parse_call(text)
    except ValueError as error:
        raise ConfigError(
            f"norm={text}: write the name of a norm, with named arguments or without, such as group_norm or "
            "'CrossBatchNorm2d(ranks=4)' (in quotes), or None"
        ) from error
    norm = getattr(layers, name, None) or getattr(nn, name, None)
    if not callable(norm):
        raise ConfigError(
            f"norm={text}: neither boxwright.models.layers nor torch.nn has {name!r}; there are "
            "CrossBatchNorm2d, FrozenBatchNorm2d, group_norm, BatchNorm2d"
        )
    try:
        return Partial(norm, **arguments) if arguments else norm
    except TypeError as error:
        raise ConfigError(f"norm={text}: {error}") from error


def _with_norm(model: Any) -> Iterator[tuple[Part, Any]]:
    """The calls in a model's description that take a `norm`, and the part of the detector they are in."""
    for node, path in daglish.iterate(model):
        if path and isinstance(node, fdl.Buildable) and "norm" in parameters(node):
            name = getattr(path[0], "name", "")
            yield (name if name in ("backbone", "neck") else "heads"), node


def _current(node: Any) -> Any:
    """The norm that a call has now: its own, or the constructor's default."""
    return node.__arguments__.get("norm", parameters(node)["norm"].default)


def _shares_statistics(norm: Any) -> bool:
    while isinstance(norm, fdl.Buildable | functools.partial):
        norm = fdl.get_callable(norm) if isinstance(norm, fdl.Buildable) else norm.func
    return isinstance(norm, type) and issubclass(norm, layers.CrossBatchNorm2d | nn.SyncBatchNorm)
