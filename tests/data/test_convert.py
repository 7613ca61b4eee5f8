import json
from pathlib import Path

import numpy as np
import pytest
from pycocotools import mask as reference

from boxwright.data import convert, folder
from boxwright.errors import DataError


def _order(entry: dict) -> tuple:
    return entry["image"], entry["class"], entry["bbox"]


def plain(table, *drop: str) -> list:
    """COCO annotations without what a format does not keep, by image name."""
    coco = table.to_coco()
    names = {i["id"]: Path(i["file_name"]).name for i in coco["images"]}
    classes = {c["id"]: c["name"] for c in coco["categories"]}
    out = []
    for entry in coco["annotations"]:
        entry |= {"image": names[entry["image_id"]], "class": classes[entry["category_id"]]}
        out.append(entry)
    return [{k: v for k, v in entry.items() if k not in drop} for entry in sorted(out, key=_order)]


def test_coco_and_light_keep_everything(coco_folder: Path, tmp_path: Path) -> None:
    data = folder(coco_folder)
    again = folder(convert(data, tmp_path / "coco2", "coco"))
    assert again.label_map == data.label_map
    assert plain(again.train) == plain(data.train)
    light = folder(convert(again, tmp_path / "light", "light"))
    assert light.format == "light"
    assert plain(light.train, "category_id") == plain(data.train, "category_id")
    assert light.train.to_coco()["images"][0]["id"] == 7
    assert all(r.file.is_file() for r in light.train)


@pytest.mark.parametrize("format", ["coco", "light", "voc", "yolo"])
def test_boxes_survive_every_format(shared_data: Path, tmp_path: Path, format: str) -> None:
    data = folder(shared_data / "cards", train="test", val="test")
    again = folder(convert(data, tmp_path / "out", format, link=True))
    assert again.format == format
    assert list(again.splits) == ["train", "val"]
    drop = ("id", "image_id", "category_id", "area", "bbox")
    assert plain(again.train, *drop) == plain(data.train, *drop)
    a, b = (np.array([e["bbox"] for e in plain(d.train)]) for d in (data, again))
    assert np.allclose(a, b, atol=1e-8)
    assert {r.image_id for r in data.train} == {r.image_id for r in again.train}


def test_polygons_survive_yolo(shared_data: Path, tmp_path: Path) -> None:
    data = folder(shared_data / "coco8-seg", format="yolo")
    again = folder(convert(data, tmp_path / "out", "yolo"))
    assert again.label_map == data.label_map
    for a, b in zip(data.train, again.train, strict=True):
        assert np.allclose(a.boxes, b.boxes, atol=1e-4)
        assert all(np.allclose(x[0], y[0]) for x, y in zip(a.masks, b.masks, strict=True))


def test_losses_are_counted_and_refused(coco_folder: Path, tmp_path: Path) -> None:
    data = folder(coco_folder)
    with pytest.raises(DataError, match=r"yolo cannot hold 1 ignore regions.*lossy=True"):
        convert(data, tmp_path / "yolo", "yolo")
    with pytest.raises(DataError, match="voc cannot hold 3 masks"):
        convert(data, tmp_path / "voc", "voc")
    assert not (tmp_path / "voc").exists()
    yolo = folder(convert(data, tmp_path / "yolo", "yolo", lossy=True))
    assert yolo.train.objects().boxes.shape == (2, 4)
    voc = folder(convert(data, tmp_path / "voc", "voc", lossy=True))
    assert sorted(voc.train.objects().ignore.tolist()) == [False, False, True]
    assert len(voc.train) == 3


def test_same_names_in_two_folders_stay_apart(tmp_path: Path, write_image) -> None:
    root = tmp_path / "in"
    for place, color in (("x", 10), ("y", 20)):
        write_image(root / place / "a.jpg", 40 + color, 30)
    lines = [{"image": f"{p}/a.jpg", "objects": [{"label": "cat", "box": [0, 0, 5, 5]}]} for p in ("x", "y")]
    (root / "train.jsonl").write_text("\n".join(map(json.dumps, lines)))
    data = folder(convert(folder(root), tmp_path / "out", "voc"))
    assert sorted(r.width for r in data.train) == [50, 60]


def test_refusals(coco_folder: Path, tmp_path: Path) -> None:
    data = folder(coco_folder)
    with pytest.raises(DataError, match="choose one of"):
        convert(data, tmp_path / "x", "pascal")
    with pytest.raises(DataError, match="not an empty folder"):
        convert(data, coco_folder, "coco")
    (coco_folder / "images" / "b.jpg").unlink()
    for link in (False, True):
        with pytest.raises(DataError, match=r"b\.jpg"):
            convert(data, tmp_path / f"y{link}", "coco", link=link)


def test_an_object_without_mask_stays_one(coco_folder: Path, tmp_path: Path) -> None:
    path = coco_folder / "annotations" / "instances_train2017.json"
    content = json.loads(path.read_text())
    del content["annotations"][2]["segmentation"]
    path.write_text(json.dumps(content))
    data = folder(coco_folder)
    mask = data.train.to_coco()["annotations"][1]["segmentation"]
    assert reference.decode(mask).shape == (30, 40)
    assert not reference.decode(mask).any()
    again = folder(convert(data, tmp_path / "out", "coco")).train
    assert again[0].masks is not None
    assert again[0].masks[1] == []
    assert [i.code for i in again.issues] == ["mask_missing"]
