"""Pascal VOC: one XML file for each image; `difficult` objects become ignore regions."""

from __future__ import annotations

import dataclasses
import os
import re
from pathlib import Path
from typing import Any
from xml.etree import ElementTree
from xml.parsers import expat

import pyarrow as pa

from ..build import TableBuilder
from ..images import IMAGE_SUFFIXES
from . import fields
from .fields import Request, Source, fail

NAME = "voc"
LOOKED_FOR = (
    "Pascal VOC: ImageSets/Main/<split>.txt or <split>.txt with Annotations/*.xml; or <split>/*.xml; or "
    "Annotations/*.xml or *.xml here"
)
_XML_FOLDERS = ("Annotations", "annotations", "labels", "xml", "")
_IMAGE_FOLDERS = ("JPEGImages", "images", "Images", "imgs", "")
_OFFICIAL = re.compile(r"The VOC20\d\d Database")


def find(root: Path, request: Request) -> dict[str, Source]:
    """Sources of the splits that the folder holds in this format; empty where there are none."""
    nested = [p for p in sorted(root.glob("VOC20*")) + sorted(root.glob("VOCdevkit/VOC20*")) if p.is_dir()]
    if len(nested) == 1 and request.annotations is None:
        found = find(nested[0], request)
        return {s: dataclasses.replace(v, base=root) if v.base == nested[0] else v for s, v in found.items()}
    xml = _xml_folder(root, request)
    if xml is not None:
        for lists in (root / "ImageSets" / "Main", root / "ImageSets", root):
            files = (
                {fields.split_of(p.stem): p for p in sorted(lists.glob("*.txt"))} if lists.is_dir() else {}
            )
            named = {split: path for split, path in files.items() if split is not None}
            if named:
                return {s: _listed(root, s, p, xml, request) for s, p in named.items()}
    found = {}
    for child in sorted(root.iterdir()) if request.annotations is None else []:
        split = fields.split_of(child.name) if child.is_dir() else None
        source = explicit(root, split, child, request) if split is not None else None
        if split is not None and source is not None:
            found[split] = source
    if not found and xml is not None:
        found["train"] = _all(root, "train", xml, _image_folders(root, xml, request), request)
    return found


def explicit(root: Path, split: str, path: Path, request: Request) -> Source | None:
    """Source of a split for which the caller names a list of images or a folder; None if it does not fit."""
    if path.is_file() and path.suffix.lower() == ".txt":
        xml = _xml_folder(root, request) or _folder_with_xml(path.parent / path.stem)
        return _listed(root, split, path, xml, request) if xml is not None else None
    xml = next((f for f in (path / name for name in _XML_FOLDERS) if _folder_with_xml(f)), None)
    return _all(root, split, xml, _image_folders(path, xml, request), request) if xml is not None else None


def _folder_with_xml(folder: Path) -> Path | None:
    return folder if folder.is_dir() and any(folder.glob("*.xml")) else None


def _xml_folder(root: Path, request: Request) -> Path | None:
    if request.annotations is not None:
        return _folder_with_xml(request.annotations)
    return next((f for f in (root / name for name in _XML_FOLDERS) if _folder_with_xml(f)), None)


def _image_folders(root: Path, xml: Path, request: Request) -> tuple[Path, ...]:
    if request.images is not None:
        return (request.images,)
    folders = [root / name for name in _IMAGE_FOLDERS] + [
        xml,
        xml.parent / "images",
        xml.parent / "JPEGImages",
    ]
    return tuple(f for f in dict.fromkeys(folders) if f.is_dir())


def _base(root: Path, request: Request) -> Path:
    return root if request.images is None or request.images.is_relative_to(root) else request.images


