"""Light JSON: one line for each image, easy to write from any script (docs/data_formats.md)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa

from ...errors import DataError
from ...labels import LabelMap
from ..build import TableBuilder
from ..masks import Mask, compress_counts
from . import fields
from .fields import Request, Source, fail

NAME = "light"
LOOKED_FOR = (
    "light JSON: <split>.jsonl, <split>/annotations.jsonl, or one other .jsonl, here or in annotations/"
)
_IMAGE_KEYS = {"image", "width", "height", "objects", "id"}
_OBJECT_KEYS = {"label", "box", "polygons", "rle", "ignore", "id", "area"}


def find(root: Path, request: Request) -> dict[str, Source]:
    """Sources of the splits that the folder holds in this format; empty where there are none."""
    if request.annotations is not None:
        path = request.annotations
        paths = (
            [path]
            if path.suffix.lower() == ".jsonl"
            else sorted(path.glob("*.jsonl"))
            if path.is_dir()
            else []
        )
    else:
        folders = [root, root / "annotations", *(root / s for s in ("train", "val", "valid", "test"))]
        paths = [p for f in folders if f.is_dir() for p in sorted(f.glob("*.jsonl"))]
    found: dict[str, Path] = {}
    for path in paths:
        split = fields.split_of(path.stem) or fields.split_of(path.parent.name)
        if split is not None and split in found:
            raise DataError(
                f"{found[split]} and {path} could both be the split {split!r}; name one with {split}="
            )
        if split is not None:
            found[split] = path
    if not found and len(paths) > 1:
        raise DataError(
            f"several light JSON files: {', '.join(map(str, paths))}; name one with annotations= or train="
        )
    if not found and paths:
        found["train"] = paths[0]
    return {split: _source(root, split, path, request) for split, path in found.items()}


def explicit(root: Path, split: str, path: Path, request: Request) -> Source | None:
    """Source of a split for which the caller names a file; None if it is not of this format."""
    fits = path.is_file() and path.suffix.lower() == ".jsonl"
    return _source(root, split, path, request) if fits else None


def _source(root: Path, split: str, path: Path, request: Request) -> Source:
    return Source(NAME, split, *fields.image_folders(root, split, path, request))


def read(source: Source) -> pa.Table:
    """Read the annotations of a split.

    Raises:
        DataError: a line is not as documented; names file, line and remedy.
    """
    path = source.annotations[0]
    lines = fields.decode_text(path, fields.read_bytes(path)).split("\n")
    entries = [
        (number, fields.mapping(fields.parse_json(path, line, number), path, f"line {number}"))
        for number, line in enumerate(lines, 1)
        if line.strip()
    ]
    label_map = None
    if "classes" in entries[0][1]:
        label_map = _classes(entries.pop(0)[1], path)
    names = [fields.text(entry, "image", path, f"line {number}") for number, entry in entries]
    folder, resolved = fields.choose_dir(source, names)
    builder = TableBuilder("object", label_map)
    measured, seen = False, {}
    for (number, entry), name in zip(entries, names, strict=True):
        record = f"line {number}"
        _known(entry, _IMAGE_KEYS, path, record)
        file = fields.inside(source.base, folder, name, path, record)
        ident = fields.whole(entry, "id", path, record) if "id" in entry else number
        for what, key in (("image", file), ("id", ident)):
            if (what, key) in seen:
                fail(
                    path,
                    record,
                    f"{what} {key!r} stands in line {seen[what, key]} too",
                    "write one line for each image",
                )
            seen[what, key] = number
        if entry.get("width") is None or entry.get("height") is None:
            size, measured = fields.size_of(source.base, file, path, record), True
        else:
            size = fields.whole(entry, "width", path, record), fields.whole(entry, "height", path, record)
        row = builder.image(
            ident, file, *fields.check_size(*size, path, record), f"{path.name}: line {number}"
        )
        for place, item in enumerate(
            fields.sequence(entry, "objects", path, record) if "objects" in entry else []
        ):
            _add_object(builder, row, place, item, path, f"{record}: objects[{place}]")
    return builder.finish(
        [fields.relative(path, source)], size_files=measured, unresolved=[] if resolved else names[:20]
    )


def _classes(entry: dict[str, Any], path: Path) -> LabelMap:
    _known(entry, {"classes"}, path, "line 1")
    names = fields.sequence(entry, "classes", path, "line 1")
    for name in names:
        if not isinstance(name, str) or not name.strip():
            fail(path, "line 1", f"`classes` must hold names, found {name!r}", "write each class as text")
        fields.encodable(name, "classes", path, "line 1")
    if not names or len(set(names)) < len(names):
        fail(path, "line 1", "`classes` is empty or names a class twice", "write each class once")
    return LabelMap(tuple(names))


def _known(entry: dict[str, Any], keys: set[str], path: Path, record: str) -> None:
    unknown = sorted(entry.keys() - keys)
    if unknown:
        fail(path, record, f"unknown key {unknown[0]!r}", f"the keys are: {', '.join(sorted(keys))}")


def _add_object(builder: TableBuilder, row: int, place: int, item: Any, path: Path, record: str) -> None:
    item = fields.mapping(item, path, record)
    _known(item, _OBJECT_KEYS, path, record)
    name = fields.text(item, "label", path, record)
    if builder.label_map is None:
        label = builder.label(name)
    elif name in builder.label_map.names:
        label = builder.label_map.names.index(name)
    else:
        fail(path, record, f"label {name!r} is not among `classes` of line 1", "add it there or correct it")
    mask = _mask(item, builder.heights[row], builder.widths[row], path, record)
    box = None if item.get("box") is None else fields.numbers(item["box"], "`box`", 4, path, record)
    if box is None and not mask:
        fail(path, record, "has no `box`, `polygons` or `rle`", 'add "box": [x1, y1, x2, y2]')
    ignore = fields.flag(item.get("ignore", False), "`ignore`", path, record)
    area = None if item.get("area") is None else fields.numbers([item["area"]], "`area`", 1, path, record)[0]
    ident = fields.whole(item, "id", path, record) if "id" in item else 0
    builder.object(row, place, label, box, ignore, mask, area, ident)


def _mask(item: dict[str, Any], height: int, width: int, path: Path, record: str) -> Mask | None:
    if item.get("rle") is not None and item.get("polygons"):
        fail(path, record, "has both `polygons` and `rle`", "keep one of them")
    if item.get("rle") is not None:
        value = fields.mapping(item["rle"], path, f"{record}: `rle`")
        try:
            counts = compress_counts(value.get("counts"), value.get("size"), height, width)
        except DataError as error:
            fail(path, record, str(error), "write the mask again from its bitmap")
        return {"size": [height, width], "counts": counts}
    if item.get("polygons") is None:
        return None
    rings = fields.sequence(item, "polygons", path, record)
    return [fields.numbers(ring, f"`polygons`[{i}]", None, path, record) for i, ring in enumerate(rings)]
