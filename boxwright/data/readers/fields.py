"""What the readers share: where a split comes from, opening files, and checked access to their fields."""

from __future__ import annotations

import json
import os
import posixpath
import re
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from ...errors import DataError
from ..build import MAX_SIDE
from ..images import IMAGE_SUFFIXES, image_size

SPLIT_NAMES = ("train", "val", "test", "trainval", "minival")
_ALIASES = {"valid": "val", "validation": "val", "training": "train", "testing": "test", "eval": "val"}


@dataclass(frozen=True)
class Source:
    """Where one split comes from.

    Args:
        format: "coco", "voc", "yolo" or "light".
        split: its name.
        base: folder that the table's file names are relative to.
        annotations: the annotation files, whose contents decide the table.
        image_dirs: folders in which images may lie, the likeliest first.
        images: the images themselves, for a format that lists them by their files.
        labels: the annotation file of each of `images`, None for an image that has none.
        classes: class names, for a format that keeps them in a file of their own.
        notes: what `find` left out, in sentences.
    """

    format: str
    split: str
    base: Path
    annotations: tuple[Path, ...]
    image_dirs: tuple[Path, ...] = ()
    images: tuple[Path, ...] = ()
    labels: tuple[Path | None, ...] = ()
    classes: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Request:
    """What the caller of `folder` made explicit about all splits; None means: look.

    Args:
        annotations: the annotation file or folder.
        images: the folder of images.
    """

    annotations: Path | None = None
    images: Path | None = None


def fail(file: object, record: str, problem: str, remedy: str) -> NoReturn:
    """Raise a DataError in the one form all readers use."""
    raise DataError(f"{file}: {record + ': ' if record else ''}{problem}; {remedy}")


def split_of(stem: str) -> str | None:
    """Split that a file or folder name stands for, "instances_train2017" for train, or None."""
    text = re.sub(r"^(instances|annotations|light|person_keypoints)[_-]", "", stem.lower())
    text = re.sub(r"[_-]?(\d{4})$", "", text)
    text = re.sub(r"[_-]?(annotations|instances|coco|images)$", "", text)
    text = _ALIASES.get(text, text)
    return text if text in SPLIT_NAMES else None


def ordered(splits: Iterable[str]) -> list[str]:
    """Split names with train, val and test first."""
    return sorted(splits, key=lambda s: (SPLIT_NAMES.index(s) if s in SPLIT_NAMES else len(SPLIT_NAMES), s))


def read_bytes(path: Path) -> bytes:
    """Contents of a file that must not be empty."""
    try:
        content = path.read_bytes()
    except OSError as error:
        fail(path, "", f"cannot be read ({error.strerror or error})", "name an existing annotation file")
    if not content.strip():
        fail(path, "", "the file is empty", "write the annotations again or leave the file out")
    return content


def decode_text(path: Path, content: bytes, may_be_empty: bool = False) -> str:
    """UTF-8 text, with or without a byte order mark."""
    try:
        text = content.decode("utf-8-sig")
        if not may_be_empty and not text.strip():
            fail(path, "", "the file is empty", "write the annotations again or leave the file out")
        return text
    except UnicodeDecodeError as error:
        fail(path, f"byte {error.start}", "not UTF-8 text", "save the file in UTF-8")


def parse_json(path: Path, text: str, line: int | None = None) -> Any:
    """JSON value of a whole file, or of one line of it; syntax errors name line and column."""
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        where = f"line {line if line is not None else error.lineno} column {error.colno}"
        fail(path, where, f"not valid JSON ({error.msg})", "the file may be cut short: write it again")
    except (RecursionError, ValueError) as error:
        where = "" if line is None else f"line {line}"
        fail(path, where, f"not JSON that can be read ({error})", "write the file again")


