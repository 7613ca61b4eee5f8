"""Between a run and its checkpoint: what is taken out, and how it is put back, bit for bit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from .. import distributed
from ..errors import CheckpointError, TrainingError
from . import checkpoint
from .finite import verify_finite
from .messages import notify, on_main
from .randomness import random_state, set_random_state
from .state import TrainState


def save_checkpoint(state: TrainState) -> Path:
    """Save all that the run needs to go on exactly; every rank must call it, the main one writes.

    Raises:
        TrainingError: a loss since the last look, or a weight, is not finite; nothing is written.
        CheckpointError: the checkpoint cannot be written (on every rank).
    """
    verify_finite(state)
    ranks = distributed.gather_objects({
        "random": random_state(state.device),
        "loader": state.loader.state_dict(),
        "hooks": {hook.key: hook.state_dict() for hook in state.hooks},
    })  # fmt: skip
    path = on_main(lambda: _write(state, ranks))
    state.saved = path
    return path


def _write(state: TrainState, ranks: list[dict[str, Any]]) -> Path:
    broken = [name for name, p in state.model.named_parameters() if not bool(p.isfinite().all())]
    if broken:
        kept = (
            f"the last good checkpoint is {state.saved}" if state.saved else "no checkpoint was saved before"
        )
        raise TrainingError(
            f"after iteration {state.step} the weights {', '.join(broken[:3])}{' ...' if broken[3:] else ''} "
            f"are not finite, so they are not saved; {kept}. Lower the learning rate or set clip_norm"
        )
    return checkpoint.save(
        state.checkpoints,
        state.step,
        state.model.state_dict(),
        {
            "step": state.step,
            "pace": pace(state),
            "optimizer": state.optimizer.state_dict(),
            "scaler": state.scaler.state_dict(),
            "ema": None if state.ema is None else state.ema.state_dict(),
            "ranks": ranks,
        },
        None if state.ema is None else state.ema.model.state_dict(),
        state.metadata,
    )


def pace(state: TrainState) -> dict[str, int]:
    """What gives a step number its meaning; a run can only go on with the same."""
    return {
        "steps_per_epoch": state.steps_per_epoch,
        "accumulate": state.accumulate,
        "ranks": distributed.world_size(),
    }


def restore(state: TrainState, path: Path) -> dict[str, Any]:
    """Put a checkpoint's contents back into a freshly built run, all but the random states and the loader.

    Returns:
        What `enter` needs to put these back too, at the last moment.

    Raises:
        CheckpointError: the checkpoint does not fit the model, optimiser or pace of this run.
    """
    saved = checkpoint.load_state(path)
    if saved["pace"] != pace(state):
        raise CheckpointError(
            f"cannot resume {path}: it was written with {saved['pace']}, this run has {pace(state)}. "
            "Resume with the same data, batch size, accumulation and number of processes, "
            "or start in another folder"
        )
    if (saved["ema"] is None) != (state.ema is None):
        raise CheckpointError(
            f"cannot resume {path}: ema_decay was {'not ' if saved['ema'] is None else ''}set there"
        )
    weights, _ = checkpoint.load_weights(path, ema=False)
    try:
        state.model.load_state_dict(weights)
        if state.ema is not None:
            state.ema.load_state_dict(saved["ema"], checkpoint.load_weights(path)[0])
        _load_optimizer(state.optimizer, saved["optimizer"])
    except (RuntimeError, ValueError) as error:
        raise CheckpointError(
            f"cannot resume {path}: it does not fit this model or optimiser. {error}"
        ) from error
    if state.scaler.is_enabled() and saved["scaler"]:
        state.scaler.load_state_dict(saved["scaler"])
    mine = saved["ranks"][distributed.rank()]
    _load_hooks(state, mine["hooks"])
    state.step = state.first_step = saved["step"]
    state.epoch = state.step // state.steps_per_epoch
    state.saved = path
    return mine


def enter(state: TrainState, mine: dict[str, Any]) -> None:
    """The last act of resuming, right before the loop: the loader's position and the random states."""
    if state.step % state.steps_per_epoch:  # else the coming epoch begins at its beginning
        state.loader.set_epoch(state.epoch)
        state.loader.load_state_dict(mine["loader"])
    set_random_state(mine["random"], state.device)


def _load_optimizer(optimizer: torch.optim.Optimizer, saved: dict[str, Any]) -> None:
    # Settings (learning rate, decay) come from this run's configuration, which alone owns them; what the
    # optimiser has gathered comes from the checkpoint.
    current = optimizer.state_dict()["param_groups"]
    names = ("name", "params")
    if [[g.get(n) for n in names] for g in current] != [
        [g.get(n) for n in names] for g in saved["param_groups"]
    ]:
        raise ValueError("the optimiser's parameter groups are others")
    optimizer.load_state_dict({"state": saved["state"], "param_groups": current})
    for parameter, values in optimizer.state.items():
        for key, value in values.items():
            if isinstance(value, torch.Tensor) and value.shape == parameter.shape:
                # Fused kernels walk memory: the layout must be the parameter's (channels last or not).
                values[key] = torch.empty_like(parameter, dtype=value.dtype).copy_(value)


def _load_hooks(state: TrainState, saved: dict[str, dict[str, Any]]) -> None:
    for hook in state.hooks:
        if hook.key in saved:
            hook.load_state_dict(saved[hook.key])
    absent = sorted(key for key, value in saved.items() if value and key not in {h.key for h in state.hooks})
    if absent:
        notify(f"the checkpoint holds the state of hooks that this run does not have: {', '.join(absent)}")
