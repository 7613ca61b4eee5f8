"""Opening an annotated folder: which format it has, which splits, and one label map for all of them."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

from ..errors import DataError, some_of
from ..labels import LabelMap
from .cache import cached_table
from .readers import coco, fields, light, others, voc, yolo
from .readers.fields import Request, Source
from .semantic import find_maps, layouts
from .table import Table

READERS: tuple[ModuleType, ...] = (coco, light, voc, yolo)
_TITLES = {"coco": "COCO JSON", "light": "light JSON", "voc": "Pascal VOC XML", "yolo": "YOLO text"}


@dataclass(frozen=True)
class Data:
    """A data set: its splits and its classes.

    Args:
        root: the folder.
        format: "coco", "light", "voc" or "yolo".
        splits: table of each split by name, "train", "val" and "test" first.
        label_map: classes of all splits together.
        found: what was found, in a sentence for each split.
        arguments: what opens it again with `folder`; None if it was made in another way.
    """

    root: Path
    format: str
    splits: Mapping[str, Table]
    label_map: LabelMap
    found: str
    arguments: Mapping[str, str] | None = None

    def __str__(self) -> str:
        return self.found

    def split(self, name: str) -> Table:
        """The table of a split.

        Raises:
            DataError: there is no such split.
        """
        if name not in self.splits:
            raise DataError(
                f"{self.root}: there is no split {name!r}; found: {', '.join(self.splits)}. "
                f"Name its annotations with folder(..., {name}=...) or choose another split"
            )
        return self.splits[name]

    @property
    def train(self) -> Table:
        """The split to train on, `train` or else `trainval`.

        Raises:
            DataError: there is neither.
        """
        return self.split("trainval" if "train" not in self.splits and "trainval" in self.splits else "train")

    @property
    def val(self) -> Table | None:
        """The split `val`, or None."""
        return self.splits.get("val")

    @property
    def test(self) -> Table | None:
        """The split `test`, or None."""
        return self.splits.get("test")

    @property
    def evaluation(self) -> Table:
        """The split to evaluate on during training: `val`, or else `test`.

        Raises:
            DataError: there is neither.
        """
        return self.split("test" if "val" not in self.splits and "test" in self.splits else "val")


def folder(
    root: str | os.PathLike[str],
    format: str | None = None,
    train: str | None = None,
    val: str | None = None,
    test: str | None = None,
    annotations: str | None = None,
    images: str | None = None,
    semantic: str | None = None,
) -> Data:
    """Open an annotated folder; what is not said is found by looking.

    Args:
        root: the folder of the data set.
        format: "coco", "light", "voc" or "yolo"; None to try them in this order.
        train: what to train on: the name of a split that is found by looking, or a path relative to
            `root` (an annotation file, a list of images, or a folder). If any of `train`, `val` and
            `test` is given, the data set has just the given ones.
        val: likewise.
        test: likewise.
        annotations: the annotation file, or the folder of annotation files; relative to `root`.
        images: the folder of the images, relative to `root` or absolute.
        semantic: a folder of maps of semantic classes (things and stuff), such as COCO's `stuffthingmaps`,
            relative to `root` or absolute. For an image `images/train2017/9.jpg` it holds a PNG of class
            numbers from 0 on, 255 where there is none: `train2017/9.png`, or `9.png`, or as deep as the image
            lies. Only training reads them.

    Returns:
        The data set. Tables are read once and cached by the contents of their annotations.

    Raises:
        DataError: nothing fits, a choice names nothing, or annotations are broken: the message names
            the file, the record and the remedy.
    """
    said = {"format": format, "train": train, "val": val, "test": test}
    said |= {"annotations": annotations, "images": images, "semantic": semantic}
    base = Path(os.path.abspath(os.path.expanduser(root)))
    if not os.path.isdir(base):
        file = os.path.isfile(base)
        what = "is a file; name the folder it lies in" if file else "does not exist; check the path"
        raise DataError(f"{base}: {what}")
    if format is not None and format not in _TITLES:
        raise DataError(f"format {format!r} is unknown; choose one of {', '.join(_TITLES)}")
    request = Request(_existing(base, annotations, "annotations"), _existing(base, images, "images"))
    maps = _existing(base, semantic, "semantic")
    explicit = {k: v for k, v in {"train": train, "val": val, "test": test}.items() if v is not None}
    try:
        reader, sources = _find(base, format, request, explicit)
        data = _open(base, reader, sources)
        data = data if maps is None else _with_maps(data, maps)
    except OSError as error:
        raise DataError(
            f"{error.filename or base}: cannot be read ({error.strerror or error}); see to its permissions, "
            "or name another folder"
        ) from error
    arguments = {"root": str(base), "format": reader.NAME}
    arguments |= {name: value for name, value in said.items() if value is not None}
    return dataclasses.replace(data, arguments=arguments)


def _find(
    base: Path, format: str | None, request: Request, explicit: dict[str, str]
) -> tuple[ModuleType, dict[str, Source]]:
    """The first reader that finds what was asked for, and the sources of the splits."""
    for reader in READERS:
        sources = _sources(reader, base, request, explicit) if format in (None, reader.NAME) else {}
        if sources:
            return reader, sources
    raise DataError(_nothing_found(base, format, explicit))


def _existing(base: Path, value: str | None, name: str) -> Path | None:
    if value is None:
        return None
    path = Path(os.path.abspath(base / os.path.expanduser(value)))
    if not path.exists():
        raise DataError(f"{name}={value!r}: {path} does not exist; write the path relative to {base}")
    return path


def _sources(reader: ModuleType, base: Path, request: Request, explicit: dict[str, str]) -> dict[str, Source]:
    """Sources of all splits in one format; empty unless everything that was asked for is there."""
    if not explicit:
        return reader.find(base, request)
    sources: dict[str, Source] = {}
    missing: dict[str, str] = {}
    for split, value in explicit.items():
        path = Path(os.path.abspath(base / value))
        source = reader.explicit(base, split, path, request) if path.exists() else None
        if source is None:
            missing[split] = value
        else:
            sources[split] = source
    found = reader.find(base, request) if missing else {}
    for split, value in missing.items():
        name = fields.split_of(value) or value
        if name not in found:
            return {}
        sources[split] = dataclasses.replace(found[name], split=split)
    return sources


def _open(base: Path, reader: ModuleType, sources: dict[str, Source]) -> Data:
    names = fields.ordered(sources)
    tables = {
        n: Table(cached_table(sources[n], reader.read), sources[n].base, LabelMap(()), n) for n in names
    }
    label_map = unite_label_maps([(t.own_label_map, t.declares_classes) for t in tables.values()], str(base))
    for name, table in tables.items():
        lut = tuple(label_map.index(n) for n in table.own_label_map.names)
        tables[name] = table.relabelled(label_map, lut)
    shown = ", ".join(label_map.names[:8]) + (", ..." if len(label_map) > 8 else "")
    lines = [f"{_TITLES[reader.NAME]} in {base}: {len(label_map)} classes ({shown})"]
    for name, table in tables.items():
        where = (
            table.sources[0]
            if len(sources[name].annotations) == 1
            else f"{len(sources[name].annotations)} files"
        )
        masks = ", with masks" if table.has_masks else ""
        lines.append(
            f"{name}: {len(table)} images, {int(table.object_counts.sum())} objects{masks} ({where})"
        )
        lines += [f"{name}: {note}" for note in sources[name].notes]
        if table.unresolved:
            places = ", ".join(fields.relative(folder, sources[name]) for folder in sources[name].image_dirs)
            lines.append(
                f"{name}: no image was found: {table.unresolved[0]} is in none of the folders {places}; name "
                "the folder of the images with images="
            )
        lines += [f"{name}: {issue.count} x {issue.message}" for issue in table.issues]
    return Data(base, reader.NAME, tables, label_map, "\n".join(lines))


def _with_maps(data: Data, folder: Path) -> Data:
    """The data set with the maps of semantic classes in a folder, for the splits that have any there."""
    found = {name: find_maps(folder, table.file_names) for name, table in data.splits.items()}
    if not any(found.values()):
        name = next(iter(data.splits.values())).file_names[0]
        places = ", ".join(str(maps.path(name)) for maps in layouts(folder, [name]))
        raise DataError(
            f"{folder}: holds no semantic map of any split; that of {name} was looked for at {places}; "
            "name the folder of the maps with semantic="
        )
    splits = {n: t if (maps := found[n]) is None else t.with_semantic(maps) for n, t in data.splits.items()}
    first = {n: maps.path(data.splits[n].file_names[0]) for n, maps in found.items() if maps is not None}
    notes = [f"{name}: semantic maps such as {path}" for name, path in first.items()]
    return dataclasses.replace(data, splits=splits, found="\n".join([data.found, *notes]))


def unite_label_maps(maps: list[tuple[LabelMap, bool]], where: str) -> LabelMap:
    """One label map for all splits: a class is its name.

    Declared classes keep their source ids, the first split that declares a name deciding; a name whose
    id is taken gets the next free one. Classes are in the order of their ids. Where no split declares its
    classes, they are sorted by name and numbered from 1.

    Args:
        maps: label map of each split, and whether its annotations declare the classes.
        where: for the message.

    Raises:
        DataError: there is no class at all.
    """
    declared = [label_map for label_map, is_declared in maps if is_declared]
    ids: dict[str, int] = {}
    for label_map in declared:
        for name, ident in zip(label_map.names, label_map.source_ids, strict=True):
            if name not in ids:
                ids[name] = ident if ident not in ids.values() else max(ids.values()) + 1
    others = {name for label_map, is_declared in maps if not is_declared for name in label_map.names}
    for name in sorted(others - ids.keys()):
        ids[name] = max(ids.values(), default=0) + 1
    if not ids:
        raise DataError(
            f"{where}: no object has a class, so there is nothing to learn; annotate some objects"
        )
    pairs = sorted((ident, name) for name, ident in ids.items())
    return LabelMap(tuple(name for _, name in pairs), tuple(ident for ident, _ in pairs))


def _nothing_found(base: Path, format: str | None, explicit: dict[str, str]) -> str:
    readers = [r for r in READERS if format in (None, r.NAME)]
    looked = "\n".join(f"  - {r.LOOKED_FOR}" for r in readers)
    entries = sorted(f"{p.name}/" if p.is_dir() else p.name for p in base.iterdir())
    asked = "".join(f" {split}={value!r}" for split, value in explicit.items())
    like = "".join(f"  - {kind}\n" for kind in (others.recognise(base) if not explicit else ()))
    seen = f"It looks like:\n{like}" if like else ""
    return (
        f"{base}: no annotations found{' for' + asked if asked else ''}. "
        f"It holds: {some_of(entries, 20) or 'nothing'}.\n{seen}Looked for:\n{looked}\n"
        "If it has one of these formats, say where with format=, annotations=, images=, train=, val= or "
        f"test= (paths relative to the folder). If not: {others.REMEDY}"
    )
