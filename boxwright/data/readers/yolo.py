"""YOLO text: a `.txt` for each image; a line is a class and a box or polygon, divided by the image's size."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path

import pyarrow as pa

from ...errors import DataError
from ...labels import LabelMap
from ..build import TableBuilder
from . import fields, yolo_files
from .fields import Request, Source, fail
from .names import has_key, read_names
from .yolo_files import NAME_FILES, Pairs

NAME = "yolo"
LOOKED_FOR = (
    "YOLO text: images/<split> with labels/<split>, <split>/images with <split>/labels, images with labels, "
    "or *.txt beside the images; splits also from data.yaml or <split>.txt that lists images; class names in "
    "classes.txt or data.yaml"
)
# Rounding and boxes over the edge go a little beyond 1; whoever writes pixels goes far beyond.
_LIMIT = 2.0


def find(root: Path, request: Request) -> dict[str, Source]:
    """Sources of the splits that the folder holds in this format; empty where there are none."""
    if request.annotations is None and request.images is None:
        found, notes = yolo_files.find_pairs(root)
    else:
        pairs = _requested(root, request)
        found, notes = {} if pairs is None else {"train": pairs}, ()
    sources = {split: _source(root, split, pairs) for split, pairs in found.items()}
    for split, source in list(sources.items())[:1]:
        sources[split] = dataclasses.replace(source, notes=(*source.notes, *notes))
    return sources


def _requested(root: Path, request: Request) -> Pairs | None:
    """Images and labels where the caller names the folder of one of them, or of both."""
    images, labels = request.images, request.annotations
    if labels is None and images is not None:
        choices = (root / "labels", root, images)
        return next((p for f in choices if (p := yolo_files.of_folders(images, f)) is not None), None)
    if labels is None or not labels.is_dir():
        return None
    return yolo_files.of_folder(labels) if images is None else yolo_files.of_folders(images, labels)


def explicit(root: Path, split: str, path: Path, request: Request) -> Source | None:
    """Source of a split for which the caller names a list or a folder; None if it does not fit."""
    if path.is_file():
        pairs = yolo_files.of_list(root, path) if path.suffix.lower() == ".txt" else None
    elif request.images is None and request.annotations is None:
        pairs = yolo_files.of_folder(path)
    else:
        pairs = yolo_files.of_folders(request.images or path, request.annotations or path)
    return None if pairs is None else _source(root, split, pairs)


def _source(root: Path, split: str, pairs: Pairs) -> Source:
    images, labels = pairs.folders
    base = root if images.is_relative_to(root) else images
    used = tuple(label for label in pairs.labels if label is not None)
    names = _find_names(root, images, labels)
    return Source(NAME, split, base, (names, *used), (images,), pairs.images, pairs.labels, notes=pairs.notes)


def _find_names(root: Path, images: Path, labels: Path) -> Path:
    """The file of class names.

    Raises:
        DataError: there is none, several disagree, or the labels are said to hold keypoints.
    """
    folders = dict.fromkeys((root, labels, labels.parent, images, images.parent))
    files = [folder / name for folder in folders for name in NAME_FILES if (folder / name).exists()]
    if not files:
        others = [*sorted(root.glob("*.names")), *sorted(root.glob("*.yaml")), *sorted(root.glob("*.yml"))]
        files = others if len(others) == 1 else []
    if not files:
        raise DataError(
            f"{root}: YOLO labels, but no file of class names; write classes.txt with one name a line in the "
            "order of their numbers, or data.yaml with `names:`"
        )
    if any(has_key(file, "kpt_shape") for file in files if file.suffix in (".yaml", ".yml")):
        raise DataError(
            f"{root}: the labels hold keypoints (`kpt_shape`), which are not read; keep the first five "
            "columns of each line (class, centre x, centre y, width, height) and remove `kpt_shape`"
        )
    names = read_names(files[0])
    other = next((file for file in files[1:] if _names_or(file, names) != names), None)
    if other is not None:
        shown = (", ".join(told[:5]) for told in (_names_or(other, names), names))
        raise DataError(
            f"{other}: names other classes ({next(shown)}) than {files[0]} ({next(shown)}); "
            "remove the file that is wrong"
        )
    return files[0]


def _names_or(path: Path, names: tuple[str, ...]) -> tuple[str, ...]:
    """Classes that a further file names; `names` where it names none that can be read."""
    try:
        return read_names(path)
    except DataError:
        return names


def read(source: Source) -> pa.Table:
    """Read the annotations of a split. An image without a label file has no objects.

    Raises:
        DataError: a line is not a box or polygon, or names are missing; names file, line and remedy.
    """
    names = read_names(source.annotations[0])
    builder = TableBuilder("line", LabelMap(names, tuple(range(len(names)))))
    for number, (image, path) in enumerate(zip(source.images, source.labels, strict=True), 1):
        file = image.relative_to(source.base).as_posix()
        size = fields.size_of(source.base, file, path or image, "")
        row = builder.image(number, file, *size, fields.relative(path or image, source))
        if path is not None:
            _add_objects(builder, row, path)
    return builder.finish([fields.relative(p, source) for p in source.annotations], size_files=True)


def _add_objects(builder: TableBuilder, row: int, path: Path) -> None:
    try:
        content = path.read_bytes()
    except OSError as error:
        fail(path, "", f"cannot be read ({error.strerror or error})", "write the labels again")
    width, height = builder.widths[row], builder.heights[row]
    for number, line in enumerate(fields.decode_text(path, content, may_be_empty=True).splitlines(), 1):
        if not line.strip():
            continue
        record = f"line {number}"
        label, values = _values(builder, line.split(), path, record)
        if len(values) == 4:
            x, y, w, h = values
            box = ((x - w / 2) * width, (y - h / 2) * height, (x + w / 2) * width, (y + h / 2) * height)
            builder.object(row, number, label, box)
        else:
            ring = [v * (height if i % 2 else width) for i, v in enumerate(values)]
            builder.object(row, number, label, None, mask=[ring])


def _values(builder: TableBuilder, words: list[str], path: Path, record: str) -> tuple[int, list[float]]:
    try:
        numbers = [float(word) for word in words]
    except ValueError as error:
        fail(path, record, f"must hold numbers only ({error})", "write the class number and the coordinates")
    count, values = len(numbers) - 1, numbers[1:]
    if count != 4 and (count < 6 or count % 2):
        fail(
            path,
            record,
            f"has {len(words)} columns; a box has 5 (class, centre x, centre y, width, height), a polygon an "
            "odd number from 7 (class, x1, y1, ...)",
            "correct the line",
        )
    assert builder.label_map is not None
    label = numbers[0]
    if not label.is_integer() or not 0 <= label < len(builder.label_map):
        last = len(builder.label_map) - 1
        fail(
            path,
            record,
            f"class {words[0]} is not one of 0 to {last}",
            "correct it or add its name to the classes",
        )
    if any(math.isfinite(v) and abs(v) > _LIMIT for v in values):
        fail(
            path,
            record,
            "coordinates far beyond 1",
            "divide x and width by the image's width, y and height by its height",
        )
    return int(label), values
