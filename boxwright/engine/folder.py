"""A run folder has one owner, and an earlier run in it is never overwritten by mistake."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from ..distributed import gather_objects, restarted
from ..errors import TrainingError
from . import checkpoint
from .agreement import ranges
from .messages import notify, on_main

_OWNED: set[Path] = set()  # record locks do not hold a process off itself
TRACES = ("config.json", "metrics.jsonl", "checkpoints")


def goes_on(out: Path, resume: bool) -> bool:
    """Whether a run goes on with what its folder holds; every rank must ask.

    Args:
        out: the run folder.
        resume: whether that is asked for. If not, it does so nonetheless where the `torchrun` that began
            the run has started its processes anew.
    """
    anew = restarted()
    return on_main(lambda: resume or (anew and _signed_by(out) == _launcher()))


@contextmanager
def run_folder(out: Path, resume: bool) -> Iterator[None]:
    """Own a run folder: made if absent, locked, swept of unfinished files; given back at the end.

    The lock belongs to the process, so a killed one leaves none behind.

    Raises:
        TrainingError: on every rank, if another process trains there, if it holds an earlier run and `resume`
            is not set, or if it cannot be written.
    """
    locks: list[IO[str]] = []

    def prepare() -> None:
        try:
            locks.append(_claim(out))
            check_unused(out, resume)
            _sign(locks[0])
            checkpoint.sweep(out / "checkpoints")
        except OSError as error:
            raise TrainingError(
                f"cannot write the run folder {out}: {error}; choose another `out`"
            ) from error

    try:
        on_main(prepare)
        _tell_the_blind(out)
        yield
    finally:
        for lock in locks:
            _OWNED.discard(out.resolve())
            lock.close()


def _tell_the_blind(out: Path) -> None:
    """Warn of ranks that do not see the folder: they would fail when the training is done."""
    blind = [rank for rank, sees in enumerate(gather_objects(out.is_dir())) if not sees]
    if blind:
        notify(
            f"warning: {ranges(blind)} {'do' if len(blind) > 1 else 'does'} not see the run folder {out}: to "
            "resume, and to evaluate at the end, all machines have to share it; give all ranks the same `out`"
        )


def write_config(out: Path, config: str) -> None:
    """Keep the run's configuration beside its checkpoints; says so where a resumed run changes it.

    Raises:
        TrainingError: it cannot be written; what was there stays.
    """
    path = out / "config.json"
    if path.exists() and _parsed(path.read_text()) != _parsed(config):
        notify(f"the configuration differs from the one in {path}, which is replaced")
    draft = path.with_name(".config.json")
    try:
        draft.write_text(config)
        os.replace(draft, path)
    except OSError as error:
        draft.unlink(missing_ok=True)
        raise TrainingError(
            f"cannot write {path}: {error.strerror}; make room, or choose another `out`"
        ) from error


def _parsed(text: str) -> object:
    try:
        return json.loads(text)
    except ValueError:
        return text


def check_unused(out: Path, resume: bool) -> None:
    """Whether a run may go into a folder, as far as can be said without owning it.

    Raises:
        TrainingError: it holds an earlier run and `resume` is not set, or is no folder.
    """
    if out.exists() and not out.is_dir():
        raise TrainingError(f"cannot write the run folder {out}: it is a file; choose another `out`")
    traces = [name for name in TRACES if (out / name).exists()]
    if traces and not resume:
        raise TrainingError(
            f"{out} already holds a run ({', '.join(traces)}): set resume=True (--resume) to go on with it, "
            "or choose another `out`"
        )


def _claim(out: Path) -> IO[str]:
    out.mkdir(parents=True, exist_ok=True)
    if out.resolve() in _OWNED:
        raise TrainingError(f"this process already trains into {out}: choose another `out`")
    # Not in append mode, in which what is signed would come behind what stands there.
    lock = os.fdopen(os.open(out / ".lock", os.O_RDWR | os.O_CREAT, 0o666), "r+")
    try:
        _lock(lock)
    except OSError:
        owner = lock.readline().strip() or "unknown"
        lock.close()
        raise TrainingError(
            f"another process (pid {owner}) trains into {out}: wait for it, or choose another `out`"
        ) from None
    _OWNED.add(out.resolve())
    return lock


def _sign(lock: IO[str]) -> None:
    """Over what stands there, in one write: a process that is killed meanwhile leaves no unsigned run."""
    lock.seek(0)
    lock.write(f"{os.getpid()}\n{_launcher()}\n")
    lock.flush()
    lock.truncate()


def _signed_by(out: Path) -> str:
    """The launcher whose processes trained into a folder last."""
    try:
        return (out / ".lock").read_text().splitlines()[1]
    except (OSError, IndexError):
        return ""


def _launcher() -> str:
    """What started this process, by a name that nothing else ever has on this machine."""
    parent = os.getppid()
    try:
        started = Path(f"/proc/{parent}/stat").read_text().rpartition(")")[2].split()[19]
    except (OSError, IndexError):  # not Linux
        started = ""
    return f"{socket.gethostname()} {parent} {started}"


def _lock(file: IO[str]) -> None:
    try:
        import fcntl
    except ImportError:  # Windows
        import msvcrt

        file.seek(2**30)  # beyond the text, which stays readable
        msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)  # pyright: ignore[reportAttributeAccessIssue]
        return
    # Record locks, unlike flock, are not shared with forked data workers, which outlive a killed parent.
    fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
