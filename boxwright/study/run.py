"""The study itself: it trains and measures one variant after the other, and goes on where it was stopped."""

from __future__ import annotations

import gc
import os
import signal
import traceback
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path
from types import FrameType
from typing import Any

import fiddle as fdl
import torch

from .. import api, distributed
from ..assembly import open_data
from ..config import clone, named_modules, read_config
from ..config.describe import argument
from ..data import Data
from ..engine.folder import TRACES, run_folder
from ..engine.messages import on_main
from ..engine.placing import resolve_device
from ..engine.signals import stop_signals
from ..engine.trainer import TrainingInterrupted
from ..errors import BoxwrightError, ConfigError
from ..evaluation.files import write_text
from ..report import read_metrics
from .book import RUNS, Book, begun
from .plan import Planned, Variant, parse_grid, parse_variant, plan, ready_made
from .progress import StudyProgress
from .protocol import about, epochs_within, forget_peak, seconds_per_image, training_time, with_epochs
from .request import Request, Variants, as_text, grid_texts, variants_of
from .rows import STUDY, Row, read_study


@dataclass(frozen=True)
class Options:
    """What holds for every run, and how it is done.

    Args:
        out: the study's folder.
        device: where to train.
        minutes: of training, where that is the budget.
        split: what to measure on, or None for `test`, else the split of the validations.
        check: look through the data before the first run.
        report: write the report of each run.
    """

    out: Path
    device: torch.device
    minutes: float | None
    split: str | None
    check: bool
    report: bool


def study(
    variants: Variants = (),
    *,
    out: str | os.PathLike[str],
    named: str | None = None,
    data: Data | fdl.Buildable | str | os.PathLike[str] | None = None,
    overrides: Sequence[str] = (),
    vary: Mapping[str, Sequence[Any]] | Sequence[str] = (),
    weights: str | os.PathLike[str] | None = None,
    seeds: int = 1,
    minutes: float | None = None,
    split: str | None = None,
    device: str | torch.device = "auto",
    console: bool = True,
    check: bool = True,
    report: bool = True,
) -> list[Row]:
    """Train variants with one budget, measure each, and make a table and pictures of it.

    Called again with the same `out`, it goes on: finished runs are not repeated, a run that was stopped goes
    on at its newest checkpoint, a failed one is tried again. With neither `variants` nor `named` it goes on
    with what `study.json` says. A variant that fails does not stop the others. Under `torchrun` every process
    calls this; there a failure does end the study, since the others could not know of it.

    Args:
        variants: recipes by name, each with overrides behind a colon ("fcos_mnv2_320:optimizer.lr=0.01"), or
            `Variant`s; or a mapping from names to these or to descriptions that recipes return.
        out: folder for `study.json`, `rows.csv`, `table.md`, `study.html`, `plots/`, and `runs/`.
        named: a ready-made list: "methods" (every small recipe; those of masks are left out where the data
            has none) or "dynamic_rcnn".
        data: data set or its folder, for all; None for what the descriptions and overrides say.
        overrides: assignments for all, such as "epochs=6".
        vary: values by path, each combination a variant of its own: `{"model.backbone.depth": [50, 101]}`.
            Paths joined by "+" take the same value.
        weights: what every part that begins from pretrained weights takes instead of its own.
        seeds: runs of each variant, with seeds that count on from the recipe's.
        minutes: time for the training steps of each run: its pace is measured first and gives its epochs, and
            the milestones of its schedule move in proportion. None for the epochs that are set.
        split: what to measure on; None for `test`, or else what validations run on.
        device: "auto", "cpu", "cuda", ...
        console: show progress.
        check: look through the data before the first run.
        report: write `report.html` of each run too.

    Returns:
        A row for each run, those of this call first, failed ones among them (see `Row.status`).

    Raises:
        ConfigError: a variant or an assignment is wrong, or `out` holds runs with other settings.
        DataError: the data set cannot be opened, or `study.json` is damaged.
        TrainingError: another process works in `out`, or a signal stopped the study.
    """
    out, place = Path(out), resolve_device(device)
    if (out / "config.json").exists():
        raise ConfigError(f"{out} is the folder of a run, not of a study: choose another out")
    joins = not (torch.distributed.is_available() and torch.distributed.is_initialized())
    distributed.start(place)
    try:
        if not variants and named is None:
            request = on_main(lambda: _asked_before(out))
            changed = {"data": data, "weights": weights, "minutes": minutes, "split": split}
            said = [f"{name}={value}" for name, value in changed.items() if value is not None]
            said += [f"seeds={seeds}"] if seeds != 1 else []
            _refuse_changes(out, [*overrides, *grid_texts(vary), *said])
            given, data = [parse_variant(text) for text in request.variants], request.data
        else:
            given = variants_of(variants)
            texts = [as_text(variant) for variant in given]
            folder = data if isinstance(data, str | os.PathLike) else None
            request = Request(
                variants=tuple(text for text in texts if text is not None),
                complete=None not in texts and data is folder,
                named=named,
                data=None if folder is None else str(folder),
                overrides=tuple(overrides),
                vary=grid_texts(vary),
                weights=None if weights is None else str(weights),
                seeds=seeds,
                minutes=minutes,
                split=split,
            )
        options = Options(out, place, request.minutes, request.split, check, report)
        return _study(request, given, data, options, console)
    finally:
        if joins:
            distributed.stop()


