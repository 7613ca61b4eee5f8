"""The variance of a run's gradient against the batch size, measured (MegDet, arXiv:1711.07240, Eq. 2-4)."""

from __future__ import annotations

import csv
import dataclasses
import itertools
import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.progress import Progress
from torch import Tensor, nn

from .assembly import open_data, set_num_classes
from .config import Pretrained, build, from_json, set_tagged
from .data.loader import Loader
from .engine.checkpoint import load_weights
from .engine.placing import place, resolve_device
from .engine.precision import Precision, resolve_precision
from .engine.randomness import seed_all, undisturbed
from .engine.state import without_ids
from .engine.step import total_loss
from .errors import CheckpointError, ConfigError, MissingExtraError
from .evaluation.files import make_folder
from .evaluation.plots import COLORS, GRID, INK
from .labels import LabelMap
from .structures import Batch


@dataclass(frozen=True)
class GradientVariance:
    """Variance of the gradient of batches of several sizes, at fixed weights.

    The variance of a gradient vector is the sum over its elements. With independent images it falls as 1 over
    the batch size (MegDet, Eq. 3), which is what lets the learning rate grow with the batch (Eq. 4).

    Args:
        source: where the weights are from.
        images: batch sizes, ascending.
        groups: how many batches of each size there were; they share no image within an epoch.
        variance: of the gradient of each size, unbiased.
        mean_square: squared norm of the mean gradient over all images.
        parameters: elements of the gradient.
    """

    source: str
    images: tuple[int, ...]
    groups: tuple[int, ...]
    variance: tuple[float, ...]
    mean_square: float
    parameters: int

    @property
    def predicted(self) -> tuple[float, ...]:
        """The linear prediction: the variance of the smallest size, times that size, over each size."""
        return tuple(self.variance[0] * self.images[0] / size for size in self.images)

    @property
    def ratios(self) -> tuple[float, ...]:
        """The measured variance as a share of the predicted one; 1 where the rule holds."""
        pairs = zip(self.variance, self.predicted, strict=True)
        return tuple(measured / predicted if predicted else 1.0 for measured, predicted in pairs)

    def rows(self) -> list[dict[str, float]]:
        """One row for each batch size."""
        names = ("images", "groups", "variance", "predicted", "ratio")
        columns = (self.images, self.groups, self.variance, self.predicted, self.ratios)
        return [dict(zip(names, row, strict=True)) for row in zip(*columns, strict=True)]

    def write(self, path: str | os.PathLike[str]) -> Path:
        """Write the plot as PNG, and beside it the numbers under the same name as `.csv` and `.json`.

        Raises:
            MissingExtraError: there is no matplotlib.
        """
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        rows = self.rows()
        with path.with_suffix(".csv").open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
        content = {**dataclasses.asdict(self), "predicted": self.predicted, "ratios": self.ratios}
        path.with_suffix(".json").write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
        return plot_variance(self, path)

    def __str__(self) -> str:
        lines = ["images  batches   variance  predicted  ratio"]
        for row in self.rows():
            lines.append(
                f"{row['images']:>6}  {row['groups']:>7}  {row['variance']:>9.3e}  {row['predicted']:>9.3e}"
                f"  {row['ratio']:>5.2f}"
            )
        return "\n".join(lines)


def gradient_variance(
    source: str | os.PathLike[str],
    data: Any = None,
    *,
    batches: int = 64,
    images: int = 1,
    device: str | torch.device = "auto",
    workers: int | None = None,
    seed: int = 0,
    out: str | os.PathLike[str] | None = None,
    progress: bool = True,
    trust: Sequence[str] = (),
) -> GradientVariance:
    """Measure how the variance of a run's gradient falls with the batch size.

    The weights of the run look at `batches` batches of its training data, transformed as in training. Nothing
    is updated. Gradients of disjoint batches are averaged to those of twice the size, and so on: no more than
    one gradient for each size is held at a time. Losses and norms see `images` images at once, as with
    `accumulate`.

    Args:
        source: a run (its best checkpoint), one of its checkpoints, or a `.safetensors` file of its.
        data: data set or its folder; None for the run's own.
        batches: gradients to compute, a power of two from 4 on.
        images: of each gradient, the smallest batch size.
        device: where to compute.
        workers: loader processes; None for what the experiment says.
        seed: of order, augmentation and samplers.
        out: PNG file; the numbers come beside it as CSV and JSON.
        progress: show a progress bar.
        trust: modules of your own that the run's configuration may name.

    Raises:
        ConfigError: a number is out of range.
        CheckpointError: there are no weights with their experiment.
        DataError: the data cannot be trained on.
        MissingExtraError: `out` is given and there is no matplotlib.
    """
    if batches < 4 or batches & (batches - 1) or images < 1:
        raise ConfigError(
            f"gradient_variance: batches={batches} must be a power of two from 4 on, and images={images} at "
            "least 1"
        )
    if out is not None:  # what is missing is said before the work
        known = _figure().canvas.get_supported_filetypes()
        if Path(out).suffix.lstrip(".").lower() not in known:
            raise ConfigError(f"out={out}: a picture is written there; end its name in .png")
        make_folder(Path(out).parent)
    place_on = resolve_device(device)
    model, config = _trained(Path(source), trust)
    opened = open_data(config.data if data is None else data)
    loader = Loader(
        opened.train,
        build(config.train_transforms),
        build(config.canvas),
        images,
        config.workers if workers is None else workers,
        seed,
        with_masks="segm" in config.metrics,
    )
    precision = resolve_precision(config.precision, place_on)
    model.to(place_on).train()
    with undisturbed(place_on), Progress(disable=not progress, transient=True) as bar:
        seed_all(seed)
        task = bar.add_task("gradients", total=batches)
        tree = Halves()
        for batch in itertools.islice(_endless(loader), batches):
            tree.add(gradient(model, place(batch, place_on, precision.channels_last), precision))
            bar.advance(task)
    variance, groups, mean_square = tree.variances()
    sizes = tuple(images * 2**level for level in range(len(variance)))
    found = GradientVariance(
        str(source),
        sizes,
        groups,
        variance,
        mean_square,
        sum(p.numel() for p in model.parameters() if p.requires_grad),
    )
    if out is not None:
        found.write(out)
    return found