def _listed(root: Path, split: str, path: Path, xml: Path, request: Request) -> Source:
    """Source from a list of image names, one a line; a second column (lists of one class) is ignored.

    Names may hold spaces: the whole line goes before its first column.
    """
    content = path.read_bytes()
    stems = []
    for number, line in (
        enumerate(fields.decode_text(path, content).splitlines(), 1) if content.strip() else []
    ):
        if not line.strip():
            continue
        named = [_stem(text) for text in (line, re.sub(r"\s+-?[01]\s*$", "", line), line.split()[0])]
        stem = next((name for name in named if (xml / f"{name}.xml").is_file()), None)
        if stem is None:
            stem = named[1]
            fail(
                path, f"line {number}", f"{xml / stem}.xml does not exist", "add the file or remove the line"
            )
        stems.append(stem)
    if not stems:
        fail(path, "", "the list of images is empty", "list the names of the images or leave the file out")
    if len(set(stems)) < len(stems):
        twice = next(s for i, s in enumerate(stems) if s in stems[:i])
        fail(path, "", f"image {twice} is listed twice", "remove one of the lines")
    files = tuple(xml / f"{stem}.xml" for stem in stems)
    return Source(NAME, split, _base(root, request), files, _image_folders(root, xml, request))


def _stem(text: str) -> str:
    """Name of an image in a list, without folder and suffix."""
    name = text.strip().replace("\\", "/").rsplit("/", 1)[-1]
    return re.sub(r"\.(xml|" + "|".join(s[1:] for s in IMAGE_SUFFIXES) + r")$", "", name, flags=re.I)


def _all(root: Path, split: str, xml: Path, images: tuple[Path, ...], request: Request) -> Source:
    """Source of all XML files of a folder."""
    files = tuple(p for p in sorted(xml.glob("*.xml")) if not p.name.startswith("."))
    stems = {file.stem.lower() for file in files}
    alone = [p for f in images[:1] for p in fields.list_images(f) if p.stem.lower() not in stems]
    notes = (
        (f"{len(alone)} images without an XML file were left out, {alone[0].name} first",) if alone else ()
    )
    return Source(NAME, split, _base(root, request), files, images, notes=notes)


def read(source: Source) -> pa.Table:
    """Read the annotations of a split.

    Coordinates are taken as they are written, as continuous pixel coordinates (LabelImg and most other
    tools). Files of the official challenge, whose `source/database` says "The VOC20.. Database", count
    pixels from 1 with both ends inside: there 1 is taken from xmin and ymin.

    Raises:
        DataError: a file is not VOC XML; names file, object and remedy.
    """
    builder = TableBuilder("object")
    index = _ImageIndex(source)
    measured = False
    files: dict[str, Path] = {}
    for number, path in enumerate(source.annotations, 1):
        root = parse_xml(path)
        if root.tag != "annotation":
            fail(path, "", f"the root element is <{root.tag}>, not <annotation>", _remedy(root.tag))
        file = index.file(path, root)
        if file in files:
            fail(
                path,
                "",
                f"names the image {file}, as {files[file]} does",
                "correct <filename> in one of them",
            )
        files[file] = path
        size = root.find("size")
        if size is None or size.find("width") is None:
            sides, measured = fields.size_of(source.base, file, path, "<size>"), True
        else:
            sides = _whole(size, "width", path, "<size>"), _whole(size, "height", path, "<size>")
            if sides == (0, 0):  # some tools write 0 for what they do not know
                sides, measured = fields.size_of(source.base, file, path, "<size>"), True
        sides = fields.check_size(*sides, path, "<size>")
        row = builder.image(number, file, *sides, fields.relative(path, source))
        first = 1.0 if _OFFICIAL.search(root.findtext("source/database") or "") else 0.0
        for place, item in enumerate(root.findall("object"), 1):
            _add_object(builder, row, place, item, first, path)
    sources = [fields.relative(path, source) for path in source.annotations]
    return builder.finish(sources, size_files=measured, unresolved=[] if index.found else index.wanted)


def _remedy(tag: str) -> str:
    if tag == "annotations":
        return "name VOC annotations; from CVAT, export in its format COCO 1.0"
    return "name VOC annotations"


