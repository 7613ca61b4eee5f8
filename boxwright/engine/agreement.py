"""What all ranks have to agree on before they train: versions, configuration, data.

Ranks that differ in these would wait for each other for ever, or train something that nobody described. Every
rank asks the same questions at start, and every rank raises the same error, which names the values and whose
they are. Neither where a data set lies nor under which name a machine knows it has to be the same, but
its contents do.
"""

from __future__ import annotations

import hashlib
import re
import sys
from collections.abc import Mapping, Sequence

import fiddle as fdl
import torch

from .. import __version__
from ..config import flatten, shown
from ..distributed import gather_objects, is_distributed
from ..errors import ConfigError, DataError

MOST = 8
"""Differing keys that a message lists."""


def agree_on_versions() -> None:
    """Whether all ranks run the same Boxwright and PyTorch on the same minor version of Python.

    Raises:
        ConfigError: on every rank, if not.
    """
    python = f"{sys.version_info.major}.{sys.version_info.minor}"
    mine = {"boxwright": __version__, "torch": torch.__version__, "python": python}
    if found := differences(gather_objects(mine)):
        raise ConfigError(
            f"the ranks run different versions: {found}. Install the same environment on all machines"
        )


def agree_on_configuration(config: fdl.Buildable) -> None:
    """Whether all ranks were given the same configuration, except for its data set.

    Raises:
        ConfigError: on every rank, if not; it names the values and the ranks.
    """
    if not is_distributed():
        return
    mine = {key: _text(value) for key, value in flatten(config).items() if not _is_of_data(key)}
    text = "\n".join(f"{key}={value}" for key, value in sorted(mine.items()))
    digests = gather_objects(hashlib.blake2b(text.encode(), digest_size=16).hexdigest())
    if len(set(digests)) > 1:
        raise ConfigError(
            f"the ranks were given different configurations: {differences(gather_objects(mine))}. "
            "Start all of them with the same command and the same recipe"
        )


def agree_on_data(contents: Mapping[str, str]) -> None:
    """Whether all ranks see the same data set.

    Args:
        contents: what `data.contents` says of it.

    Raises:
        DataError: on every rank, if not; it names the splits and the ranks.
    """
    if found := differences(gather_objects(dict(contents))):
        raise DataError(
            f"the ranks see different data sets: {found}. Copy one data set to all machines, "
            "or let them share a file system"
        )


def differences(ranks: Sequence[Mapping[str, str]]) -> str:
    """The values that ranks do not agree on, and whose they are; empty where they agree."""
    keys = list(dict.fromkeys(key for values in ranks for key in values))
    differing = [key for key in keys if len({values.get(key) for values in ranks}) > 1]
    told = []
    for key in differing[:MOST]:
        owners: dict[str | None, list[int]] = {}
        for rank, values in enumerate(ranks):
            owners.setdefault(values.get(key), []).append(rank)
        each = (f"{'absent' if value is None else value} on {ranges(own)}" for value, own in owners.items())
        told.append(f"{key} is {', '.join(each)}")
    if len(differing) > MOST:
        told.append(f"and {len(differing) - MOST} more")
    return "; ".join(told)


def ranges(ranks: Sequence[int]) -> str:
    """Ranks in words: "rank 3", "ranks 0, 2 to 7"."""
    parts: list[str] = []
    first = 0
    for place, rank in enumerate(ranks):
        if place + 1 < len(ranks) and ranks[place + 1] == rank + 1:
            continue
        run = ranks[first : place + 1]
        parts.append(str(run[0]) if len(run) == 1 else f"{run[0]} to {run[-1]}")
        first = place + 1
    return f"rank{'s' if len(ranks) > 1 else ''} {', '.join(parts)}"


def _text(value: object) -> str:
    return re.sub(r" at 0x[0-9a-f]+", "", shown(value))  # an object's address is no difference


def _is_of_data(key: str) -> bool:
    return key == "data" or key.startswith("data.")
