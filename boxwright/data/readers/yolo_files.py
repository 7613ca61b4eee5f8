"""Where the images and label files of a YOLO folder lie: by data.yaml, by lists of images, or by layout."""

from __future__ import annotations

import os
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from ..images import IMAGE_SUFFIXES
from . import fields
from .fields import fail
from .names import has_key, read_paths

NAME_FILES = (
    "classes.txt",
    "obj.names",
    "names.txt",
    "data.yaml",
    "data.yml",
    "dataset.yaml",
    "dataset.yml",
)
_KEYS = ("train", "val", "valid", "validation", "test")
_TRIED = 20


@dataclass(frozen=True)
class Pairs:
    """Images of one split and their label files.

    Args:
        images: the images.
        labels: the label file of each, None for an image that has none; at least one is there.
        folders: the folders of the images and of the label files.
        notes: what was left out, in sentences.
    """

    images: tuple[Path, ...]
    labels: tuple[Path | None, ...]
    folders: tuple[Path, Path]
    notes: tuple[str, ...] = ()


def find_pairs(root: Path) -> tuple[dict[str, Pairs], tuple[str, ...]]:
    """Images and labels of the splits that are found by looking; and what data.yaml names in vain.

    What a YAML file or a list of images says goes before the layout of the folders.
    """
    found, notes = _of_yaml(root)
    for path in sorted(root.glob("*.txt")):
        split = fields.split_of(path.stem)
        pairs = of_list(root, path) if split is not None and split not in found else None
        if split is not None and pairs is not None:
            found[split] = pairs
    laid, lacking = _by_layout(root, found)
    found, notes = {**laid, **found}, (*notes, *lacking)
    if not found:
        images = root / "images"
        pairs = of_folders(images, root / "labels") or of_folders(images, images)
        pairs = pairs or of_folders(root, root, deep=False)
        found = {} if pairs is None else {"train": pairs}
    return found, notes


def _by_layout(root: Path, known: Collection[str]) -> tuple[dict[str, Pairs], list[str]]:
    """Splits that folders are named by, without those known; and sentences about folders without labels."""
    found: dict[str, Pairs] = {}
    notes = []
    for parent in (root / "images", root):
        for child in sorted(parent.iterdir()) if parent.is_dir() else []:
            split = fields.split_of(child.name) if child.is_dir() else None
            if split is None or split in found or split in known:
                continue
            if parent != root:
                images, labels = child, root / "labels" / child.name
            elif (child / "labels").is_dir():
                images, labels = child / "images", child / "labels"
            else:
                images, labels = child, child
            pairs = of_folders(images, labels)
            if pairs is not None:
                found[split] = pairs
            elif images.is_dir() and fields.files_below(images, IMAGE_SUFFIXES):
                place = labels.relative_to(root).as_posix()
                notes.append(f"{images.relative_to(root).as_posix()} was left out: no labels in {place}")
    return found, notes


def of_folders(images: Path, labels: Path, deep: bool = True) -> Pairs | None:
    """Images of a folder and the label files of another, laid out alike; None if no image has a label.

    Args:
        images: folder of the images.
        labels: folder of the label files.
        deep: look into the folders below, too.
    """
    if not images.is_dir() or not labels.is_dir():
        return None
    listed = fields.files_below(images, IMAGE_SUFFIXES) if deep else fields.list_images(images)
    files = fields.files_below(labels, (".txt",)) if deep else sorted(labels.glob("*.txt"))
    there, start, end = {str(path): path for path in files}, str(labels), len(str(images))
    # In text, as paths of a hundred thousand images would take seconds.
    found = tuple(there.get(f"{start}{os.path.splitext(path)[0][end:]}.txt") for path in map(str, listed))
    used = set(found)
    if not used - {None}:
        return None
    alone = [path for path in files if path not in used and path.name not in NAME_FILES]
    notes = (
        (f"{len(alone)} label files without an image were left out, {alone[0].name} first",) if alone else ()
    )
    return Pairs(tuple(listed), found, (images, labels), notes)


def of_folder(path: Path) -> Pairs | None:
    """Images and labels of a split, of which one folder is named; None if no image has a label."""
    swapped = _swapped(path, "images", "labels")
    candidates = [(path / "images", path / "labels"), (path, swapped)]
    candidates += [(_swapped(path, "labels", "images"), path), (path, path)]
    return next((pairs for pair in candidates if (pairs := of_folders(*pair)) is not None), None)