def mapping(value: object, file: object, record: str) -> dict[str, Any]:
    """The value, which must be a JSON object."""
    if not isinstance(value, dict):
        fail(
            file,
            record,
            f"must be an object {{...}}, found {_kind(value)}",
            "write it as in docs/data_formats.md",
        )
    return value


def sequence(entry: dict[str, Any], key: str, file: object, record: str) -> list[Any]:
    """A list that must be there."""
    value = required(entry, key, file, record)
    if not isinstance(value, list):
        fail(
            file,
            record,
            f"`{key}` must be a list, found {_kind(value)}",
            "write it as in docs/data_formats.md",
        )
    return value


def required(entry: dict[str, Any], key: str, file: object, record: str) -> Any:
    """A value that must be there."""
    if key not in entry:
        fail(file, record, f"has no `{key}`", "add it, as docs/data_formats.md shows")
    return entry[key]


def text(entry: dict[str, Any], key: str, file: object, record: str) -> str:
    """Text that must be there and not be empty."""
    value = required(entry, key, file, record)
    if not isinstance(value, str) or not value.strip():
        fail(file, record, f"`{key}` must be text, found {_kind(value)}", "correct the value")
    return encodable(value, key, file, record)


def encodable(value: str, key: str, file: object, record: str) -> str:
    """The text, if it can be written as UTF-8 (lone surrogates cannot)."""
    if "\0" in value or _unencodable(value):
        fail(file, record, f"`{key}` holds characters that no file can be named by", "correct the value")
    return value


def _unencodable(value: str) -> bool:
    try:
        value.encode("utf-8")
    except UnicodeEncodeError:
        return True
    return False


def whole(entry: dict[str, Any], key: str, file: object, record: str) -> int:
    """A whole number that must be there and fit 64 bits; 3.0 is taken as 3."""
    return as_whole(required(entry, key, file, record), f"`{key}`", file, record)


