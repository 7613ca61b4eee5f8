"""Checkpoints as folders that are whole or absent: written aside, flushed to disk, renamed.

`checkpoints/step_00000120/` holds `model.safetensors`, `ema.safetensors` where there is a moving average,
`state.pt` (all else, loadable with `weights_only=True`) and `meta.json` (sizes and hashes of the files).
`checkpoints/last` and `checkpoints/best` are small JSON files that name one of them.
"""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import re
import shutil
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from .. import __version__
from ..errors import CheckpointError, first_line, is_of_dead_worker
from .messages import notify

MODEL, EMA, STATE, META = "model.safetensors", "ema.safetensors", "state.pt", "meta.json"
PLAIN = (type(None), bool, int, float, str, bytes, Tensor)
_NAME = re.compile(r"step_(\d{8,})$")
_WRAPPERS = ("module.", "_orig_mod.")


def save(
    folder: Path,
    step: int,
    weights: Mapping[str, Tensor],
    state: Mapping[str, Any],
    ema: Mapping[str, Tensor] | None = None,
    metadata: Mapping[str, str] | None = None,
) -> Path:
    """Write one checkpoint; a kill at any moment leaves the earlier ones and never half of this one.

    Args:
        folder: the run's `checkpoints` folder.
        step: optimiser steps done; names the checkpoint.
        weights: the model's state dict.
        state: all else: plain values, tensors, and lists, tuples and dicts of them.
        ema: state dict of the moving average.
        metadata: text kept with the weights (label_map, config).

    Returns:
        The checkpoint's folder. `last` names it.

    Raises:
        CheckpointError: the disk is full or not writable, or `state` holds what could not be loaded safely.
    """
    check_plain(state, "state")
    final = folder / f"step_{step:08d}"
    draft = folder / f".draft-{final.name}-{os.getpid()}"
    try:
        draft.mkdir(parents=True)
        save_weights(draft / MODEL, weights, metadata)
        if ema is not None:
            save_weights(draft / EMA, ema, metadata)
        torch.save(dict(state), draft / STATE)
        _write_meta(draft, step)
        for file in draft.iterdir():
            _flush(file)
        _flush(draft)
        if final.exists():
            _remove(final)
        draft.rename(final)
        _flush(folder)
        write_pointer(folder / "last", {"name": final.name, "step": step})
    except (OSError, RuntimeError, safetensors.SafetensorError) as error:
        shutil.rmtree(draft, ignore_errors=True)
        if is_of_dead_worker(error):  # it comes from a signal, and has nothing to do with the disk
            raise
        free = shutil.disk_usage(folder).free / 2**20 if folder.exists() else 0
        # PyTorch's writer does not pass on what the system said.
        reason = f"not all of {STATE} could be written" if "inline_container" in str(error) else error
        raise CheckpointError(
            f"cannot write checkpoint {final}: {reason} ({free:.0f} MiB free on the disk). "
            "The earlier checkpoints are untouched; make room and resume"
        ) from error
    return final


def save_weights(
    path: Path, weights: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None
) -> None:
    """Write a state dict as safetensors, with text beside it."""
    tensors = {name: value.detach().cpu().contiguous().clone() for name, value in weights.items()}
    text = {"format": "pt", "boxwright_version": __version__, **(metadata or {})}
    safetensors.torch.save_file(tensors, path, metadata=text)


def check_plain(value: Any, where: str) -> None:
    """Refuse at saving what safe loading would refuse.

    Raises:
        CheckpointError: names the place of a value that is not plain.
    """
    if isinstance(value, Mapping):
        for key, item in value.items():
            check_plain(item, f"{where}[{key!r}]")
    elif isinstance(value, (list, tuple)):
        if len(value) > 100 and all(type(item) is int for item in value):
            return  # random states
        for index, item in enumerate(value):
            check_plain(item, f"{where}[{index}]")
    elif not isinstance(value, PLAIN) or type(value).__module__.startswith("numpy"):
        raise CheckpointError(
            f"{where} is a {type(value).__name__}, which cannot be loaded safely: "
            "keep plain numbers, text, tensors, and lists and dicts of them"
        )


