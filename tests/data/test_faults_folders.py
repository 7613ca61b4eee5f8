"""What goes wrong around the annotations: names of files, doubtful contents, disks and permissions."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from boxwright.data import check, contact_sheets, convert, decode_image, folder, image_size
from boxwright.data.cache import cache_folder
from boxwright.errors import DataError

NAMES = ("my photo 1.jpg", "café ☕.jpg", " lead.jpg", "a\nb\tc.jpg", "x.y.z.jpg", "猫.JPG")


@pytest.fixture
def change(coco_folder: Path) -> Callable[[Callable[[Any], None]], Path]:
    path = coco_folder / "annotations" / "instances_train2017.json"

    def apply(edit: Callable[[Any], None]) -> Path:
        content = json.loads(path.read_text())
        edit(content)
        path.write_text(json.dumps(content))
        return coco_folder

    return apply


def codes(root: Path) -> dict[str, str]:
    return {finding.code: finding.severity for finding in check(folder(root)).findings}


@pytest.mark.parametrize("format", ["coco", "light", "voc", "yolo"])
def test_odd_names_of_files_survive(tmp_path: Path, write_image: Callable[..., Path], format: str) -> None:
    root = tmp_path / "in"
    lines = []
    for number, name in enumerate(NAMES):
        write_image(root / name, 40 + number, 30)
        box = [number, 1, number + 5, 9]
        lines.append(json.dumps({"image": name, "objects": [{"label": "cat", "box": box}]}))
    (root / "train.jsonl").write_text("\n".join(lines))
    data = folder(convert(folder(root), tmp_path / "out", format))
    assert data.format == format
    assert not check(data).errors
    boxes = {record.width: record.boxes.round(4).tolist() for record in data.train}
    assert boxes == {40 + n: [[n, 1, n + 5, 9]] for n in range(len(NAMES))}


def test_a_voc_list_with_spaces_in_names(tmp_path: Path, write_image, voc_xml, voc_object) -> None:
    for name in ("my photo 1", "b"):
        write_image(tmp_path / f"{name}.jpg")
        (tmp_path / f"{name}.xml").write_text(voc_xml(f"{name}.jpg", voc_object()))
    (tmp_path / "._b.xml").write_bytes(b"resource fork of another system")
    (tmp_path / "train.txt").write_text("my photo 1\nb  1\n")
    assert [record.file.name for record in folder(tmp_path).train] == ["my photo 1.jpg", "b.jpg"]
    (tmp_path / "train.txt").write_text("my photo 2\n")
    with pytest.raises(DataError, match=r"train\.txt: line 1: .*my photo 2\.xml does not exist"):
        folder(tmp_path)
    (tmp_path / "train.txt").unlink()
    assert len(folder(tmp_path).train) == 2


def test_a_name_that_is_not_utf8(tmp_path: Path, write_image: Callable[..., Path]) -> None:
    name = os.fsdecode(b"gr\xfcn.jpg")
    write_image(tmp_path / "a.jpg").rename(tmp_path / name)
    (tmp_path / os.fsdecode(b"gr\xfcn.txt")).write_text("0 0.5 0.5 0.5 0.5\n")
    (tmp_path / "classes.txt").write_text("cat\n")
    with pytest.raises(DataError, match=r"'gr\\udcfcn\.jpg' is not UTF-8; rename"):
        folder(tmp_path)


def test_an_image_that_stands_twice_stops_a_training(change) -> None:
    def edit(content: Any) -> None:
        content["images"][1]["file_name"] = "./a.jpg"

    assert codes(change(edit))["image_twice"] == "error"


def test_an_image_that_stands_twice_with_the_same_objects_is_seen_more_often(change) -> None:
    def edit(content: Any) -> None:
        first = content["images"][0]
        content["images"].append({**first, "id": 77})
        own = [a for a in content["annotations"] if a["image_id"] == first["id"]]
        content["annotations"] += [{**a, "id": 700 + i, "image_id": 77} for i, a in enumerate(own)]

    assert "image_twice" not in codes(change(edit))


def test_coordinates_divided_by_the_size_stop_a_training(tmp_path: Path, write_image) -> None:
    write_image(tmp_path / "a.jpg")
    objects = [{"label": "cat", "box": [0.1, 0.2, 0.5, 0.6]}, {"label": "cat", "box": [0.3, 0.2, 1, 0.6]}]
    (tmp_path / "train.jsonl").write_text(json.dumps({"image": "a.jpg", "objects": objects}))
    assert codes(tmp_path)["box_divided"] == "error"
    objects.append({"label": "cat", "box": [3, 3, 20, 20]})
    (tmp_path / "train.jsonl").write_text(json.dumps({"image": "a.jpg", "objects": objects}))
    assert "box_divided" not in codes(tmp_path)


def test_polygons_of_another_scale_than_their_boxes(change) -> None:
    def edit(content: Any) -> None:
        content["annotations"][0]["bbox"] = [10, 12, 20, 16]  # scaled by two, the polygon was not

    root = change(edit)
    (finding,) = (f for f in check(folder(root)).findings if f.code == "mask_not_box")
    assert (finding.severity, finding.count) == ("warning", 1)
    assert "b.jpg" in finding.file
    assert "annotation id 11" in finding.record


def test_extents_of_polygons(coco_folder: Path) -> None:
    table = folder(coco_folder).train
    which, extents = table.polygon_extents()
    assert which.tolist() == [1, 2]  # the first has run lengths
    assert extents.tolist() == [[1, 2, 4, 6], [5.5, 6.25, 15.5, 14.25]]
    which, extents = table.subset([2, 1]).polygon_extents()
    assert (which.tolist(), extents.tolist()) == ([0], [[5.5, 6.25, 15.5, 14.25]])
    assert table.subset([2]).polygon_extents()[1].shape == (0, 4)


def test_annotations_of_an_image_before_exif_turns_it(change, write_image) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    root = change(lambda content: None)
    write_image(root / "images" / "a.jpg", 40, 30, exif=exif)
    report = check(folder(root))
    (finding,) = report.errors
    assert finding.code == "size_turned"
    assert "30 x 40" in finding.record
    assert "without the orientation" in finding.remedy


@pytest.mark.parametrize("mode", ["I", "F"])
def test_pixels_of_32_bits_are_refused(tmp_path: Path, mode: str) -> None:
    path = tmp_path / "deep.tif"
    Image.fromarray(np.full((4, 5), 70_000, np.int32 if mode == "I" else np.float32)).save(path)
    for function in (decode_image, image_size):
        with pytest.raises(DataError, match=rf"deep\.tif: pixels of 32 bits \(mode {mode}\)"):
            function(path)


@pytest.mark.parametrize("suffix", [".gif", ".webp"])
def test_of_a_moving_image_the_first_frame_counts(tmp_path: Path, suffix: str) -> None:
    frames = [Image.new("RGB", (6, 4), colour) for colour in ("red", "blue")]
    path = tmp_path / f"moves{suffix}"
    frames[0].save(path, save_all=True, append_images=frames[1:], lossless=True)
    r, _, b = decode_image(path).getpixel((2, 2))
    assert (r > 200, b < 50) == (True, True)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            [{"image_id": 1, "category_id": 1, "bbox": [1, 2, 3, 4], "score": 0.9}],
            "a list of COCO results .*not annotations",
        ),
        (
            {"images": [], "annotations": [{"image_id": 1, "id": 1, "caption": "A cat."}]},
            "COCO captions, without boxes",
        ),
    ],
)
def test_other_files_of_coco(coco_folder: Path, content: Any, message: str) -> None:
    (coco_folder / "annotations" / "instances_train2017.json").write_text(json.dumps(content))
    with pytest.raises(DataError, match=rf"instances_train2017\.json: {message}"):
        folder(coco_folder)


def test_files_of_no_split_are_said_to_be_left_out(coco_folder: Path) -> None:
    annotations = coco_folder / "annotations"
    shutil.copy(annotations / "instances_train2017.json", annotations / "my_validation_v2.json")
    found = folder(coco_folder).found
    assert "of no split were left out: annotations/my_validation_v2.json" in found


def test_lvis_is_read_and_said_to_be_federated(change) -> None:
    def edit(content: Any) -> None:
        for image in content["images"]:
            name = image.pop("file_name")
            image |= {"coco_url": f"http://images.cocodataset.org/images/{name}", "neg_category_ids": [90]}

    root = change(edit)
    assert all(record.file.is_file() for record in folder(root).train)
    assert codes(root)["federated"] == "warning"


def test_a_category_without_annotations_may_have_the_name_of_another(change) -> None:
    root = change(lambda content: content["categories"].append({"id": 4, "name": "cat"}))
    data = folder(root)
    assert (data.label_map.names, data.label_map.source_ids) == (("cat", "dog"), (0, 90))
    assert [issue.code for issue in data.train.issues] == ["category_twice"]
    change(lambda content: content["annotations"][2].update(category_id=4))
    with pytest.raises(DataError, match=r"category 'cat' stands twice, with the ids 0, 4"):
        folder(root)


def test_a_conversion_that_fails_leaves_nothing_behind(coco_folder: Path, tmp_path: Path) -> None:
    data = folder(coco_folder)
    (coco_folder / "images" / "empty.jpg").unlink()
    with pytest.raises(DataError, match=r"empty\.jpg: the image does not exist"):
        convert(data, tmp_path / "out" / "new", "coco")
    assert list((tmp_path / "out").iterdir()) == []


def test_a_conversion_to_a_place_that_cannot_be_written(
    coco_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match=r"file.*cannot be written"):
        convert(folder(coco_folder), tmp_path / "file" / "out", "coco")

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(shutil, "copyfile", full)
    with pytest.raises(DataError, match=r"out: cannot be written \(No space left on device\)"):
        convert(folder(coco_folder), tmp_path / "out", "coco")
    assert not (tmp_path / "out").exists()


def test_an_image_with_other_annotations_in_another_split(coco_folder: Path, tmp_path: Path) -> None:
    annotations = coco_folder / "annotations"
    content = json.loads((annotations / "instances_train2017.json").read_text())
    content["annotations"] = content["annotations"][:1]
    (annotations / "instances_val2017.json").write_text(json.dumps(content))
    for format in ("coco", "light", "voc", "yolo"):
        data = folder(convert(folder(coco_folder), tmp_path / f"as_{format}", format, lossy=True))
        kept = 2 if format == "yolo" else 3  # YOLO has no ignore regions
        assert [len(t.objects()) for t in data.splits.values()] == [kept, 1]
    assert len(list((tmp_path / "as_voc" / "JPEGImages").iterdir())) == 4  # a.jpg twice


def test_an_image_that_stands_twice_keeps_all_its_objects(change, tmp_path: Path) -> None:
    root = change(lambda content: content["images"][1].update(file_name="a.jpg"))
    for format in ("coco", "light", "voc", "yolo"):
        data = folder(convert(folder(root), tmp_path / f"as_{format}", format, lossy=True))
        assert len(data.train) == 3
        assert len(data.train.objects()) == (2 if format == "yolo" else 3)


def test_images_of_another_size_are_not_converted_to_yolo(
    coco_folder: Path, tmp_path: Path, write_image
) -> None:
    write_image(coco_folder / "images" / "b.jpg", 80, 60)
    with pytest.raises(DataError, match=r"b\.jpg: the image has another size than the 40 x 30"):
        convert(folder(coco_folder), tmp_path / "out", "yolo", lossy=True)


def test_where_images_were_looked_for_is_said(coco_folder: Path) -> None:
    for image in (coco_folder / "images").iterdir():
        image.unlink()
    found = folder(coco_folder).found
    assert "no image was found: a.jpg is in none of the folders annotations, ., images" in found
    assert "images=" in found


def test_images_without_a_usual_suffix_are_not_lost_in_yolo(change, tmp_path: Path) -> None:
    def edit(content: Any) -> None:
        content["images"][1]["file_name"] = "b"
        content["annotations"] = content["annotations"][:1]

    root = change(edit)
    (root / "images" / "b.jpg").rename(root / "images" / "b")
    with pytest.raises(DataError, match=r"yolo cannot hold 1 images, .*\.jpg"):
        convert(folder(root), tmp_path / "yolo", "yolo")
    voc = folder(convert(folder(root), tmp_path / "voc", "voc", lossy=True))
    assert not check(voc).errors
    assert len(voc.train) == 3


def test_a_sheet_that_cannot_be_written(coco_folder: Path, tmp_path: Path) -> None:
    table = folder(coco_folder).train
    (tmp_path / "file").write_text("")
    for out in (tmp_path / "sheet.xyz", tmp_path / "file" / "sheet.png"):
        with pytest.raises(DataError, match="contact sheet cannot be written"):
            contact_sheets(table, out, count=1)


def test_no_home_for_the_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("BOXWRIGHT_CACHE")

    def homeless() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", homeless)
    with pytest.raises(DataError, match="set BOXWRIGHT_CACHE"):
        cache_folder()


def test_a_folder_that_cannot_be_listed(coco_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: Path) -> None:
        raise PermissionError(13, "Permission denied", str(self))

    monkeypatch.setattr(Path, "iterdir", refuse)
    with pytest.raises(DataError, match=r"Permission denied.*see to its permissions"):
        folder(coco_folder)
