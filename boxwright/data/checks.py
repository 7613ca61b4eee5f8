"""Checking a data set before training: what is wrong, in which file and record, and how to mend it."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import combinations
from pathlib import Path
from typing import TypeVar

import numpy as np

from ..errors import DataError, some_of
from .dataset import Data
from .findings import SEVERITIES, CheckReport, Finding
from .images import decode_image, image_size, is_turned, looks_whole
from .plausibility import doubtful
from .table import Table

_EXAMPLES = 5
_T = TypeVar("_T")


def check(data: Data, *, decode: bool = False) -> CheckReport:
    """Look for everything in a data set that would spoil a training.

    Annotations that cannot be read at all have raised when the folder was opened. By default only the
    headers of the images are read, and those files decoded that lack an end marker.

    Args:
        data: the data set.
        decode: decode every image, and compare the splits by contents rather than by file name.

    Returns:
        The findings; `raise_for_errors` stops on the grave ones.
    """
    findings: list[Finding] = []
    for name, table in data.splits.items():
        findings += _cleaning(name, table)
        findings += _objects(name, table)
        findings += doubtful(name, table)
        findings += _images(name, table, decode)
        findings += _semantic(name, table)
    findings += _classes(data)
    findings += _overlaps(data, decode)
    findings.sort(key=lambda finding: SEVERITIES.index(finding.severity))
    images = sum(len(table) for table in data.splits.values())
    objects = sum(int(table.object_counts.sum()) for table in data.splits.values())
    return CheckReport(str(data.root), tuple(findings), images, objects)


_REMEDIES = {
    "box_not_finite": "write finite coordinates",
    "box_degenerate": "draw the boxes again or delete them; where they are many, width and height may stand "
    "in place of the second corner",
    "box_outside": "correct the coordinates: they may belong to an image of another size",
    "box_clipped": "none needed below a pixel; else correct the coordinates: where they are many, the second "
    "corner may stand in place of width and height",
    "polygon_dropped": "draw the polygons again",
    "mask_missing": "add the masks, or leave it so; the fewer have one, the less a mask head learns",
    "annotation_id_twice": "give each annotation its own id",
    "annotation_id_zero": "none needed; ids that begin with 1 are kept",
    "federated": "none needed to try it out; numbers are not those of LVIS's own evaluation",
}


def _cleaning(split: str, table: Table) -> list[Finding]:
    """What reading mended or left out."""
    return [
        Finding(
            issue.severity,
            issue.code,
            issue.message,
            *_place(issue.examples),
            remedy=_REMEDIES.get(issue.code, ""),
            count=issue.count,
            split=split,
        )
        for issue in table.issues
    ]


def _place(examples: Sequence[str]) -> tuple[str, str]:
    """File, and record with further examples, of "file: record" texts."""
    file, _, record = examples[0].partition(": ") if examples else ("", "", "")
    return file, "; ".join(text for text in (record, *examples[1:_EXAMPLES]) if text)


def _objects(split: str, table: Table) -> Iterator[Finding]:
    """Splits without objects, images without objects, and objects that stand twice."""
    flat = table.objects()
    source = table.sources[0] if table.sources else ""
    if not np.any(~flat.ignore):
        grave = "error" if split in ("train", "trainval") else "warning"
        text = "no object at all (ignore regions do not count)"
        yield Finding(
            grave, "no_objects", text, source, remedy="annotate objects or choose another file", split=split
        )
        return
    empty = np.flatnonzero(table.object_counts == 0)
    if len(empty):
        names = [table.file_names[i] for i in empty[:_EXAMPLES]]
        text = "images without objects; they are kept and train as background"
        yield Finding("info", "image_without_objects", text, *_place(names), count=len(empty), split=split)
    keys = np.column_stack((flat.row, flat.labels, flat.boxes))
    _, first, counts = np.unique(keys, axis=0, return_index=True, return_counts=True)
    twice = first[counts > 1]
    if len(twice):
        files = table.file_names
        examples = [f"{files[flat.row[i]]}: annotation id {flat.ids[i]}" for i in twice[:_EXAMPLES]]
        text = "objects with the same class and box as another of their image"
        remedy = "delete the copies: they count as missed objects in evaluation"
        total = int((counts - 1).sum())
        yield Finding(
            "warning", "object_twice", text, *_place(examples), remedy=remedy, count=total, split=split
        )


def _images(split: str, table: Table, decode: bool) -> Iterator[Finding]:
    """Missing and damaged images, and sizes that differ from the annotations'."""
    paths = [table.root / name for name in table.file_names]
    stated = list(zip(table.widths.tolist(), table.heights.tolist(), strict=True))
    problems: dict[str, list[tuple[Path, str]]] = {}
    for path, size, result in zip(paths, stated, _map(lambda p: _inspect(p, decode), paths), strict=True):
        if isinstance(result, tuple):
            if result != size:
                turned = result == size[::-1] and is_turned(path)
                text = "the file is {} x {}, the annotations say {} x {}".format(*result, *size)
                text += "" if turned or result != size[::-1] else " (exchanged, but no EXIF turns the file)"
                problems.setdefault("size_turned" if turned else "size_mismatch", []).append((path, text))
        else:
            code = "image_undecodable" if path.exists() else "image_missing"
            problems.setdefault(code, []).append((path, result))
    for code, found in problems.items():
        message, remedy = _IMAGE_PROBLEMS[code]
        file, record = str(found[0][0]), found[0][1].removeprefix(f"{found[0][0]}: ")
        record = "; ".join([record, *(path.name for path, _ in found[1:_EXAMPLES])])
        yield Finding("error", code, message, file, record, remedy, len(found), split)


