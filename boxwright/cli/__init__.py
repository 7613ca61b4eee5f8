"""The command line: it parses, calls the same functions as the Python API, and prints."""

from __future__ import annotations

import errno
import io
import os
import sys
from collections.abc import Sequence

from ..errors import (
    BoxwrightError,
    ConfigError,
    RankError,
    first_line,
    is_of_dead_worker,
    is_out_of_memory,
    told_of_dead_worker,
)

INTERRUPTED = 130
"""Exit code after Ctrl-C, as of every program that a signal ends: 128 + 2."""
_NAME, _ROOM = "choose another name", "make room, or choose another place"
_RIGHT = "choose a place that you may write to"
REMEDIES = {
    errno.EEXIST: _NAME,
    errno.EISDIR: _NAME,
    errno.ENOTDIR: _NAME,
    errno.ENOSPC: _ROOM,
    errno.EFBIG: _ROOM,
    errno.EDQUOT: _ROOM,
    errno.EACCES: _RIGHT,
    errno.EPERM: _RIGHT,
    errno.EROFS: _RIGHT,
}
"""What mends an error of the operating system, by its number."""


def main(arguments: Sequence[str] | None = None) -> None:
    """The command `boxwright`. Exits with 0, with 1 if something failed, with 2 if it was called wrongly.

    Errors that a user can mend are one message on standard error; `--debug` adds the traceback. So is what
    the machine refuses: a file that cannot be written, memory that is not there.

    Args:
        arguments: instead of `sys.argv[1:]`.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in words or bool(os.environ.get("BOXWRIGHT_DEBUG"))
    words = [word for word in words if word != "--debug"]
    _write_any_name()
    try:
        from .app import app

        app(args=words, prog_name="boxwright")
    except SystemExit as end:
        if end.code == INTERRUPTED:  # typer takes a KeyboardInterrupt for itself, and says nothing
            print("boxwright: interrupted", file=sys.stderr)
        raise
    except KeyboardInterrupt:
        print("boxwright: interrupted", file=sys.stderr)
        sys.exit(INTERRUPTED)
    except BrokenPipeError:  # `boxwright recipes | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except Exception as error:
        told = _told(error)
        if debug or told is None:
            raise
        if _speaks(error):
            print(f"boxwright: {told}", file=sys.stderr)
        sys.exit(getattr(error, "exit_code", 2 if isinstance(error, ConfigError) else 1))


def _write_any_name() -> None:
    """Let the output take any character: one that its encoding lacks comes as "?", not as an error.

    On Windows, where the output goes into a file, the frames of tables are such.
    """
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")


def _told(error: Exception) -> str | None:
    """The message of an error that a user can mend; None for what is a fault of the program."""
    if isinstance(error, BoxwrightError):
        text = str(error)
    elif is_out_of_memory(error):
        remedy = "Take fewer images at once, smaller ones, or another --device"
        text = f"the memory is full: {first_line(error)}. {remedy}"
    elif is_of_dead_worker(error):
        text = told_of_dead_worker(error)
    elif isinstance(error, OSError) and error.strerror:
        place = f"{error.filename}: " if error.filename is not None else ""
        text = f"{place}{error.strerror}; {REMEDIES.get(error.errno or 0, '--debug shows what asked for it')}"
    else:
        return None
    return "\n  ".join([text, *getattr(error, "__notes__", ())])


def _speaks(error: Exception) -> bool:
    """Whether it falls to this process: all have the same to say, or one alone speaks for another."""
    if not isinstance(error, BoxwrightError):
        return True  # what the machine refused one process, no other can tell
    # Not by the rank: a machine whose processes fail before they have met the others would say nothing.
    return error.speaks if isinstance(error, RankError) else os.environ.get("LOCAL_RANK", "0") == "0"