def verify(path: Path) -> str | None:
    """What is wrong with a checkpoint folder: missing files, wrong sizes or hashes; None if it is whole."""
    try:
        meta = json.loads((path / META).read_text())
        for name, entry in meta["files"].items():
            if (path / name).stat().st_size != entry["size"]:
                return f"{name} has {(path / name).stat().st_size} bytes instead of {entry['size']}"
            if _digest(path / name) != entry["sha256"]:
                return f"{name} does not have the recorded hash"
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        return f"{type(error).__name__}: {error}"
    return None


def steps(folder: Path) -> list[Path]:
    """Finished checkpoints of a `checkpoints` folder, newest first; drafts of a killed run are left out."""
    found = [
        (int(m[1]), path) for path in folder.glob("step_*") if (m := _NAME.match(path.name)) and path.is_dir()
    ]
    return [path for _, path in sorted(found, reverse=True)]


def find_last(run: Path) -> Path | None:
    """The newest whole checkpoint of a run; damaged ones are passed over with a printed warning.

    Raises:
        CheckpointError: there are checkpoints, and all are damaged.
    """
    candidates = steps(run / "checkpoints")
    for path in candidates:
        wrong = verify(path)
        if wrong is None:
            return path
        notify(f"warning: checkpoint {path} is damaged ({wrong}); falling back to the one before it")
    if candidates:
        raise CheckpointError(
            f"all checkpoints in {run / 'checkpoints'} are damaged: start anew in another folder"
        )
    return None


def prune(folder: Path, keep: int, protect: set[str]) -> None:
    """Delete all but the `keep` newest checkpoints and those named in `protect`."""
    for path in steps(folder)[keep:]:
        if path.name not in protect:
            _remove(path)


def sweep(folder: Path) -> None:
    """Delete what a killed process left unfinished. Only the owner of the run folder may do so."""
    for pattern in (".draft-*", ".old-*", ".pointer-*"):
        for path in folder.glob(pattern):
            shutil.rmtree(path) if path.is_dir() else path.unlink()


def write_pointer(path: Path, entry: Mapping[str, Any]) -> None:
    """Replace a small JSON file in one move."""
    draft = path.with_name(f".pointer-{path.name}-{os.getpid()}")
    draft.write_text(json.dumps(entry) + "\n")
    _flush(draft)
    os.replace(draft, path)
    _flush(path.parent)


def read_pointer(path: Path) -> dict[str, Any] | None:
    """What a pointer says, or None where there is none."""
    try:
        entry = json.loads(path.read_text())
        return entry if isinstance(entry.get("name"), str) else None
    except FileNotFoundError:
        return None
    except (ValueError, AttributeError) as error:
        raise CheckpointError(f"{path} is not a checkpoint pointer: {error}") from error


def load_state(path: Path) -> dict[str, Any]:
    """The `state.pt` of a checkpoint folder; only plain values and tensors, nothing that runs code."""
    return load_pickle(path / STATE)


def load_weights(path: str | Path, ema: bool = True) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Weights and the text kept with them.

    Args:
        path: a run folder (its best checkpoint, else its newest), a `checkpoints` folder, a pointer (`best`,
            `last`), one checkpoint's folder, or a `.safetensors`, `.pt` or `.pth` file.
        ema: take the moving average where the checkpoint has one.

    Returns:
        State dict without prefixes of wrappers, on the CPU; metadata (empty for pickled files).

    Raises:
        CheckpointError: nothing there, damaged, or a pickle that would run code.
    """
    file = _weights_file(Path(path), ema)
    if file.suffix != ".safetensors":
        return unwrap(load_pickle(file), str(file)), {}
    try:
        with safetensors.safe_open(file, framework="pt") as reader:
            weights = {name: reader.get_tensor(name) for name in reader.keys()}  # noqa: SIM118
            return unwrap(weights, str(file)), dict(reader.metadata() or {})
    except (OSError, safetensors.SafetensorError) as error:
        raise CheckpointError(f"cannot read the weights in {file}: {error}") from error


def load_pickle(path: Path) -> Any:
    """A file of `torch.save`, restricted to plain values and tensors.

    Raises:
        CheckpointError: missing, damaged, or holding objects that would run code.
    """
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise CheckpointError(f"no file {path}") from None
    except Exception as error:
        raise CheckpointError(
            f"refused to load {path}: it is damaged, or holds objects that could run code when loaded "
            f"({_refused(error)}). Save the plain state dict (tensors only), best as safetensors"
        ) from error


def _refused(error: Exception) -> str:
    """Why a file was not loaded, without PyTorch's advice on how to load it nonetheless."""
    if found := re.search(r"GLOBAL (\S+)", str(error)):
        return f"it asks for {found[1]}"
    if isinstance(error, pickle.UnpicklingError):
        return "no file of torch.save with tensors alone"
    return first_line(error)[:300]


