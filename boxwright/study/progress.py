"""Where a study stands: a bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

from ..distributed import is_main
from ..engine.state import Hook, TrainState

SPEED_SECONDS = 1800.0  # the time left is guessed from the last half hour


class StudyProgress(Hook):
    """Names the run and its place in the whole; a hook of every run, and a context around all of them.

    Args:
        total: runs of the study.
        done: of them, those with nothing left to do.
        shown: whether anything is shown.
        console: where to; by default standard output.
    """

    key = "study progress"
    priority = 75

    def __init__(self, total: int, done: int, shown: bool = True, console: Console | None = None) -> None:
        self.total, self.done = total, done
        self.shown = shown and is_main()
        self.console = console or Console()
        self.name, self.number = "", done
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            TaskProgressColumn(),
            TimeRemainingColumn(elapsed_when_finished=True),
        )
        self._bar = Progress(
            *columns,
            console=self.console,
            transient=True,
            speed_estimate_period=SPEED_SECONDS,
            disable=not (self.shown and self.console.is_terminal),
        )
        self._task = self._bar.add_task("study", total=total, completed=done)

    def __enter__(self) -> StudyProgress:
        self._bar.start()
        if self.shown and self.done:
            self.say(f"{self.done} of {self.total} runs need nothing more: finished before, or left out")
        return self

    def __exit__(self, *error: object) -> None:
        self._bar.stop()

    def begin(self, number: int, name: str) -> None:
        """A run begins.

        Args:
            number: its place, from 1.
            name: of the variant, and the seed where there are several.
        """
        self.number, self.name = number, name
        self._bar.update(self._task, description=self.place)
        if not self.console.is_terminal:
            self.say(f"{self.place}: begins")

    def end(self, told: str) -> None:
        """The run has ended, well or badly."""
        self.done += 1
        self._bar.update(self._task, completed=self.done)
        self.say(f"{self.place}: {told}")

    @property
    def place(self) -> str:
        """The run and its place in the whole."""
        return f"[{self.number}/{self.total}] {self.name}"

    def say(self, text: str) -> None:
        """A line that stays."""
        if self.shown:
            self.console.print(text, highlight=False, markup=False, soft_wrap=True)

    def after_train_iter(self, state: TrainState) -> None:
        """Move the bar by the step's share of its run."""
        epoch = (state.step - 1) // state.steps_per_epoch + 1
        self._bar.update(
            self._task,
            description=f"{self.place}  epoch {epoch}/{state.epochs}",
            completed=self.done + state.step / state.total_steps,
        )

    def before_val_epoch(self, state: TrainState) -> None:
        """Say what takes the time now."""
        self._bar.update(self._task, description=f"{self.place}  validation {state.epoch}/{state.epochs}")

    def after_val_epoch(self, state: TrainState) -> None:
        """On a file a line for each validation is what shows that the run is alive."""
        if self.console.is_terminal or not state.metrics:
            return
        key, value = next(iter(state.metrics.items()))
        self.say(f"{self.place}: epoch {state.epoch}/{state.epochs}, {key} {value:.3f}")

    def measure(self) -> None:
        """The run is trained and is being measured."""
        self._bar.update(self._task, description=f"{self.place}  measuring")