def _swapped(path: Path, old: str, new: str) -> Path:
    """The path with its last part `old` replaced; the path itself where there is no such part."""
    parts = path.parts
    place = next((i for i in reversed(range(len(parts))) if parts[i] == old), None)
    return path if place is None else Path(*parts[:place], new, *parts[place + 1 :])


def of_list(root: Path, path: Path) -> Pairs | None:
    """Images that a text file lists, one path a line, and the label file of each.

    A path counts from the list's folder or from `root`; what stands before the part that is found there
    (`/content/data/`, `data/`) is left out, in all lines alike. The labels of `images/a.jpg` are
    `labels/a.txt` or `images/a.txt`.

    Returns:
        None if the file does not list images, or none of them has a label file.

    Raises:
        DataError: none of the first images is there, one leads outside of the data set or stands twice.
    """
    text = fields.decode_text(path, path.read_bytes(), may_be_empty=True)
    written = [(n, line.strip()) for n, line in enumerate(text.split("\n"), 1)]
    lines = [(n, line.replace("\\", "/")) for n, line in written if line]
    if not lines or PurePosixPath(lines[0][1]).suffix.lower() not in IMAGE_SUFFIXES:
        return None
    base, drop = _place_of_list(root, path, lines)
    images: dict[Path, None] = {}
    for number, line in lines:
        name = "/".join(PurePosixPath(line).parts[drop:])
        image = root / fields.inside(root, base, name, path, f"line {number}")
        if image in images:
            fail(path, f"line {number}", f"{line!r} is listed twice", "remove one of the lines")
        images[image] = None
    labels = tuple(_label_of(root, image) for image in images)
    first = next((label for label in labels if label is not None), None)
    if first is None:
        return None
    return Pairs(tuple(images), labels, (next(iter(images)).parent, first.parent))


def _place_of_list(root: Path, path: Path, lines: list[tuple[int, str]]) -> tuple[Path, int]:
    """The folder that the paths of a list count from, and how many parts stand before in each."""
    for _, line in lines[:_TRIED]:
        parts = PurePosixPath(line).parts
        for drop in range(int(line.startswith("/")), len(parts)):
            for base in (path.parent, root):
                if ".." not in parts[drop:] and base.joinpath(*parts[drop:]).is_file():
                    return base, drop
    number, line = lines[0]
    fail(path, f"line {number}", f"there is no image {line!r} in {root}", "list paths relative to this file")


def _label_of(root: Path, image: Path) -> Path | None:
    swapped = root / _swapped(image.relative_to(root), "images", "labels").with_suffix(".txt")
    beside = image.with_suffix(".txt")
    return next((label for label in (swapped, beside) if label.is_file()), None)


def _of_yaml(root: Path) -> tuple[dict[str, Pairs], tuple[str, ...]]:
    """Splits that data.yaml names, and sentences about what it names in vain."""
    files = [root / name for name in NAME_FILES if name.endswith(("yaml", "yml")) and (root / name).is_file()]
    others = [*root.glob("*.yaml"), *root.glob("*.yml")]
    files = files or [path for path in others if len(others) == 1 and has_key(path, "names")]
    found: dict[str, Pairs] = {}
    notes = []
    for key in _KEYS if files else ():
        parts = []
        for value in read_paths(files[0], key):
            pairs = _of_value(root, files[0], value)
            if pairs is None:
                notes.append(f"{files[0].name}: {key}: {value} holds no labelled images of this folder")
            else:
                parts.append(pairs)
        split = fields.split_of(key)
        if parts and split is not None:
            found[split] = _joined(parts)
    return found, tuple(notes)


def _of_value(root: Path, yaml: Path, value: str) -> Pairs | None:
    """What a path of data.yaml stands for: a folder or a list of images, inside of the data set.

    Paths count from the YAML file's `path`, or from the file itself, also where they begin with `../`, as
    some exports write them.
    """
    for top in (*read_paths(yaml, "path"), ""):
        for text in (value, value.removeprefix("../")):
            target = Path(os.path.normpath(yaml.parent / top / text))
            if not target.is_relative_to(root):
                continue
            pairs = of_list(root, target) if target.is_file() else of_folder(target)
            if pairs is not None:
                return pairs
    return None


def _joined(parts: list[Pairs]) -> Pairs:
    """Several folders or lists as one split; an image counts once."""
    labels = {image: label for p in parts for image, label in zip(p.images, p.labels, strict=True)}
    notes = tuple(note for p in parts for note in p.notes)
    return Pairs(tuple(labels), tuple(labels.values()), parts[0].folders, notes)
