"""The columnar table of one split: annotations in an Arrow file, memory-mapped and shared by all workers.

A table is a path, a list of rows and a label map; it opens its file on first use and travels to
worker processes as just that. Opening a million objects makes no Python object of any of them.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from ..errors import DataError
from ..labels import LabelMap
from .masks import Mask, compress_counts
from .records import Issue, Objects, Record
from .semantic import SemanticMaps

OBJECT_TYPE = pa.struct(
    [
        ("id", pa.int64()),
        ("box", pa.list_(pa.float64(), 4)),
        ("label", pa.int32()),
        ("ignore", pa.uint8()),
        ("area", pa.float64()),
        ("polygons", pa.large_list(pa.large_list(pa.float64()))),
        ("rle", pa.large_binary()),
    ]
)
SCHEMA = pa.schema(
    [
        ("image_id", pa.int64()),
        ("file", pa.string()),
        ("width", pa.int32()),
        ("height", pa.int32()),
        ("objects", pa.large_list(OBJECT_TYPE)),
    ]
)


class Table(Sequence[Record]):
    """Annotations of one split, memory-mapped.

    Args:
        path: the Arrow file, as `boxwright.data.folder` caches it.
        root: folder that the file names of the table are relative to.
        label_map: classes of the whole data set.
        name: of the split.
        relabel: label of the data set for each label in the file; None where they are the same.
        indices: rows of the file that this table shows; None for all.
        semantic: where the maps of semantic classes lie; None if there are none.
    """

    def __init__(
        self,
        path: Path,
        root: Path,
        label_map: LabelMap,
        name: str = "",
        relabel: tuple[int, ...] | None = None,
        indices: np.ndarray | None = None,
        semantic: SemanticMaps | None = None,
    ) -> None:
        self.path, self.root, self.label_map, self.name = Path(path), Path(root), label_map, name
        self._relabel, self._indices, self.semantic = relabel, indices, semantic

    def __reduce__(self) -> tuple[Any, ...]:
        same = (self.path, self.root, self.label_map, self.name)
        return Table, (*same, self._relabel, self._indices, self.semantic)

    def _with(self, **changes: Any) -> Table:
        names = ("path", "root", "label_map", "name", "relabel", "indices", "semantic")
        return Table(**(dict(zip(names, self.__reduce__()[1], strict=True)) | changes))

    def __repr__(self) -> str:
        return f"Table({self.name!r}, {len(self)} images, {len(self.label_map)} classes, {str(self.root)!r})"

    @cached_property
    def _columns(self) -> _Columns:
        return _Columns.of(open_arrow(self.path))

    def __len__(self) -> int:
        return len(self._columns.image_id) if self._indices is None else len(self._indices)

    def __iter__(self) -> Iterator[Record]:
        return (self[i] for i in range(len(self)))

    def __getitem__(self, index: int) -> Record:  # type: ignore[override]
        """The image at a place, with its objects.

        Raises:
            IndexError: there is no such place.
        """
        columns, row = self._columns, self._row(index)
        start, stop = columns.offsets[row], columns.offsets[row + 1]
        width, height, file = int(columns.width[row]), int(columns.height[row]), columns.file[row].as_py()
        return Record(
            image_id=int(columns.image_id[row]),
            file=self.root / file,
            width=width,
            height=height,
            boxes=columns.box[start:stop].astype(np.float32),
            labels=self._labels(columns.label[start:stop]),
            ignore=columns.ignore[start:stop].astype(bool),
            masks=[columns.mask(i, height, width) for i in range(start, stop)] if columns.has_masks else None,
            semantic=None if self.semantic is None else self.semantic.path(file),
        )

    def _row(self, index: int) -> int:
        if not -len(self) <= index < len(self):
            raise IndexError(f"image {index} of a table of {len(self)}")
        index = index + len(self) if index < 0 else index
        return int(index if self._indices is None else self._indices[index])

    def _labels(self, labels: np.ndarray) -> np.ndarray:
        if self._relabel is None:
            return labels.astype(np.int64)
        return np.asarray(self._relabel, dtype=np.int64)[labels]

    def _take(self, column: np.ndarray) -> np.ndarray:
        return column if self._indices is None else column[self._indices]

    @property
    def image_ids(self) -> np.ndarray:
        """`(len,)` int64."""
        return self._take(self._columns.image_id)

    @property
    def widths(self) -> np.ndarray:
        """`(len,)` int32, pixels after EXIF orientation."""
        return self._take(self._columns.width)

    @property
    def heights(self) -> np.ndarray:
        """`(len,)` int32, pixels after EXIF orientation."""
        return self._take(self._columns.height)

    def aspect_ratios(self) -> np.ndarray:
        """`(len,)` float64, width / height of each image, for grouping by orientation."""
        return self.widths / self.heights

    @property
    def file_names(self) -> list[str]:
        """Path of each image relative to `root`, with forward slashes."""
        files = self._columns.file
        return files.to_pylist() if self._indices is None else files.take(pa.array(self._indices)).to_pylist()

    @property
    def object_counts(self) -> np.ndarray:
        """`(len,)` int64, objects of each image, ignore regions included."""
        return self._take(np.diff(self._columns.offsets))

    @property
    def has_masks(self) -> bool:
        """Whether any object of the split has a mask."""
        return self._columns.has_masks

    @property
    def issues(self) -> tuple[Issue, ...]:
        """What reading the whole split mended or left out."""
        return tuple(
            Issue(**{**i, "examples": tuple(i["examples"])}) for i in self._columns.metadata["issues"]
        )

    @property
    def own_label_map(self) -> LabelMap:
        """Classes as this split's own annotations declare them, before the union with the other splits."""
        return LabelMap.from_json(json.dumps(self._columns.metadata["label_map"]))

    @property
    def declares_classes(self) -> bool:
        """Whether the annotations list their classes (COCO, YOLO), rather than just use them (VOC)."""
        return bool(self._columns.metadata["declared"])

    @property
    def unresolved(self) -> tuple[str, ...]:
        """Names of the first images, if none of them was found; else nothing."""
        return tuple(self._columns.metadata["unresolved"])

    @property
    def sources(self) -> tuple[str, ...]:
        """The annotation files (the first few, where each image has its own), relative to the data set."""
        return tuple(self._columns.metadata["sources"])

    def subset(self, indices: Sequence[int] | np.ndarray) -> Table:
        """The images at the given places, in that order, sharing the same file."""
        rows = np.array([self._row(int(i)) for i in indices], dtype=np.int64)
        return self._with(indices=rows)

    def head(self, count: int) -> Table:
        """The first `count` images."""
        return self.subset(range(min(count, len(self))))

    def relabelled(self, label_map: LabelMap, relabel: tuple[int, ...]) -> Table:
        """The same rows under another label map; `relabel` gives the new label of each label in the file."""
        same = relabel == tuple(range(len(label_map)))
        return self._with(label_map=label_map, relabel=None if same else relabel)

    def with_semantic(self, maps: SemanticMaps) -> Table:
        """The same rows with a map of semantic classes for each image."""
        return self._with(semantic=maps)

    def objects(self) -> Objects:
        """All objects as flat arrays; nothing is copied where the table shows all rows."""
        c = self._columns
        row = np.repeat(np.arange(len(self)), self.object_counts)
        place: Any = slice(None) if self._indices is None else self._places()
        boxes, labels = c.box[place], self._labels(c.label[place])
        return Objects(row, boxes, labels, c.ignore[place].astype(bool), c.area[place], c.id[place])

    def _places(self) -> np.ndarray:
        """`(N,)` place in the file of each object that the table shows."""
        counts = self.object_counts
        first = self._take(self._columns.offsets[:-1])
        return np.repeat(first - (np.cumsum(counts) - counts), counts) + np.arange(counts.sum())

    def polygon_extents(self) -> tuple[np.ndarray, np.ndarray]:
        """Which of `objects()` have polygons, `(n,)`, and how far these reach, `(n, 4)` xyxy in pixels."""
        c, places = self._columns, self._places()
        start, stop = c.points[c.rings[places]] // 2, c.points[c.rings[places + 1]] // 2
        which = np.flatnonzero(stop > start)
        spans = np.stack((start[which], stop[which]), axis=1).ravel()
        # One value more, so that a span may end where the coordinates do.
        x, y = (np.append(c.coordinates[axis::2], 0.0) for axis in (0, 1))
        extents = [f.reduceat(v, spans)[::2] for f in (np.minimum, np.maximum) for v in (x, y)]
        return which, np.stack(extents, axis=1) if len(which) else np.zeros((0, 4))

    def to_coco(self) -> dict[str, Any]:
        """The table as a COCO data set: what evaluators take and the COCO writer writes.

        Category ids are `label_map.source_ids`; `iscrowd` is 1 for ignore regions. Where the split has
        masks, an object without one gets run lengths of an empty mask: pycocotools fails on an empty list. In
        mask AP it counts neither way.
        """
        c, ids = self._columns, self.label_map.source_ids
        flat, names = self.objects(), self.file_names
        image_ids, widths, heights = self.image_ids.tolist(), self.widths.tolist(), self.heights.tolist()
        images = [
            {"id": i, "file_name": n, "width": w, "height": h}
            for i, n, w, h in zip(image_ids, names, widths, heights, strict=True)
        ]
        xywh = np.concatenate((flat.boxes[:, :2], flat.boxes[:, 2:] - flat.boxes[:, :2]), axis=1).round(9)
        annotations = [
            {
                "id": ident,
                "image_id": image_ids[row],
                "category_id": ids[label],
                "bbox": box,
                "area": area,
                "iscrowd": int(ignore),
            }
            for row, ident, label, box, area, ignore in zip(
                flat.row.tolist(),
                flat.ids.tolist(),
                flat.labels.tolist(),
                xywh.tolist(),
                flat.areas.round(9).tolist(),
                flat.ignore.tolist(),
                strict=True,
            )
        ]
        if c.has_masks:
            rows = range(len(c.image_id)) if self._indices is None else self._indices.tolist()
            places = (i for row in rows for i in range(c.offsets[row], c.offsets[row + 1]))
            for annotation, place, row in zip(annotations, places, flat.row.tolist(), strict=True):
                size = [heights[row], widths[row]]
                annotation["segmentation"] = c.mask(place, *size) or {
                    "size": size,
                    "counts": _empty_rle(*size),
                }
        categories = [{"id": i, "name": n} for i, n in zip(ids, self.label_map.names, strict=True)]
        return {"images": images, "annotations": annotations, "categories": categories}


