"""The loader: batches in a reproducible order, made ahead by worker processes, and exactly resumable."""

from __future__ import annotations

import dataclasses
import signal
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.queues import Queue
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from .. import distributed
from ..errors import ConfigError, DataError, is_of_dead_worker, told_of_dead_worker
from ..structures import Batch, pin_memory
from .canvas import Canvas
from .collate import collate
from .sample import Size, Transform, load_sample, needed_size
from .sampling import BatchPlan, count_batches, orientation_groups, plan_batches
from .table import Table

REPEATED = -1
"""The image id of a repeated image that only fills up the last batch of an evaluation."""


def sample_generator(seed: int, epoch: int, index: int) -> torch.Generator:
    """The generator that an image's transforms draw from: the same whatever worker or rank loads it."""
    mixed = np.random.SeedSequence((seed & 0xFFFFFFFFFFFFFFFF, epoch, index)).generate_state(1, np.uint64)
    return torch.Generator().manual_seed(int(mixed[0]))


class Loader:
    """Batches of a table, for training (`shuffle=True`) or evaluation (`shuffle=False`).

    What comes out depends on the table, the transforms, `seed`, the epoch, and this process's rank, not
    on the number of workers. Every batch has `batch_size` images, so that a compiled graph serves all. Where
    the canvas has several shapes or none, a batch holds images of one orientation (wide or tall).

    *Training.* Each epoch has its own order; `sampling.plan_batches` states how ranks share it and how the
    last batch of each orientation is filled up. An image that fills up is an image like any other.

    *Evaluation.* Each image comes exactly once over all ranks; the last batch of each orientation is filled
    up by repeating images whose `image_ids` entry is -1 (`REPEATED`), for the consumer to skip.

    *Resuming.* `state_dict` counts the batches handed to the consumer, not those made ahead. After
    `load_state_dict`, iterating gives exactly the rest of that epoch; the following epochs are whole. The
    loader never draws from the global random generators. Which images make up a step depends neither on the
    number of ranks nor on `accumulate`, so a state of one may be loaded with another, as long as the images
    of a step are as many: the position must then be between two steps.

    *Workers* stay alive between epochs. On Linux they are forked, so that a script needs no main guard; a
    worker runs torch with one thread, so that the fork never waits for a lock of OpenMP. About `workers *
    prefetch` batches lie in memory at once. Only one iteration can be under way at a time.

    Args:
        table: images and annotations.
        transforms: applied to each sample in this order.
        canvas: chooses the padded shape of each batch.
        batch_size: images of this rank in one step.
        workers: processes that decode and transform; 0 does it in this process.
        seed: of the run; the same on every rank.
        shuffle: training or evaluation, see above.
        drop_last: leave out the last incomplete batch of each orientation instead of filling it up (an
            orientation with less than one batch is filled up nonetheless).
        with_masks: rasterise instance masks; by default if the table has any.
        with_semantic: read maps of semantic classes; by default in training, if the table has any.
        prefetch: batches that each worker makes ahead.
        pin_memory: put batches into page-locked memory; by default if there is a CUDA device.
        reduced_decoding: decode JPEG files no larger than the first transform needs, which must be a
            `sample.Resizing`: see `images.decode_reduced`.
        accumulate: batches of each rank that make up one step.
        share: which part of the data this is, and of how many, where ranks do not say it.

    Raises:
        ConfigError: a number is out of range, or the transforms allow no reduced decoding.
        DataError: the table is empty, or has no masks or maps where they are asked for. While iterating: an
            image cannot be decoded or does not fit the canvas (the message names the file), or a worker died.
    """

    def __init__(
        self,
        table: Table,
        transforms: Sequence[Transform] = (),
        canvas: Canvas | None = None,
        batch_size: int = 1,
        workers: int = 0,
        seed: int = 0,
        shuffle: bool = True,
        drop_last: bool = False,
        with_masks: bool | None = None,
        prefetch: int = 2,
        pin_memory: bool | None = None,
        with_semantic: bool | None = None,
        reduced_decoding: bool = False,
        accumulate: int = 1,
        share: tuple[int, int] | None = None,
    ) -> None:
        for name, value, least in (
            ("batch_size", batch_size, 1),
            ("accumulate", accumulate, 1),
            ("workers", workers, 0),
            ("prefetch", prefetch, 1),
        ):
            if value < least:
                raise ConfigError(f"Loader: {name} must be at least {least}, but is {value}")
        if not len(table):
            raise DataError("the table holds no images; check the split's annotation file and image folder")
        if with_masks and not table.has_masks:
            raise DataError(
                "masks are asked for, but no object of this split has one: take a data set with masks, "
                "or train a detector of boxes (metrics=('bbox',) of a recipe, `with_masks=False` here)"
            )
        if with_semantic and table.semantic is None:
            raise DataError(
                "maps of semantic classes are asked for, but this split has none: name their folder with "
                "folder(..., semantic=)"
            )
        canvas = canvas if canvas is not None else Canvas()
        with_masks = table.has_masks if with_masks is None else with_masks
        with_semantic = shuffle and table.semantic is not None if with_semantic is None else with_semantic
        self.batch_size, self.accumulate, self.share = batch_size, accumulate, share
        self.seed, self.shuffle, self.drop_last = seed, shuffle, drop_last
        ratios = np.asarray(table.aspect_ratios()) if canvas.varies else np.ones(len(table))
        self._groups = orientation_groups(ratios)
        self._num_images = len(table)
        self._epoch, self._position, self._start = 0, 0, 0
        self._plans = _Plans()
        self._torch_loader = DataLoader(
            _Batches(
                table,
                tuple(transforms),
                canvas,
                with_masks,
                with_semantic,
                seed,
                not shuffle,
                needed_size(transforms) if reduced_decoding else None,
            ),
            batch_size=None,
            sampler=self._plans,
            num_workers=workers,
            collate_fn=_unchanged,
            pin_memory=torch.cuda.is_available() if pin_memory is None else pin_memory,
            worker_init_fn=_start_worker,
            prefetch_factor=prefetch if workers else None,
            persistent_workers=workers > 0,
            multiprocessing_context=("fork" if sys.platform == "linux" else "spawn") if workers else None,
            # DataLoader draws a seed at the start of each iteration; from the global generator this would
            # make a resumed run, which starts one iteration more, differ from the undisturbed one.
            generator=torch.Generator().manual_seed(0),
        )

    def __len__(self) -> int:
        """Batches of one whole epoch on this rank, the same on all ranks."""
        sizes = [len(group) for group in self._groups]
        return count_batches(sizes, self.batch_size, self._share[1], self.drop_last, self.accumulate)

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch that the next iteration gives; a position loaded for another one is forgotten."""
        if epoch != self._epoch:
            self._epoch, self._position, self._start = epoch, 0, 0

    def __iter__(self) -> Iterator[Batch]:
        """The batches of the current epoch, from the loaded position if there is one."""
        plans = plan_batches(
            self._groups,
            self.batch_size,
            seed=self.seed,
            epoch=self._epoch,
            rank=self._share[0],
            world=self._share[1],
            shuffle=self.shuffle,
            drop_last=self.drop_last,
            accumulate=self.accumulate,
        )
        self._position, self._start = self._start, 0
        self._plans.rest = plans[self._position :]
        with _interrupts_held(), _dead_workers_told():
            deliveries = iter(self._torch_loader) if self._plans.rest else iter(())
        while (delivery := _next(deliveries)) is not None:
            if delivery.error is not None:
                raise delivery.error
            assert delivery.batch is not None
            self._position += 1
            yield delivery.batch

    def state_dict(self) -> dict[str, int | bool]:
        """The exact position: the epoch, how many of its batches were handed out, and what that rests on."""
        position = {"epoch": self._epoch, "position": self._position, "accumulate": self.accumulate}
        return {**position, **self._identity()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue where `state_dict` was taken: the next iteration gives the rest of that epoch.

        The rest is empty if the epoch was complete; `set_epoch` with another epoch gives that one from its
        beginning.

        Raises:
            ConfigError: the state is of the middle of an epoch, and a setting that the order rests on
                differs.
        """
        differing = {k: (state[k], v) for k, v in self._identity().items() if state[k] != v}
        steps, within = divmod(state["position"], state.get("accumulate", 1))
        complete = steps >= state["batches"]
        if within and state["accumulate"] != self.accumulate:
            differing["accumulate"] = (state["accumulate"], self.accumulate)
        if differing and not complete and state["position"]:
            listed = ", ".join(f"{k} was {then}, now {now}" for k, (then, now) in differing.items())
            raise ConfigError(
                f"the loader cannot go on inside epoch {state['epoch']}: {listed}; resume with the old "
                "settings, or from a checkpoint at the end of an epoch"
            )
        self._epoch = state["epoch"]
        self._start = self._position = len(self) if complete else steps * self.accumulate + within

    @property
    def _share(self) -> tuple[int, int]:
        return self.share or (distributed.rank(), distributed.world_size())

    def _identity(self) -> dict[str, int | bool]:
        """What the order of the images rests on; a batch is here that of a step, over all ranks."""
        return {
            "batches": len(self) // self.accumulate,
            "images": self._num_images,
            "batch_size": self.batch_size * self._share[1] * self.accumulate,
            "seed": self.seed,
            "shuffle": self.shuffle,
        }