def gradient(model: nn.Module, batch: Batch, precision: Precision) -> list[Tensor]:
    """The gradient of a model's loss, one tensor for each trainable parameter; buffers stay as they were."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    buffers = [(buffer, buffer.clone()) for buffer in model.buffers()]
    with precision.autocast(batch.images.device):
        loss = total_loss(model(without_ids(batch)))
    found = torch.autograd.grad(loss, parameters, allow_unused=True)
    for buffer, before in buffers:
        buffer.copy_(before)
    return [torch.zeros_like(p) if g is None else g for p, g in zip(parameters, found, strict=True)]


def plot_variance(found: GradientVariance, path: str | os.PathLike[str]) -> Path:
    """Both axes logarithmic: the measured variance as points, the linear prediction as a line.

    Args:
        found: what was measured.
        path: PNG file.
    """
    figure = _figure()
    axes = figure.subplots()
    axes.loglog(found.images, found.predicted, color=INK, ls="--", lw=1.4, label="1 / batch size")
    axes.loglog(found.images, found.variance, color=COLORS[0], marker="o", lw=1.8, label="measured")
    axes.set_xticks(found.images, [str(size) for size in found.images])
    axes.minorticks_off()
    axes.set(xlabel="images of a batch", ylabel="variance of the gradient")
    axes.set_title(
        f"Gradient variance: {found.ratios[-1]:.2f} of the prediction at {found.images[-1]}", loc="left"
    )
    axes.grid(color=GRID, lw=0.8)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    figure.savefig(path, dpi=144, facecolor="white")
    return Path(path)


class Halves:
    """Variances of the means of 1, 2, 4, ... vectors out of a stream, holding one vector for each size.

    Two vectors a and b of one size become their mean c, of the next size. About any point m,
    |a - m|^2 + |b - m|^2 = |a - b|^2 / 2 + 2 |c - m|^2, so the squared deviations of a size follow from the
    differences of its pairs and the deviations of the next size. No large numbers are subtracted.
    """

    def __init__(self) -> None:
        self.waiting: list[list[Tensor] | None] = []
        self.differences: list[float] = []  # sum of |a - b|^2 over the pairs of each size
        self.counts: list[int] = []

    def add(self, vector: list[Tensor]) -> None:
        """Take in one vector, given in pieces; it is overwritten."""
        for level in itertools.count():
            if level == len(self.waiting):
                self.waiting.append(None)
                self.differences.append(0.0)
                self.counts.append(0)
            self.counts[level] += 1
            other = self.waiting[level]
            if other is None:
                self.waiting[level] = vector
                return
            self.waiting[level] = None
            self.differences[level] += squared_norm(list(torch._foreach_sub(other, vector)))
            torch._foreach_lerp_(vector, other, 0.5)

    def variances(self) -> tuple[tuple[float, ...], tuple[int, ...], float]:
        """Unbiased variance and number of vectors of each size, and the squared norm of the mean of all.

        There have to be 2, 4, 8, ... vectors in all; the size of all of them has no variance.
        """
        top = self.waiting[-1]
        assert self.counts[-1] == 1, "the number of vectors is no power of two"
        assert top is not None
        deviation, found = 0.0, []
        for difference, count in zip(self.differences[-2::-1], self.counts[-2::-1], strict=True):
            deviation = difference / 2 + 2 * deviation
            found.append(deviation / (count - 1))
        return tuple(reversed(found)), tuple(self.counts[:-1]), squared_norm(top)


def squared_norm(vector: list[Tensor]) -> float:
    """The squared L2 norm of a vector in pieces, summed in float64."""
    return float(torch.stack(torch._foreach_norm(vector)).double().square().sum())


def _endless(loader: Loader) -> Iterator[Batch]:
    for epoch in itertools.count():
        loader.set_epoch(epoch)
        yield from loader


def _trained(source: Path, trust: Sequence[str]) -> tuple[nn.Module, Any]:
    """The model as it was trained, not its moving average, and its experiment."""
    weights, metadata = load_weights(source, ema=False)
    if "config" not in metadata or "label_map" not in metadata:
        raise CheckpointError(
            f"{source} holds weights without their experiment: give a run folder or one of its checkpoints"
        )
    config: Any = from_json(metadata["config"], trust)
    set_tagged(config, Pretrained, None)
    set_num_classes(config, len(LabelMap.from_json(metadata["label_map"])))
    model = build(config.model)
    model.load_state_dict(weights)
    return model, config


def _figure() -> Any:
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingExtraError("matplotlib", "plot", "plotting the variance") from error
    return Figure(figsize=(6.4, 4.8), layout="constrained")
