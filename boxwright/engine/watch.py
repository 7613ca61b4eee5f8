"""Ranks that watch over each other: who hangs, fails or is gone is named, and the others do not wait for it.

Every rank writes a line about itself into the process group's store twice a second, from a thread of its own:
how far it is, where its main thread stands, and for how long. Nothing of this touches a device, so it is the
same with gloo and NCCL. A rank that stands still for longer than the limit reads the lines of all, says who
holds it up, and ends its process; `torchrun --max-restarts` then starts all of them anew.
"""

from __future__ import annotations

import json
import os
import socket
import sys
import sysconfig
import threading
import time
import traceback
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from types import FrameType

import torch
import torch.distributed as dist

from .. import distributed
from ..errors import RankError, first_line

GRACE = 5.0
"""Seconds that the main thread has to end by itself once another rank has failed."""
EXIT_CODE = 1
MARGIN = 60.0
"""Seconds that PyTorch's own timeout, which names nobody, comes after ours."""

_TORCH = str(Path(torch.__file__).parent)
_PYTHON = sysconfig.get_path("stdlib")
_HERE = Path(__file__).parent
_WAITING = (
    os.path.join(_TORCH, "distributed"),
    os.path.join(_TORCH, "autograd", "graph.py"),  # a backward pass, which waits for the others' gradients
    str(_HERE.parent / "distributed.py"),
    str(_HERE / "messages.py"),
    __file__,
)
_COMMUNICATION = (
    "gloo",
    "nccl",
    "connection closed",
    "connection reset",
    "broken pipe",
    "timed out",
    "store",
)


@dataclass(frozen=True)
class Sign:
    """What a rank tells of itself.

    Args:
        who: host and process id.
        beat: counts the lines it has written.
        order: counts the acts of the loop it has begun; the same on ranks that are equally far.
        step: optimiser steps done.
        doing: the act.
        still: seconds for which its main thread has stood at one place.
        waits: whether it stands in an exchange with other ranks, or in a backward pass.
        where: the place, file and line.
    """

    who: str
    beat: int
    order: int
    step: int
    doing: str
    still: float
    waits: bool
    where: str

    def __str__(self) -> str:
        stands = f"for {self.still:.0f} s at {self.where}" if self.where else ""
        waits = "waiting for other ranks " if self.waits else ""
        return f"({self.who}) at step {self.step}, {self.doing}, {waits}{stands}"


@dataclass(frozen=True)
class Report:
    """Who holds the others up.

    Args:
        suspects: the ranks; none if all wait for each other.
        text: what is known of them and of the others.
    """

    suspects: tuple[int, ...]
    text: str


