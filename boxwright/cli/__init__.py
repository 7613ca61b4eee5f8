"""The command line: it parses, calls the same functions as the Python API, and prints."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

from ..errors import BoxwrightError, ConfigError, RankError


def main(arguments: Sequence[str] | None = None) -> None:
    """The command `boxwright`. Exits with 0, with 1 if something failed, with 2 if it was called wrongly.

    Errors that a user can mend are one message on standard error; `--debug` adds the traceback.

    Args:
        arguments: instead of `sys.argv[1:]`.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in words or bool(os.environ.get("BOXWRIGHT_DEBUG"))
    words = [word for word in words if word != "--debug"]
    from .app import app

    try:
        app(args=words, prog_name="boxwright")
    except BoxwrightError as error:
        if debug:
            raise
        _report(error)
        sys.exit(getattr(error, "exit_code", 2 if isinstance(error, ConfigError) else 1))
    except BrokenPipeError:  # `boxwright recipes | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except KeyboardInterrupt:
        print("boxwright: interrupted", file=sys.stderr)
        sys.exit(130)


def _report(error: BoxwrightError) -> None:
    """One message, on the standard error of the main process, or of the one that it falls to."""
    speaks = error.speaks if isinstance(error, RankError) else os.environ.get("RANK", "0") == "0"
    if not speaks:
        return
    print(f"boxwright: {error}", file=sys.stderr)
    for note in getattr(error, "__notes__", ()):
        print(f"  {note}", file=sys.stderr)
