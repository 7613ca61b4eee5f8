"""Pretrained weights of backbones: a file, or a name that torchvision or timm knows.

| `weights` | what is read |
| --- | --- |
| a path, ending in .pth, .pt, .bin or .safetensors | that file, without running any code in it |
| `"https://..."` | that file, fetched once into torch's cache (`torch.hub.get_dir()`) |
| `"ResNet50_Weights.IMAGENET1K_V1"` | torchvision's weights of that name |
| `"timm:resnext101_32x4d.gluon_in1k"` | timm's weights of that name |

Names and addresses may need a download; files never do.
"""

from __future__ import annotations

import pickle
import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from urllib.parse import urlsplit

import torch
from torch import Tensor, nn

from ...errors import CheckpointError, some_of

FILE_ENDINGS = (".pth", ".pt", ".bin", ".safetensors")
WRAPPERS = ("module.", "model.", "_orig_mod.")
"""What wrappers put before all names."""
PARTS = ("backbone.", "body.")
"""What detectors put before the names of their backbone's parameters."""
NESTED = ("state_dict", "model", "model_state_dict")
"""Where training programs put the state dict in what they save."""
CLASSIFIERS = ("fc.", "classifier.", "head.")
"""Beginnings of the names of classification layers."""

StateDict = dict[str, Tensor]


def is_file(weights: str | Path) -> bool:
    """Whether `weights` names a file and not published weights."""
    if isinstance(weights, Path):
        return True
    return not weights.startswith("https://") and (weights.endswith(FILE_ENDINGS) or Path(weights).is_file())


def read_weights(weights: str | Path) -> StateDict:
    """State dict behind `weights`, in one of the forms of the table above.

    Raises:
        CheckpointError: the file is missing, damaged, unsafe or no state dict, the name is unknown, or
            the download failed; the message says what to do.
    """
    if is_file(weights):
        return read_file(Path(weights))
    name = str(weights)
    if name.startswith("https://"):
        return _from_address(name)
    return _from_timm(name.removeprefix("timm:")) if name.startswith("timm:") else _from_torchvision(name)


def read_file(path: Path) -> StateDict:
    """State dict in a file of `torch.save` or safetensors.

    Wrappers' prefixes are taken off the names; of a whole detector, the backbone alone is kept.

    Raises:
        CheckpointError: as `read_weights`.
    """
    path = path.expanduser()
    if not path.is_file():
        raise CheckpointError(
            f"weights file {path} does not exist; give the path of a .pth or .safetensors file"
        )
    content = _read_safetensors(path) if path.suffix == ".safetensors" else _read_torch(path)
    while isinstance(content, Mapping) and (key := next((k for k in NESTED if _is_dict(content, k)), None)):
        content = content[key]
    if not isinstance(content, Mapping):
        raise CheckpointError(
            f"{path} holds a {type(content).__name__}, not a state dict of names and tensors"
        )
    tensors = {str(name): value for name, value in content.items() if isinstance(value, Tensor)}
    if not tensors:
        raise CheckpointError(f"{path} holds no tensors; it should be a state dict of names and tensors")
    return _strip(tensors)


def load_exactly(
    module: nn.Module,
    state: StateDict,
    source: str | Path,
    ignore: Callable[[str], bool],
    added: Iterable[str] = (),
) -> None:
    """Load a state dict that has to fit, apart from unexpected names that `ignore` accepts.

    Args:
        module: what to load into.
        state: names and tensors.
        source: where they are from, for messages.
        ignore: whether a name that `module` lacks may be dropped (classifiers, stages that were not built).
        added: parts of names that the state dict may lack: of layers that came in later.

    Raises:
        CheckpointError: a name is missing, unexpected, or has another shape; all are listed.
    """
    own = module.state_dict()
    may_lack = ("num_batches_tracked", *added)
    missing = [k for k in own if k not in state and not any(part in k for part in may_lack)]
    unexpected = [
        k for k in state if k not in own and not k.endswith("num_batches_tracked") and not ignore(k)
    ]
    reshaped = [
        f"{k} {tuple(state[k].shape)} instead of {tuple(own[k].shape)}"
        for k in own
        if k in state and state[k].shape != own[k].shape
    ]
    problems = {"missing": missing, "unexpected": unexpected, "of another shape": reshaped}
    if any(problems.values()):
        listed = "; ".join(
            f"{len(names)} {what}: {some_of(names)}" for what, names in problems.items() if names
        )
        raise CheckpointError(
            f"weights {source} do not fit this {type(module).__name__}: {listed}. "
            "Choose weights of this very architecture, or change the backbone's arguments to theirs"
        )
    module.load_state_dict({k: v for k, v in state.items() if k in own}, strict=False)


