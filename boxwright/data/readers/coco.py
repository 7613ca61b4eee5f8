"""COCO JSON: boxes, polygons, compressed and uncompressed run lengths, crowd regions."""

from __future__ import annotations

import mmap
from pathlib import Path
from typing import Any

import pyarrow as pa

from ...errors import DataError
from ...labels import LabelMap
from ..build import TableBuilder
from ..masks import Mask, compress_counts
from . import fields
from .fields import Request, Source, fail

NAME = "coco"
LOOKED_FOR = (
    "COCO JSON: instances_<split>.json, <split>/_annotations.coco.json, <split>.json or one other .json with "
    "`images` and `annotations`, here or in annotations/"
)
_FOLDERS = ("", "annotations", "Annotations", "labels")


def find(root: Path, request: Request) -> dict[str, Source]:
    """Sources of the splits that the folder holds in this format; empty where there are none."""
    if request.annotations is not None:
        names = [request.annotations] if request.annotations.suffix.lower() == ".json" else []
        found = {fields.split_of(p.stem) or fields.split_of(p.parent.name) or "train": p for p in names}
    else:
        found = _search(root)
    return {split: _source(root, split, path, request) for split, path in found.items()}


def explicit(root: Path, split: str, path: Path, request: Request) -> Source | None:
    """Source of a split for which the caller names a file; None if it is not of this format."""
    fits = path.is_file() and path.suffix.lower() == ".json"
    return _source(root, split, path, request) if fits else None


def _search(root: Path) -> dict[str, Path]:
    found: dict[str, list[Path]] = {}
    unnamed: list[Path] = []
    folders = [root / name for name in _FOLDERS if (root / name).is_dir()]
    folders += [child for child in sorted(root.iterdir()) if child.is_dir() and fields.split_of(child.name)]
    for folder in dict.fromkeys(folders):
        for path in sorted(folder.glob("*.json")):
            split = fields.split_of(path.stem)
            if split is None and path.name in ("_annotations.coco.json", "annotations.json", "labels.json"):
                split = fields.split_of(folder.name)
            if not _looks_like_coco(path):
                continue
            if split is None:
                unnamed.append(path)
            else:
                found.setdefault(split, []).append(path)
    if not found and unnamed:
        _single(unnamed, "train")
        return {"train": unnamed[0]}
    return {split: _single(paths, split) for split, paths in found.items()}


def _single(paths: list[Path], split: str) -> Path:
    """The one file of a split; files of instances go before those of keypoints and the like."""
    instances = [p for p in paths if p.stem.startswith("instances")]
    paths = instances if len(instances) == 1 else paths
    if len(paths) > 1:
        names = ", ".join(str(p) for p in paths)
        raise DataError(
            f"several COCO files could be the split {split!r}: {names}; "
            f"name one with {split}= or annotations="
        )
    return paths[0]


def _looks_like_coco(path: Path) -> bool:
    """Whether a JSON file has the keys of instance annotations; the file is searched, not parsed."""
    if not path.is_file() or path.stat().st_size == 0:
        return path.name.startswith(("instances_", "_annotations.coco"))
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        if path.name.startswith(("instances_", "_annotations.coco")):
            return True
        head = content[:200].lstrip(b"\xef\xbb\xbf \t\r\n")
        if not head.startswith(b"{") or content.find(b'"images"') < 0:
            return False
        return content.find(b'"annotations"') >= 0 and content.find(b'"segments_info"', 0, 1 << 26) < 0


def _source(root: Path, split: str, path: Path, request: Request) -> Source:
    return Source(NAME, split, *fields.image_folders(root, split, path, request))


def read(source: Source) -> pa.Table:
    """Read the annotations of a split.

    Raises:
        DataError: the file is not COCO JSON; names file, record and remedy.
    """
    path = source.annotations[0]
    data = fields.parse_json(path, fields.decode_text(path, fields.read_bytes(path)))
    data = fields.mapping(data, path, "")
    images = fields.sequence(data, "images", path, "")
    annotations = fields.sequence(data, "annotations", path, "")
    categories, label_map = _categories(fields.sequence(data, "categories", path, ""), path)
    builder = TableBuilder("annotation id", label_map)
    rows, measured, unresolved = _add_images(builder, images, source)
    for place, entry in enumerate(annotations):
        _add_object(builder, entry, place, rows, categories, path)
    return builder.finish([fields.relative(path, source)], size_files=measured, unresolved=unresolved)