_IMAGE_PROBLEMS = {
    "image_missing": ("image files that do not exist", "restore them, or name their folder with images="),
    "image_undecodable": (
        "image files that cannot be read",
        "copy them again or remove their annotations",
    ),
    "size_mismatch": (
        "image sizes that differ from the annotations', so boxes lie wrongly",
        "correct width and height, after scaling the boxes if the images were scaled",
    ),
    "size_turned": (
        "images that their EXIF orientation turns, with annotations of the picture before it is turned",
        "save these images without the orientation (pixels as they are stored), or annotate them turned",
    ),
}


def _semantic(split: str, table: Table) -> Iterator[Finding]:
    """Semantic maps that are missing or of another size than their image."""
    if table.semantic is None:
        return
    paths = [table.semantic.path(name) for name in table.file_names]
    sizes = list(zip(table.widths.tolist(), table.heights.tolist(), strict=True))
    missing, other = [], []
    for path, size, result in zip(paths, sizes, _map(lambda p: _inspect(p, False), paths), strict=True):
        if isinstance(result, str):
            missing.append(path)
        elif result != size:
            other.append(path)
    for code, found, text, remedy in (
        ("semantic_missing", missing, "semantic maps that cannot be read", "restore them, or do without"),
        ("semantic_size", other, "semantic maps of another size than their image", "make them again"),
    ):
        if found:
            rest = "; ".join(path.name for path in found[1:_EXAMPLES])
            yield Finding("error", code, text, str(found[0]), rest, remedy, len(found), split)


def _inspect(path: Path, decode: bool) -> tuple[int, int] | str:
    """Size of an image, or what is wrong with it."""
    try:
        if decode or (path.is_file() and not looks_whole(path)):
            return decode_image(path).size
        return image_size(path)
    except DataError as error:
        return str(error)


def _map(function: Callable[[Path], _T], paths: Sequence[Path]) -> list[_T]:
    """Reading files waits and decoding runs outside of the interpreter's lock, so threads help."""
    with ThreadPoolExecutor(max_workers=min(16, 2 * (os.cpu_count() or 1))) as pool:
        return list(pool.map(function, paths))