class Watch:
    """This rank's thread that writes its line, and reads those of the others when something is wrong.

    Args:
        store: shared by all ranks.
        rank: of this process.
        world: number of processes.
        limit: seconds that the main thread may stand still.
    """

    def __init__(self, store: dist.Store, rank: int, world: int, limit: float) -> None:
        self.rank, self.world, self.limit = rank, world, limit
        self.interval = min(max(0.5, world / 256), limit / 8)
        self._store = store.clone()
        self._main = threading.get_ident()
        self._who = f"{socket.gethostname()}, pid {os.getpid()}"
        self._acts, self._ticks, self._step, self._doing = 0, 0, 0, "building"
        self._beat, self._place, self._since = 0, (), time.monotonic()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="boxwright-watch", daemon=True)
        self._write()
        self._thread.start()

    def stop(self) -> None:
        """End the thread."""
        self._stop.set()
        self._thread.join()

    def begin(self, step: int, doing: str) -> None:
        """The main thread begins an act of the loop; every rank begins the same ones in the same order."""
        self._step, self._doing = step, doing
        self._acts += 1

    def tick(self) -> None:
        """The main thread gets on, in something of which ranks may have unequal amounts."""
        self._ticks += 1

    def judge(self, error: BaseException) -> RankError | None:
        """What an error of the main thread means: another rank's end, or (None) this rank's own failure.

        Its own failure is made known to the others, which are given a moment to notice.
        """
        if _is_of_communication(error):
            return self._blame(error)
        if isinstance(error, RankError):
            return None
        self._post(f"rank {self.rank} failed: {type(error).__name__}: {error}")
        self._wait(6, self._noticed)
        return None

    def _blame(self, error: BaseException) -> RankError | None:
        reason = f"{type(error).__name__}: {first_line(error)[:200]}"
        try:
            before = self._signs()
            self._wait(4, lambda: self._failure() is not None)
            failure = self._failure()
            if failure is not None:
                return RankError(failure["text"], speaks=self.rank == 0 and not failure["said"])
            report = compare(before, self._signs())
        except RuntimeError:  # the store went with the process that kept it
            return RankError(f"the main process is gone ({reason})")
        text = f"an exchange with other ranks failed ({reason}): {report.text}"
        return RankError(text, speaks=self._post(text, report.suspects))

    def _run(self) -> None:
        noticed: float | None = None
        while not self._stop.wait(self.interval):
            self._look()
            try:
                self._write()
                failure = self._failure()
                if failure is not None and noticed is None:
                    noticed = time.monotonic()
                    self._store.set(f"noticed/{self.rank}", "")
                    if self.rank in failure["suspects"]:
                        self._say(f"rank {self.rank} stands here:\n{self._stack()}")
                if failure is not None and noticed is not None and time.monotonic() - noticed > GRACE:
                    self._end(failure["text"] if self.rank == 0 and not failure["said"] else "")
                elif noticed is None and self._still() > self.limit:
                    self._accuse()
            except RuntimeError:
                if self._still() > self.limit:  # else the others have just finished before this rank
                    self._end("the main process, which the ranks report to, is gone")

    def _accuse(self) -> None:
        before = self._signs()
        for _ in range(4):
            self._stop.wait(self.interval)
            self._look()
            self._write()
        report = compare(before, self._signs())
        if self._still() < self.limit:
            return  # it has got on meanwhile
        text = (
            f"no rank may wait longer than {self.limit:g} s. {report.text}\n"
            "set communication.timeout_s higher if this is slow work and nothing that hangs"
        )
        if self._post(text, report.suspects):
            self._say(text)

    def _end(self, text: str) -> None:
        # The main thread stands in a call that no exception reaches. Checkpoints are whole at any moment.
        if text:
            self._say(text)
        os._exit(EXIT_CODE)

    def _say(self, text: str) -> None:
        print(f"boxwright: {text}", file=sys.stderr, flush=True)

    def _post(self, text: str, suspects: Sequence[int] | None = None) -> bool:
        """Make a failure known, its own or (with `suspects`) others'; whether it is the first one."""
        said = suspects is not None
        mine = json.dumps({"rank": self.rank, "text": text, "suspects": suspects or (), "said": said})
        try:
            return self._store.compare_set("failure", "", mine).decode() == mine
        except RuntimeError:
            return True  # the store is gone, and with it all who could read it

    def _wait(self, intervals: float, until: Callable[[], bool]) -> None:
        deadline = time.monotonic() + intervals * self.interval
        while time.monotonic() < deadline and not until():
            time.sleep(self.interval / 4)

    def _failure(self) -> dict | None:
        """The first failure that another rank, or this one in the thread, made known."""
        if not self._store.check(["failure"]):
            return None
        return json.loads(self._store.get("failure"))

    def _noticed(self) -> bool:
        others = [f"noticed/{rank}" for rank in range(self.world) if rank != self.rank]
        try:
            return self._store.check(others)
        except RuntimeError:
            return True

    def _signs(self) -> dict[int, Sign]:
        keys = {rank: f"sign/{rank}" for rank in range(self.world)}
        return {
            rank: Sign(**json.loads(self._store.get(key)))
            for rank, key in keys.items()
            if self._store.check([key])
        }

    def _write(self) -> None:
        self._beat += 1
        waits, where = _locate(self._frame())[1:]
        sign = Sign(
            self._who, self._beat, self._acts, self._step, self._doing, self._still(), waits, where
        )  # fmt: skip
        self._store.set(f"sign/{self.rank}", json.dumps(asdict(sign)))

    def _look(self) -> None:
        place = (self._acts, self._ticks, *_locate(self._frame())[0])
        if place != self._place:
            self._place, self._since = place, time.monotonic()

    def _still(self) -> float:
        return time.monotonic() - self._since

    def _frame(self) -> FrameType | None:
        return sys._current_frames().get(self._main)

    def _stack(self) -> str:
        return "".join(traceback.format_stack(self._frame())).rstrip()


_CURRENT: list[Watch] = []  # none or one: a process is a rank of one world


