"""What a user does: build, train, evaluate, load, show."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import fiddle as fdl
import torch
from torch import nn

from . import distributed
from .assembly import (
    Parts,
    assemble,
    fit,
    is_experiment,
    make_evaluator,
    open_data,
    reopen_data,
    resolve,
    set_num_classes,
)
from .config import Pretrained, clone, from_json, named_modules, set_tagged
from .config import build as build_config
from .data import Data
from .data import check as check_data
from .data.loader import Loader
from .engine.agreement import agree_on_configuration, agree_on_versions
from .engine.checkpoint import load_weights, shortened
from .engine.folder import check_unused, goes_on
from .engine.messages import notify, on_main
from .engine.placing import resolve_device
from .engine.state import Hook
from .engine.watch import tick, watching
from .errors import CheckpointError, ConfigError, DataError
from .evaluation import check_ground_truth, evaluate_results, read_results, write_evaluation
from .evaluation import evaluate as evaluate_model
from .evaluation.files import make_folder
from .inference import Detector, ImageDetections
from .labels import LabelMap
from .metrics import Metrics
from .recipes.experiment import Experiment
from .recipes.suppression import set_nms
from .report import write_report


@dataclass(frozen=True)
class Run:
    """A finished training.

    Args:
        path: the run folder: `config.json`, `metrics.jsonl`, `evaluation.json`, `checkpoints/`,
            `predictions.json`, `report.html`, `plots/`.
        metrics: of the best checkpoint on the evaluation split; empty where the data has none.
    """

    path: Path
    metrics: Metrics

    def __fspath__(self) -> str:
        return str(self.path)


def build(config: fdl.Buildable, num_classes: int | None = None, pretrained: bool = True) -> nn.Module:
    """Make the model that a recipe describes; the recipe itself is not changed.

    Args:
        config: what a recipe returns, or its `model` alone.
        num_classes: classes without background; None for what the recipe says.
        pretrained: whether parts are initialised from their pretrained weights, which may be fetched.

    Raises:
        ConfigError: a constructor failed (the path in the configuration is named), or `num_classes` is
            given and no argument carries the tag `NumClasses`.
    """
    model = clone(config.model if is_experiment(config) else config)
    if num_classes is not None:
        set_num_classes(model, num_classes)
    if not pretrained:
        set_tagged(model, Pretrained, None)
    return build_config(model)


def train(
    experiment: fdl.Config[Experiment] | None,
    out: str | os.PathLike[str],
    resume: bool = False,
    *,
    device: str | torch.device = "auto",
    console: bool = True,
    check: bool = True,
    report: bool = True,
    hooks: Sequence[Hook] = (),
    trust: Sequence[str] = (),
) -> Run:
    """Train what a recipe describes, evaluate the best checkpoint and write the report.

    Under `torchrun` every process calls this; the batch is shared among them.

    Args:
        experiment: what a recipe returns, its data set. It is not changed. None, with `resume`, for what the
            run folder's `config.json` says.
        out: the run folder.
        resume: go on from the newest whole checkpoint in `out`; from the beginning where there is none yet.
            Processes that `torchrun --max-restarts` started anew do it unasked.
        device: "auto", "cpu", "cuda", "cuda:1", ...
        console: show progress.
        check: look through the data set before training; what cannot be trained on stops here.
        report: write plots and `report.html` at the end.
        hooks: of this call alone, besides the experiment's; `config.json` does not keep them.
        trust: modules of your own that a resumed run's `config.json` may name.

    Raises:
        ConfigError: the configuration cannot be built.
        DataError: the data set cannot be trained on.
        TrainingError: the run folder is in use, a loss is not finite, a signal stopped the run, or another
            rank failed, hangs or is gone (RankError).
    """
    out, place = Path(out), resolve_device(device)
    joins = not (torch.distributed.is_available() and torch.distributed.is_initialized())
    distributed.start(place)
    try:
        with watching():
            agree_on_versions()
            resume = goes_on(out, resume)
            on_main(lambda: check_unused(out, resume))
            config = resolve(experiment, out, resume, trust)
            agree_on_configuration(config)
            parts = assemble(config, out, resume, console)
            if check:
                on_main(lambda: look_through(parts.data))
            fit(parts, out, place, resume, hooks=(*parts.hooks, *hooks))
            return finish(parts, out, place, console, report)
    finally:
        if joins:
            distributed.stop()


def finish(parts: Parts, out: Path, device: torch.device, console: bool, report: bool) -> Run:
    """Evaluate a trained run's best checkpoint and write the report; every rank calls it."""
    metrics, own = Metrics({}), named_modules(parts.config)  # what this run has called is trusted anyway
    try:
        if parts.evaluated is not None:
            metrics = evaluate(out, parts.data, device=device, out=out, progress=console, trust=own)
        if report:
            on_main(lambda: write_report(out, parts.evaluated, trust=own))
    except Exception as error:
        error.add_note(f"the training itself is finished; `boxwright train out={out} --resume` does the rest")
        raise
    return Run(out, metrics)


