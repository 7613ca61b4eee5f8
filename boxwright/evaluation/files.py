"""The measurement's files of a run folder: `evaluation.json` and `predictions.json`."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..errors import DataError
from .results import Record

EVALUATION, PREDICTIONS = "evaluation.json", "predictions.json"


def make_folder(path: str | Path) -> Path:
    """Make the folder that results will go to, before the work whose results they are.

    Raises:
        DataError: it cannot be made or written to.
    """
    path = Path(path)
    try:
        path.mkdir(parents=True, exist_ok=True)
        handle, probe = tempfile.mkstemp(dir=path, prefix=".probe.")
        os.close(handle)
        os.unlink(probe)
    except OSError as error:
        raise DataError(
            f"{path}: no folder that can be written ({error.strerror}); choose another one for the results"
        ) from error
    return path


def write_evaluation(
    run_dir: str | Path,
    metrics: Mapping[str, float],
    per_class: Mapping[str, Mapping[str, float]],
    results: Sequence[Record] | None = None,
    **extra: Any,
) -> Path:
    """Write `evaluation.json` (metrics by key, "per_class" by name) and `predictions.json`.

    Args:
        run_dir: the run's folder; made if need be.
        metrics: flat metrics by key.
        per_class: the same measures by class name.
        results: COCO result records; None leaves `predictions.json` as it is.
        extra: further entries that describe the measurement (`split="val"`, `checkpoint="best"`).

    Returns:
        Path of `evaluation.json`.

    Raises:
        ValueError: a metric is not finite, which JSON cannot hold, or an extra entry has a metric's name.
    """
    run_dir = Path(run_dir)
    if clash := sorted((metrics.keys() | {"per_class"}) & extra.keys()):
        raise ValueError(f"entry {clash[0]!r} is already taken by a metric; choose another name")
    content = {**metrics, "per_class": {name: dict(m) for name, m in per_class.items()}, **extra}
    if results is not None:
        write_json(run_dir / PREDICTIONS, list(results))
    write_json(run_dir / EVALUATION, content, indent=1)
    return run_dir / EVALUATION


def read_evaluation(run_dir: str | Path) -> tuple[dict[str, float], dict[str, dict[str, float]]]:
    """Metrics and per-class metrics of a run folder.

    Raises:
        DataError: `evaluation.json` is missing or damaged.
    """
    path = Path(run_dir) / EVALUATION
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        per_class = content.pop("per_class", {})
        return {k: float(v) for k, v in content.items() if isinstance(v, float | int)}, per_class
    except FileNotFoundError as error:
        raise DataError(
            f"{path} does not exist; evaluate the run first (`boxwright evaluate {run_dir}`)"
        ) from error
    except (OSError, ValueError, AttributeError, TypeError) as error:
        raise DataError(
            f"{path} cannot be read ({error}); evaluate the run again to write it anew"
        ) from error


def write_json(path: Path, content: object, indent: int | None = None) -> None:
    """JSON that is there whole or not at all: written under another name, synced, renamed.

    Raises:
        ValueError: a number is not finite.
    """
    text = json.dumps(content, indent=indent, allow_nan=False)
    write_text(path, text + "\n")


def write_text(path: Path, text: str) -> None:
    """A text file that is there whole or not at all; an OSError names it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)  # mkstemp's own mode hides the file from others
        os.replace(temporary, path)
    except BaseException as error:
        Path(temporary).unlink(missing_ok=True)
        if isinstance(error, OSError) and error.filename is None:
            error.filename = str(path)  # the system names no file that is open already
        raise
