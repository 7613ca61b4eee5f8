import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from boxwright.data import folder
from boxwright.data.readers.names import read_names
from boxwright.errors import DataError


def test_voc_reads_difficult_and_sizes(tmp_path: Path, write_image, voc_xml, voc_object) -> None:
    write_image(tmp_path / "JPEGImages" / "a.JPG")
    write_image(tmp_path / "JPEGImages" / "b.png", 20, 10)
    objects = voc_object() + voc_object("ant", (0, 0, 50, 5.5), "<difficult>1</difficult>")
    (tmp_path / "Annotations").mkdir()
    (tmp_path / "Annotations" / "a.xml").write_text(voc_xml("wrong.jpg", objects))
    (tmp_path / "Annotations" / "b.xml").write_text("<annotation><filename>b.png</filename></annotation>")
    data = folder(tmp_path)
    assert data.label_map.names == ("ant", "cat")
    record = data.train[0]
    assert record.file.name == "a.JPG"
    assert record.boxes.tolist() == [[1, 2, 11, 12], [0, 0, 40, 5.5]]
    assert record.labels.tolist() == [1, 0]
    assert record.ignore.tolist() == [False, True]
    assert record.masks is None
    assert (data.train[1].width, data.train[1].height) == (20, 10)
    assert [i.code for i in data.train.issues] == ["box_clipped"]
    write_image(tmp_path / "JPEGImages" / "b.png", 24, 10)
    assert folder(tmp_path).train[1].width == 24


def test_official_voc_counts_pixels_from_one(tmp_path: Path, write_image, voc_xml, voc_object) -> None:
    write_image(tmp_path / "a.jpg")
    head = "<source><database>The VOC2007 Database</database></source>"
    (tmp_path / "a.xml").write_text(voc_xml(objects=voc_object(box=(1, 1, 40, 30)), head=head))
    assert folder(tmp_path).train[0].boxes.tolist() == [[0, 0, 40, 30]]


def test_voc_devkit_and_lists(tmp_path: Path, write_image, voc_xml, voc_object) -> None:
    root = tmp_path / "VOCdevkit" / "VOC2007"
    for name in ("a", "b"):
        write_image(root / "JPEGImages" / f"{name}.jpg")
        (root / "Annotations").mkdir(exist_ok=True)
        (root / "Annotations" / f"{name}.xml").write_text(voc_xml(f"{name}.jpg", voc_object()))
    lists = root / "ImageSets" / "Main"
    lists.mkdir(parents=True)
    (lists / "train.txt").write_text("a\n")
    (lists / "val.txt").write_text("b  1\n\n")
    (lists / "cat_train.txt").write_text("a -1\n")
    data = folder(tmp_path)
    assert {s: len(t) for s, t in data.splits.items()} == {"train": 1, "val": 1}
    assert data.train[0].file.is_file()
    (lists / "val.txt").write_text("b\nc\n")
    with pytest.raises(DataError, match=r"val.txt: line 2: .*c\.xml does not exist"):
        folder(tmp_path)


@pytest.mark.parametrize("layout", ["images/{s}|labels/{s}", "{s}/images|{s}/labels", "{s}|{s}"])
def test_yolo_layouts(tmp_path: Path, write_image, layout: str) -> None:
    for split in ("train", "valid"):
        images, labels = (tmp_path / part.format(s=split) for part in layout.split("|"))
        write_image(images / "a.jpg")
        write_image(images / "b.jpg")
        labels.mkdir(parents=True, exist_ok=True)
        (labels / "a.txt").write_text("1 0.5 0.5 0.5 0.2\n\n0 0.1 0.1 0.5 0.1 0.5 0.5\n")
    (tmp_path / "classes.txt").write_text("cat\ndog\n")
    data = folder(tmp_path)
    assert list(data.splits) == ["train", "val"]
    assert data.label_map.source_ids == (0, 1)
    record = data.train[0]
    assert np.allclose(record.boxes, [[10, 12, 30, 18], [4, 3, 20, 15]])
    assert record.labels.tolist() == [1, 0]
    assert record.masks is not None
    assert record.masks[0] == []
    assert np.allclose(record.masks[1], [[4, 3, 20, 3, 20, 15]])
    assert len(data.train[1].labels) == 0
    assert [i.code for i in data.train.issues] == ["mask_missing"]


