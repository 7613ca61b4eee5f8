import dataclasses
import os
import pickle
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from boxwright import distributed
from boxwright.data.canvas import Canvas
from boxwright.data.collate import collate
from boxwright.data.loader import REPEATED, Loader
from boxwright.data.sample import load_sample
from boxwright.data.sampling import plan_batches
from boxwright.data.table import Record
from boxwright.data.transforms import (
    HorizontalFlip,
    PhotometricDistortion,
    Resize,
    ResizeByRange,
    ResizeByValue,
    ResizeFixed,
)
from boxwright.errors import ConfigError, DataError

TRANSFORMS = (ResizeByRange((16, 30), 40), HorizontalFlip(), PhotometricDistortion())


class FakeTable:
    """What the loader asks of a table, in memory."""

    def __init__(self, records: list[Record], has_masks: bool = True) -> None:
        self.records, self.has_masks, self.semantic = records, has_masks, None

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> Record:
        return self.records[index]

    def aspect_ratios(self) -> np.ndarray:
        return np.array([r.width / r.height for r in self.records])


def record(folder: Path, i: int, size: tuple[int, int]) -> Record:
    width, height = size
    random = np.random.default_rng(i)
    Image.fromarray(random.integers(0, 256, (height, width, 3), dtype=np.uint8)).save(folder / f"{i}.png")
    count = i % 4
    corners = random.uniform(1, 8, (count, 2))
    boxes = np.concatenate([corners, corners + random.uniform(3, 10, (count, 2))], 1).astype(np.float32)
    masks = [[[x1, y1, x2, y1, x2, y2, x1, y2]] for x1, y1, x2, y2 in boxes.tolist()]
    ignore = random.random(count) < 0.3
    return Record(100 + i, folder / f"{i}.png", width, height, boxes, np.arange(count), ignore, masks)


@pytest.fixture(scope="module")
def table(tmp_path_factory) -> FakeTable:
    folder = tmp_path_factory.mktemp("images")
    return FakeTable([record(folder, i, (30, 20) if i % 3 else (20, 34)) for i in range(17)])


def loader(table, **arguments) -> Loader:
    arguments = {"transforms": TRANSFORMS, "canvas": Canvas(), "batch_size": 3, "seed": 5, **arguments}
    return Loader(table, **arguments)


def equal(first, second) -> bool:
    a, b = first.targets, second.targets
    pairs = [
        (first.images, second.images),
        (first.sizes, second.sizes),
        (a.boxes, b.boxes),
        (a.labels, b.labels),
    ]
    pairs += [(a.valid, b.valid), (a.ignore, b.ignore), (first.original_sizes, second.original_sizes)]
    pairs += [(getattr(a.masks, k), getattr(b.masks, k)) for k in ("pixels", "boxes", "offset") if a.masks]
    return first.image_ids == second.image_ids and all(torch.equal(x, y) for x, y in pairs)


def all_equal(first, second) -> bool:
    return len(first) == len(second) and all(equal(a, b) for a, b in zip(first, second, strict=True))


def test_workers_do_not_change_the_batches(table):
    alone, helped = loader(table), loader(table, workers=2)
    before = torch.get_rng_state()
    for epoch in (0, 1):
        for each in (alone, helped):
            each.set_epoch(epoch)
        assert all_equal(list(alone), list(helped))
    assert torch.equal(before, torch.get_rng_state())  # the global generator is never drawn from
    alone.set_epoch(0)
    first = list(alone)
    alone.set_epoch(1)
    assert not all_equal(first, list(alone))


@pytest.mark.parametrize("workers", [0, 2])
def test_resuming_gives_the_rest(table, workers):
    whole = loader(table)
    whole.set_epoch(3)
    expected = list(whole)
    whole.set_epoch(4)
    following = list(whole)

    stopped = loader(table, workers=workers)
    stopped.set_epoch(3)
    batches = iter(stopped)
    taken = [next(batches) for _ in range(2)]
    state = stopped.state_dict()
    assert state["position"] == 2
    resumed = loader(table, workers=workers)
    resumed.load_state_dict(state)
    resumed.set_epoch(3)  # as a training loop does at the start of each epoch
    assert resumed.state_dict() == state
    assert all_equal(taken + list(resumed), expected)
    complete = resumed.state_dict()
    assert complete["position"] == len(resumed)
    resumed.set_epoch(4)
    assert all_equal(list(resumed), following)

    ended = loader(table)
    ended.load_state_dict(complete)
    assert list(ended) == []
    ended.load_state_dict(complete)
    ended.set_epoch(4)
    assert all_equal(list(ended), following)


def test_an_abandoned_iteration_starts_again(table):
    one = loader(table, workers=1)
    next(iter(one))
    assert all_equal(list(one), list(loader(table)))
    assert len(list(one)) == len(one)