def shortened(error: Exception, most: int = 4) -> str:
    """What `load_state_dict` has to say, without the names of hundreds of parameters."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    cut = [line if len(line) <= 200 else f"{line[:200]} ..." for line in lines]
    more = f" (and {len(cut) - most} lines more)" if len(cut) > most else ""
    return " ".join(cut[:most]) + more


def unwrap(loaded: Any, source: str = "the file") -> dict[str, Tensor]:
    """The state dict in what a weights file held, without the prefixes of wrappers (DDP, the compiler).

    Args:
        loaded: what the file held.
        source: its name, for the message.

    Raises:
        CheckpointError: no dict of tensors is in it.
    """
    for key in ("state_dict", "model", "model_state_dict"):
        if isinstance(loaded, Mapping) and isinstance(loaded.get(key), Mapping):
            loaded = loaded[key]
    if not isinstance(loaded, Mapping) or not all(isinstance(v, Tensor) for v in loaded.values()):
        raise CheckpointError(
            f"{source} holds no state dict (names with tensors): give a run folder or a weights file"
        )
    weights = dict(loaded)
    while prefix := next((w for w in _WRAPPERS if weights and all(k.startswith(w) for k in weights)), None):
        weights = {name.removeprefix(prefix): value for name, value in weights.items()}
    return weights


def _weights_file(path: Path, ema: bool) -> Path:
    if not path.exists():
        raise CheckpointError(f"no checkpoint or weights at {path}")
    if path.is_file() and path.name in ("best", "last"):
        entry = read_pointer(path)
        return _weights_file(path.parent / (entry or {"name": "?"})["name"], ema)
    if path.is_file():
        return path
    if (path / MODEL).exists():
        wrong = verify(path) if (path / META).exists() else None
        if wrong:
            raise CheckpointError(f"checkpoint {path} is damaged: {wrong}")
        return path / EMA if ema and (path / EMA).exists() else path / MODEL
    folder = path / "checkpoints" if (path / "checkpoints").is_dir() else path
    if (folder / "best").is_file():
        return _weights_file(folder / "best", ema)
    last = find_last(folder.parent) if folder.name == "checkpoints" else None
    if last is None:
        raise CheckpointError(f"no checkpoint in {path}: give a run folder, a checkpoint or a weights file")
    return _weights_file(last, ema)


def _write_meta(folder: Path, step: int) -> None:
    files = {f.name: {"size": f.stat().st_size, "sha256": _digest(f)} for f in sorted(folder.iterdir())}
    meta = {
        "step": step,
        "boxwright": __version__,
        "torch": torch.__version__,
        "saved": time.time(),
        "files": files,
    }
    (folder / META).write_text(json.dumps(meta, indent=1) + "\n")


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _remove(path: Path) -> None:
    # Renamed first: a kill while deleting must not leave half a checkpoint under a valid name.
    old = path.with_name(f".old-{path.name}-{os.getpid()}")
    path.rename(old)
    shutil.rmtree(old)


def _flush(path: Path) -> None:
    if path.is_dir() and os.name == "nt":
        return  # Windows cannot open folders
    handle = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
