"""YOLO text: a `.txt` for each image; a line is a class and a box or polygon, divided by the image's size."""

from __future__ import annotations

import math
from pathlib import Path

import pyarrow as pa

from ...errors import DataError
from ...labels import LabelMap
from ..build import TableBuilder
from . import fields
from .fields import Request, Source, fail
from .names import read_names

NAME = "yolo"
LOOKED_FOR = (
    "YOLO text: images/<split> with labels/<split>, <split>/images with <split>/labels, images with labels, "
    "or *.txt beside the images; class names in classes.txt or data.yaml"
)
_NAME_FILES = (
    "classes.txt",
    "obj.names",
    "names.txt",
    "data.yaml",
    "data.yml",
    "dataset.yaml",
    "dataset.yml",
)
# Rounding and boxes over the edge go a little beyond 1; whoever writes pixels goes far beyond.
_LIMIT = 2.0


def find(root: Path, request: Request) -> dict[str, Source]:
    """Sources of the splits that the folder holds in this format; empty where there are none."""
    if request.annotations is not None:
        images = request.images or _images_of(request.annotations)
        pairs = {"train": (images, request.annotations)} if request.annotations.is_dir() else {}
    else:
        pairs = _pairs(root)
    pairs = {s: (images, labels) for s, (images, labels) in pairs.items() if _fits(images, labels)}
    return {split: _source(root, split, *pair) for split, pair in pairs.items()}


def _pairs(root: Path) -> dict[str, tuple[Path, Path]]:
    """Image and label folders by split."""
    pairs: dict[str, tuple[Path, Path]] = {}
    for parent in (root / "images", root):
        for child in sorted(parent.iterdir()) if parent.is_dir() else []:
            split = fields.split_of(child.name) if child.is_dir() else None
            if split is None:
                continue
            if parent != root:
                pairs.setdefault(split, (child, root / "labels" / child.name))
            elif (child / "labels").is_dir():
                pairs.setdefault(split, (child / "images", child / "labels"))
            else:
                pairs.setdefault(split, (child, child))
    if any(_fits(*pair) for pair in pairs.values()):
        return pairs
    for images, labels in (
        (root / "images", root / "labels"),
        (root / "images", root / "images"),
        (root, root),
    ):
        if _fits(images, labels):
            return {"train": (images, labels)}
    return {}


def _images_of(labels: Path) -> Path:
    """The image folder beside a label folder: the last `labels` in its path becomes `images`."""
    parts = list(labels.parts)
    for place in reversed(range(len(parts))):
        if parts[place] == "labels":
            other = Path(*parts[:place], "images", *parts[place + 1 :])
            return other if other.is_dir() else labels
    return labels


def _fits(images: Path, labels: Path) -> bool:
    if not images.is_dir() or not labels.is_dir():
        return False
    stems = {p.stem for p in fields.list_images(images)}
    return any(p.stem in stems for p in labels.glob("*.txt"))


def explicit(root: Path, split: str, path: Path, request: Request) -> Source | None:
    """Source of a split for which the caller names a folder of images or labels; None if it does not fit."""
    if not path.is_dir():
        return None
    swapped = Path(*("labels" if part == "images" else part for part in path.parts))
    candidates = [(path / "images", path / "labels"), (path, swapped), (_images_of(path), path), (path, path)]
    pair = next((p for p in candidates if _fits(request.images or p[0], request.annotations or p[1])), None)
    return (
        None
        if pair is None
        else _source(root, split, request.images or pair[0], request.annotations or pair[1])
    )


def _source(root: Path, split: str, images: Path, labels: Path) -> Source:
    base = root if images.is_relative_to(root) else images
    listed = fields.list_images(images)
    stems = {p.stem for p in listed}
    files = {p.stem: p for p in sorted(labels.glob("*.txt")) if p.name not in _NAME_FILES}
    alone = [p for stem, p in files.items() if stem not in stems]
    notes = (
        (f"{len(alone)} label files without an image were left out, {alone[0].name} first",) if alone else ()
    )
    names = _find_names(root, images, labels)
    used = tuple(path for stem, path in files.items() if stem in stems)
    return Source(NAME, split, base, (names, *used), (images,), tuple(listed), notes=notes)


def _find_names(root: Path, images: Path, labels: Path) -> Path:
    for folder in dict.fromkeys((root, labels, labels.parent, images, images.parent)):
        for name in _NAME_FILES:
            if (folder / name).exists():
                return folder / name
    others = [*sorted(root.glob("*.names")), *sorted(root.glob("*.yaml")), *sorted(root.glob("*.yml"))]
    if len(others) == 1:
        return others[0]
    raise DataError(
        f"{root}: YOLO labels, but no file of class names; write classes.txt with one name a line in the "
        "order of their numbers, or data.yaml with `names:`"
    )


def read(source: Source) -> pa.Table:
    """Read the annotations of a split. An image without a label file has no objects.

    Raises:
        DataError: a line is not a box or polygon, or names are missing; names file, line and remedy.
    """
    names = read_names(source.annotations[0])
    builder = TableBuilder("line", LabelMap(names, tuple(range(len(names)))))
    labels = {path.stem: path for path in source.annotations[1:]}
    for number, image in enumerate(source.images, 1):
        path = labels.get(image.stem)
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
