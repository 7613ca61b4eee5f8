import json
import shutil
from pathlib import Path

import pytest
import rich
from PIL import Image

from boxwright.data import check, folder
from boxwright.errors import DataError


def codes(root: Path, **options) -> dict[str, str]:
    return {finding.code: finding.severity for finding in check(folder(root), **options).findings}


@pytest.fixture
def change(coco_folder: Path):
    path = coco_folder / "annotations" / "instances_train2017.json"

    def apply(edit) -> Path:
        content = json.loads(path.read_text())
        edit(content)
        path.write_text(json.dumps(content))
        return coco_folder

    return apply


def test_a_good_folder_has_no_errors(coco_folder: Path, capsys: pytest.CaptureFixture) -> None:
    report = check(folder(coco_folder))
    assert {f.code for f in report.findings} == {"image_without_objects"}
    assert (report.images, report.objects) == (3, 3)
    report.raise_for_errors()
    rich.print(report)
    assert "image_without_objects" in capsys.readouterr().out


def test_missing_damaged_and_wrongly_sized_images(coco_folder: Path, write_image) -> None:
    images = coco_folder / "images"
    content = (images / "a.jpg").read_bytes()
    (images / "a.jpg").write_bytes(content[:-200])
    (images / "b.jpg").unlink()
    write_image(images / "empty.jpg", 30, 40)
    report = check(folder(coco_folder))
    found = {f.code: f for f in report.errors}
    assert set(found) == {"image_undecodable", "image_missing", "size_mismatch"}
    assert found["image_missing"].file.endswith("b.jpg")
    assert "truncated" in found["image_undecodable"].record
    assert "EXIF" in found["size_mismatch"].record
    with pytest.raises(DataError, match=r"image_missing x 1.*b\.jpg"):
        report.raise_for_errors()


def test_decode_finds_damage_behind_a_good_end(change) -> None:
    root = change(lambda content: content["images"][1].update(file_name="b.png"))
    path = root / "images" / "b.png"
    Image.effect_noise((40, 30), 64).convert("RGB").save(path)
    content = bytearray(path.read_bytes())
    content[100:140] = bytes(40)
    path.write_bytes(content)
    assert "image_undecodable" not in codes(root)
    assert codes(root, decode=True)["image_undecodable"] == "error"


def test_objects_that_stand_twice_and_dropped_boxes(change) -> None:
    def edit(content) -> None:
        extra = content["annotations"][2]
        content["annotations"] += [{**extra, "id": 20}, {**extra, "id": 21, "bbox": [1, 1, 0, 5]}]

    found = codes(change(edit))
    assert found["object_twice"] == "warning"
    assert found["box_degenerate"] == "warning"


def test_no_objects_at_all(change) -> None:
    assert codes(change(lambda c: c.update(annotations=[])))["no_objects"] == "error"


def test_classes_and_overlaps_between_splits(coco_folder: Path, change) -> None:
    annotations = coco_folder / "annotations"
    shutil.copy(annotations / "instances_train2017.json", annotations / "instances_val2017.json")

    def edit(content) -> None:
        content["categories"] = [
            {"id": 90, "name": "cat"},
            {"id": 0, "name": "bird"},
            {"id": 1, "name": "fish"},
        ]

    change(edit)
    report = check(folder(coco_folder))
    found = {f.code: f for f in report.findings}
    assert {f.severity for f in report.findings} == {"warning", "info"}
    assert "cat: 90 / 0" in found["class_shifted"].record
    assert "dog" in found["class_not_shared"].record
    assert "dog" in found["class_unknown"].record
    assert "fish" in found["class_without_examples"].record
    assert found["image_in_two_splits"].count == 3
    assert "image_in_two_splits" in codes(coco_folder, decode=True)


def test_spellings_of_one_class(change) -> None:
    names = ("Traffic light", "traffic_light", "Dog", "cow")
    extra = [{"id": 100 + i, "name": name} for i, name in enumerate(names)]
    report = check(folder(change(lambda content: content["categories"].extend(extra))))
    (finding,) = (f for f in report.findings if f.code == "class_alike")
    assert (finding.severity, finding.count) == ("warning", 2)
    assert finding.record == "'dog' / 'Dog', 'Traffic light' / 'traffic_light'"


def test_trainval_is_no_overlap(coco_folder: Path) -> None:
    annotations = coco_folder / "annotations"
    shutil.copy(annotations / "instances_train2017.json", annotations / "instances_trainval2017.json")
    assert "image_in_two_splits" not in codes(coco_folder)


@pytest.mark.parametrize("name", ["bccd", "raccoon", "cards", "foosball", "balloon", "mushroom", "coco8"])
def test_real_sets_have_no_errors(shared_data: Path, name: str) -> None:
    assert not check(folder(shared_data / name)).errors
