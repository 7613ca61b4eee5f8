import json
import shutil
from pathlib import Path

import pytest

from boxwright.data import folder
from boxwright.data.dataset import unite_label_maps
from boxwright.data.readers.fields import split_of
from boxwright.errors import DataError
from boxwright.labels import LabelMap

# name: format, classes, then split: (images, objects)
SETS = {
    "bccd": ("voc", 3, {"train": (205, 2804), "val": (87, 1137), "test": (72, 945), "trainval": (292, 3941)}),
    "raccoon": ("voc", 1, {"train": (160, 174), "val": (40, 43)}),
    "cards": ("voc", 6, {"train": (148, 262), "test": (67, 143)}),
    "foosball": ("coco", 3, {"train": (106, 2554), "val": (21, 541), "test": (14, 261)}),
    "balloon": ("coco", 1, {"train": (61, 255), "val": (13, 50)}),
    "fruits_nuts": ("coco", 3, {"train": (12, 113), "val": (6, 52), "trainval": (18, 165)}),
    "mushroom": ("coco", 2, {"train": (26, 3445), "val": (6, 702), "test": (3, 594)}),
    "coco8": ("yolo", 80, {"train": (4, 13), "val": (4, 17)}),
    "coco8-seg": ("coco", 80, {"train": (4, 13), "val": (4, 17)}),
    "coco_person_sample": ("coco", 1, {"test": (4, 14)}),
    "panoptic_sample": ("coco", 133, {"train": (2, 50)}),
    "labelme_sample/data_dataset_coco": ("coco", 21, {"train": (3, 12)}),
    "dota8": ("yolo", 15, {"train": (4, 125), "val": (4, 8)}),
}


@pytest.mark.parametrize("name", SETS)
def test_real_sets_are_found(shared_data: Path, name: str) -> None:
    format, classes, splits = SETS[name]
    data = folder(shared_data / name)
    assert data.format == format
    assert len(data.label_map) == classes
    assert {s: (len(t), int(t.object_counts.sum())) for s, t in data.splits.items()} == splits
    for split, table in data.splits.items():
        assert split in data.found
        assert all(record.file.is_file() for record in table)


def test_explicit_choices_on_real_sets(shared_data: Path) -> None:
    data = folder(shared_data / "coco8-seg", format="yolo")
    assert data.format == "yolo"
    assert data.train.has_masks
    data = folder(shared_data / "bccd", train="trainval", val="test")
    assert {s: len(t) for s, t in data.splits.items()} == {"train": 292, "val": 72}
    data = folder(shared_data / "labelme_sample", annotations="data_dataset_coco/annotations.json")
    assert data.train[0].file.is_file()
    data = folder(shared_data / "fruits_nuts", train="train.json", images="images")
    assert list(data.splits) == ["train"]
    data = folder(shared_data / "cards", train="test")
    assert len(data.train) == 67


def test_yolo_and_coco_of_the_same_photos_agree(shared_data: Path) -> None:
    coco, yolo = folder(shared_data / "coco8-seg"), folder(shared_data / "coco8-seg", format="yolo")
    a = {r.file.name: r for r in coco.train}
    for record in yolo.train:
        other = a[record.file.name]
        assert sorted(map(coco.label_map.names.__getitem__, other.labels)) == sorted(
            map(yolo.label_map.names.__getitem__, record.labels)
        )


def test_splits_by_name() -> None:
    names = {
        "instances_train2017": "train",
        "valid": "val",
        "VALIDATION": "val",
        "trainval": "trainval",
        "test_coco": "test",
        "train_annotations": "train",
        "cat_train": None,
        "trains": None,
    }
    assert {name: split_of(name) for name in names} == names


def test_nothing_fits(tmp_path: Path) -> None:
    (tmp_path / "notes.md").write_text("hello")
    with pytest.raises(DataError) as caught:
        folder(tmp_path)
    text = str(caught.value)
    assert all(word in text for word in ("notes.md", "COCO", "VOC", "YOLO", "light JSON", "annotations="))
    with pytest.raises(DataError, match="does not exist"):
        folder(tmp_path / "nowhere")
    with pytest.raises(DataError, match="is a file"):
        folder(tmp_path / "notes.md")
    with pytest.raises(DataError, match="choose one of coco"):
        folder(tmp_path, format="cocoo")
    with pytest.raises(DataError, match="images='pics'"):
        folder(tmp_path, images="pics")


def test_missing_splits_say_so(coco_folder: Path) -> None:
    data = folder(coco_folder)
    assert data.val is None
    assert data.test is None
    with pytest.raises(DataError, match="no split 'val'; found: train"):
        _ = data.evaluation
    with pytest.raises(DataError, match="val='validation2'"):
        folder(coco_folder, train="train", val="validation2")


def test_two_files_for_one_split_are_ambiguous(coco_folder: Path) -> None:
    annotations = coco_folder / "annotations"
    shutil.copy(annotations / "instances_train2017.json", annotations / "instances_train2014.json")
    with pytest.raises(DataError, match="several COCO files"):
        folder(coco_folder)
    data = folder(coco_folder, train="annotations/instances_train2014.json")
    assert data.train.sources == ("annotations/instances_train2014.json",)


def test_labels_are_the_same_in_all_splits(coco_folder: Path) -> None:
    annotations = coco_folder / "annotations"
    content = json.loads((annotations / "instances_train2017.json").read_text())
    content["categories"] = [{"id": 0, "name": "dog"}, {"id": 90, "name": "cat"}, {"id": 4, "name": "ant"}]
    (annotations / "instances_val2017.json").write_text(json.dumps(content))
    data = folder(coco_folder)
    assert data.label_map.names == ("cat", "ant", "dog")
    assert data.label_map.source_ids == (0, 4, 90)
    assert data.train[0].labels.tolist() == [0, 0]
    assert data.split("val")[0].labels.tolist() == [2, 2]
    assert data.split("val").to_coco()["annotations"][0]["category_id"] == 90


def test_uniting_label_maps() -> None:
    a, b = LabelMap(("x", "y"), (1, 2)), LabelMap(("z",), (2,))
    assert unite_label_maps([(a, True), (b, True)], "").source_ids == (1, 2, 3)
    c = LabelMap(("q", "b"))
    united = unite_label_maps([(c, False), (LabelMap(("a",)), False)], "")
    assert (united.names, united.source_ids) == (("a", "b", "q"), (1, 2, 3))
    with pytest.raises(DataError, match="no object has a class"):
        unite_label_maps([(LabelMap(()), False)], "here")