def as_whole(value: object, what: str, file: object, record: str) -> int:
    """The value as a whole number of 64 bits."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if type(value) is not int or not -(2**63) <= value < 2**63:
        fail(
            file,
            record,
            f"{what} must be a whole number, found {_kind(value)}",
            "write a number without quotes",
        )
    return value


def numbers(value: object, what: str, count: int | None, file: object, record: str) -> list[float]:
    """A list of numbers (NaN and infinity pass: cleaning counts them)."""
    if not isinstance(value, list) or (count is not None and len(value) != count):
        wanted = "a list of numbers" if count is None else f"a list of {count} numbers"
        found = f"{len(value)} values" if isinstance(value, list) else _kind(value)
        fail(file, record, f"{what} must be {wanted}, found {found}", "correct the value")
    for v in value:
        if type(v) is not float and type(v) is not int:
            fail(file, record, f"{what} must hold numbers, found {_kind(v)}", "write numbers without quotes")
    try:
        return [float(v) for v in value]
    except OverflowError:
        fail(file, record, f"{what} holds a number too large", "correct the value")


def flag(value: object, what: str, file: object, record: str) -> bool:
    """True, false, 1 or 0."""
    if value not in (0, 1) or not isinstance(value, (bool, int)):
        fail(file, record, f"{what} must be true or false, found {_kind(value)}", "write true or false")
    return bool(value)


def check_size(width: int, height: int, file: object, record: str) -> tuple[int, int]:
    """Image sides that are possible."""
    if not (0 < width <= MAX_SIDE and 0 < height <= MAX_SIDE):
        fail(
            file,
            record,
            f"the image size {width} x {height} is impossible",
            "state the image's width and height in pixels",
        )
    return width, height


def _kind(value: object) -> str:
    shown = repr(value)
    return f"{type(value).__name__} {shown if len(shown) <= 40 else shown[:37] + '...'}"


def inside(base: Path, folder: Path, name: str, file: object, record: str) -> str:
    """Path of an image relative to `base`, with forward slashes; nothing outside of `base` is accepted.

    The test is on the written path: links that the owner of the data set made may lead elsewhere.
    """
    name = name.replace("\\", "/")
    joined = posixpath.normpath(posixpath.join(folder.as_posix(), name))
    root = posixpath.normpath(base.as_posix())
    if (
        "\0" in name
        or name.startswith("/")
        or re.match(r"^[A-Za-z]:", name)
        or not joined.startswith(root.rstrip("/") + "/")
    ):
        fail(
            file,
            record,
            f"the path {name!r} leads outside of the data set ({root})",
            "write it relative to the folder of the images",
        )
    return joined[len(root.rstrip("/")) + 1 :]


def image_folders(
    root: Path, split: str, path: Path, request: Request
) -> tuple[Path, tuple[Path, ...], tuple[Path, ...]]:
    """Base, annotation files and possible image folders of a split whose annotations are one file."""
    if request.images is not None:
        base = root if request.images.is_relative_to(root) else request.images
        return base, (path,), (request.images,)
    names = ["", split, "valid" if split == "val" else split, path.stem.removeprefix("instances_"), path.stem]
    under = ["", "images", "JPEGImages", "data"]
    folders = [path.parent, *(root / a / b for a in under for b in names)]
    folders += [path.parent / "images", path.parent / "data", path.parent.parent]
    folders += [child for child in sorted(root.iterdir()) if child.is_dir()]
    folders = [f for f in dict.fromkeys(folders) if f.is_dir() and f.is_relative_to(root)]
    return root, (path,), tuple(folders) or (root,)


def relative(path: Path, source: Source) -> str:
    """Path of an annotation file as messages and metadata show it."""
    return path.relative_to(source.base).as_posix() if path.is_relative_to(source.base) else str(path)


def choose_dir(source: Source, names: list[str]) -> tuple[Path, bool]:
    """The folder, of those where images may lie, with most of the first names; and whether any has one."""
    sample = [name.replace("\\", "/") for name in names[:20] if "\0" not in name]

    def hits(folder: Path) -> int:
        return sum(os.path.isfile(posixpath.join(folder.as_posix(), name)) for name in sample)

    scores = [hits(folder) for folder in source.image_dirs]
    best = max(scores, default=0)
    return source.image_dirs[scores.index(best) if best else 0], best > 0


def size_of(base: Path, file: str, where: object, record: str) -> tuple[int, int]:
    """Size of an image from its header, for annotations that do not state it."""
    try:
        return image_size(base / file)
    except DataError as error:
        fail(where, record, f"states no size and its image cannot be read: {error}", "state width and height")


def list_images(folder: Path) -> list[Path]:
    """Image files of a folder, by name; hidden ones (`._a.jpg` of some archives) are none."""
    with os.scandir(folder) as entries:
        names = [e.name for e in entries if _has_suffix(e.name, IMAGE_SUFFIXES)]
    return [folder / name for name in sorted(names)]


def walk(folder: Path) -> Iterator[tuple[Path, list[str]]]:
    """A folder and the folders below it, each with the names of its files; hidden ones are passed over.

    Links to folders are followed, but no folder is entered twice, so that a circle of links does no harm.
    """
    seen: set[tuple[int, int]] = set()
    for place, folders, names in os.walk(folder, followlinks=True):
        stat = os.stat(place)
        if (stat.st_dev, stat.st_ino) in seen:
            folders.clear()
            continue
        seen.add((stat.st_dev, stat.st_ino))
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        yield Path(place), sorted(name for name in names if not name.startswith("."))


def files_below(folder: Path, suffixes: Collection[str]) -> list[Path]:
    """Files with one of the suffixes in a folder and the folders below it, as `walk` comes to them."""
    return [place / name for place, names in walk(folder) for name in names if _has_suffix(name, suffixes)]


def _has_suffix(name: str, suffixes: Collection[str]) -> bool:
    return os.path.splitext(name)[1].lower() in suffixes and not name.startswith(".")