@contextmanager
def watching(limit: float | None = None) -> Iterator[None]:
    """Watch over the ranks inside; every rank enters. Inside another watch it only sets the limit.

    Args:
        limit: seconds that a rank may stand still; None for PyTorch's timeouts (NCCL 600, else 1800).

    Raises:
        RankError: another rank failed, hangs or is gone, and so an exchange with it did.
    """
    if not distributed.is_distributed():
        yield
        return
    limit = limit or (600.0 if dist.get_backend() == "nccl" else 1800.0)
    distributed.limit_waiting(limit + MARGIN)
    if _CURRENT:
        _CURRENT[0].limit = limit
        _CURRENT[0].interval = min(_CURRENT[0].interval, limit / 8)
        yield
        return
    name = distributed.gather_objects(uuid.uuid4().hex)[0]  # `torchrun` may keep one store over restarts
    store = dist.PrefixStore(f"boxwright/{name}", dist.distributed_c10d._get_default_store())
    watch = Watch(store, distributed.rank(), distributed.world_size(), limit)
    _CURRENT.append(watch)
    try:
        yield
    except BaseException as error:
        meaning = watch.judge(error)
        if meaning is not None:
            raise meaning from error
        raise
    finally:
        watch.stop()
        _CURRENT.clear()


def begin(step: int, doing: str) -> None:
    """The main thread begins an act of the training loop."""
    if _CURRENT:
        _CURRENT[0].begin(step, doing)


def tick() -> None:
    """The main thread gets on: ranks may have unequal numbers of what it does."""
    if _CURRENT:
        _CURRENT[0].tick()


def compare(before: Mapping[int, Sign], after: Mapping[int, Sign], most: int = 8) -> Report:
    """Who holds the others up.

    In this order: ranks whose line is not renewed (killed, frozen, cut off); those behind in the loop; those
    that neither wait for others nor compute a backward pass; none.

    Args:
        before: lines of the ranks.
        after: lines some time later, in which each should have written anew.
        most: ranks of a kind that are described; the others are counted.
    """
    silent = [r for r, sign in after.items() if r in before and sign.beat == before[r].beat]
    alive = {r: sign for r, sign in after.items() if r not in silent}
    first = max((sign.order for sign in alive.values()), default=0)
    behind = [r for r, sign in alive.items() if sign.order < first]
    busy = [r for r, sign in alive.items() if not sign.waits]
    suspects = silent or behind or (busy if len(busy) < len(alive) else [])
    others = [r for r in after if r not in suspects]
    head = (
        "no sign of life any more from" if silent else "held up by" if suspects else "each waits for others"
    )
    text = f"{head} {_listed(suspects, after, '; ', most)}".rstrip()
    if others:
        text += f". The others:\n  {_listed(others, after, chr(10) + '  ', most)}"
    return Report(tuple(suspects), text)


def _listed(ranks: Sequence[int], signs: Mapping[int, Sign], between: str, most: int) -> str:
    words = [f"rank {rank} {signs[rank]}" for rank in ranks[:most]]
    return between.join([*words, f"and {len(ranks) - most} ranks more"] if len(ranks) > most else words)


def _locate(frame: FrameType | None) -> tuple[tuple, bool, str]:
    """Where a thread stands outside PyTorch and Python: its identity, whether it waits, file and line."""
    waits = False
    while frame is not None:
        file = frame.f_code.co_filename
        waits = waits or file.startswith(_WAITING)
        if not (file.startswith(_WAITING) or _is_foreign(file)):
            break
        if frame.f_back is None:
            break
        frame = frame.f_back
    if frame is None:
        return (), waits, ""
    path = Path(frame.f_code.co_filename)
    where = f"{path.parent.name}/{path.name}:{frame.f_lineno} in {frame.f_code.co_name}"
    return (id(frame), frame.f_lasti), waits, where


def _is_foreign(file: str) -> bool:
    return file.startswith((_TORCH, "<")) or (file.startswith(_PYTHON) and "-packages" not in file)


def _is_of_communication(error: BaseException) -> bool:
    if isinstance(error, dist.DistError):
        return True
    # gloo and DistributedDataParallel raise plain RuntimeErrors: only their text tells what they are about.
    text = str(error).lower()
    return type(error) is RuntimeError and any(word in text for word in _COMMUNICATION)