@dataclass(frozen=True)
class _Delivery:
    """What a worker sends: a batch, or the error that a user can mend, without the worker's traceback."""

    batch: Batch | None = None
    error: DataError | None = None

    def pin_memory(self) -> _Delivery:
        """Called by torch's pinning thread."""
        return self if self.batch is None else _Delivery(pin_memory(self.batch))


@dataclass(frozen=True)
class _Batches(Dataset):
    """Makes the batch of a plan; this is what a worker process holds."""

    table: Table
    transforms: tuple[Transform, ...]
    canvas: Canvas
    with_masks: bool
    with_semantic: bool
    seed: int
    mark_repeated: bool
    needed: Callable[[Size], Size] | None

    def __getitem__(self, plan: BatchPlan) -> _Delivery:
        try:
            batch = collate([self._sample(plan.epoch, index) for index in plan.indices], self.canvas)
        except DataError as error:
            return _Delivery(error=DataError(str(error)))
        if self.mark_repeated and any(plan.repeated):
            ids = zip(batch.image_ids, plan.repeated, strict=True)
            batch = dataclasses.replace(batch, image_ids=tuple(REPEATED if again else i for i, again in ids))
        return _Delivery(batch)

    def _sample(self, epoch: int, index: int) -> Any:
        sample = load_sample(self.table[index], self.with_masks, self.with_semantic, self.needed)
        generator = sample_generator(self.seed, epoch, index)
        for transform in self.transforms:
            sample = transform(sample, generator)
        return sample


