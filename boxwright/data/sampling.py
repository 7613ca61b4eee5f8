"""Which images make up which batch: a pure function of seed, epoch, rank and number of ranks."""

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
    group_sizes: Sequence[int], batch_size: int, world: int = 1, drop_last: bool = False
) -> int:
    """Batches of each rank in one epoch; the same on every rank and in every epoch."""
    whole = batch_size * world
    return sum(max(1, size // whole) if drop_last else -(-size // whole) for size in group_sizes if size)


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
) -> list[BatchPlan]:
    """All batches of one rank in one epoch.

    Each group is shuffled by (seed, epoch) and cut into global batches of `batch_size * world` images; a
    global batch is of one group, and each rank takes its part, so that all ranks work on images of one
    orientation in the same step. Every batch has exactly `batch_size` images and every rank the same number
    of batches: what a group lacks for its last global batch is filled up by repeating its images from the
    beginning. Without shuffling the groups come one behind the other, each in the order of the table.

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
    """
    random = np.random.default_rng((seed & 0xFFFFFFFFFFFFFFFF, epoch))
    whole = batch_size * world
    parts: list[tuple[np.ndarray, np.ndarray]] = []
    for group in groups:
        order = random.permutation(group) if shuffle else np.asarray(group)
        total = count_batches([len(order)], batch_size, world, drop_last) * whole
        places = np.resize(order, total) if len(order) else order
        repeated = np.arange(total) >= len(order)
        start = rank * batch_size
        for first in range(start, total, whole):
            part = slice(first, first + batch_size)
            parts.append((places[part], repeated[part]))
    if shuffle:
        parts = [parts[i] for i in random.permutation(len(parts))]
    return [BatchPlan(epoch, tuple(p.tolist()), tuple(r.tolist())) for p, r in parts]