def evaluate(
    source: Run | Detector | str | os.PathLike[str],
    data: Data | str | os.PathLike[str] | None = None,
    split: str | None = None,
    *,
    metrics: Sequence[str] | None = None,
    device: str | torch.device = "auto",
    batch_size: int = 8,
    workers: int | None = None,
    out: str | os.PathLike[str] | None = None,
    progress: bool = True,
    trust: Sequence[str] = (),
    nms: Any = None,
) -> Metrics:
    """Measure a run, a checkpoint, a detector or a COCO results file.

    Args:
        source: a run, its folder, a checkpoint, what `load` returned, or a COCO results file (`.json`).
        data: data set or its folder, or a COCO annotation file; None for the run's own.
        split: which split; None for `val`, or else `test`.
        metrics: "bbox", "segm" or both; None for what the experiment says (for a results file: "bbox", and
            "segm" where every record has a mask).
        device: where to predict.
        batch_size: images of one pass.
        workers: loader processes; None for what the experiment says.
        out: folder to write `evaluation.json` and `predictions.json` into; None, for a run evaluated on its
            own data, is the run's folder.
        progress: show a progress bar.
        trust: modules of your own that the run's configuration may name.
        nms: of a run or a checkpoint, as for `load`; nothing is written then but into `out`.

    Returns:
        Metrics by key, such as "bbox/AP" and "segm/AP50"; printing them gives a table.

    Raises:
        DataError: there is no such data or split, or the results do not belong to it.
        CheckpointError: the checkpoint cannot be read.
    """
    if not isinstance(source, Detector) and Path(source).suffix == ".json" and Path(source).is_file():
        if nms is not None:
            raise ConfigError(f"{source} holds results, not a detector: nms= has nothing to change")
        return _evaluate_file(Path(source), data, split, metrics, trust)
    if nms is not None and isinstance(source, Detector):
        raise ConfigError("this detector is loaded already: give nms= to boxwright.load")
    if out is not None:
        make_folder(Path(out))
    detector = source if isinstance(source, Detector) else load(source, device=device, trust=trust, nms=nms)
    if data is None and detector.config is None:
        raise DataError("this detector does not know its data set; give data=")
    own = data is None and split is None and nms is None
    opened = reopen_data(detector.config.data, "data") if data is None else open_data(data)
    table = opened.evaluation if split is None else opened.split(split)
    config = detector.config
    chosen = tuple(metrics or (config.metrics if config is not None else ("bbox",)))
    evaluator = make_evaluator(opened, table, detector.label_map, chosen)
    processes = workers if workers is not None else 0 if config is None else config.workers
    loader = Loader(
        table,
        detector.transforms,
        detector.canvas,
        batch_size,
        processes,
        shuffle=False,
        with_masks=False,
        reduced_decoding=detector.reduced_decoding,
    )
    autocast = None if detector.precision.name == "fp32" else detector.precision.dtype
    measured = evaluate_model(
        detector.model,
        loader,
        [evaluator],
        detector.device,
        autocast,
        progress,
        before_iter=lambda batch: tick(),
        channels_last=detector.precision.channels_last,
    )
    if out is None and own and not isinstance(source, Detector) and is_run(source):
        out = source
    if out is not None and distributed.is_main():
        write_evaluation(Path(out), measured, evaluator.per_class, evaluator.results, split=table.name)
    return Metrics(measured, evaluator.per_class, table.name)


