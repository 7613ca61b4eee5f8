"""Which images make up which batch.

The images of a step over all ranks are a function of seed, epoch and the number of them alone; ranks and
accumulated batches only share them out. So a run can go on with another number of ranks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class BatchPlan:
    """The images of one batch of one rank, before any of them is read.

    Args:
        epoch: the epoch that the batch belongs to.
        indices: places in the table.
        repeated: which of them only fill the batch up, being seen elsewhere in the epoch too.
    """

    epoch: int
    indices: tuple[int, ...]
    repeated: tuple[bool, ...]


def orientation_groups(aspect_ratios: np.ndarray) -> list[np.ndarray]:
    """Places of the wide (width / height at least 1) and of the tall images, without empty groups."""
    wide = np.asarray(aspect_ratios) >= 1
    groups = [np.flatnonzero(wide), np.flatnonzero(~wide)]
    return [group for group in groups if len(group)]


def count_batches(
    group_sizes: Sequence[int], batch_size: int, world: int = 1, drop_last: bool = False, accumulate: int = 1
) -> int:
    """Batches of each rank in one epoch; the same on every rank and in every epoch."""
    whole = batch_size * world * accumulate
    steps = sum(max(1, size // whole) if drop_last else -(-size // whole) for size in group_sizes if size)
    return steps * accumulate


def plan_batches(
    groups: Sequence[np.ndarray],
    batch_size: int,
    *,
    seed: int = 0,
    epoch: int = 0,
    rank: int = 0,
    world: int = 1,
    shuffle: bool = True,
    drop_last: bool = False,
    accumulate: int = 1,
) -> list[BatchPlan]:
    """All batches of one rank in one epoch, `accumulate` of them for each step.

    Each group is shuffled by (seed, epoch) and cut into global batches of `batch_size * world * accumulate`
    images; a global batch is of one group, and each rank takes its parts, so that all ranks work on images of
    one orientation in the same step. Every batch has exactly `batch_size` images and every rank the same
    number of batches: what a group lacks for its last global batch is filled up by repeating its images from
    the beginning. Without shuffling the groups come one behind the other, each in the order of the table.

    Args:
        groups: places in the table; together each place once.
        batch_size: images of one rank in one step.
        seed: of the run.
        epoch: from 0.
        rank: of this process, from 0.
        world: number of processes.
        shuffle: draw a new order for each epoch.
        drop_last: leave out the last incomplete global batch of each group instead of filling it up. A group
            smaller than one global batch is filled up nonetheless: it would never be seen.
        accumulate: batches of each rank that make up one step.
    """
    random = np.random.default_rng((seed & 0xFFFFFFFFFFFFFFFF, epoch))
    steps: list[list[BatchPlan]] = []
    for group in groups:
        order = random.permutation(group) if shuffle else np.asarray(group)
        total = count_batches([len(order)], batch_size, world, drop_last, accumulate) * batch_size * world
        places = np.resize(order, total) if len(order) else order
        repeated = np.arange(total) >= len(order)
        for first in range(0, total, batch_size * world * accumulate):
            steps.append([])
            for place in range(accumulate):
                start = first + (place * world + rank) * batch_size
                part = slice(start, start + batch_size)
                steps[-1].append(
                    BatchPlan(epoch, tuple(places[part].tolist()), tuple(repeated[part].tolist()))
                )
    if shuffle:
        steps = [steps[i] for i in random.permutation(len(steps))]
    return [plan for step in steps for plan in step]