def _study(
    request: Request, given: Sequence[Variant], data: Any, options: Options, console: bool
) -> list[Row]:
    """All runs of a request; what can be wrong in its words is found before the first."""
    planned = plan(
        [*given, *(ready_made(request.named) if request.named is not None else ())],
        parse_grid(request.vary),
        data=data,
        overrides=request.overrides,
        weights=request.weights,
        seeds=request.seeds,
        minutes=request.minutes,
    )
    on_main(lambda: open_data(planned[0].config.data))
    with run_folder(options.out, resume=True), _stoppable():
        book = Book(options.out, request, planned)
        if request.named is not None:
            book.leave_out_masks(planned)
        _run_all(planned, book, options, console)
        return book.rows


def _run_all(planned: Sequence[Planned], book: Book, options: Options, console: bool) -> None:
    """Every run that has not ended yet."""
    waiting = [(number, run) for number, run in enumerate(planned, 1) if not book.ended(run)]
    several = len({run.seed for run in planned}) > 1
    checked: set[str] = set()
    place = "before its first run"
    with StudyProgress(len(planned), len(planned) - len(waiting), console) as progress:
        try:
            for number, run in waiting:
                progress.begin(number, f"{run.variant}, seed {run.seed}" if several else run.variant)
                place = f"in run {progress.place}"
                book.put(begun(run))
                row = _attempt(run, options, progress, checked)
                book.put(row)
                progress.end(_told(row))
        except TrainingInterrupted as error:
            raise TrainingInterrupted(
                f"the study was stopped by {error.signal} {place}; the same command goes on with it",
                error.signal,
            ) from error
        finally:
            book.publish()


def _attempt(run: Planned, options: Options, progress: StudyProgress, checked: set[str]) -> Row:
    """One run, trained and measured, or what kept it from that."""
    try:
        return _train(run, options, progress, checked)
    except TrainingInterrupted:
        raise
    except Exception as error:
        if distributed.is_distributed():
            raise
        told = traceback.format_exc()
        write_text(options.out / RUNS / run.folder / "error.txt", told)
        kind = "" if isinstance(error, BoxwrightError) else f"{type(error).__name__}: "
        said = "; ".join([f"{kind}{error}", *getattr(error, "__notes__", ())])
        return replace(begun(run), status="failed", error=said)
    finally:
        gc.collect()


def _train(run: Planned, options: Options, progress: StudyProgress, checked: set[str]) -> Row:
    """Train one run, or go on with it, and measure its best checkpoint."""
    folder, device = options.out / RUNS / run.folder, options.device
    resume = any((folder / name).exists() for name in TRACES)
    config = clone(run.config)
    if options.minutes is not None:
        config = _within(config, folder, options, resume)
    looked = str(config.data)
    fresh = forget_peak(device)
    trained = api.train(
        config,  # pyright: ignore[reportArgumentType]
        folder,
        resume,
        device=device,
        console=False,
        check=options.check and looked not in checked,
        report=options.report,
        hooks=(progress,),
    )
    checked.add(looked)
    progress.measure()
    detector = api.load(folder, device=device, trust=named_modules(config))
    opened = open_data(config.data)
    split = options.split or ("test" if opened.test is not None else trained.metrics.split)
    metrics = trained.metrics
    if split and split != metrics.split:
        metrics = api.evaluate(detector, opened, split, device=device, out=folder / split, progress=False)
    timed = opened.split(split) if split else opened.train
    lines = read_metrics(folder / "metrics.jsonl")
    figures: dict[str, Any] = training_time(lines, argument(config, "batch_size"))
    memory = figures.get("memory_mb") if fresh else None
    return replace(
        begun(run),
        status="finished",
        split=split,
        metrics=dict(metrics),
        parameters=sum(p.numel() for p in detector.model.parameters()),
        seconds_per_image=on_main(lambda: seconds_per_image(detector, timed)),
        about=about(device, detector.precision.name),
        **{**figures, "memory_mb": memory or None},
    )


def _within(config: fdl.Buildable, folder: Path, options: Options, resume: bool) -> fdl.Buildable:
    """The description with as many epochs as the minutes allow; a begun run keeps those that it has."""
    kept = folder / "config.json"
    if resume and kept.is_file():
        return with_epochs(config, read_config(kept, named_modules(config)).epochs)
    options.out.mkdir(parents=True, exist_ok=True)
    assert options.minutes is not None
    return with_epochs(config, epochs_within(config, options.minutes, options.out, options.device))


def _asked_before(out: Path) -> Request:
    """What a study's folder was asked for.

    Raises:
        ConfigError: there is no study, or words alone do not make it again.
    """
    request, _ = read_study(out)
    if request is None:
        raise ConfigError(f"{out / STUDY} does not exist: name the variants of a new study")
    request.check_can_go_on(out)
    return request


def _refuse_changes(out: Path, changes: Sequence[str]) -> None:
    """A study that goes on by its folder alone is what that says.

    Raises:
        ConfigError: something else is asked for besides.
    """
    if changes:
        raise ConfigError(
            f"{', '.join(changes)}: a study whose variants are not named goes on with what {out / STUDY} "
            "says; to change that, name them again"
        )


def _told(row: Row) -> str:
    """One line on a run that has ended."""
    if row.status != "finished":
        return f"{row.status}: {row.error}"
    key, value = next(iter(row.metrics.items()), ("", 0.0))
    measured = f"{key} {value:.3f} on {row.split}, " if key else ""
    return f"{measured}{row.minutes or 0.0:.1f} min of training"


def _stoppable() -> AbstractContextManager[None]:
    """SIGINT and SIGTERM between trainings stop the study at once; within one, after its step."""

    def handle(number: int, frame: FrameType | None) -> None:
        name = signal.Signals(number).name
        raise TrainingInterrupted(f"stopped by {name}", name)

    return stop_signals(handle)