def load(
    source: Run | str | os.PathLike[str],
    device: str | torch.device = "auto",
    *,
    precision: str | None = None,
    ema: bool = True,
    trust: Sequence[str] = (),
    nms: Any = None,
) -> Detector:
    """A trained detector, ready to predict.

    Args:
        source: a run or its folder (its best checkpoint), one checkpoint, or its `.safetensors` file.
        device: where to predict.
        precision: "auto" (bf16 where the hardware is made for it, else fp32), "fp32", "bf16" or "fp16"; None
            for the experiment's, which is "auto" unless it says otherwise.
        ema: take the moving average of the weights where there is one.
        trust: modules of your own that the configuration in the checkpoint may name; others are refused.
        nms: another suppression of duplicates than it was trained with, such as `SoftNMS("gaussian")` or
            "WeightedNMS(iou=0.5)"; see `set_nms`.

    Raises:
        CheckpointError: there is none, it is damaged, or it is not one of Boxwright's.
        ConfigError: its configuration names something outside the allowed modules; or as `set_nms`.
    """
    weights, metadata = load_weights(Path(source), ema)
    if "config" not in metadata or "label_map" not in metadata:
        raise CheckpointError(
            f"{Path(source)} holds weights without their experiment. Read are run folders, checkpoints and "
            "`.safetensors` files that Boxwright wrote; a checkpoint of torchvision is loaded into its own "
            "model and converted with boxwright.interop.from_torchvision(model)"
        )
    config, label_map = described(Path(source), metadata, trust)
    if nms is not None:
        set_nms(config, nms)
    model = build(config, len(label_map), pretrained=False)
    try:
        model.load_state_dict(weights)
    except RuntimeError as error:
        raise CheckpointError(
            f"{Path(source)}: the weights do not fit the model of their experiment: {shortened(error)}"
        ) from error
    return Detector(
        model,
        label_map,
        build_config(config.eval_transforms),
        build_config(config.canvas),
        resolve_device(device),
        config.precision if precision is None else precision,
        config,
        reduced_decoding=config.reduced_decoding,
    )


def described(source: Path, metadata: Mapping[str, str], trust: Sequence[str]) -> tuple[Any, LabelMap]:
    """The experiment and the classes that are kept with weights.

    Raises:
        CheckpointError: they are damaged.
        ConfigError: the experiment names something outside the allowed modules.
    """
    try:
        config = from_json(metadata["config"], trust)
        label_map = LabelMap.from_json(metadata["label_map"])
    except ConfigError as error:
        raise ConfigError(f"{source}: {error}") from error
    except (ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{source}: its label map is damaged ({error}); take another file") from error
    if not is_experiment(config):
        raise CheckpointError(f"{source}: what it keeps as its configuration describes no experiment")
    return config, label_map


def show(result: ImageDetections | Sequence[ImageDetections]) -> None:
    """Show detections drawn into their image: below the cell in a notebook, in a window elsewhere."""
    for item in [result] if isinstance(result, ImageDetections) else result:
        display = _notebook()
        if display is not None:
            display(item)
        else:
            item.draw().show()


def look_through(data: Data) -> None:
    """Stop on what would spoil the training; say in short what else there is."""
    found = check_data(data)
    found.raise_for_errors()
    warnings = [finding for finding in found.findings if finding.severity == "warning"]
    for finding in warnings[:5]:
        notify(str(finding))
    if len(warnings) > 5:
        notify(f"and {len(warnings) - 5} warnings more: `boxwright data check {data.root}`")


def is_run(source: str | os.PathLike[str]) -> bool:
    """Whether a path is that of a run folder."""
    return (Path(source) / "config.json").is_file()


def _evaluate_file(
    path: Path,
    data: Data | str | os.PathLike[str] | None,
    split: str | None,
    metrics: Sequence[str] | None,
    trust: Sequence[str],
) -> Metrics:
    """Measure a COCO results file."""
    truth, name = _ground_truth(path, data, split, trust)
    results = read_results(path, truth)
    if metrics is None:
        metrics = ("bbox", "segm") if results and all("segmentation" in r for r in results) else ("bbox",)
    measured: dict[str, float] = {}
    per_class: dict[str, dict[str, float]] = {}
    for metric in metrics:
        evaluation = evaluate_results(truth, results, metric, source=str(path))
        measured |= evaluation.metrics
        for label, measures in evaluation.per_class.items():
            per_class.setdefault(label, {}).update(measures)
    return Metrics(measured, per_class, name)


def _ground_truth(
    results: Path, data: Data | str | os.PathLike[str] | None, split: str | None, trust: Sequence[str]
) -> tuple[Mapping[str, Any], str]:
    """What a results file is measured against, and its name."""
    if isinstance(data, str | os.PathLike) and Path(data).is_file():
        try:
            truth = json.loads(Path(data).read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise DataError(f"{data}: cannot be read as a COCO annotation file ({error})") from error
        check_ground_truth(truth, source=str(data))
        return truth, Path(data).name
    if data is not None:
        opened = open_data(data)
    elif (results.parent / "config.json").is_file():
        opened = reopen_data(resolve(None, results.parent, True, trust).data, "data")
    else:
        raise DataError(f"{results}: what data do these results belong to? Give data= (and split=)")
    table = opened.evaluation if split is None else opened.split(split)
    return table.to_coco(), table.name


def _notebook() -> Any:
    """IPython's `display` in a notebook, else None."""
    try:
        from IPython import get_ipython  # pyright: ignore[reportMissingImports]
        from IPython.display import display  # pyright: ignore[reportMissingImports]
    except ImportError:
        return None
    shell = get_ipython()
    return display if shell is not None and "zmq" in type(shell).__module__ else None
