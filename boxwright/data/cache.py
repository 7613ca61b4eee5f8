"""Cached tables: one Arrow file for each split, named by a hash of what it was read from."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa

from ..errors import DataError
from .readers.fields import Source, choose_dir
from .table import open_arrow

# Raise this with every change of the readers, the cleaning rules or the schema.
READER_VERSION = 2


def cache_folder() -> Path:
    """`$BOXWRIGHT_CACHE`, or `~/.cache/boxwright`.

    Raises:
        DataError: neither the variable nor a home folder is known.
    """
    named = os.environ.get("BOXWRIGHT_CACHE")
    if named:
        return Path(named)
    try:
        return Path.home() / ".cache" / "boxwright"
    except RuntimeError as error:  # a container's user may have none
        raise DataError(
            f"tables cannot be cached: {error}; set BOXWRIGHT_CACHE to a folder that can be written"
        ) from error


def cached_table(source: Source, read: Callable[[Source], pa.Table]) -> Path:
    """Path of the Arrow file of a split; reads the annotations if it is not there or no longer fits.

    The file is written under a temporary name and renamed, so several processes may do this at once.

    Raises:
        DataError: the annotations cannot be read, or the cache folder cannot be written.
    """
    path = cache_folder() / "tables" / f"{source.split}-{content_key(source)}.arrow"
    if path.exists():
        try:
            table = open_arrow(path)
            table.validate(full=True)
            metadata = json.loads((table.schema.metadata or {})[b"boxwright"])
            appeared = bool(metadata["unresolved"]) and choose_dir(source, metadata["unresolved"])[1]
            if not appeared and metadata["files"] == _watched(table, source, metadata["size_files"]):
                return path
        except (DataError, pa.ArrowInvalid, KeyError, ValueError) as error:
            warnings.warn(f"{path}: the cached table is damaged ({error}); it is read anew", stacklevel=3)
    _write(path, _with_watch(read(source), source))
    return path


def content_key(source: Source) -> str:
    """Hash of everything a split's table is made from, except the images' contents."""
    digest = hashlib.blake2b(digest_size=16)

    def add(*parts: object) -> None:
        for part in parts:
            text = str(part).encode("utf-8", "surrogateescape")
            digest.update(len(text).to_bytes(8, "little") + text)

    add(READER_VERSION, source.format, *source.classes, "dirs")
    add(*(_relative(folder, source) for folder in source.image_dirs), "images")
    add(*(_relative(image, source) for image in source.images), "annotations")
    for path in source.annotations:
        try:
            with path.open("rb") as file:
                add(_relative(path, source), hashlib.file_digest(file, "blake2b").hexdigest())
        except OSError as error:
            raise DataError(
                f"{path}: cannot be read ({error.strerror or error}); name an existing annotation file"
            ) from error
    return digest.hexdigest()


def _relative(path: Path, source: Source) -> str:
    return path.relative_to(source.base).as_posix() if path.is_relative_to(source.base) else path.as_posix()


def _watched(table: pa.Table, source: Source, size_files: bool) -> str:
    """Hash of size and time of the image files, where the table holds sizes that were read from them."""
    if not size_files:
        return ""
    digest = hashlib.blake2b(digest_size=16)
    for name in table.column("file").to_pylist():
        try:
            stat = os.stat(source.base / name)
            digest.update(f"{name}\0{stat.st_size}\0{stat.st_mtime_ns}\0".encode())
        except OSError:
            digest.update(f"{name}\0missing\0".encode())
    return digest.hexdigest()


def _with_watch(table: pa.Table, source: Source) -> pa.Table:
    metadata = json.loads((table.schema.metadata or {})[b"boxwright"])
    metadata["files"] = _watched(table, source, metadata["size_files"])
    return table.replace_schema_metadata({"boxwright": json.dumps(metadata)})


def _write(path: Path, table: pa.Table) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=".writing-")
        os.close(handle)
    except OSError as error:
        raise DataError(
            f"{path.parent}: tables cannot be cached there ({error.strerror or error}); "
            "set BOXWRIGHT_CACHE to a folder that can be written"
        ) from error
    try:
        with pa.OSFile(name, "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
            writer.write_batch(table.combine_chunks().to_batches()[0])
        os.replace(name, path)
    except OSError as error:
        raise DataError(
            f"{path}: the table cannot be written ({error}); free space or set BOXWRIGHT_CACHE"
        ) from error
    finally:
        Path(name).unlink(missing_ok=True)
