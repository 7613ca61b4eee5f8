"""Counts and histograms of a data set, as numbers and as text for the terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from .dataset import Data
from .table import Table

# COCO's bounds of small, medium and large objects, in square pixels.
SMALL, LARGE = 32.0**2, 96.0**2
SIZE_EDGES = (0.0, 8.0, 16.0, 32.0, 64.0, 96.0, 128.0, 256.0, 512.0, np.inf)
ASPECT_EDGES = (0.0, 0.25, 0.5, 0.75, 1.0, 4 / 3, 2.0, 4.0, np.inf)


@dataclass(frozen=True)
class SplitStatistics:
    """Numbers of one split; ignore regions count in `ignore` alone.

    Args:
        images: number of images.
        images_without_objects: of these.
        objects: number of objects.
        ignore: number of ignore regions.
        per_class: objects of each class, in the order of the labels.
        small: objects below 32 x 32 px in area.
        medium: objects from there to 96 x 96 px.
        large: objects of 96 x 96 px and more.
        sizes: objects by square root of their area in px, between neighbouring `SIZE_EDGES`.
        aspects: objects by width / height, between neighbouring `ASPECT_EDGES`.
        per_image: mean and maximum of objects in an image.
        image_sizes: smallest and largest width, smallest and largest height, in px.
    """

    images: int
    images_without_objects: int
    objects: int
    ignore: int
    per_class: tuple[int, ...]
    small: int
    medium: int
    large: int
    sizes: tuple[int, ...]
    aspects: tuple[int, ...]
    per_image: tuple[float, int]
    image_sizes: tuple[int, int, int, int]


@dataclass(frozen=True)
class Statistics:
    """Numbers of all splits. `rich.print(statistics)` shows tables and histograms."""

    names: tuple[str, ...]
    splits: Mapping[str, SplitStatistics]

    def __rich__(self) -> Any:
        from rich.console import Group

        return Group(self._overview(), self._classes(), *self._histograms())

    def _overview(self) -> Any:
        from rich.table import Table as RichTable

        columns = ("split", "images", "objects", "ignore", "S / M / L", "per image", "width", "height")
        grid = RichTable(*columns, title="Splits (in brackets: images without objects; S < 32², L ≥ 96² px)")
        for name, s in self.splits.items():
            w1, w2, h1, h2 = s.image_sizes
            areas = f"{s.small} / {s.medium} / {s.large}"
            mean = f"{s.per_image[0]:.1f}, max {s.per_image[1]}"
            images = f"{s.images} ({s.images_without_objects})"
            grid.add_row(name, images, str(s.objects), str(s.ignore), areas, mean, f"{w1}-{w2}", f"{h1}-{h2}")
        return grid

    def _classes(self) -> Any:
        from rich.table import Table as RichTable
        from rich.text import Text

        grid = RichTable("label", "class", *self.splits, "", title="Objects of each class")
        totals = [sum(s.per_class[i] for s in self.splits.values()) for i in range(len(self.names))]
        for i, name in enumerate(self.names):
            counts = [str(s.per_class[i]) for s in self.splits.values()]
            grid.add_row(str(i), Text(name), *counts, bar(totals[i], max(totals, default=0)))
        return grid

    def _histograms(self) -> list[Any]:
        from rich.table import Table as RichTable

        grids = []
        for title, edges, field in (
            ("Size, square root of area (px)", SIZE_EDGES, "sizes"),
            ("Aspect, width / height", ASPECT_EDGES, "aspects"),
        ):
            grid = RichTable("from", "to", *self.splits, "", title=title)
            rows = list(zip(*(getattr(s, field) for s in self.splits.values()), strict=True))
            most = max((sum(row) for row in rows), default=0)
            for low, high, row in zip(edges[:-1], edges[1:], rows, strict=True):
                grid.add_row(f"{low:.3g}", f"{high:.3g}", *map(str, row), bar(sum(row), most))
            grids.append(grid)
        return grids


def bar(value: float, most: float, width: int = 30) -> str:
    """A bar of text, `width` characters for `most`."""
    eighths = round(8 * width * value / most) if most > 0 else 0
    return "█" * (eighths // 8) + " ▏▎▍▌▋▊▉"[eighths % 8].strip()


def statistics(data: Data) -> Statistics:
    """Count images, objects, classes, sizes and aspects of every split."""
    return Statistics(data.label_map.names, {name: _split(table) for name, table in data.splits.items()})


def _split(table: Table) -> SplitStatistics:
    flat = table.objects()
    real = ~flat.ignore
    sides = flat.boxes[real, 2:] - flat.boxes[real, :2]
    areas = flat.areas[real]
    counts = np.bincount(flat.row[real], minlength=len(table))
    widths, heights = table.widths, table.heights
    small, large = int((areas < SMALL).sum()), int((areas >= LARGE).sum())
    return SplitStatistics(
        images=len(table),
        images_without_objects=int((table.object_counts == 0).sum()),
        objects=int(real.sum()),
        ignore=int(flat.ignore.sum()),
        per_class=tuple(np.bincount(flat.labels[real], minlength=len(table.label_map)).tolist()),
        small=small,
        medium=len(areas) - small - large,
        large=large,
        sizes=_histogram(np.sqrt(areas), SIZE_EDGES),
        aspects=_histogram(sides[:, 0] / sides[:, 1], ASPECT_EDGES),
        per_image=(float(counts.mean()), int(counts.max())),
        image_sizes=(int(widths.min()), int(widths.max()), int(heights.min()), int(heights.max())),
    )


def _histogram(values: np.ndarray, edges: Sequence[float]) -> tuple[int, ...]:
    places = np.searchsorted(edges, values, side="right") - 1
    return tuple(np.bincount(places, minlength=len(edges) - 1).tolist())
