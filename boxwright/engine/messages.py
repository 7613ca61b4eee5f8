"""What the engine says to people, and what ranks agree on."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import TypeVar

import torch
import torch.distributed as dist

from ..distributed import gather_objects, is_distributed, is_main, local_rank
from ..errors import BoxwrightError, RankError

Result = TypeVar("Result")


def notify(message: str) -> None:
    """One line on the standard error of the main process."""
    if is_main():
        print(f"boxwright: {message}", file=sys.stderr, flush=True)


def any_over_ranks(flag: bool, device: torch.device) -> bool:
    """Whether any rank says yes. Every rank must ask; the answer waits for all of them."""
    if not is_distributed():
        return flag
    vote = torch.tensor([int(flag)], device=device)
    dist.all_reduce(vote, dist.ReduceOp.MAX)
    return bool(vote.item())


def on_every_rank(function: Callable[[], Result]) -> Result:
    """Call a function on every rank: first on one of each machine, whose files the others then find.

    Every rank must call this.

    Raises:
        RankError: the function failed on another rank only; it names the rank and the reason.
    """
    result, failure = None, None
    for first in (True, False):
        if first == (local_rank() == 0):
            try:
                result = function()
            except BoxwrightError as error:
                failure = error
        failures = gather_objects(None if failure is None else f"{type(failure).__name__}: {failure}")
        if failure is not None:
            raise failure
        failed = [f"rank {rank} failed: {text}" for rank, text in enumerate(failures) if text is not None]
        if failed:
            raise RankError(failed[0], speaks=is_main())
    return result  # pyright: ignore[reportReturnType]


def on_main(function: Callable[[], Result]) -> Result:
    """Call a function in the main process alone; every rank gets its result, or raises its error.

    Every rank must call this, so that none is left waiting for one that failed.
    """
    result, failure = None, None
    if is_main():
        try:
            result = function()
        except BoxwrightError as error:
            failure = error
    result, failure = gather_objects((result, failure))[0]
    if failure is not None:
        raise failure
    return result
