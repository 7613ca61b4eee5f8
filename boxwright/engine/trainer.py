"""The training loop with its ten timepoints."""

from __future__ import annotations

import gc
import signal
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from types import FrameType

import torch
from torch import nn

from .. import distributed
from ..errors import (
    BoxwrightError,
    ConfigError,
    DataError,
    TrainingError,
    first_line,
    is_of_dead_worker,
    is_out_of_memory,
    told_of_dead_worker,
)
from ..structures import Batch
from . import watch
from .checkpoint import find_last
from .communication import Communication, check_communication, connect
from .ema import ModelEMA
from .folder import goes_on, run_folder, write_config
from .messages import any_over_ranks, notify, on_main
from .placing import place, place_model, resolve_device
from .precision import Precision, resolve_precision
from .randomness import seed_all, undisturbed
from .resume import enter, restore
from .schedule import Schedule
from .signals import stop_signals
from .state import Hook, Loader, TrainState, call, order_hooks
from .step import train_step
from .validation import StopRun, fetch


class TrainingInterrupted(TrainingError):
    """A signal stopped the run politely: it can be resumed.

    Attributes:
        signal: name of the signal.
        exit_code: what the process should exit with (128 + the signal's number).
    """

    def __init__(self, message: str, name: str) -> None:
        super().__init__(message)
        self.signal = name
        self.exit_code = 128 + int(signal.Signals[name])


