"""Recognising formats that no reader takes, so that the message says what was found and how to get on."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from pathlib import Path

from ..images import IMAGE_SUFFIXES
from . import fields

REMEDY = (
    "Write light JSON by a short script: one line an image into train.jsonl, such as\n"
    '  {"image": "photos/a.jpg", "objects": [{"label": "cat", "box": [x1, y1, x2, y2]}]}\n'
    "docs/other_formats.md has such scripts for LabelMe, VGG Image Annotator, CSV tables, Open Images, "
    "KITTI, WIDER FACE, CrowdHuman, DOTA, Cityscapes and VOC masks."
)
_FILES, _OPENED, _HEAD, _PARSED = 5000, 8, 1 << 16, 1 << 26
_ARCHIVES = (".zip", ".tar", ".gz", ".tgz", ".7z", ".rar")
_ANNOTATIONS = (".json", ".jsonl", ".xml", ".txt", ".csv")
_BY_SUFFIX = {
    ".odgt": "CrowdHuman annotations",
    ".tfrecord": "TFRecord files of TensorFlow",
    ".record": "TFRecord files of TensorFlow",
    ".parquet": "Parquet tables",
    ".arrow": "Arrow tables",
    ".mat": "MATLAB files",
    ".h5": "HDF5 files",
    ".pkl": "Python pickles",
}


def recognise(root: Path) -> tuple[str, ...]:
    """What the files of a folder look like, one text a kind with its first file; the likeliest first."""
    everything = (place / name for place, names in fields.walk(root) for name in names)
    files = list(itertools.islice(everything, _FILES))
    kinds: dict[str, Path] = {}
    for kind, path in itertools.chain(_named(files), _opened(files)):
        kinds.setdefault(kind, path)
    if not any(path.suffix.lower() in _ANNOTATIONS for path in files):
        images = [path for path in files if path.suffix.lower() in IMAGE_SUFFIXES]
        if images and not kinds:
            text = f"{len(images)} images without annotations: draw some, or give them to `boxwright predict`"
            kinds[text] = images[0]
    return tuple(f"{kind} ({path.relative_to(root).as_posix()})" for kind, path in kinds.items())


def _named(files: list[Path]) -> Iterator[tuple[str, Path]]:
    """Kinds that show in the name of a file or its folder."""
    for path in files:
        name, suffix = path.name.lower(), path.suffix.lower()
        if name.endswith("_bbx_gt.txt"):
            yield "WIDER FACE annotations", path
        elif name.endswith(("_instanceids.png", "_gtfine_polygons.json")):
            yield "Cityscapes annotations", path
        elif path.parent.name == "SegmentationObject":
            yield "instance masks of Pascal VOC", path
        elif suffix in _BY_SUFFIX:
            yield _BY_SUFFIX[suffix], path
        elif suffix in _ARCHIVES:
            yield "an archive, to be unpacked first", path


def _opened(files: list[Path]) -> Iterator[tuple[str, Path]]:
    """Kinds that show in the first bytes of a file."""
    for suffix, kind_of in ((".json", _json), (".csv", _csv), (".txt", _text), (".xml", _xml)):
        chosen = [path for path in files if path.suffix.lower() == suffix]
        # Not only the first: those of one kind often lie together.
        for path in chosen[:: max(1, len(chosen) // _OPENED)]:
            kind = kind_of(path)
            if kind:
                yield kind, path


def _head(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return file.read(_HEAD).decode("utf-8-sig", "replace").strip()
    except OSError:
        return ""


def _json(path: Path) -> str:
    head = _head(path)
    marks = (
        (('"shapes"',), "LabelMe JSON"),
        (('"shape_attributes"',), "JSON of VGG Image Annotator"),
        (('"_via_img_metadata"',), "JSON of VGG Image Annotator"),
        (('"segments_info"',), "COCO panoptic JSON"),
        (('"image_id"', '"score"'), "COCO results (detections, not annotations)"),
    )
    kind = next((kind for words, kind in marks if all(word in head for word in words)), "")
    return kind or _broken_or_bare(path)


def _broken_or_bare(path: Path) -> str:
    """What a JSON file without known marks is: broken, lacking in something, or of another kind."""
    try:
        if path.stat().st_size > _PARSED:
            return ""
        content = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        return f"JSON that cannot be read, {str(error)[:80]}"
    if isinstance(content, dict) and "images" in content:
        lacks = [key for key in ("annotations", "categories") if key not in content]
        bare = f"COCO JSON without {' and '.join(f'`{key}`' for key in lacks)}"
        return bare if lacks else "COCO annotations, which annotations= must name"
    return "JSON of another kind" if content else ""


def _csv(path: Path) -> str:
    columns = _head(path).split("\n", 1)[0].strip()
    if "ImageID" in columns and "XMin" in columns:
        return "boxes of Open Images"
    return f"a table with the columns {columns[:80]}" if "," in columns else ""


def _text(path: Path) -> str:
    lines = [line.split() for line in _head(path).split("\n")[:5] if line.strip()]
    if not lines:
        return ""
    words = lines[-1]
    corners = len(words) in (9, 10) and _numbers(words[:8]) and not _numbers(words[8:9])
    if lines[0][0].startswith("imagesource:") or corners:
        return "DOTA labels"
    if len(words) in (15, 16) and not _numbers(words[:1]) and _numbers(words[1:]):
        return "KITTI labels"
    if len(words) == 5 and _numbers(words) and all(0 <= float(word) <= 1 for word in words[1:]):
        return "YOLO labels without their images (the names must be equal but for the suffix)"
    return ""


def _numbers(words: list[str]) -> bool:
    try:
        return all(float(word) == float(word) for word in words)
    except ValueError:
        return False


def _xml(path: Path) -> str:
    head = _head(path)
    if "<annotation>" in head:
        return "Pascal VOC annotations, whose folder annotations= must name"
    return "XML of CVAT (export in its format COCO 1.0 instead)" if "<annotations>" in head else ""
