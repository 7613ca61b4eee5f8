"""Formats that are not read: what is said of them, and the scripts of docs/other_formats.md."""

import json
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from boxwright.data import Data, folder
from boxwright.errors import DataError

PAGE = (Path(__file__).parents[2] / "docs" / "other_formats.md").read_text(encoding="utf-8")
SCRIPTS = {
    title.strip(): "\n".join(re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL))
    for title, text in re.findall(r"\n###? ([^\n]+)\n(.*?)(?=\n##|\Z)", PAGE, flags=re.DOTALL)
}


def run(title: str, root: Path, monkeypatch: pytest.MonkeyPatch, **changes: str) -> Data:
    """The data set that a script of the page makes in `root`, after replacing words in it."""
    code = SCRIPTS["Masks in image files"] if title in ("VOC segmentation", "Cityscapes") else ""
    code += SCRIPTS[title]
    for old, new in changes.items():
        assert old in code
        code = code.replace(old, new)
    monkeypatch.chdir(root)
    exec(compile(code, title, "exec"), {})
    return folder(root)


def linked(source: Path, root: Path) -> Path:
    """A folder that can be written, with links to all that lies in another."""
    root.mkdir()
    for entry in source.iterdir():
        (root / entry.name).symlink_to(entry)
    return root


def counts(data: Data) -> tuple[int, int, int]:
    """Images, objects and ignore regions of the split to train on."""
    ignore = data.train.objects().ignore
    return len(data.train), int((~ignore).sum()), int(ignore.sum())


def test_every_script_is_tested() -> None:
    source = Path(__file__).read_text(encoding="utf-8")
    assert len(SCRIPTS) == 11
    assert all(f'"{title}"' in source for title in SCRIPTS)