def parse_xml(path: Path) -> ElementTree.Element:
    """Root element of an XML file without a document type: entities, and so their expansion, are refused.

    Raises:
        DataError: the file is empty, is not well-formed, or declares a document type.
    """
    builder = ElementTree.TreeBuilder()
    parser = expat.ParserCreate()
    parser.buffer_text = True

    def doctype(name: str, *_: Any) -> None:
        fail(
            path,
            "",
            f"declares a document type ({name}), which may hide harmful entities",
            "remove the <!DOCTYPE>",
        )

    parser.StartDoctypeDeclHandler = doctype
    parser.StartElementHandler = builder.start
    parser.EndElementHandler = builder.end
    parser.CharacterDataHandler = builder.data
    try:
        parser.Parse(fields.read_bytes(path), True)
        return builder.close()
    except (expat.ExpatError, ValueError, LookupError, AssertionError) as error:
        if isinstance(error, fields.DataError):
            raise
        where = f"line {getattr(error, 'lineno', 1)} column {getattr(error, 'offset', 0) + 1}"
        fail(
            path,
            where,
            f"not valid XML ({error})",
            "the file may be cut short or of another encoding: write it again",
        )


def _number(parent: ElementTree.Element, tag: str, path: Path, record: str) -> float:
    value = parent.findtext(tag)
    if value is None or not value.strip():
        fail(path, record, f"has no <{tag}>", "add it")
    try:
        return float(value)
    except ValueError:
        fail(path, record, f"<{tag}> must be a number, found {value.strip()[:40]!r}", "correct the value")


def _whole(parent: ElementTree.Element, tag: str, path: Path, record: str) -> int:
    value = _number(parent, tag, path, record)
    return fields.as_whole(value, f"<{tag}>", path, record)


def _add_object(
    builder: TableBuilder, row: int, place: int, item: ElementTree.Element, first: float, path: Path
) -> None:
    record = f"object {place}"
    name = (item.findtext("name") or "").strip()
    if not name:
        fail(path, record, "has no <name>", "add the name of its class")
    box = item.find("bndbox")
    if box is None:
        fail(path, record, "has no <bndbox>", "add xmin, ymin, xmax and ymax")
    x1, y1, x2, y2 = (_number(box, tag, path, record) for tag in ("xmin", "ymin", "xmax", "ymax"))
    difficult = (item.findtext("difficult") or "0").strip().lower()
    if difficult not in ("0", "1", "true", "false", "unspecified"):
        fail(path, record, f"<difficult> must be 0 or 1, found {difficult[:40]!r}", "correct the value")
    label = builder.label(name)
    builder.object(row, place, label, (x1 - first, y1 - first, x2, y2), difficult in ("1", "true"))


class _ImageIndex:
    """Finds the image of an XML file: the one that <filename> names, or else one with the XML's stem."""

    def __init__(self, source: Source) -> None:
        self.source, self.found = source, False
        self.wanted: list[str] = []
        self.names = {folder: set(os.listdir(folder)) for folder in source.image_dirs}
        self.stems = {
            folder: {
                os.path.splitext(n)[0]: n
                for n in sorted(names)
                if os.path.splitext(n)[1].lower() in IMAGE_SUFFIXES
            }
            for folder, names in self.names.items()
        }

    def file(self, path: Path, root: ElementTree.Element) -> str:
        """Path of the image relative to the base; where there is none, the path where it should be."""
        name = (root.findtext("filename") or "").strip()
        folders = self.source.image_dirs or (path.parent,)
        if name:
            fields.inside(self.source.base, folders[0], name, path, "<filename>")
        for folder in folders:
            if name and name in self.names.get(folder, ()):
                return self._relative(folder, name)
        for folder in folders:
            if path.stem in self.stems.get(folder, {}):
                return self._relative(folder, self.stems[folder][path.stem])
        if len(self.wanted) < 20:
            self.wanted += [name] * bool(name) + [
                f"{path.stem}{suffix}" for suffix in (".jpg", ".JPG", ".png")
            ]
        return self._relative(folders[0], name or f"{path.stem}.jpg", found=False)

    def _relative(self, folder: Path, name: str, found: bool = True) -> str:
        self.found = self.found or found
        return fields.inside(self.source.base, folder, name, self.source.annotations[0], "<filename>")
