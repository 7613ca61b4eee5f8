"""The label map: one table of class names, contiguous indices and the ids of the source."""

from __future__ import annotations

import json
from dataclasses import dataclass

from .errors import DataError


@dataclass(frozen=True)
class LabelMap:
    """Classes of a data set, in the order of their contiguous label 0 .. C-1.

    Args:
        names: class names; the index is the label used by targets, heads and detections.
        source_ids: id of each class in the annotation files (COCO's 1..90, for instance);
            by default 1 .. C, as COCO writes them. Background has no entry.

    Raises:
        DataError: a name or a source id stands twice, or the lengths differ.
    """

    names: tuple[str, ...]
    source_ids: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "names", tuple(str(name) for name in self.names))
        ids = tuple(int(i) for i in self.source_ids) or tuple(range(1, len(self.names) + 1))
        object.__setattr__(self, "source_ids", ids)
        if len(ids) != len(self.names):
            raise DataError(f"label map: {len(self.names)} names but {len(ids)} source ids")
        for what, values in (("class name", self.names), ("source id", ids)):
            twice = sorted({str(v) for v in values if values.count(v) > 1})
            if twice:
                raise DataError(f"label map: {what} {', '.join(twice)} stands twice; both must be unique")

    def __len__(self) -> int:
        return len(self.names)

    def index(self, name: str) -> int:
        """Label of a class name."""
        try:
            return self.names.index(name)
        except ValueError:
            raise DataError(f"no class {name!r}; the classes are: {', '.join(self.names)}") from None

    def from_source(self, source_id: int) -> int:
        """Label of a source id."""
        try:
            return self.source_ids.index(source_id)
        except ValueError:
            raise DataError(f"no class with source id {source_id}; known: {list(self.source_ids)}") from None

    def told(self, most: int = 8) -> str:
        """The first names with their source ids, for a message."""
        pairs = list(zip(self.names, self.source_ids, strict=True))
        more = f", ... ({len(pairs)} in all)" if len(pairs) > most else ""
        return ", ".join(f"{name} (id {source_id})" for name, source_id in pairs[:most]) + more

    def to_json(self) -> str:
        """One line of JSON, as it is kept in checkpoints."""
        return json.dumps({"names": self.names, "source_ids": self.source_ids})

    @classmethod
    def from_json(cls, text: str) -> LabelMap:
        """Inverse of `to_json`."""
        entry = json.loads(text)
        return cls(tuple(entry["names"]), tuple(entry["source_ids"]))

    @classmethod
    def numbered(cls, count: int) -> LabelMap:
        """Names "0", "1", ...: for a model whose classes are unknown."""
        return cls(tuple(str(i) for i in range(count)))
