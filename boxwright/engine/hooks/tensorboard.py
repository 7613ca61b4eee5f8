"""Curves for TensorBoard (extra `track`)."""

from __future__ import annotations

from typing import Any

from ...distributed import is_main
from ...errors import MissingExtraError
from ..state import Hook, TrainState
from .window import Window, due


class TensorBoardHook(Hook):
    """Writes what `metrics.jsonl` holds as scalars into `<out>/tensorboard`.

    Args:
        every: iterations between training points.

    Raises:
        MissingExtraError: at the start of the run, if tensorboard is not installed.
    """

    key = "tensorboard"
    priority = 80

    def __init__(self, every: int = 10) -> None:
        self.every = every
        self._window = Window()
        self._writer: Any = None

    def before_run(self, state: TrainState) -> None:
        """Open the writer; points of steps that will be done again are dropped."""
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            raise MissingExtraError("tensorboard", "track", "TensorBoardHook") from None
        if is_main():
            self._writer = SummaryWriter(state.out / "tensorboard", purge_step=state.first_step + 1)

    def before_train_epoch(self, state: TrainState) -> None:
        """Leave validation out of the speed."""
        self._window.start()

    def after_train_iter(self, state: TrainState) -> None:
        """Count, and write where it is time."""
        self._window.add(state)
        if due(state, self.every):
            self._write(self._window.record(state), "train", state.step)

    def after_val_epoch(self, state: TrainState) -> None:
        """Write the metrics."""
        self._write(dict(state.metrics), "val", state.step)

    def after_run(self, state: TrainState) -> None:
        """Close the writer."""
        if self._writer is not None:
            self._writer.close()
            self._writer = None

    def _write(self, record: dict[str, float], kind: str, step: int) -> None:
        if self._writer is not None:
            for key, value in record.items():
                self._writer.add_scalar(f"{kind}/{key}", value, step)