class _Plans(Sampler):
    """The plans of the iteration to come; DataLoader asks it anew at the start of each."""

    rest: Sequence[BatchPlan] = ()

    def __iter__(self) -> Iterator[BatchPlan]:
        return iter(self.rest)


@contextmanager
def _dead_workers_told() -> Iterator[None]:
    try:
        yield
    except (RuntimeError, OSError, EOFError) as error:
        # A worker that dies while it hands over a batch breaks the pipe or the socket of shared memory.
        if not is_of_dead_worker(error) and not isinstance(error, ConnectionError | EOFError):
            raise
        raise DataError(told_of_dead_worker(error)) from error


def _next(deliveries: Iterator[_Delivery]) -> _Delivery | None:
    with _dead_workers_told():
        return next(deliveries, None)


def _unchanged(delivery: Any) -> Any:
    return delivery


@contextmanager
def _interrupts_held() -> Iterator[None]:
    """Hold Ctrl-C back while workers start: they inherit this until `_start_worker` ignores it for good."""
    if not hasattr(signal, "pthread_sigmask"):  # Windows, whose workers are spawned
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)  # a Ctrl-C that came meanwhile acts now


def _start_worker(worker: int) -> None:
    """Leave Ctrl-C to the main process, which then ends its workers: no traceback of each of them."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    torch.set_num_threads(1)
    Queue._on_queue_feeder_error = staticmethod(_tell_unless_alone)  # pyright: ignore[reportAttributeAccessIssue]


def _tell_unless_alone(error: Exception, batch: object) -> None:
    """What a worker does about a batch that cannot be sent: nothing where nobody waits for it any more."""
    if not isinstance(error, BrokenPipeError):
        traceback.print_exception(error)