def test_labelme(tmp_path: Path, write_image: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    write_image(tmp_path / "images" / "a.jpg")
    shapes = [
        {"label": "cat", "points": [[1, 2], [11, 2], [6, 12]], "shape_type": "polygon"},
        {"label": "dog", "points": [[20, 20], [5.5, 4]], "shape_type": "rectangle"},
    ]
    (tmp_path / "labelme").mkdir()
    page = {"version": "5.0", "shapes": shapes, "imagePath": "../images/a.jpg"}
    (tmp_path / "labelme" / "a.json").write_text(json.dumps(page))
    with pytest.raises(DataError, match=r"LabelMe JSON \(labelme/a\.json\)(.|\n)*other_formats"):
        folder(tmp_path)
    record = run("LabelMe", tmp_path, monkeypatch).train[0]
    assert record.boxes.tolist() == [[1, 2, 11, 12], [5.5, 4, 20, 20]]
    assert record.masks == [[[1, 2, 11, 2, 6, 12]], []]
    page["shapes"].append({"label": "fly", "points": [[1, 1]], "shape_type": "point"})
    (tmp_path / "labelme" / "a.json").write_text(json.dumps(page))
    with pytest.raises(SystemExit, match=r"a\.json: decide what a point \(fly\)"):
        run("LabelMe", tmp_path, monkeypatch)


def test_labelme_of_real_photos(shared_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = tmp_path / "fruits"
    root.mkdir()
    for name in ("images", "labelme"):
        (root / name).symlink_to(shared_data / "fruits_nuts" / name)
    assert counts(run("LabelMe", root, monkeypatch)) == (18, 165, 0)


def test_via(shared_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "train").symlink_to(shared_data / "balloon" / "train")
    with pytest.raises(DataError, match=r"VGG Image Annotator \(train/via_region_data\.json\)"):
        folder(tmp_path)
    data = run("VGG Image Annotator", tmp_path, monkeypatch)
    expected = folder(shared_data / "balloon").train.objects().boxes
    assert counts(data) == (61, 255, 0)
    assert np.allclose(np.sort(data.train.objects().boxes, 0), np.sort(expected, 0), atol=0.6)


def test_tables(shared_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "images").symlink_to(shared_data / "raccoon" / "images")
    (tmp_path / "raccoon_labels.csv").symlink_to(shared_data / "raccoon" / "raccoon_labels.csv")
    with pytest.raises(DataError, match="a table with the columns filename,width,height,class"):
        folder(tmp_path)
    monkeypatch.chdir(tmp_path)
    data = run("Tables (CSV)", tmp_path, monkeypatch, **{"labels.csv": "raccoon_labels.csv"})
    assert counts(data)[0] > 100
    tables = folder(shared_data / "raccoon").splits.values()
    whole = {record.file.name: record.boxes.tolist() for table in tables for record in table}
    for record in data.train:
        assert record.boxes.tolist() == whole[record.file.name]


def test_open_images(
    shared_data: Path, tmp_path: Path, write_image: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    root = linked(shared_data / "openimages_sample", tmp_path / "open")
    with pytest.raises(DataError, match="boxes of Open Images"):
        folder(root)
    write_image(root / "images" / "008af1d34142a5bb.jpg", 1000, 500)
    data = run("Open Images", root, monkeypatch, **{"test.jsonl": "train.jsonl"})
    boxes = data.train[0].boxes
    assert np.allclose(boxes[0], [8.083, 304.1095, 251.214, 499.529], atol=1e-3)


def test_kitti(shared_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = linked(shared_data / "kitti_sample", tmp_path / "kitti")
    with pytest.raises(DataError, match="KITTI labels"):
        folder(root)
    data = run("KITTI", root, monkeypatch)
    assert counts(data) == (3, 6, 4 * 8)
    assert np.allclose(data.train[0].boxes, [[712.4, 143, 810.73, 307.92]], atol=1e-3)


def test_wider_face(shared_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = linked(shared_data / "widerface_sample", tmp_path / "faces")
    with pytest.raises(DataError, match="WIDER FACE annotations") as caught:
        folder(root)
    assert "DOTA labels" not in str(caught.value)
    assert counts(run("WIDER FACE", root, monkeypatch)) == (6, 47, 0)
    data = run("WIDER FACE", root, monkeypatch, face_train="face_val", WIDER_train="WIDER_val")
    assert counts(data) == (5, 165 - 81, 81)


def test_crowd_human(
    shared_data: Path, tmp_path: Path, write_image: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    source = shared_data / "crowdhuman_sample" / "annotation_sample.odgt"
    (tmp_path / "annotation_train.odgt").write_bytes(source.read_bytes())
    with pytest.raises(DataError, match="CrowdHuman annotations"):
        folder(tmp_path)
    for line in source.read_text().splitlines():
        Image.new("RGB", (3000, 3000)).save(tmp_path / f"{json.loads(line)['ID']}.jpg")
    data = run("CrowdHuman", tmp_path, monkeypatch, **{"Images/": ""})
    assert counts(data) == (3, 17, 2)


def test_dota(shared_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = linked(shared_data / "dota_sample", tmp_path / "dota")
    with pytest.raises(DataError, match="DOTA labels"):
        folder(root)
    data = run("DOTA", root, monkeypatch)
    assert len(data.train) == 2
    assert sum(counts(data)[1:]) == 531 + 5 + 50 + 14
    assert data.train.has_masks


def test_voc_masks(shared_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = linked(shared_data / "labelme_sample" / "data_dataset_voc", tmp_path / "voc")
    with pytest.raises(DataError, match="instance masks of Pascal VOC"):
        folder(root)
    data = run("VOC segmentation", root, monkeypatch)
    other = folder(shared_data / "labelme_sample" / "data_dataset_coco")
    assert counts(data) == counts(other) == (3, 12, 0)
    a, b = (np.sort(d.train.objects().boxes, 0) for d in (data, other))
    assert np.abs(a - b).max() < 6  # masks hide each other where polygons overlap


def test_cityscapes(shared_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = linked(shared_data / "cityscapes_sample", tmp_path / "city")
    with pytest.raises(DataError, match="Cityscapes annotations"):
        folder(root)
    data = run("Cityscapes", root, monkeypatch)
    assert counts(data)[:2] == (2, 27)
    assert data.train[0].file.is_file()


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"train.json": '{"images": [{"id": 1, "file_name": "a.jpg"'}, "JSON that cannot be read"),
        ({"image_info.json": '{"images": [], "categories": []}'}, "COCO JSON without `annotations`"),
        ({"found.json": '[{"image_id": 1, "bbox": [1, 2, 3, 4], "score": 1}]'}, "COCO results"),
        ({"export.json": '[{"data": {"image": "a.jpg"}}]'}, "JSON of another kind"),
        ({"panoptic.json": '{"images": [], "annotations": [{"segments_info": []}]}'}, "panoptic"),
        ({"a.tfrecord": "x"}, "TFRecord"),
        ({"set.zip": "x"}, "an archive, to be unpacked first"),
        ({"labels/x.txt": "0 0.5 0.5 0.2 0.2\n"}, "YOLO labels without their images"),
        ({"photos/a.jpg": "x", "b.png": "x"}, "2 images without annotations"),
        ({"gt/all.json": '{"images": [], "annotations": [], "categories": []}'}, "annotations= must name"),
        ({"gt/x/a.xml": "<annotation/><annotation>"}, "Pascal VOC annotations, whose folder annotations="),
        ({"list.csv": "a,b\n1,2\n", "notes.md": "x"}, "a table with the columns a,b"),
        ({}, "It holds: nothing"),
    ],
)
def test_what_is_said_of_files_that_are_not_read(tmp_path: Path, files: dict[str, str], message: str) -> None:
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    with pytest.raises(DataError) as caught:
        folder(tmp_path)
    assert message in str(caught.value)
    assert "train.jsonl" in str(caught.value)
    assert all(name.split("/")[0] in str(caught.value) for name in files)


def test_cvat_xml_is_recognised(tmp_path: Path) -> None:
    (tmp_path / "annotations.xml").write_text("<annotations><version>1.1</version></annotations>")
    with pytest.raises(DataError, match=r"annotations\.xml.*<annotations>.*CVAT.*COCO 1\.0"):
        folder(tmp_path)