def test_a_state_of_other_settings_is_refused(table):
    first = loader(table)
    next(iter(first))
    with pytest.raises(ConfigError, match="batch_size was 3, now 4"):
        loader(table, batch_size=4).load_state_dict(first.state_dict())
    list(first)
    other = loader(table, batch_size=4)
    other.load_state_dict(first.state_dict())  # a complete epoch rests on nothing
    other.set_epoch(1)
    assert len(list(other)) == len(other)


@pytest.mark.parametrize("shuffle", [True, False])
def test_ranks_partition_the_images(table, shuffle, monkeypatch):
    seen: Counter[int] = Counter()
    lengths = set()
    for rank in range(2):
        monkeypatch.setattr(distributed, "rank", lambda rank=rank: rank)
        monkeypatch.setattr(distributed, "world_size", lambda: 2)
        each = loader(table, shuffle=shuffle, transforms=(Resize(20, 40),))
        batches = list(each)
        lengths.add(len(batches))
        assert len(batches) == len(each)
        seen.update(i for b in batches for i in b.image_ids)
    assert len(lengths) == 1
    expected = Counter(range(100, 117))
    if shuffle:
        assert set(seen) == set(expected)
    else:
        del seen[REPEATED]
        assert seen == expected


def test_evaluation_gives_each_image_once_in_whole_batches(table):
    each = loader(table, shuffle=False, transforms=(), with_masks=False, batch_size=4)
    for _ in range(2):  # evaluating again begins at the beginning
        batches = list(each)
        assert all(len(b.images) == 4 for b in batches)
        assert sorted(i for b in batches for i in b.image_ids if i != REPEATED) == list(range(100, 117))
        assert all(b.targets.masks is None for b in batches)


def test_orientations_are_grouped_where_shapes_differ(table):
    canvas = Canvas(((32, 64), (64, 32)))
    shapes = {tuple(b.images.shape[2:]) for b in loader(table, canvas=canvas)}
    assert shapes == {(32, 64), (64, 32)}
    mixed = loader(table, canvas=Canvas(((64, 64),)))
    assert len(mixed) == 6
    assert {len(set((b.sizes[:, 0] > b.sizes[:, 1]).tolist())) for b in mixed} == {1, 2}


@pytest.mark.parametrize("workers", [0, 1])
def test_a_broken_image_is_named_without_a_traceback_of_the_worker(table, tmp_path, workers):
    broken = tmp_path / "broken.jpg"
    broken.write_bytes(b"\xff\xd8\xff\xe0 nothing")
    bad = Record(1, broken, 30, 20, np.zeros((0, 4), np.float32), np.zeros(0, int), np.zeros(0, bool), None)
    each = loader(FakeTable([*table.records, bad]), workers=workers, shuffle=False)
    with pytest.raises(DataError, match=r"broken\.jpg") as caught:
        list(each)
    assert "Traceback" not in str(caught.value)


def test_wrong_size_and_missing_masks_are_named(table):
    from dataclasses import replace

    with pytest.raises(DataError, match=r"1\.png.*30 x 20.*31 x 20"):
        load_sample(replace(table.records[1], width=31))
    lacking = replace(table.records[3], masks=None)
    with pytest.raises(DataError, match=r"3\.png.*no masks"):
        load_sample(lacking, with_masks=True)
    assert "masks" not in load_sample(lacking)
    some = replace(table.records[3], masks=[table.records[3].masks[0], [], []], ignore=np.zeros(3, bool))
    masks = load_sample(some, with_masks=True)["masks"]  # an object without one has an empty mask
    assert [bool(mask.any()) for mask in masks] == [True, False, False]
    assert collate([load_sample(some, with_masks=True)], Canvas()).targets.masks.present.sum() == 1
    damaged = replace(table.records[1], masks=[{"size": [3, 3], "counts": "11"}])
    with pytest.raises(DataError, match=r"1\.png: mask of object 0"):
        load_sample(damaged, with_masks=True)


def test_wrong_arguments_are_named(table):
    with pytest.raises(ConfigError, match="batch_size"):
        loader(table, batch_size=0)
    with pytest.raises(DataError, match="no images"):
        loader(FakeTable([]))
    with pytest.raises(DataError, match="with_masks"):
        loader(FakeTable(table.records, has_masks=False), with_masks=True)


def test_what_a_spawned_worker_needs_can_be_pickled(table):
    made = loader(table)._torch_loader.dataset
    copy = pickle.loads(pickle.dumps(made))
    plan = plan_batches([np.arange(5)], 3)[0]
    assert equal(copy[plan].batch, made[plan].batch)


def photographs(folder: Path) -> FakeTable:
    """Two JPEG files of 256 x 160 pixels, one of them lying, each with a mask."""
    y, x = np.mgrid[:160, :256]
    waves = 128 + 60 * np.sin(np.stack([x + y, 2 * x - y, x - 2 * y], -1) / 11)
    grain = np.random.default_rng(0).normal(0, 3, waves.shape)
    exif = Image.Exif()
    records = []
    for i, orientation in enumerate((1, 6)):
        exif[0x0112] = orientation
        path = folder / f"{i}.jpg"
        Image.fromarray((waves + grain).astype(np.uint8)).save(path, quality=92, exif=exif)
        width, height = (256, 160) if orientation == 1 else (160, 256)
        box = np.array([[20.25, 30.5, 90.75, 100.0]], np.float32)
        mask = [[[20.25, 30.5, 90.75, 30.5, 90.75, 100.0]]]
        records.append(Record(i, path, width, height, box, np.zeros(1, int), np.zeros(1, bool), mask))
    return FakeTable(records)


