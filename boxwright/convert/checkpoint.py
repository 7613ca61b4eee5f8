"""From a file of another toolbox to a Boxwright checkpoint that says what it is."""

from __future__ import annotations

import ast
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import fiddle as fdl
from fiddle import Config, selectors
from torch import nn

from ..assembly import set_num_classes
from ..config import NumClasses, build, clone, to_json
from ..data.canvas import Canvas
from ..engine.checkpoint import save_weights
from ..errors import CheckpointError, ConfigError
from ..interop import from_mmdetection
from ..interop.coco_labels import COCO
from ..interop.renaming import LoadReport
from ..interop.safe_pickle import read_pickle
from ..labels import LabelMap
from ..models.detectors import TwoStageDetector
from ..recipes import common
from ..recipes.experiment import Experiment
from . import images
from .detectors import model_from_mmdetection


@dataclass(frozen=True)
class Conversion:
    """What a conversion did.

    Args:
        path: the checkpoint that was written.
        report: what became of each entry of the source.
        label_map: classes of the detector.
    """

    path: Path
    report: LoadReport
    label_map: LabelMap


def convert_mmdetection(
    source: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    config: str | os.PathLike[str] | None = None,
    recipe: Config[Experiment] | None = None,
    classes: Sequence[str] | None = None,
) -> Conversion:
    """Write a checkpoint of MMDetection as one of ours.

    The model is built from the configuration that MMDetection keeps in its checkpoints, part by part, so any
    combination of known parts can be converted. The file is read without running what it holds.

    Args:
        source: a `.pth` file of MMDetection 2.x or 3.x.
        out: the `.safetensors` file to write; `boxwright.load` takes it.
        config: a resolved configuration (as `mmengine.Config.dump` writes it) for files that hold none.
        recipe: a recipe to take the model from, instead of a configuration.
        classes: class names in the order of the labels, for files that do not hold them.

    Raises:
        CheckpointError: the file cannot be read, or an entry that matters is left over or missing on
            either side.
        ConfigError: the configuration has a part or setting that we do not have.
    """
    return mmdetection_to_ours(read_checkpoint(source), source, out, config, recipe, classes)


def read_checkpoint(source: str | os.PathLike[str]) -> Mapping[str, Any]:
    """What a file holds, read without running it.

    Raises:
        CheckpointError: the file cannot be read, or holds no mapping.
    """
    loaded = read_pickle(source)
    if not isinstance(loaded, Mapping):
        raise CheckpointError(f"{source} holds a {type(loaded).__name__}, not a checkpoint")
    return loaded


def write_checkpoint(
    out: str | os.PathLike[str], model: nn.Module, experiment: Config[Experiment], label_map: LabelMap
) -> Path:
    """Write a converted model with its experiment and its classes; returns the `.safetensors` file."""
    path = Path(out).with_suffix(".safetensors")
    path.parent.mkdir(parents=True, exist_ok=True)
    about = {"config": to_json(experiment), "label_map": label_map.to_json()}
    save_weights(path, model.state_dict(), about)
    return path


def mmdetection_to_ours(
    loaded: Mapping[str, Any],
    source: str | os.PathLike[str],
    out: str | os.PathLike[str],
    config: str | os.PathLike[str] | None,
    recipe: Config[Experiment] | None,
    classes: Sequence[str] | None,
) -> Conversion:
    """`convert_mmdetection` of a file that is read already."""
    meta = loaded.get("meta") or {}
    experiment = recipe if recipe is not None else _experiment(_settings(source, meta, config))
    experiment = clone(experiment)
    label_map = _label_map(meta, classes, experiment)
    if recipe is not None:
        set_num_classes(experiment, len(label_map))
    _check_classes(experiment, label_map)
    model = build(experiment.model)
    report = from_mmdetection(loaded, model)
    path = write_checkpoint(out, model, experiment, label_map)
    return Conversion(path, report, label_map)


def read_config(text: str, name: str) -> dict[str, Any]:
    """The assignments of a configuration written as Python, read as literals: nothing is run.

    Args:
        text: lines such as `model = dict(type='RetinaNet', ...)`.
        name: what messages call it.

    Raises:
        ConfigError: it is not Python, or has more than literals and `dict(...)` in the `model`.
    """
    try:
        tree = ast.parse(text)
    except SyntaxError as error:
        raise ConfigError(f"{name} is not a configuration written as Python: {error}") from error
    values: dict[str, Any] = {}
    for node in tree.body:
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
            try:
                values[node.targets[0].id] = _literal(node.value)
            except ValueError as error:
                if node.targets[0].id == "model":
                    raise ConfigError(
                        f"{name}, line {node.lineno}: {error}; give the resolved configuration, as "
                        "mmengine.Config.fromfile(FILE).dump(NEW_FILE) writes it"
                    ) from None
    return values


