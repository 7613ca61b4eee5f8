"""Progress on the console: a bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import time
from datetime import timedelta

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

from ...distributed import is_main
from ..messages import notify
from ..state import Hook, TrainState
from .window import Window, due


class ConsoleHook(Hook):
    """Shows epoch, loss, learning rate, images/s, memory and the time left.

    Args:
        every: iterations between updates; a plain line comes at most once in `seconds`, and at the end of an
            epoch.
        seconds: least time between plain lines.
        console: where to; by default standard output.
    """

    key = "console"
    priority = 70

    def __init__(self, every: int = 10, seconds: float = 10.0, console: Console | None = None) -> None:
        self.every = every
        self.seconds = seconds
        self.console = console
        self._window = Window()
        self._progress: Progress | None = None
        self._task = None
        self._trained = 0.0  # seconds of training in this process, validation left out
        self._resumed_at = 0.0
        self._last_line = 0.0

    def before_run(self, state: TrainState) -> None:
        """Say what is about to happen."""
        if not is_main():
            return
        self.console = self.console or Console()
        parameters = sum(p.numel() for p in state.model.parameters() if p.requires_grad) / 1e6
        self._say(
            f"training {parameters:.2f} M parameters for {state.epochs} epochs of "
            f"{state.steps_per_epoch} iterations on {state.device}, "
            f"{state.precision.name} ({state.precision.reason})"
        )
        if self.console.is_terminal:
            columns = (
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("{task.fields[text]}"),
            )
            self._progress = Progress(*columns, console=self.console, transient=True)
            self._progress.start()

    def before_train_epoch(self, state: TrainState) -> None:
        """A bar for the epoch."""
        self._window.start()
        self._resumed_at = time.perf_counter()
        if self._progress is not None:
            done = state.step - state.epoch * state.steps_per_epoch
            title = f"epoch {state.epoch + 1}/{state.epochs}"
            self._task = self._progress.add_task(title, total=state.steps_per_epoch, completed=done, text="")

    def after_train_iter(self, state: TrainState) -> None:
        """Move the bar; renew the figures where it is time."""
        self._window.add(state)
        if self._progress is not None and self._task is not None:
            self._progress.advance(self._task)
        if not due(state, self.every):
            return
        record = self._window.record(state)  # on every rank: means over ranks wait for all
        if self.console is None or not is_main():
            return
        now = time.perf_counter()
        self._trained += now - self._resumed_at
        self._resumed_at = now
        per_step = self._trained / (state.step - state.first_step)
        left = timedelta(seconds=round(per_step * (state.total_steps - state.step)))
        text = (
            f"loss {record['loss']:.4f}  lr {record['lr']:.2e}  {record['images_per_second']:.1f} images/s  "
            f"{record['memory_mb'] / 1024:.2f} GiB  {left} left"
        )
        at_end = state.step % state.steps_per_epoch == 0
        if self._progress is not None and self._task is not None:
            self._progress.update(self._task, text=text)
        if at_end or (self._progress is None and now - self._last_line >= self.seconds):
            self._last_line = now
            epoch = (state.step - 1) // state.steps_per_epoch + 1
            place = f"epoch {epoch}/{state.epochs}, iteration {state.step}/{state.total_steps}"
            self._say(f"{place}: {text}")

    def after_train_epoch(self, state: TrainState) -> None:
        """Take the bar away."""
        if self._progress is not None and self._task is not None:
            self._progress.remove_task(self._task)
            self._task = None

    def after_val_epoch(self, state: TrainState) -> None:
        """Print the first metrics."""
        if self.console is not None:
            shown = list(state.metrics.items())[:6]
            text = "  ".join(f"{key} {value:.4f}" for key, value in shown)
            self._say(f"validation after epoch {state.epoch}: {text}")

    def after_run(self, state: TrainState) -> None:
        """Leave the terminal in order."""
        if self._progress is not None:
            self._progress.stop()
            self._progress = None
        if state.failure is None and state.saved is not None:
            notify(f"finished; the newest checkpoint is {state.saved}")

    def _say(self, line: str) -> None:
        """One line, whatever the width: a log file has one record a line."""
        if self.console is not None:
            self.console.print(line, highlight=False, soft_wrap=True)