def test_yolo_flat(tmp_path: Path, write_image) -> None:
    write_image(tmp_path / "a.jpg")
    (tmp_path / "a.txt").write_text("0 0.5 0.5 1 1\n")
    (tmp_path / "classes.txt").write_text("cat\n")
    assert folder(tmp_path).train[0].boxes.tolist() == [[0, 0, 40, 30]]


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("names: [cat, 'big dog', \"a, b\"]\nnc: 3\n", ("cat", "big dog", "a, b")),
        ("train: x\nnames:\n- cat\n- dog # the animal\nnc: 2\n", ("cat", "dog")),
        ("names:\n  - cat\n\n  # none\n  - it's\n", ("cat", "it's")),
        ("names:\n  1: dog\n  0: cat\nval: y\n", ("cat", "dog")),
        ("names: {0: cat, 1: 'dog'}\n", ("cat", "dog")),
        ("names: [cat,\n  dog,\n  C#]\n", ("cat", "dog", "C#")),
        ('names:\n  0: "caf\\u00e9 \\"x\\""\n', ('café "x"',)),
    ],
)
def test_yaml_names(tmp_path: Path, text: str, names: tuple[str, ...]) -> None:
    path = tmp_path / "data.yaml"
    path.write_text(text)
    assert read_names(path) == names


@pytest.mark.parametrize(
    "text",
    ["nc: 2\n", "names: cat\n", "names:\n  1: cat\n", "names: [a, a]\n", "names: []\n", "names: &x [a]\n"],
)
def test_yaml_names_that_are_not_understood(tmp_path: Path, text: str) -> None:
    path = tmp_path / "data.yaml"
    path.write_text(text)
    with pytest.raises(DataError, match=r"data\.yaml"):
        read_names(path)


def test_light_reads_the_documented_example(tmp_path: Path, write_image: Callable[..., Path]) -> None:
    text = (Path(__file__).parents[2] / "docs" / "data_formats.md").read_text(encoding="utf-8")
    lines = text.split("```json\n")[1].split("```")[0]
    for line in map(json.loads, lines.splitlines()):
        write_image(tmp_path / "images" / line["image"], 640, 480)
    (tmp_path / "train.jsonl").write_text(lines)
    data = folder(tmp_path)
    assert data.format == "light"
    assert data.label_map.names == ("cat", "dog")
    assert [len(r.labels) for r in data.train] == [2, 1, 0]
    assert data.train[0].ignore.tolist() == [False, True]
    assert data.train.has_masks


def test_light_with_declared_classes(tmp_path: Path, write_image: Callable[..., Path]) -> None:
    write_image(tmp_path / "a.jpg")
    lines = [
        '{"classes": ["zebra", "ant"]}',
        '{"image": "a.jpg", "objects": [{"label": "ant", "box": [1, 2, 3, 4]}]}',
    ]
    (tmp_path / "notes.jsonl").write_text("\n".join(lines))
    data = folder(tmp_path)
    assert data.label_map.names == ("zebra", "ant")
    assert data.train[0].labels.tolist() == [1]
    assert (data.train[0].width, data.train[0].height) == (40, 30)


def test_coco_derives_what_is_missing(coco_folder: Path) -> None:
    path = coco_folder / "annotations" / "instances_train2017.json"
    content = json.loads(path.read_text())
    for entry in content["annotations"]:
        del entry["bbox"], entry["area"], entry["id"]
    for entry in content["images"]:
        del entry["width"]
    path.write_text(json.dumps(content))
    coco = folder(coco_folder).train.to_coco()
    assert [a["bbox"] for a in coco["annotations"]] == [[0, 0, 2, 30], [1, 2, 3, 4], [5.5, 6.25, 10, 8]]
    assert [a["area"] for a in coco["annotations"]] == [60, 6, 40]
    assert [a["id"] for a in coco["annotations"]] == [1, 2, 3]
    assert coco["images"][0]["width"] == 40