def _literal(node: ast.expr) -> Any:
    match node:
        case ast.Call(func=ast.Name(id="dict"), args=[], keywords=keywords) if all(k.arg for k in keywords):
            return {k.arg: _literal(k.value) for k in keywords}
        case ast.Dict(keys=keys, values=values) if all(key is not None for key in keys):
            return {_literal(k): _literal(v) for k, v in zip(keys, values, strict=True)}  # pyright: ignore
        case ast.List(elts=items):
            return [_literal(item) for item in items]
        case ast.Tuple(elts=items):
            return tuple(_literal(item) for item in items)
        case ast.Constant(value=value):
            return value
        case ast.UnaryOp(op=ast.USub(), operand=operand):
            return -_literal(operand)
        case ast.BinOp(left=left, op=ast.Div(), right=right):
            return _literal(left) / _literal(right)
    raise ValueError(f"{ast.unparse(node)[:80]!r} is no literal")


def _settings(
    source: str | os.PathLike[str], meta: Mapping[str, Any], config: str | os.PathLike[str] | None
) -> dict[str, Any]:
    """The configuration: the one given, or the one in the checkpoint (`cfg` in 3.x, `config` in 2.x)."""
    if config is not None:
        try:
            return read_config(Path(config).read_text(encoding="utf-8"), str(config))
        except OSError as error:
            raise ConfigError(f"{config} cannot be read: {error}") from error
    text = meta.get("cfg") or meta.get("config")
    if not isinstance(text, str):
        raise ConfigError(
            f"{source} holds no configuration: give one with config=, or a recipe of the same architecture"
        )
    return read_config(text, f"the configuration in {source}")


def _experiment(settings: Mapping[str, Any]) -> Config[Experiment]:
    """The detector with the image size that it was tested with; trained on, it follows the 1x schedule."""
    model = settings.get("model")
    if not isinstance(model, Mapping) or "_base_" in settings:
        raise ConfigError(
            "the configuration has no `model` of its own: give the resolved one, as "
            "mmengine.Config.fromfile(FILE).dump(NEW_FILE) writes it"
        )
    steps = images.test_steps(settings)
    before = images.normalisation(steps) or settings.get("img_norm_cfg")
    described = model_from_mmdetection(_beside(settings) | dict(model), before)
    metrics = ("bbox",)
    if fdl.get_callable(described) is TwoStageDetector and getattr(described.roi, "mask", None):
        metrics = ("bbox", "segm")
    experiment = common.schedule_1x(described, lr=0.02, metrics=metrics)
    if (transforms := images.resizing(steps)) is not None:
        experiment.eval_transforms = transforms
        divisor = (model.get("data_preprocessor") or before or {}).get("pad_size_divisor", 1)
        experiment.canvas = Config(Canvas, divisor=max(int(divisor), 1))
    return experiment


def _beside(settings: Mapping[str, Any]) -> dict[str, Any]:
    """`train_cfg` and `test_cfg` where they stood until 2.7; in 3.x loops are called so there."""
    found = {name: settings.get(name) for name in ("train_cfg", "test_cfg")}
    return {
        name: value
        for name, value in found.items()
        if isinstance(value, Mapping) and not {"type", "max_epochs", "max_iters"} & set(value)
    }


def _label_map(
    meta: Mapping[str, Any], classes: Sequence[str] | None, experiment: Config[Experiment]
) -> LabelMap:
    """Classes as given, or as the checkpoint says; COCO's keep the numbers of COCO's annotations."""
    known = meta.get("dataset_meta") or {}
    names = classes or known.get("classes") or known.get("CLASSES") or meta.get("CLASSES")
    if names is None:
        count = _num_classes(experiment) or 1
        return COCO if count == len(COCO) else LabelMap.numbered(count)
    names = (names,) if isinstance(names, str) else tuple(str(name) for name in names)
    return COCO if names == COCO.names else LabelMap(names)


def _num_classes(experiment: Config[Experiment]) -> int | None:
    """Classes of the detector; None of a proposal network, which knows none."""
    return next(iter(selectors.select(experiment.model, tag=NumClasses)), None)


def _check_classes(experiment: Config[Experiment], label_map: LabelMap) -> None:
    """Fail where the names are not as many as the detector's classes."""
    count = _num_classes(experiment)
    if count is not None and count != len(label_map):
        raise ConfigError(
            f"the detector has {count} classes, but there are {len(label_map)} names; give one for each with "
            "classes="
        )
