"""Writing a data set in another format, with its images."""

from __future__ import annotations

import json
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np

from ..errors import DataError
from .dataset import Data
from .images import IMAGE_SUFFIXES, image_size
from .records import Record
from .table import Table


def convert(
    data: Data, out: str | os.PathLike[str], format: str, *, lossy: bool = False, link: bool = False
) -> Path:
    """Write a data set as COCO, VOC, YOLO or light JSON into a new folder, images included.

    COCO and light JSON keep boxes, masks, ignore regions and all ids (light JSON numbers the classes anew).
    VOC has no masks. YOLO has no ignore regions, no run lengths, one polygon an object, and where there
    is a polygon no box besides. Both number images and objects anew. Semantic maps are not converted.

    Args:
        data: the data set.
        out: the folder to make; it must not exist or be empty.
        format: "coco", "voc", "yolo" or "light".
        lossy: write even if the format cannot hold everything: VOC leaves the masks out, YOLO the ignore
            regions and the masks it cannot hold (their boxes stay), all of them semantic maps.
        link: hard-link the images instead of copying them, where the file system allows it.

    Returns:
        The folder.

    Raises:
        DataError: information would be lost, an image is missing, or the folder is not empty.
    """
    writers: dict[str, Callable[[Data, Path, _Images], None]] = {
        "coco": _write_coco,
        "light": _write_light,
        "voc": _write_voc,
        "yolo": _write_yolo,
    }
    if format not in writers:
        raise DataError(f"format {format!r} is unknown; choose one of {', '.join(writers)}")
    lost = losses(data, format)
    if lost and not lossy:
        other = "Choose coco or light, or convert" if format in ("voc", "yolo") else "Convert"
        raise DataError(
            f"{data.root}: {format} cannot hold {'; '.join(lost)}. {other} with lossy=True (--lossy) to "
            "leave them out"
        )
    folder = Path(os.path.abspath(out))
    try:
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise DataError(f"{folder}: is not an empty folder; choose another place")
        with _whole_or_nothing(folder) as place:
            writers[format](data, place, _Images(link))
    except OSError as error:
        raise DataError(
            f"{folder}: cannot be written ({error.strerror or error}); free space or choose another place"
        ) from error
    return folder


