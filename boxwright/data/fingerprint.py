"""What a data set contains, in a few words that differ where the contents do."""

from __future__ import annotations

import hashlib

from .dataset import Data
from .table import Table


def contents(data: Data) -> dict[str, str]:
    """Classes and, for each split, the number of images and a hash; the same wherever the data set lies."""
    told = {"classes": ", ".join(data.label_map.names)}
    for name, table in data.splits.items():
        told[f"split {name}"] = f"{len(table)} images (contents {fingerprint(table)})"
    return told


def fingerprint(table: Table) -> str:
    """Hash of a split's images (ids, names and sizes, not their pixels) and annotations (not the masks)."""
    digest = hashlib.blake2b(digest_size=8)
    objects = table.objects()
    arrays = (table.image_ids, table.widths, table.heights, objects.row, objects.boxes, objects.labels)
    for array in (*arrays, objects.ignore):
        digest.update(array.tobytes())
    digest.update("\n".join(table.file_names).encode("utf-8", "surrogateescape"))
    return digest.hexdigest()
