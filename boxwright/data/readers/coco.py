"""COCO JSON: boxes, polygons, compressed and uncompressed run lengths, crowd regions."""

from __future__ import annotations

import dataclasses
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
    left: list[Path] = []
    if request.annotations is not None:
        names = [request.annotations] if request.annotations.suffix.lower() == ".json" else []
        found = {fields.split_of(p.stem) or fields.split_of(p.parent.name) or "train": p for p in names}
    else:
        found, left = _search(root)
    sources = {split: _source(root, split, path, request) for split, path in found.items()}
    for split, source in list(sources.items())[:1] if left else ():
        shown = ", ".join(path.relative_to(root).as_posix() for path in left)
        note = f"JSON files whose names are of no split were left out: {shown}"
        sources[split] = dataclasses.replace(source, notes=(note,))
    return sources


def explicit(root: Path, split: str, path: Path, request: Request) -> Source | None:
    """Source of a split for which the caller names a file; None if it is not of this format."""
    fits = path.is_file() and path.suffix.lower() == ".json"
    return _source(root, split, path, request) if fits else None


def _search(root: Path) -> tuple[dict[str, Path], list[Path]]:
    """The file of each split; and further files of annotations, whose names say no split."""
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
        return {"train": _single(unnamed, "train")}, []
    return {split: _single(paths, split) for split, paths in found.items()}, unnamed


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
    data = _annotations_not_results(data, path)
    images = fields.sequence(data, "images", path, "")
    annotations = fields.sequence(data, "annotations", path, "")
    declared = fields.sequence(data, "categories", path, "")
    categories, label_map, twice = _categories(declared, annotations, path)
    builder = TableBuilder("annotation id", label_map)
    for name in twice:
        text = "category names stand twice, once without annotations; that one was left out"
        builder.note("category_twice", "info", text, f"{fields.relative(path, source)}: category {name!r}")
    rows, measured, unresolved = _add_images(builder, images, source)
    _note_federated(builder, images, fields.relative(path, source))
    for place, entry in enumerate(annotations):
        _add_object(builder, entry, place, rows, categories, path)
    return builder.finish([fields.relative(path, source)], size_files=measured, unresolved=unresolved)


def _annotations_not_results(data: Any, path: Path) -> dict[str, Any]:
    """The contents, if they can be annotations of objects."""
    first = data[0] if isinstance(data, list) and data else None
    if isinstance(first, dict) and "image_id" in first:
        problem = "a list of COCO results (detections), not annotations"
        fail(path, "", problem, "name the file of the annotations; `boxwright evaluate` reads results")
    data = fields.mapping(data, path, "")
    entries = data.get("annotations")
    first = entries[0] if isinstance(entries, list) and entries else None
    if "categories" not in data and isinstance(first, dict) and "caption" in first:
        fail(path, "", "COCO captions, without boxes", "name the file of the instances")
    return data


def _categories(
    entries: list[Any], annotations: list[Any], path: Path
) -> tuple[dict[int, int], LabelMap, list[str]]:
    """Labels by category id; the label map; names that two categories have of which one has no annotation."""
    names: dict[int, str] = {}
    ids: dict[str, list[int]] = {}
    for place, entry in enumerate(entries):
        record = f"categories[{place}]"
        entry = fields.mapping(entry, path, record)
        ident = fields.whole(entry, "id", path, record)
        name = fields.text(entry, "name", path, record)
        if ident in names:
            problem = f"category {name!r} (id {ident}) stands twice"
            fail(path, record, problem, "give each category its own id and name")
        names[ident] = name
        ids.setdefault(name, []).append(ident)
    if not names:
        fail(path, "", "`categories` is empty", "list the classes")
    twice = {name: same for name, same in ids.items() if len(same) > 1}
    for name, same in twice.items():
        used = {entry.get("category_id") for entry in annotations if _has_category(entry, same)}
        if len(used) > 1:
            problem = f"category {name!r} stands twice, with the ids {', '.join(map(str, sorted(used)))}"
            fail(
                path, "categories", problem, "give each category its own name, or all its annotations one id"
            )
        for ident in set(same) - (used or set(same[:1])):
            del names[ident]
    order = sorted(names)
    label_map = LabelMap(tuple(names[i] for i in order), tuple(order))
    return {ident: i for i, ident in enumerate(order)}, label_map, list(twice)


def _has_category(entry: Any, ids: list[int]) -> bool:
    return isinstance(entry, dict) and type(entry.get("category_id")) is int and entry["category_id"] in ids


def _add_images(
    builder: TableBuilder, entries: list[Any], source: Source
) -> tuple[dict[int, int], bool, list[str]]:
    """Rows by image id; whether sizes were read from the files; names, if none was found."""
    path = source.annotations[0]
    names = []
    for place, entry in enumerate(entries):
        entry = fields.mapping(entry, path, f"images[{place}]")
        names.append(_file_name(entry, path, f"images[{place}]"))
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


def _file_name(entry: dict[str, Any], path: Path, record: str) -> str:
    """Name of an image: `file_name`, or the end of `coco_url` (`train2017/9.jpg`), as LVIS writes it."""
    url = entry.get("coco_url")
    if "file_name" not in entry and isinstance(url, str) and url.count("/") > 2:
        return fields.encodable("/".join(url.split("/")[-2:]), "coco_url", path, record)
    return fields.text(entry, "file_name", path, record)


def _note_federated(builder: TableBuilder, entries: list[Any], origin: str) -> None:
    """Say of images in which not all objects are annotated that they are read as if all were."""
    keys = ("not_exhaustive_category_ids", "neg_category_ids")
    marked = [entry for entry in entries if any(key in entry for key in keys)]
    if marked:
        text = (
            "images in which only some classes were annotated (LVIS) are read as if all were: other objects "
            "train as background and count as false detections"
        )
        builder.note("federated", "warning", text, f"{origin}: image id {marked[0]['id']}", len(marked))


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
