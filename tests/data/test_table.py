import pickle
import warnings
from pathlib import Path

import numpy as np
import pytest
from pycocotools import mask as reference

from boxwright.data import folder, to_bitmap
from boxwright.data.masks import compress_counts, mask_area, mask_box
from boxwright.errors import DataError


def test_records_hold_what_the_file_says(coco_folder: Path) -> None:
    table = folder(coco_folder).train
    assert len(table) == 3
    assert table.image_ids.tolist() == [7, 3, 5]
    assert table.label_map.names == ("cat", "dog")
    assert table.label_map.source_ids == (0, 90)
    first = table[0]
    assert first.boxes.dtype == np.float32
    assert first.boxes.tolist() == [[0, 0, 2, 30], [1, 2, 4, 6]]
    assert first.labels.tolist() == [0, 0]
    assert first.ignore.tolist() == [True, False]
    assert first.file == coco_folder / "images" / "a.jpg"
    assert first.masks is not None
    bitmap = to_bitmap(first.masks[0], 30, 40)
    assert bitmap.shape == (30, 40)
    assert bitmap[:, :2].all()
    assert bitmap.sum() == 60
    assert len(table[2].labels) == 0
    assert table[2].boxes.shape == (0, 4)
    assert table[-1].image_id == 5
    with pytest.raises(IndexError):
        table[3]


def test_subset_objects_and_pickle_agree(coco_folder: Path) -> None:
    table = folder(coco_folder).train
    part = table.subset([1, 0])
    assert part.image_ids.tolist() == [3, 7]
    flat = part.objects()
    assert flat.row.tolist() == [0, 1, 1]
    assert flat.ids.tolist() == [11, 12, 13]
    assert flat.areas.tolist() == [40.0, 60.0, 6.0]
    assert part.subset([1]).head(5).image_ids.tolist() == [7]
    data = pickle.dumps(table)
    assert len(data) < 2000
    again = pickle.loads(data)
    assert again[1].boxes.tolist() == table[1].boxes.tolist()
    assert np.allclose(table.aspect_ratios(), 40 / 30)
    coco = part.to_coco()
    assert [i["id"] for i in coco["images"]] == [3, 7]
    assert [a["id"] for a in coco["annotations"]] == [11, 12, 13]
    assert coco["annotations"][0]["bbox"] == [5.5, 6.25, 10.0, 8.0]
    assert coco["annotations"][1]["iscrowd"] == 1
    assert coco["categories"][1] == {"id": 90, "name": "dog"}


def test_opening_a_cached_table_parses_nothing(coco_folder: Path, table_cache: Path, monkeypatch) -> None:
    folder(coco_folder)
    (path,) = (table_cache / "tables").iterdir()
    before = path.stat().st_mtime_ns
    from boxwright.data.readers import coco

    monkeypatch.setattr(coco, "read", lambda source: pytest.fail("read again"))
    assert len(folder(coco_folder).train) == 3
    assert path.stat().st_mtime_ns == before


def test_changed_annotations_make_a_new_table(coco_folder: Path) -> None:
    folder(coco_folder)
    file = coco_folder / "annotations" / "instances_train2017.json"
    file.write_text(file.read_text().replace('"dog"', '"cow"'))  # the same size, perhaps the same time
    assert folder(coco_folder).label_map.names == ("cat", "cow")


@pytest.mark.parametrize("damage", ["truncate", "empty", "garbage", "middle"])
def test_damaged_cache_is_rebuilt_with_a_note(coco_folder: Path, table_cache: Path, damage: str) -> None:
    expected = folder(coco_folder).train.to_coco()
    (path,) = (table_cache / "tables").iterdir()
    content = path.read_bytes()
    half = len(content) // 2
    path.unlink()  # the old file stays mapped by whoever opened it
    changed = {
        "truncate": content[:half],
        "empty": b"",
        "garbage": b"not arrow" * 50,
        "middle": content[:200] + b"\xff" * (len(content) - 400) + content[-200:],
    }
    path.write_bytes(changed[damage])
    with pytest.warns(UserWarning, match="damaged"):
        data = folder(coco_folder)
    assert data.train.to_coco() == expected
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        folder(coco_folder)


def test_images_that_appear_later_are_found(coco_folder: Path, table_cache: Path) -> None:
    images = coco_folder / "images"
    for path in images.iterdir():
        path.rename(coco_folder.parent / path.name)
    assert not folder(coco_folder).train[0].file.exists()
    (path,) = (table_cache / "tables").iterdir()
    before = path.stat().st_mtime_ns
    folder(coco_folder)
    assert path.stat().st_mtime_ns == before  # a set without images is not read again each time
    for name in ("a.jpg", "b.jpg", "empty.jpg"):
        (coco_folder.parent / name).rename(images / name)
    assert folder(coco_folder).train[0].file.exists()


def test_cache_folder_that_cannot_be_made(coco_folder: Path, tmp_path: Path, monkeypatch) -> None:
    (tmp_path / "file").write_text("x")
    monkeypatch.setenv("BOXWRIGHT_CACHE", str(tmp_path / "file"))
    with pytest.raises(DataError, match="BOXWRIGHT_CACHE"):
        folder(coco_folder)


def test_masks_agree_with_pycocotools() -> None:
    rng = np.random.default_rng(0)
    for _ in range(20):
        height, width = rng.integers(1, 60, 2).tolist()
        bitmap = (rng.random((height, width)) > rng.random()).astype(np.uint8)
        rle = reference.encode(np.asfortranarray(bitmap))
        text = rle["counts"].decode()
        assert compress_counts(text, [height, width], height, width) == rle["counts"]
        assert np.array_equal(to_bitmap({"size": [height, width], "counts": text}, height, width), bitmap)
        runs = np.diff(np.flatnonzero(np.diff(np.r_[-1, bitmap.T.ravel().astype(int), -1])))
        runs = runs.tolist() if bitmap[0, 0] == 0 else [0, *runs.tolist()]
        assert compress_counts(runs, [height, width], height, width) == rle["counts"]
        if bitmap.any():
            x, y, w, h = reference.toBbox(rle)
            assert mask_box({"size": [height, width], "counts": text}) == [x, y, x + w, y + h]
            assert mask_area({"size": [height, width], "counts": text}) == bitmap.sum()
    polygon = [[3.5, 2.0, 20.0, 4.5, 11.0, 18.0], [1, 1, 3, 1, 3, 3]]
    expected = reference.decode(reference.merge(reference.frPyObjects(polygon, 25, 30)))
    assert np.array_equal(to_bitmap(polygon, 25, 30), expected)
    assert mask_area([[0, 0, 4, 0, 4, 3, 0, 3]]) == 12
    assert not to_bitmap([], 5, 6).any()
    with pytest.raises(DataError, match="3 points"):
        to_bitmap([[1, 2, 3, 4]], 5, 6)