def _categories(entries: list[Any], path: Path) -> tuple[dict[int, int], LabelMap]:
    names: dict[int, str] = {}
    for place, entry in enumerate(entries):
        record = f"categories[{place}]"
        entry = fields.mapping(entry, path, record)
        ident = fields.whole(entry, "id", path, record)
        name = fields.text(entry, "name", path, record)
        if ident in names or name in names.values():
            fail(
                path,
                record,
                f"category {name!r} (id {ident}) stands twice",
                "give each category its own id and name",
            )
        names[ident] = name
    if not names:
        fail(path, "", "`categories` is empty", "list the classes")
    ids = sorted(names)
    return {ident: i for i, ident in enumerate(ids)}, LabelMap(tuple(names[i] for i in ids), tuple(ids))


def _add_images(
    builder: TableBuilder, entries: list[Any], source: Source
) -> tuple[dict[int, int], bool, list[str]]:
    """Rows by image id; whether sizes were read from the files; names, if none was found."""
    path = source.annotations[0]
    names = []
    for place, entry in enumerate(entries):
        entry = fields.mapping(entry, path, f"images[{place}]")
        names.append(fields.text(entry, "file_name", path, f"images[{place}]"))
    folder, resolved = fields.choose_dir(source, names)
    rows: dict[int, int] = {}
    measured = False
    origin = fields.relative(path, source)
    for place, (entry, name) in enumerate(zip(entries, names, strict=True)):
        ident = fields.whole(entry, "id", path, f"images[{place}] ({name})")
        record = f"image id {ident}"
        if ident in rows:
            fail(path, record, "stands twice in `images`", "give each image its own id")
        file = fields.inside(source.base, folder, name, path, record)
        if entry.get("width") is None or entry.get("height") is None:
            size = fields.size_of(source.base, file, path, record)
            measured = True
        else:
            size = fields.whole(entry, "width", path, record), fields.whole(entry, "height", path, record)
        rows[ident] = builder.image(ident, file, *fields.check_size(*size, path, record), origin)
    return rows, measured, [] if resolved else names[:20]


def _add_object(
    builder: TableBuilder,
    entry: Any,
    place: int,
    rows: dict[int, int],
    categories: dict[int, int],
    path: Path,
) -> None:
    entry = fields.mapping(entry, path, f"annotations[{place}]")
    ident = entry.get("id")
    record = f"annotation id {ident}" if type(ident) is int else f"annotations[{place}]"
    ident = 0 if ident is None else fields.as_whole(ident, "`id`", path, record)
    image_id = fields.whole(entry, "image_id", path, record)
    category = fields.whole(entry, "category_id", path, record)
    if image_id not in rows:
        fail(
            path, record, f"image_id {image_id} is not in `images`", "add the image or remove the annotation"
        )
    if category not in categories:
        fail(
            path,
            record,
            f"category_id {category} is not in `categories`",
            "add the category or correct the id",
        )
    row = rows[image_id]
    height, width = builder.heights[row], builder.widths[row]
    mask = _mask(entry.get("segmentation"), height, width, path, record)
    box: list[float] | None = None
    if entry.get("bbox") is not None:
        x, y, w, h = fields.numbers(entry["bbox"], "`bbox`", 4, path, record)
        box = [x, y, x + w, y + h]
    elif not mask:
        fail(path, record, "has neither `bbox` nor `segmentation`", "add `bbox`: [x, y, width, height]")
    ignore = fields.flag(entry.get("iscrowd", 0), "`iscrowd`", path, record) or fields.flag(
        entry.get("ignore", 0), "`ignore`", path, record
    )
    area = entry.get("area")
    if area is not None:
        area = fields.numbers([area], "`area`", 1, path, record)[0]
    builder.object(row, ident if ident else place, categories[category], box, ignore, mask, area, ident)


def _mask(value: object, height: int, width: int, path: Path, record: str) -> Mask | None:
    """Polygons or compressed run lengths of a `segmentation`; None where it is absent or empty."""
    if value is None or value in ([], {}):
        return None
    if isinstance(value, list):
        return [
            fields.numbers(ring, f"`segmentation`[{i}]", None, path, record) for i, ring in enumerate(value)
        ]
    value = fields.mapping(value, path, f"{record}: `segmentation`")
    try:
        counts = compress_counts(value.get("counts"), value.get("size"), height, width)
    except DataError as error:
        fail(path, record, str(error), "write the mask again from its bitmap")
    return {"size": [height, width], "counts": counts}
