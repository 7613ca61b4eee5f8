"""Checking a data set before training: what is wrong, in which file and record, and how to mend it."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from ..errors import DataError
from .dataset import Data
from .images import decode_image, image_size, looks_whole
from .table import Table

SEVERITIES = ("error", "warning", "info")
_EXAMPLES = 5
_T = TypeVar("_T")


@dataclass(frozen=True)
class Finding:
    """One kind of thing that was found in one split.

    Args:
        severity: "error" (training would fail or learn wrong things), "warning" or "info".
        code: short name of the kind, such as "image_missing".
        message: what is wrong.
        file: the first file that it concerns.
        record: the record in it, and further examples.
        remedy: how to mend it.
        count: how many records it concerns.
        split: the split; empty where it concerns several.
    """

    severity: str
    code: str
    message: str
    file: str = ""
    record: str = ""
    remedy: str = ""
    count: int = 1
    split: str = ""

    def __str__(self) -> str:
        where = ": ".join(part for part in (self.split, self.file, self.record) if part)
        return f"{self.severity}: {self.code} x {self.count}: {self.message} [{where}] {self.remedy}".rstrip()


@dataclass(frozen=True)
class CheckReport:
    """All findings, the gravest first. `rich.print(report)` shows a table."""

    root: str
    findings: tuple[Finding, ...]
    images: int
    objects: int

    @property
    def errors(self) -> tuple[Finding, ...]:
        """The findings that forbid training."""
        return tuple(finding for finding in self.findings if finding.severity == "error")

    def count(self, severity: str) -> int:
        """Number of findings of a severity."""
        return sum(finding.severity == severity for finding in self.findings)

    def raise_for_errors(self) -> None:
        """Raise a DataError that lists the errors, if there are any."""
        if self.errors:
            lines = "\n".join(f"  {finding}" for finding in self.errors[:20])
            raise DataError(f"{self.root}: the data set cannot be used as it is:\n{lines}")

    def __str__(self) -> str:
        return "\n".join([self._summary(), *(str(finding) for finding in self.findings)])

    def _summary(self) -> str:
        counts = ", ".join(f"{self.count(s)} {s}{'' if s == 'info' else 's'}" for s in SEVERITIES)
        return f"{self.root}: {self.images} images, {self.objects} objects; {counts}"

    def __rich__(self) -> Any:
        from rich.text import Text

        colours = {"error": "bold red", "warning": "bold yellow", "info": "bold"}
        report = Text(self._summary() + "\n")
        for f in self.findings:
            split = f" in {f.split}" if f.split else ""
            report.append(f"\n{f.severity} ", colours[f.severity])
            report.append(f"{f.code}{split} x {f.count}: {f.message}\n")
            where = ": ".join(part for part in (f.file, f.record) if part)
            report.append(f"  at: {where}\n" if where else "", "dim")
            report.append(f"  remedy: {f.remedy}\n" if f.remedy else "")
        return report


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
    "box_degenerate": "draw the boxes again or delete them",
    "box_outside": "correct the coordinates: they may belong to an image of another size",
    "box_clipped": "none needed below a pixel; else correct the coordinates",
    "polygon_dropped": "draw the polygons again",
    "mask_missing": "add the masks, or do not train on masks",
    "annotation_id_twice": "give each annotation its own id",
    "annotation_id_zero": "none needed; ids that begin with 1 are kept",
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
    return file, "; ".join([record, *examples[1:_EXAMPLES]])


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
                turned = " (turned: they ignore the EXIF orientation)" if result == size[::-1] else ""
                text = "the file is {} x {}, the annotations say {} x {}".format(*result, *size) + turned
                problems.setdefault("size_mismatch", []).append((path, text))
        else:
            code = "image_undecodable" if path.exists() else "image_missing"
            problems.setdefault(code, []).append((path, result))
    texts = {
        "image_missing": ("image files that do not exist", "restore them, or name their folder with images="),
        "image_undecodable": (
            "image files that cannot be read",
            "copy them again or remove their annotations",
        ),
        "size_mismatch": (
            "image sizes that differ from the annotations', so boxes lie wrongly",
            "correct width and height, after scaling the boxes if the images were scaled",
        ),
    }
    for code, found in problems.items():
        message, remedy = texts[code]
        file, record = str(found[0][0]), found[0][1].removeprefix(f"{found[0][0]}: ")
        record = "; ".join([record, *(path.name for path, _ in found[1:_EXAMPLES])])
        yield Finding("error", code, message, file, record, remedy, len(found), split)


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
    """Classes without examples, in all splits or in the one to train on; and classes numbered differently."""
    yield from _shifted(data)
    names = data.label_map.names
    counts = {s: np.bincount(t.objects().labels, minlength=len(names)) for s, t in data.splits.items()}
    trained = next((s for s in ("train", "trainval") if s in data.splits), None)
    total = np.sum(list(counts.values()), axis=0)
    empty = [name for name, count in zip(names, total, strict=True) if count == 0]
    if empty:
        text = "classes that are declared but have no example in any split; they keep their labels"
        remedy = "remove them from the annotations if they are not meant"
        yield Finding("info", "class_without_examples", text, "", _some(empty), remedy, len(empty))
    if trained is None:
        return
    lacking = (counts[trained] == 0) & (total > 0)
    unknown = [f"{name} ({n})" for name, n, lacks in zip(names, total, lacking, strict=True) if lacks]
    if unknown:
        text = f"classes with examples elsewhere but none in {trained}: they cannot be learnt"
        remedy = "check the spelling of their names, or add examples"
        yield Finding("warning", "class_unknown", text, "", _some(unknown), remedy, len(unknown))


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:10]) + (f" and {len(names) - 10} more" if len(names) > 10 else "")


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