def train(
    model: nn.Module,
    loader: Loader,
    optimizer: torch.optim.Optimizer,
    schedule: Schedule,
    *,
    epochs: int,
    out: str | Path,
    hooks: Iterable[Hook] = (),
    device: str | torch.device = "auto",
    precision: str = "auto",
    accumulate: int = 1,
    clip_norm: float | None = None,
    ema_decay: float | None = None,
    compile: bool = False,
    seed: int = 0,
    communication: Communication = Communication(),  # noqa: B008  frozen
    step: Callable[[TrainState], None] = train_step,
    resume: bool = False,
    metadata: Mapping[str, str] | None = None,
) -> TrainState:
    """Train a model whose `forward(batch)` returns a dict of losses.

    Under `torchrun` every rank calls this with its own loader, after `boxwright.distributed.start`.

    Args:
        model: the keys of its losses that start with "loss/" are summed, "stat/..." are logged.
        loader: this rank's batches; its position is saved.
        optimizer: of the model's parameters.
        schedule: learning rate factor of each step, applied by `hooks.LearningRateHook`.
        epochs: epochs of the whole run, including those done before a resume.
        out: run folder; `config.json` (from `metadata["config"]`) and `checkpoints/` come into it.
        hooks: see `hooks.default_hooks`; without them nothing is scheduled, saved or logged.
        device: "auto" or a device of PyTorch.
        precision: "auto", "fp32", "bf16" or "fp16" (see `resolve_precision`).
        accumulate: batches of one optimiser step; an epoch's last step takes what is left.
        clip_norm: largest L2 norm of the whole gradient.
        ema_decay: decay of a moving average of the weights, with which validation then predicts.
        compile: compile the loss with `torch.compile`.
        seed: of the random numbers drawn in the steps; each rank draws its own.
        communication: how ranks exchange gradients.
        step: what is done with `state.batches` in each iteration.
        resume: go on from the newest whole checkpoint in `out`; from the beginning where there is none yet.
            Processes that `torchrun --max-restarts` started anew do it unasked.
        metadata: text kept with the weights: "config" and "label_map" as JSON.

    Returns:
        The state at the end of the run.

    Raises:
        TrainingError: the folder is in use or holds another run, a loss is not finite, or a signal
            asked to stop (TrainingInterrupted).
        CheckpointError: a checkpoint cannot be read or written.
        ConfigError: an argument makes no sense.
    """
    out = Path(out)
    resume = goes_on(out, resume)
    with watch.watching(communication.timeout_s), run_folder(out, resume):
        _check(epochs, accumulate, len(loader), clip_norm)
        device = resolve_device(device)
        resolved = resolve_precision(precision, device)
        steps_per_epoch = -(-len(loader) // accumulate)
        if distributed.is_distributed():
            check_communication(communication, resolved.name, compile, epochs * steps_per_epoch)
        _prepare(model, device, resolved, compile, communication)
        # Before the ranks are connected: what lies in shards cannot be copied.
        ema = None if ema_decay is None else ModelEMA(model, ema_decay)
        average = None if ema is None else ema.model
        forward, exchange = connect(model, optimizer, device, communication, average)
        state = TrainState(
            model=model,
            forward=forward,
            exchange=exchange,
            optimizer=optimizer,
            schedule=schedule,
            loader=loader,
            out=out,
            epochs=epochs,
            steps_per_epoch=steps_per_epoch,
            device=device,
            precision=resolved,
            scaler=torch.amp.GradScaler(device.type, enabled=resolved.name == "fp16"),
            accumulate=accumulate,
            clip_norm=clip_norm,
            ema=ema,
            hooks=order_hooks(hooks),
            metadata=dict(metadata or {}),
            seed=seed,
            check_every=20 if device.type == "cuda" else 1,
        )
        warmup = schedule.warmup_steps(state.total_steps)
        if schedule.warmup is None and warmup < schedule.usual_warmup:
            notify(
                f"warm-up shortened from {schedule.usual_warmup} to {warmup} iterations, a quarter of the run"
            )
        saved = _resume(state) if resume else None
        if "config" in state.metadata:
            on_main(lambda: write_config(out, state.metadata["config"]))
        try:
            with _signals(state):
                _run(state, saved, step)
        finally:
            if distributed.is_distributed():
                # A process group that is destroyed before its DistributedDataParallel aborts the process.
                state.forward = forward = model
                gc.collect()
    return state


def _check(epochs: int, accumulate: int, batches: int, clip_norm: float | None) -> None:
    for name, value in (("epochs", epochs), ("accumulate", accumulate), ("batches an epoch", batches)):
        if value < 1:
            raise ConfigError(f"{name} is {value} and must be at least 1")
    if clip_norm is not None and clip_norm <= 0:
        raise ConfigError(f"clip_norm={clip_norm} must be positive, or None not to clip")


def _resume(state: TrainState) -> dict | None:
    """Put the newest whole checkpoint back, if there is one; what the last act of it needs (`enter`)."""
    path = on_main(lambda: find_last(state.out))
    saved = None if path is None else restore(state, path)
    if state.step > state.total_steps:
        notify(f"{path} is beyond the {state.total_steps} steps asked for: nothing is left to train")
    else:
        notify(f"resuming at step {state.step} of {state.total_steps} from {path or 'the beginning'}")
    return saved


def _prepare(
    model: nn.Module, device: torch.device, precision: Precision, compile: bool, communication: Communication
) -> None:
    """Place the model, in place."""
    spread = communication.shard == "fsdp" and distributed.is_distributed()
    # Shards are cut from contiguous weights.
    place_model(model, device, channels_last=precision.channels_last and not spread)
    if compile:
        model.compile()  # in place: no wrapper, so no prefix in the state dict


def _run(state: TrainState, saved: dict | None, step: Callable[[TrainState], None]) -> None:
    try:
        call(state, "before_run")
        if saved is None:
            seed_all(state.seed, distributed.rank())
        else:
            enter(state, saved)
        for _ in range(state.epoch, state.epochs):
            _train_epoch(state, step, in_progress=saved is not None and state.step == state.first_step)
    except StopRun:
        name = state.stop or "SIGTERM"
        state.failure = TrainingInterrupted(
            f"stopped by {name} at step {state.step} of {state.total_steps}", name
        )
    except BaseException as error:
        state.failure = told = _in_words(state, error)
        _end_badly(state, told)
        if told is error:
            raise
        raise told from error
    call(state, "after_run")
    if isinstance(state.failure, TrainingInterrupted):
        kept = f"; {state.saved} is saved: go on with resume=True (--resume)"
        where = kept if state.saved else "; nothing is saved"
        raise TrainingInterrupted(f"{state.failure}{where}", state.failure.signal)


def _train_epoch(state: TrainState, step: Callable[[TrainState], None], in_progress: bool) -> None:
    state.model.train()
    if not (in_progress and state.step % state.steps_per_epoch):  # else `enter` has set epoch and position
        state.loader.set_epoch(state.epoch)
    call(state, "before_train_epoch")
    for batches in _groups(state):
        watch.begin(state.step, "training")
        state.batches = batches
        call(state, "before_train_iter")
        step(state)
        watch.begin(state.step, "in hooks")
        call(state, "after_train_iter")
        if state.step % state.steps_per_epoch:  # else once the epoch's hooks have been called
            _stop_if_asked(state)
    if state.step != (state.epoch + 1) * state.steps_per_epoch:
        raise TrainingError(
            f"epoch {state.epoch + 1} ended at step {state.step} instead of "
            f"{(state.epoch + 1) * state.steps_per_epoch}: the loader's length is not what it yields"
        )
    state.epoch += 1
    call(state, "after_train_epoch")
    _stop_if_asked(state)


def _groups(state: TrainState) -> Iterator[tuple[Batch, ...]]:
    """The batches of each step, on the device."""
    with undisturbed(state.device):
        batches = iter(state.loader)
    while True:
        watch.begin(state.step, "fetching data")
        with undisturbed(state.device):
            group = fetch(state, batches, state.accumulate)
        if not group:
            return
        yield tuple(place(batch, state.device, state.precision.channels_last) for batch in group)


def _stop_if_asked(state: TrainState) -> None:
    asked = state.stop is not None
    if distributed.is_distributed():  # all ranks stop after the same step
        asked = state.at_check and any_over_ranks(asked, state.device)
    if asked and state.step < state.total_steps:
        raise StopRun


def _in_words(state: TrainState, error: BaseException) -> BaseException:
    """What the machine refused, as an error that says where the run was and how to go on; else the same."""
    kept = f"{state.saved} is saved: go on with resume=True (--resume)" if state.saved else "nothing is saved"
    where = f"after {state.step} of {state.total_steps} iterations"
    reason = first_line(error)
    if is_out_of_memory(error):
        return TrainingError(
            f"{where}: the memory of {state.device} is full ({reason}). Raise accumulate (the same step in "
            f"more and smaller parts), set memory.checkpoint=auto, or lower batch_size; {kept}"
        )
    if is_of_dead_worker(error):
        return TrainingError(f"{where}: {told_of_dead_worker(error)}; {kept}")
    if isinstance(error, OSError) and not isinstance(error, BoxwrightError | ConnectionError):
        return TrainingError(f"{where}: {reason}. Make room, or set right what it names; {kept}")
    if isinstance(error, DataError):
        error.add_note(f"{where}; {kept}")
    return error


def _end_badly(state: TrainState, error: BaseException) -> None:
    for hook in state.hooks:
        try:
            hook.after_run(state)
        except Exception as second:
            error.add_note(f"and hook {hook.key!r} failed while ending: {second}")


def _signals(state: TrainState) -> AbstractContextManager[None]:
    """SIGINT and SIGTERM ask the run to stop after the step; a second one stops it at once."""

    def handle(number: int, frame: FrameType | None) -> None:
        if state.stop is not None:
            raise KeyboardInterrupt
        state.stop = signal.Signals(number).name
        if hasattr(signal, "SIGCHLD"):
            # The signal may have ended the loader's workers too. PyTorch would raise that in the midst of the
            # step; `fetch` will notice it in its own time.
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        notify(f"{state.stop}: stopping after this step and saving; once more to stop at once")

    return stop_signals(handle)
