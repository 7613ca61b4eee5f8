"""Between a run and its checkpoint: what is taken out, and how it is put back, bit for bit."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .. import distributed
from ..errors import CheckpointError, TrainingError
from ..labels import LabelMap
from . import checkpoint
from .finite import verify_finite
from .messages import notify, on_main
from .randomness import random_state, seed_all, set_random_state
from .sharding import load_weights, spread_like, whole
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
    weights, optimizer = whole(state.model.state_dict()), whole(state.optimizer.state_dict())
    average = None if state.ema is None else whole(state.ema.model.state_dict())
    powersgd = None if state.exchange.powersgd is None else state.exchange.powersgd.state_dict()
    path = on_main(lambda: _write(state, ranks, weights, average, optimizer, powersgd))
    state.saved = path
    return path


def _write(
    state: TrainState,
    ranks: list[dict[str, Any]],
    weights: Mapping[str, Tensor],
    average: Mapping[str, Tensor] | None,
    optimizer: Mapping[str, Any],
    powersgd: Mapping[str, Any] | None,
) -> Path:
    names = [name for name, _ in state.model.named_parameters()]
    broken = [name for name in names if not bool(weights[name].isfinite().all())]
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
        weights,
        {
            "step": state.step,
            "pace": pace(state),
            "optimizer": optimizer,
            "scaler": state.scaler.state_dict(),
            "ema": None if state.ema is None else state.ema.state_dict(),
            "powersgd": powersgd,
            "ranks": ranks,
        },
        average,
        state.metadata,
    )


def pace(state: TrainState) -> dict[str, int]:
    """What gives a step number its meaning.

    `images` is there where the loader tells (by the key `batch_size` of its state) that the images of a step
    are so many over all ranks and accumulated batches, and do not depend on how these share them out.
    """
    shares = {"accumulate": state.accumulate, "ranks": distributed.world_size()}
    images = state.loader.state_dict().get("batch_size")
    steps = {"steps_per_epoch": state.steps_per_epoch}
    return {**steps, **shares} if images is None else {**steps, "images": images, **shares}


def _keeps_pace(then: dict[str, int], now: dict[str, int]) -> bool:
    """Whether a step is the same in both, shared out by the same or by another number of ranks."""
    known = then.keys() & now.keys()
    shared_out = {"accumulate", "ranks"} if "images" in known else set()
    return all(then[key] == now[key] for key in known - shared_out)


def restore(state: TrainState, path: Path) -> dict[str, Any]:
    """Put a checkpoint's contents back into a freshly built run, all but the random states and the loader.

    Returns:
        What `enter` needs to put these back too, at the last moment.

    Raises:
        CheckpointError: the checkpoint does not fit the model, optimiser or pace of this run.
    """
    saved = checkpoint.load_state(path)
    now = pace(state)
    if not _keeps_pace(saved["pace"], now):
        fixed = "batch size, accumulation and number of processes"
        same = "data and batch size" if "images" in now else f"data, {fixed}"
        raise CheckpointError(
            f"cannot resume {path}: it was written with {saved['pace']}, this run has {now}. "
            f"Resume with the same {same}, or start in another folder"
        )
    if (saved["ema"] is None) != (state.ema is None):
        raise CheckpointError(
            f"cannot resume {path}: ema_decay was {'not ' if saved['ema'] is None else ''}set there"
        )
    weights, texts = checkpoint.load_weights(path, ema=False)
    _check_classes(path, texts.get("label_map"), state.metadata.get("label_map"))
    try:
        load_weights(state.model, weights)
        if state.ema is not None:
            state.ema.load_state_dict(saved["ema"], checkpoint.load_weights(path)[0])
        _load_optimizer(state.optimizer, saved["optimizer"])
    except (RuntimeError, ValueError) as error:
        raise CheckpointError(
            f"cannot resume {path}: it does not fit this model or optimiser. {checkpoint.shortened(error)}. "
            "Resume with the recipe and the data that it was made with, or choose another `out`"
        ) from error
    if state.scaler.is_enabled() and saved["scaler"]:
        state.scaler.load_state_dict(saved["scaler"])
    if state.exchange.powersgd is not None:
        state.exchange.powersgd.load_state_dict(saved.get("powersgd"), saved["step"], state.device)
    same = all(saved["pace"][key] == now[key] for key in ("accumulate", "ranks"))
    mine = saved["ranks"][distributed.rank()] if same else _of_other_ranks(state, saved["ranks"])
    _load_hooks(state, mine["hooks"])
    state.step = state.first_step = saved["step"]
    state.epoch = state.step // state.steps_per_epoch
    state.saved = path
    return mine


def _check_classes(path: Path, then: str | None, now: str | None) -> None:
    """Whether a label means the same to the checkpoint and to this run, where both say what."""
    if then is None or now is None or (old := LabelMap.from_json(then)) == (new := LabelMap.from_json(now)):
        return
    raise CheckpointError(
        f"cannot resume {path}: it was trained for the classes {old.told()}, but the data has {new.told()}. "
        "Resume with the data that it was trained on, or start in another folder"
    )


def _of_other_ranks(state: TrainState, ranks: list[dict[str, Any]]) -> dict[str, Any]:
    """What a rank goes on from where the ranks were others: they all stood at the same step."""
    hooks = {hook.key: hook for hook in state.hooks}
    merged = {
        key: hooks[key].merge_state_dicts([rank["hooks"][key] for rank in ranks]) if key in hooks else value
        for key, value in ranks[0]["hooks"].items()
    }
    return {"random": None, "loader": ranks[0]["loader"], "hooks": merged}


def enter(state: TrainState, mine: dict[str, Any]) -> None:
    """The last act of resuming, right before the loop: the loader's position and the random states.

    Where the ranks were others each one is seeded anew, by the run's seed, the step and its number.
    """
    if state.step % state.steps_per_epoch:  # else the coming epoch begins at its beginning
        state.loader.set_epoch(state.epoch)
        state.loader.load_state_dict(mine["loader"])
    if mine["random"] is None:
        seed_all(state.seed, distributed.rank(), state.step)
    else:
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
                values[key] = torch.empty_like(parameter, dtype=value.dtype).copy_(
                    spread_like(value, parameter)
                )


def _load_hooks(state: TrainState, saved: dict[str, dict[str, Any]]) -> None:
    for hook in state.hooks:
        if hook.key in saved:
            hook.load_state_dict(saved[hook.key])
    absent = sorted(key for key, value in saved.items() if value and key not in {h.key for h in state.hooks})
    if absent:
        notify(f"the checkpoint holds the state of hooks that this run does not have: {', '.join(absent)}")