def _classes(data: Data) -> Iterator[Finding]:
    """Classes without examples, in all splits or in the one to train on; numbered differently; alike."""
    yield from _shifted(data)
    names = data.label_map.names
    spelt: dict[str, list[str]] = {}
    for name in names:
        spelt.setdefault("".join(c for c in name.casefold() if c not in " _-"), []).append(name)
    alike = [" / ".join(map(repr, same)) for same in spelt.values() if len(same) > 1]
    if alike:
        text = "classes whose names differ in capitals, spaces, hyphens or underscores alone"
        remedy = "spell each class in one way in all annotations, unless they are different things"
        yield Finding("warning", "class_alike", text, "", some_of(alike), remedy, len(alike))
    counts = {s: np.bincount(t.objects().labels, minlength=len(names)) for s, t in data.splits.items()}
    trained = next((s for s in ("train", "trainval") if s in data.splits), None)
    total = np.sum(list(counts.values()), axis=0)
    empty = [name for name, count in zip(names, total, strict=True) if count == 0]
    if empty:
        text = "classes that are declared but have no example in any split; they keep their labels"
        remedy = "remove them from the annotations if they are not meant"
        yield Finding("info", "class_without_examples", text, "", some_of(empty), remedy, len(empty))
    if trained is None:
        return
    lacking = (counts[trained] == 0) & (total > 0)
    unknown = [f"{name} ({n})" for name, n, lacks in zip(names, total, lacking, strict=True) if lacks]
    if unknown:
        text = f"classes with examples elsewhere but none in {trained}: they cannot be learnt"
        remedy = "check the spelling of their names, or add examples"
        yield Finding("warning", "class_unknown", text, "", some_of(unknown), remedy, len(unknown))


def _shifted(data: Data) -> Iterator[Finding]:
    """Splits whose files number the classes differently; they were matched by name."""
    declared = {s: t for s, t in data.splits.items() if t.declares_classes}
    for (a, first), (b, second) in combinations(declared.items(), 2):
        ids, others = (
            dict(zip(t.names, t.source_ids, strict=True)) for t in (first.own_label_map, second.own_label_map)
        )
        moved = [n for n in ids if n in others and ids[n] != others[n]]
        if moved:
            shown = ", ".join(f"{n}: {ids[n]} / {others[n]}" for n in moved[:_EXAMPLES])
            text = f"{a} and {b} number classes differently; they were matched by name"
            remedy = "make sure that the names are right: if the ids were, the labels are shifted"
            yield Finding("warning", "class_shifted", text, second.sources[0], shown, remedy, len(moved), b)
        lacking = [n for n in (*ids, *others) if (n in ids) != (n in others)]
        if lacking:
            text = f"{a} and {b} do not declare the same classes"
            remedy = "declare all classes in each file"
            shown = ", ".join(lacking[:_EXAMPLES])
            yield Finding(
                "warning", "class_not_shared", text, second.sources[0], shown, remedy, len(lacking), b
            )


def _overlaps(data: Data, by_content: bool) -> Iterator[Finding]:
    """Images that two splits share; `trainval` holds `train` and `val` by definition."""
    keys: dict[str, dict[str, str]] = {}
    for split, table in data.splits.items():
        names = table.file_names
        marks = (
            _map(_digest, [table.root / n for n in names])
            if by_content
            else [str(table.root / n) for n in names]
        )
        keys[split] = {mark: name for mark, name in zip(marks, names, strict=True) if mark}
    for a, b in combinations(keys, 2):
        shared = sorted(keys[a].keys() & keys[b].keys(), key=lambda mark: keys[b][mark])
        if not shared or ("trainval" in (a, b) and {a, b} & {"train", "val", "minival"}):
            continue
        text = f"images that stand in {a} and in {b}: the evaluation is not to be trusted"
        examples = "; ".join(keys[b][mark] for mark in shared[1:_EXAMPLES])
        remedy = "remove them from one of the splits"
        yield Finding(
            "warning", "image_in_two_splits", text, keys[b][shared[0]], examples, remedy, len(shared), b
        )


def _digest(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "blake2b").hexdigest()
    except OSError:
        return ""
