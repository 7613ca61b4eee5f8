"""`metrics.jsonl`: one record of training or validation on a line."""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any

from ...distributed import is_main
from ...errors import ConfigError
from ..state import Hook, TrainState
from .window import Window, due, merge


class MetricsHook(Hook):
    """Writes training means every so many iterations, and each validation, to `metrics.jsonl`.

    A training line holds `kind` "train", `step`, `epoch` (with its fraction), `lr`, `loss`, each
    "loss/..." and "stat/...", `images_per_second` and `memory_mb`; a validation line `kind` "val", `step`,
    `epoch` and the metrics. Both hold `seconds`, the wall time since training began with validations and
    checkpoints; a resumed run counts on from its checkpoint. A value that is not finite is null. When a run
    resumes, lines of steps that it will do again are dropped, with a last line torn by a kill.

    Args:
        every: iterations between training lines; the last iteration of an epoch has one too.
    """

    key = "metrics"
    priority = 60

    def __init__(self, every: int = 10) -> None:
        if every < 1:
            raise ConfigError(f"log_every={every} must be at least 1")
        self.every = every
        self._window = Window()
        self._saved: dict[str, Any] | None = None
        self._file: IO[str] | None = None
        self._began = time.perf_counter()

    def before_run(self, state: TrainState) -> None:
        """Open the file, mended."""
        self._began = time.perf_counter()
        if self._saved is not None:
            self._window.load_state_dict(self._saved["window"], state.device)
            self._began -= self._saved["seconds"]
        if is_main():
            path = state.out / "metrics.jsonl"
            mend(path, state.first_step)
            self._file = path.open("a", encoding="utf-8")

    def before_train_epoch(self, state: TrainState) -> None:
        """Leave validation out of the speed."""
        self._window.start()

    def after_train_iter(self, state: TrainState) -> None:
        """Count, and write where it is time."""
        self._window.add(state)
        if due(state, self.every):
            place = {
                "kind": "train",
                "step": state.step,
                "epoch": round(state.step / state.steps_per_epoch, 4),
            }
            self._write({**place, **self._window.record(state)})

    def after_val_epoch(self, state: TrainState) -> None:
        """Write the metrics."""
        self._write({"kind": "val", "step": state.step, "epoch": state.epoch, **state.metrics})

    def after_run(self, state: TrainState) -> None:
        """Close the file."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def state_dict(self) -> dict[str, Any]:
        """The unfinished means, and the time so far."""
        return {"window": self._window.state_dict(), "seconds": time.perf_counter() - self._began}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take them over."""
        self._saved = state

    def merge_state_dicts(self, states: Sequence[dict[str, Any]]) -> dict[str, Any]:
        """The means over the ranks there were: as those over the coming ranks, they are what is written."""
        return {**states[0], "window": merge([state["window"] for state in states])}

    def _write(self, record: Mapping[str, Any]) -> None:
        if self._file is not None:
            timed = {**record, "seconds": round(time.perf_counter() - self._began, 2)}
            self._file.write(json.dumps({key: _json(value) for key, value in timed.items()}) + "\n")
            self._file.flush()


def mend(path: Path, step: int) -> None:
    """Keep the lines of a metrics file that a run resumed at `step` will not write again.

    These are lines of training up to `step` and validation lines before it (that of the resumed step is
    done anew). Damaged lines go too. The file is replaced in one move.
    """
    if not path.exists():
        return
    kept = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            record = json.loads(line)
            if record["step"] < step or (record["step"] == step and record["kind"] != "val"):
                kept.append(line + "\n")
        except (ValueError, KeyError, TypeError):
            continue  # torn by a kill: its step is done again
    draft = path.with_name(".metrics.jsonl")
    draft.write_text("".join(kept), encoding="utf-8")
    os.replace(draft, path)


def _json(value: Any) -> Any:
    if isinstance(value, (str, bool, int)) or value is None:
        return value
    return float(value) if math.isfinite(value) else None
