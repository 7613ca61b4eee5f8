"""Fixtures of the data tests: a cache of their own, and small folders in each format."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image


@pytest.fixture(autouse=True)
def table_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("BOXWRIGHT_CACHE", str(path))
    return path


@pytest.fixture
def write_image() -> Callable[..., Path]:
    def write(path: Path, width: int = 40, height: int = 30, **options: Any) -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.effect_noise((width, height), 64).convert("RGB").save(path, **options)
        return path

    return write


def coco_content() -> dict[str, Any]:
    """Two images; a polygon, a crowd region of run lengths, and a box."""
    return {
        "images": [
            {"id": 7, "file_name": "a.jpg", "width": 40, "height": 30},
            {"id": 3, "file_name": "b.jpg", "width": 40, "height": 30},
            {"id": 5, "file_name": "empty.jpg", "width": 40, "height": 30},
        ],
        "annotations": [
            {
                "id": 11,
                "image_id": 3,
                "category_id": 90,
                "bbox": [5.5, 6.25, 10, 8],
                "area": 40.0,
                "iscrowd": 0,
                "segmentation": [[5.5, 6.25, 15.5, 6.25, 15.5, 14.25]],
            },
            {
                "id": 12,
                "image_id": 7,
                "category_id": 0,
                "bbox": [0, 0, 2, 30],
                "area": 60,
                "iscrowd": 1,
                "segmentation": {"size": [30, 40], "counts": [0, 60, 1140]},
            },
            {
                "id": 13,
                "image_id": 7,
                "category_id": 0,
                "bbox": [1, 2, 3, 4],
                "area": 6,
                "segmentation": [[1, 2, 4, 2, 4, 6]],
            },
        ],
        "categories": [{"id": 90, "name": "dog"}, {"id": 0, "name": "cat"}],
    }


@pytest.fixture
def coco_folder(tmp_path: Path, write_image: Callable[..., Path]) -> Path:
    root = tmp_path / "coco"
    for name in ("a.jpg", "b.jpg", "empty.jpg"):
        write_image(root / "images" / name)
    (root / "annotations").mkdir()
    (root / "annotations" / "instances_train2017.json").write_text(json.dumps(coco_content()))
    return root


@pytest.fixture
def voc_xml() -> Callable[..., str]:
    def text(name: str = "a.jpg", objects: str = "", size: tuple[int, int] = (40, 30), head: str = "") -> str:
        width, height = size
        return (
            f"<annotation><filename>{name}</filename>{head}<size><width>{width}</width><height>{height}</height>"
            f"<depth>3</depth></size>{objects}</annotation>"
        )

    return text


@pytest.fixture
def voc_object() -> Callable[..., str]:
    def text(name: str = "cat", box: tuple[Any, ...] = (1, 2, 11, 12), extra: str = "") -> str:
        corners = "".join(
            f"<{t}>{v}</{t}>" for t, v in zip(("xmin", "ymin", "xmax", "ymax"), box, strict=True)
        )
        return f"<object><name>{name}</name>{extra}<bndbox>{corners}</bndbox></object>"

    return text