def load_backbone_weights(
    module: nn.Module,
    weights: str | Path,
    ignore: Iterable[str] = CLASSIFIERS,
    rename: Mapping[str, str] | None = None,
    added: Iterable[str] = (),
) -> None:
    """Read weights and load them into a backbone whose parameters have the same names.

    Args:
        module: the backbone.
        weights: file or name, see `read_weights`.
        ignore: beginnings of names that may be dropped.
        rename: names in the weights to names in the module, where they differ.
        added: parts of names that the weights may lack, see `load_exactly`.

    Raises:
        CheckpointError: as `read_weights` and `load_exactly`.
    """
    beginnings, names = tuple(ignore), rename or {}
    state = {names.get(name, name): value for name, value in read_weights(weights).items()}
    load_exactly(module, state, weights, lambda name: name.startswith(beginnings), added)


def download_error(what: str, remedy: str, error: Exception) -> CheckpointError:
    """What to raise when weights could not be fetched."""
    reason = (str(error).strip().splitlines() or [""])[0][:300]
    return CheckpointError(
        f"could not fetch {what} ({type(error).__name__}: {reason}). Without a network: {remedy} on a "
        "machine that has one, copy the file here, and pass it as model.backbone.weights=/path/to/file"
    )


def _from_torchvision(name: str) -> StateDict:
    from torchvision.models import get_weight

    try:
        entry = get_weight(name)
    except (ValueError, KeyError, AttributeError) as error:
        raise CheckpointError(
            f"weights {name!r} are neither a file ({', '.join(FILE_ENDINGS)}) nor known to torchvision; "
            'names look like "ResNet50_Weights.IMAGENET1K_V1" or, for timm, "timm:resnet50.a1_in1k"'
        ) from error
    try:
        return _strip(dict(entry.get_state_dict(progress=False, check_hash=True)))
    except Exception as error:  # what a failing download raises depends on where it fails
        raise download_error(f"torchvision {name}", f"download {entry.url}", error) from error


def _from_timm(name: str) -> StateDict:
    import timm

    if not timm.is_model(name):
        raise CheckpointError(f"timm knows no model {name!r}; `timm.list_models('*resnet*')` lists names")
    try:
        return timm.create_model(name, pretrained=True).state_dict()
    except Exception as error:  # what a failing download raises depends on where it fails
        raise download_error(f"timm {name}", timm_remedy(name), error) from error


def _from_address(address: str) -> StateDict:
    """A file of the web, kept in torch's cache; a hash at the end of its name, as is usual, is checked."""
    folder = Path(torch.hub.get_dir()) / "checkpoints"
    name = Path(urlsplit(address).path).name
    if not (folder / name).is_file():
        folder.mkdir(parents=True, exist_ok=True)
        found = re.search(r"-([0-9a-f]{8,})\.", name)
        try:
            torch.hub.download_url_to_file(
                address, str(folder / name), found.group(1) if found else None, progress=False
            )
        except Exception as error:  # what a failing download raises depends on where it fails
            raise download_error(name, f"download {address}", error) from error
    return read_file(folder / name)


def timm_remedy(name: str) -> str:
    """Where the weights of a timm model can be had by hand."""
    import timm

    config = timm.get_pretrained_cfg(name)
    hub = getattr(config, "hf_hub_id", None)
    if hub:
        return f"download model.safetensors of huggingface.co/{hub}"
    return f"download {url}" if (url := getattr(config, "url", "")) else f"save the weights of timm {name}"


def _read_safetensors(path: Path) -> object:
    import safetensors
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except (safetensors.SafetensorError, OSError) as error:
        raise CheckpointError(f"{path} is not a whole safetensors file ({error}); fetch it again") from error


def _read_torch(path: Path) -> object:
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            f"refused to load {path}: it holds more than tensors and plain values, or is damaged, and "
            "loading it could run code. Where you trust it, load it with torch and save its state dict alone"
        ) from error
    except (RuntimeError, OSError, EOFError, ValueError, KeyError, AttributeError) as error:
        raise CheckpointError(
            f"{path} is not a whole file of torch.save ({error}); fetch it again"
        ) from error


def _strip(state: StateDict) -> StateDict:
    while prefix := next((p for p in WRAPPERS if all(name.startswith(p) for name in state)), None):
        state = {name.removeprefix(prefix): value for name, value in state.items()}
    for part in PARTS:
        inside = {name.removeprefix(part): value for name, value in state.items() if name.startswith(part)}
        state = inside or state
    return state


def _is_dict(content: Mapping, key: str) -> bool:
    return isinstance(content.get(key), Mapping)