@contextmanager
def _whole_or_nothing(folder: Path) -> Iterator[Path]:
    """A folder to write into, which becomes `folder` at the end; what is half written vanishes."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}-") as around:
        place = Path(around) / folder.name
        place.mkdir()
        yield place
        if folder.exists():
            folder.rmdir()
        place.rename(folder)


def losses(data: Data, format: str) -> tuple[str, ...]:
    """What of the annotations a format cannot hold, counted, in words; empty if it holds everything."""
    maps = sum(len(table) for table in data.splits.values() if table.semantic is not None)
    counts = {"semantic maps": maps}
    if format not in ("voc", "yolo"):
        return tuple(f"{count} {kind}" for kind, count in counts.items() if count)
    for table in data.splits.values():
        if format == "yolo":
            unseen = sum(Path(name).suffix.lower() not in IMAGE_SUFFIXES for name in table.file_names)
            kind = "images, of which YOLO takes those alone whose names end in .jpg, .png, ..."
            counts[kind] = counts.get(kind, 0) + unseen
            regions = int(table.objects().ignore.sum())
            counts["ignore regions"] = counts.get("ignore regions", 0) + regions
        for record in table if table.has_masks else ():
            for i, mask in enumerate(record.masks or ()):
                kind = _mask_loss(record, i, mask, format)
                if kind:
                    counts[kind] = counts.get(kind, 0) + 1
    return tuple(f"{count} {kind}" for kind, count in counts.items() if count)


def _mask_loss(record: Record, i: int, mask: Any, format: str) -> str:
    if not mask:
        return ""
    if format == "voc":
        return "masks"
    if record.ignore[i]:
        return ""
    if isinstance(mask, dict):
        return "masks of run lengths"
    if len(mask) > 1:
        return "masks of several polygons"
    return "" if _is_extent(record, i, mask[0]) else "boxes that are not the extent of their polygon"


def _is_extent(record: Record, i: int, ring: list[float]) -> bool:
    extent = np.array([min(ring[::2]), min(ring[1::2]), max(ring[::2]), max(ring[1::2])])
    limit = [record.width, record.height, record.width, record.height]
    return bool(np.abs(np.clip(extent, 0, limit) - record.boxes[i]).max() <= 0.02)


class _Images:
    """Copies images under names whose stems are unique within their folder."""

    def __init__(self, link: bool) -> None:
        self.link = link
        self.stems: dict[Path, set[str]] = {}

    def put(self, source: Path, folder: Path) -> str:
        """Bring an image into a folder and return its name there."""
        stems = self.stems.setdefault(folder, set())
        # Lists and XML hold neither line ends nor other control characters, nor spaces at the ends.
        plain = re.sub(r"[\x00-\x1f\x7f]", "_", source.stem).strip() or "image"
        stem, number = plain, 1
        while stem.lower() in stems:
            number += 1
            stem = f"{plain}_{number}"
        stems.add(stem.lower())
        target = folder / (stem + source.suffix)
        folder.mkdir(parents=True, exist_ok=True)
        if not source.is_file():
            raise DataError(
                f"{source}: the image does not exist or is not a file; restore it or remove its annotations: "
                "`boxwright data check` lists all such images"
            )
        if not os.access(source, os.R_OK):
            raise DataError(f"{source}: the image may not be read; see to its permissions")
        if not (self.link and _hard_link(source, target)):
            shutil.copyfile(source, target)
        return target.name


def _hard_link(source: Path, target: Path) -> bool:
    """Whether a link could be made; another file system, or one without links, asks for a copy."""
    try:
        os.link(source, target)
    except OSError:
        return False
    return True


def _write_json(path: Path, value: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value, ensure_ascii=False), encoding="utf-8")


def _write_coco(data: Data, out: Path, images: _Images) -> None:
    for split, table in data.splits.items():
        content = table.to_coco()
        for entry, name in zip(content["images"], table.file_names, strict=True):
            entry["file_name"] = images.put(table.root / name, out / "images" / split)
        masks = (mask for record in table for mask in record.masks or ()) if table.has_masks else ()
        for entry, mask in zip(content["annotations"], masks, strict=table.has_masks):
            if not mask:
                del entry["segmentation"]
        _write_json(out / "annotations" / f"instances_{split}.json", content)


def _write_light(data: Data, out: Path, images: _Images) -> None:
    for split, table in data.splits.items():
        lines = [json.dumps({"classes": table.label_map.names}, ensure_ascii=False)]
        for entry in _light_entries(table, split, out, images):
            lines.append(json.dumps(entry, ensure_ascii=False))
        (out / f"{split}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")


def _light_entries(table: Table, split: str, out: Path, images: _Images) -> Iterator[dict[str, Any]]:
    flat = table.objects()
    ends = np.cumsum(table.object_counts)
    for record, end in zip(table, ends.tolist(), strict=True):
        objects = []
        start = end - len(record.labels)
        for i in range(len(record.labels)):
            item: dict[str, Any] = {
                "label": table.label_map.names[record.labels[i]],
                "box": flat.boxes[start + i].tolist(),
                "id": int(flat.ids[start + i]),
                "area": float(flat.areas[start + i]),
            }
            if record.ignore[i]:
                item["ignore"] = True
            mask = record.masks[i] if record.masks is not None else None
            if mask:
                item["rle" if isinstance(mask, dict) else "polygons"] = mask
            objects.append(item)
        name = images.put(record.file, out / "images" / split)
        size = {"width": record.width, "height": record.height}
        yield {"image": f"images/{split}/{name}", "id": record.image_id, **size, "objects": objects}


def _write_voc(data: Data, out: Path, images: _Images) -> None:
    # An image of two splits is written once, unless they annotate it differently.
    written: dict[tuple[Path, str], tuple[str, str]] = {}
    for split, table in data.splits.items():
        flat = table.objects()
        ends = np.cumsum(table.object_counts).tolist()
        stems = []
        for record, end in zip(table, ends, strict=True):
            boxes = flat.boxes[end - len(record.labels) : end].tolist()
            key = record.file, repr((record.labels.tolist(), record.ignore.tolist(), boxes))
            first, name = written.get(key, (split, ""))
            if first == split:
                name = images.put(record.file, out / "JPEGImages")
                written[key] = split, name
            stems.append(Path(name).stem)
            path = out / "Annotations" / f"{stems[-1]}.xml"
            path.parent.mkdir(exist_ok=True)
            tree = _voc_tree(record, name, boxes, table.label_map.names)
            tree.write(path, encoding="utf-8", xml_declaration=True)
        lists = out / "ImageSets" / "Main"
        lists.mkdir(parents=True, exist_ok=True)
        (lists / f"{split}.txt").write_text("\n".join(stems) + "\n", encoding="utf-8")


def _voc_tree(
    record: Record, name: str, boxes: list[list[float]], names: tuple[str, ...]
) -> ElementTree.ElementTree:
    root = ElementTree.Element("annotation")
    ElementTree.SubElement(root, "folder").text = "JPEGImages"
    ElementTree.SubElement(root, "filename").text = name
    size = ElementTree.SubElement(root, "size")
    for tag, value in (("width", record.width), ("height", record.height), ("depth", 3)):
        ElementTree.SubElement(size, tag).text = str(value)
    for label, ignore, box in zip(record.labels.tolist(), record.ignore.tolist(), boxes, strict=True):
        item = ElementTree.SubElement(root, "object")
        ElementTree.SubElement(item, "name").text = names[label]
        ElementTree.SubElement(item, "difficult").text = str(int(ignore))
        corners = ElementTree.SubElement(item, "bndbox")
        for tag, value in zip(("xmin", "ymin", "xmax", "ymax"), box, strict=True):
            ElementTree.SubElement(corners, tag).text = repr(value).removesuffix(".0")
    ElementTree.indent(root)
    return ElementTree.ElementTree(root)


def _write_yolo(data: Data, out: Path, images: _Images) -> None:
    for split, table in data.splits.items():
        flat = table.objects()
        ends = np.cumsum(table.object_counts).tolist()
        labels = out / "labels" / split
        labels.mkdir(parents=True)
        for record, end in zip(table, ends, strict=True):
            _check_size(record)
            name = images.put(record.file, out / "images" / split)
            boxes = flat.boxes[end - len(record.labels) : end]
            lines = [_yolo_line(record, i, boxes[i]) for i in np.flatnonzero(~record.ignore).tolist()]
            (labels / f"{Path(name).stem}.txt").write_text("".join(lines), encoding="utf-8")
    # Names in JSON's quotes are valid YAML whatever they hold.
    names = [f"  {i}: {json.dumps(name, ensure_ascii=False)}" for i, name in enumerate(data.label_map.names)]
    splits = [f"{split}: images/{split}" for split in data.splits]
    (out / "data.yaml").write_text("\n".join([*splits, "names:", *names]) + "\n", encoding="utf-8")


def _check_size(record: Record) -> None:
    """YOLO does not say the size, so that after the conversion nothing would show a wrong one."""
    if image_size(record.file) != (record.width, record.height):
        raise DataError(
            f"{record.file}: the image has another size than the {record.width} x {record.height} of its "
            "annotations, so its boxes lie wrongly; `boxwright data check` lists all such images"
        )


def _yolo_line(record: Record, i: int, box: np.ndarray) -> str:
    mask = record.masks[i] if record.masks is not None else None
    if isinstance(mask, list) and len(mask) == 1:
        values = [v / (record.height if k % 2 else record.width) for k, v in enumerate(mask[0])]
    else:
        x1, y1, x2, y2 = box.tolist()
        values = [(x1 + x2) / 2 / record.width, (y1 + y2) / 2 / record.height]
        values += [(x2 - x1) / record.width, (y2 - y1) / record.height]
    return " ".join([str(int(record.labels[i])), *(repr(v) for v in values)]) + "\n"
