"""Where the time of a few iterations goes."""

from __future__ import annotations

import torch
from torch.profiler import ProfilerActivity, profile

from ...distributed import is_main
from ...errors import ConfigError
from ..messages import notify
from ..state import Hook, TrainState


class ProfileHook(Hook):
    """Profiles some iterations of the main process with `torch.profiler`.

    Writes `<out>/profile/trace.json` (for a browser's trace viewer) and `<out>/profile/operators.txt`.

    Args:
        start: iterations of this process before the first profiled one, so that warming up is left out.
        count: iterations profiled.
    """

    key = "profile"
    priority = 85

    def __init__(self, start: int = 10, count: int = 5) -> None:
        if start < 0 or count < 1:
            raise ConfigError(f"profile: start={start} must be 0 or more and count={count} at least 1")
        self.start = start
        self.count = count
        self._profile: profile | None = None

    def before_train_iter(self, state: TrainState) -> None:
        """Begin at the chosen iteration."""
        if is_main() and state.step - state.first_step == self.start:
            activities = [ProfilerActivity.CPU]
            if torch.cuda.is_available():
                activities.append(ProfilerActivity.CUDA)
            self._profile = profile(activities=activities, record_shapes=True)
            self._profile.start()

    def after_train_iter(self, state: TrainState) -> None:
        """End after the last."""
        if self._profile is not None and state.step - state.first_step == self.start + self.count:
            self._finish(state)

    def after_run(self, state: TrainState) -> None:
        """Write what there is, if the run ended meanwhile."""
        if self._profile is not None:
            self._finish(state)
        elif is_main() and state.failure is None and state.step - state.first_step <= self.start:
            notify(f"nothing was profiled: the run has fewer than start={self.start} iterations")

    def _finish(self, state: TrainState) -> None:
        assert self._profile is not None
        self._profile.stop()
        folder = state.out / "profile"
        folder.mkdir(exist_ok=True)
        self._profile.export_chrome_trace(str(folder / "trace.json"))
        order = "self_device_time_total" if state.device.type == "cuda" else "self_cpu_time_total"
        (folder / "operators.txt").write_text(self._profile.key_averages().table(sort_by=order, row_limit=50))
        notify(f"profile of {self.count} iterations written to {folder}")
        self._profile = None