@dataclass(frozen=True)
class _Columns:
    """Views into the memory map; `file` and `rle` stay Arrow arrays until one value is asked for."""

    image_id: np.ndarray
    file: pa.Array
    width: np.ndarray
    height: np.ndarray
    offsets: np.ndarray
    id: np.ndarray
    box: np.ndarray
    label: np.ndarray
    ignore: np.ndarray
    area: np.ndarray
    rings: np.ndarray
    points: np.ndarray
    coordinates: np.ndarray
    rle: pa.Array
    has_masks: bool
    metadata: Mapping[str, Any]

    @classmethod
    def of(cls, table: pa.Table) -> _Columns:
        batch = table.to_batches()[0]
        lists = batch.column("objects")
        objects = lists.values
        polygons = objects.field("polygons")
        metadata = json.loads((table.schema.metadata or {})[b"boxwright"])

        def view(array: pa.Array) -> np.ndarray:
            return array.to_numpy(zero_copy_only=True)

        return cls(
            image_id=view(batch.column("image_id")),
            file=batch.column("file"),
            width=view(batch.column("width")),
            height=view(batch.column("height")),
            offsets=view(lists.offsets),
            id=view(objects.field("id")),
            box=view(objects.field("box").values).reshape(-1, 4),
            label=view(objects.field("label")),
            ignore=view(objects.field("ignore")),
            area=view(objects.field("area")),
            rings=view(polygons.offsets),
            points=view(polygons.values.offsets),
            coordinates=view(polygons.values.values),
            rle=objects.field("rle"),
            has_masks=bool(metadata["has_masks"]),
            metadata=metadata,
        )

    def mask(self, place: int, height: int, width: int) -> Mask:
        counts = self.rle[place]
        if counts.is_valid:
            return {"size": [height, width], "counts": counts.as_py().decode("ascii")}
        rings = range(self.rings[place], self.rings[place + 1])
        return [self.coordinates[self.points[r] : self.points[r + 1]].tolist() for r in rings]


def _empty_rle(height: int, width: int) -> str:
    return compress_counts([height * width], [height, width], height, width).decode("ascii")


def open_arrow(path: Path) -> pa.Table:
    """Map a cached table into memory.

    Raises:
        DataError: the file is gone or damaged.
    """
    try:
        with pa.memory_map(str(path)) as source:
            table = pa.ipc.open_file(source, options=pa.ipc.IpcReadOptions(use_threads=False)).read_all()
    except (OSError, pa.ArrowInvalid) as error:
        raise DataError(
            f"{path}: the cached table cannot be opened ({error}); open the data folder again"
        ) from error
    if table.schema.names != SCHEMA.names or len(table.to_batches()) != 1:
        raise DataError(f"{path}: not a table of this version; delete it and open the data folder again")
    return table