@pytest.mark.parametrize(
    "resize",
    [Resize(40, 64), ResizeFixed((30, 50)), ResizeByValue((20, 40), 64), ResizeByRange((20, 40), (50, 64))],
    ids=lambda resize: type(resize).__name__,
)
def test_reduced_decoding_changes_pixels_a_little_and_nothing_else(tmp_path, resize):
    table = photographs(tmp_path)
    transforms = (resize, HorizontalFlip())
    for epoch in range(3):
        whole, reduced = (
            loader(table, transforms=transforms, batch_size=1, reduced_decoding=reduces)
            for reduces in (False, True)
        )
        for each in (whole, reduced):
            each.set_epoch(epoch)
        for one, two in zip(whole, reduced, strict=True):
            difference = (one.images.int() - two.images.int()).abs()
            assert 0 < difference.float().mean() < 2
            assert difference.max() <= 24
            assert equal(dataclasses.replace(two, images=one.images), one)


def test_reduced_decoding_needs_a_resizing_transform_in_first_place(table):
    with pytest.raises(ConfigError, match=r"first transform must resize, but is none.*Resize"):
        loader(table, transforms=(), reduced_decoding=True)
    with pytest.raises(ConfigError, match="is HorizontalFlip"):
        loader(table, transforms=(HorizontalFlip(), Resize(40, 64)), reduced_decoding=True)


class Forgetful:
    """Says that it resizes, and does not."""

    def largest_size(self, size):
        return 20, 30

    def __call__(self, sample, generator):
        return sample


def test_a_transform_that_does_not_resize_as_it_said_is_named(tmp_path):
    table = photographs(tmp_path)
    with pytest.raises(DataError, match=r"jpg.*a transform resized one of them only"):
        list(loader(table, transforms=(Forgetful(),), batch_size=1, reduced_decoding=True))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("workers", [0, 2])
def test_batches_are_pinned(table, workers):
    batches = list(loader(table, workers=workers))
    assert all(b.images.is_pinned() and b.targets.masks.pixels.is_pinned() for b in batches)
    assert all_equal(batches, list(loader(table, pin_memory=False)))


class KillsItself:
    def __call__(self, sample, generator):
        os.kill(os.getpid(), signal.SIGKILL)


def test_a_killed_worker_is_reported(table):
    with pytest.raises(DataError, match="worker"):
        list(loader(table, transforms=(KillsItself(),), workers=1))


SCRIPT = """
import pickle, sys
from boxwright.data.loader import Loader
from boxwright.data.canvas import Canvas
from boxwright.data.collate import collate
from boxwright.data.table import Record
import numpy as np

class Table(list):
    has_masks, semantic = False, None
    def aspect_ratios(self): return np.ones(len(self))

none = np.zeros((0, 4), np.float32), np.zeros(0, int), np.zeros(0, bool)
table = Table(Record(i, sys.argv[1], 30, 20, *none, None) for i in range(100000))
for batch in Loader(table, workers=2, batch_size=2):
    print("ready", flush=True)
"""


def test_interrupt_ends_workers_quietly(table):
    command = [sys.executable, "-c", SCRIPT, str(table.records[1].file)]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    os.killpg(process.pid, signal.SIGINT)
    _, errors = process.communicate(timeout=30)
    # One process says that it was interrupted; a chain of exceptions is still one.
    assert errors.count("Traceback") - errors.count("During handling of the above exception") == 1
    assert errors.rstrip().endswith("KeyboardInterrupt")
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        try:
            os.killpg(process.pid, 0)
        except ProcessLookupError:
            return
        time.sleep(0.1)
    pytest.fail("worker processes outlive the interrupted main process")


@pytest.mark.parametrize(
    "error",
    [
        ConnectionResetError(104, "Connection reset by peer"),
        EOFError(),
        RuntimeError("DataLoader worker (pid(s) 7) exited unexpectedly"),
    ],
)
@pytest.mark.parametrize("moment", ["iter", "next"])
def test_a_worker_that_dies_at_any_moment_is_reported(table, monkeypatch, error, moment):
    """These come when a worker is killed while it hands over a batch, or between two epochs."""
    each = loader(table)

    class Broken:
        def __iter__(self):
            if moment == "iter":
                raise error
            return self

        def __next__(self):
            raise error

    monkeypatch.setattr(each, "_torch_loader", Broken())
    with pytest.raises(DataError, match=r"worker process of the loader died \(.+\)"):
        list(each)
