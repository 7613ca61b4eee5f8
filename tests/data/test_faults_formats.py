"""Broken VOC, YOLO and light JSON: each is a DataError that names file and record, or a counted drop."""

from pathlib import Path

import pytest

from boxwright.data import folder
from boxwright.errors import DataError

VOC = {
    "zero bytes": ("", "empty"),
    "cut short": ("<annotation><filename>a.jpg</filename><obj", "line 1 column"),
    "not XML": ("hello", "not valid XML"),
    "another root": ("<html></html>", "root element is <html>"),
    "entity bomb": (
        '<!DOCTYPE x [<!ENTITY a "aaaaaaaaaa"><!ENTITY b "&a;&a;&a;&a;">]><annotation>&b;</annotation>',
        "document type",
    ),
    "entity bomb in UTF-16": (
        '<?xml version="1.0" encoding="utf-16"?><!DOCTYPE x [<!ENTITY a "a">]><annotation/>',
        "document type",
    ),
    "external entity": ('<!DOCTYPE x SYSTEM "file:///etc/passwd"><annotation/>', "document type"),
    "unknown encoding": ('<?xml version="1.0" encoding="klingon"?><annotation/>', "not valid XML"),
    "no box": ("<annotation><object><name>x</name></object></annotation>", "object 1: has no <bndbox>"),
    "no name": ("<annotation><object><bndbox/></object></annotation>", "object 1: has no <name>"),
    "no corner": ("<annotation><object><name>x</name><bndbox/></object></annotation>", "has no <xmin>"),
    "corner is text": (
        "<annotation><object><name>x</name><bndbox><xmin>left</xmin></bndbox></object></annotation>",
        "<xmin> must be a number",
    ),
    "size is text": (
        "<annotation><size><width>w</width><height>3</height></size></annotation>",
        "<width> must",
    ),
    "size is NaN": (
        "<annotation><size><width>nan</width><height>3</height></size></annotation>",
        "<width> must",
    ),
    "no height": ("<annotation><size><width>4</width></size></annotation>", "has no <height>"),
    "negative size": (
        "<annotation><size><width>-4</width><height>3</height></size></annotation>",
        "impossible",
    ),
    "path outside": ("<annotation><filename>../../../../../x.jpg</filename></annotation>", "outside"),
    "difficult is odd": (
        "<annotation><object><name>x</name><difficult>very</difficult><bndbox><xmin>1</xmin><ymin>1</ymin>"
        "<xmax>3</xmax><ymax>3</ymax></bndbox></object></annotation>",
        "<difficult> must be 0 or 1",
    ),
    "no class at all": ("<annotation/>", "no object has a class"),
}


@pytest.mark.parametrize("name", VOC)
def test_broken_voc(tmp_path: Path, write_image, name: str) -> None:
    text, message = VOC[name]
    write_image(tmp_path / "a.jpg")
    (tmp_path / "a.xml").write_bytes(text.encode("utf-16" if "UTF-16" in name else "utf-8"))
    with pytest.raises(DataError, match=message) as caught:
        folder(tmp_path)
    assert "a.xml" in str(caught.value) or name == "no class at all"


def test_voc_nan_and_swapped_corners_are_dropped(tmp_path: Path, write_image, voc_xml, voc_object) -> None:
    write_image(tmp_path / "a.jpg")
    objects = voc_object(box=("nan", 1, 2, 3)) + voc_object(box=(9, 9, 1, 1)) + voc_object()
    (tmp_path / "a.xml").write_text(voc_xml(objects=objects))
    table = folder(tmp_path).train
    assert {i.code: i.examples[0].split(":")[1].strip() for i in table.issues} == {
        "box_not_finite": "object 1",
        "box_degenerate": "object 2",
    }


YOLO = {
    "too few columns": (b"0 0.5 0.5 0.5", "line 1: has 4 columns"),
    "a score too much": (b"0 0.5 0.5 0.5 0.5 0.9", "has 6 columns"),
    "odd polygon": (b"0 0.5 0.5 0.5 0.5 0.5 0.5 0.5", "has 8 columns"),
    "text": (b"cat 0.5 0.5 0.5 0.5", "numbers only"),
    "class out of range": (b"0 0.5 0.5 0.5 0.5\n2 0.5 0.5 0.5 0.5", "line 2: class 2 is not one of 0 to 1"),
    "class negative": (b"-1 0.5 0.5 0.5 0.5", "class -1"),
    "class not whole": (b"0.5 0.5 0.5 0.5 0.5", "class 0.5"),
    "class NaN": (b"nan 0.5 0.5 0.5 0.5", "class nan"),
    "class infinite": (b"inf 0.5 0.5 0.5 0.5", "class inf"),
    "pixels": (b"0 20 10 5 5", "far beyond 1"),
    "not UTF-8": (b"\xff\xfe0 0.5", "UTF-8"),
}


@pytest.fixture
def yolo(tmp_path: Path, write_image) -> Path:
    write_image(tmp_path / "images" / "train" / "a.jpg")
    (tmp_path / "labels" / "train").mkdir(parents=True)
    (tmp_path / "labels" / "train" / "a.txt").write_text("0 0.5 0.5 0.5 0.5\n")
    (tmp_path / "classes.txt").write_text("cat\ndog\n")
    return tmp_path


@pytest.mark.parametrize("name", YOLO)
def test_broken_yolo_lines(yolo: Path, name: str) -> None:
    content, message = YOLO[name]
    (yolo / "labels" / "train" / "a.txt").write_bytes(content)
    with pytest.raises(DataError, match=message) as caught:
        folder(yolo)
    assert "a.txt" in str(caught.value)


def test_yolo_boxes_are_cleaned(yolo: Path) -> None:
    (yolo / "labels" / "train" / "a.txt").write_text(
        "0 0.5 0.5 nan 0.5\n0 0.9 0.9 0.5 0.5\n1 0.5 0.5 0 0.1\n"
    )
    assert [i.code for i in folder(yolo).train.issues] == ["box_not_finite", "box_degenerate", "box_clipped"]


@pytest.mark.parametrize("content", [None, b"", b"cat\ncat\n", b"cat\n\ndog\n", b"\xff\xff"])
def test_yolo_class_names(yolo: Path, content: bytes | None) -> None:
    (yolo / "classes.txt").unlink()
    if content is not None:
        (yolo / "classes.txt").write_bytes(content)
    with pytest.raises(DataError, match=r"classes\.txt"):
        folder(yolo)


def test_yolo_class_file_is_a_folder(yolo: Path) -> None:
    (yolo / "classes.txt").unlink()
    (yolo / "classes.txt").mkdir()
    with pytest.raises(DataError, match=r"classes\.txt: cannot be read"):
        folder(yolo)


def test_yolo_image_that_cannot_be_read(yolo: Path) -> None:
    (yolo / "images" / "train" / "a.jpg").write_bytes(b"nothing")
    with pytest.raises(DataError, match=r"a\.txt.*a\.jpg"):
        folder(yolo)


def test_yolo_labels_without_image_are_said(yolo: Path) -> None:
    (yolo / "labels" / "train" / "z.txt").write_text("0 0.5 0.5 0.5 0.5\n")
    assert "1 label files without an image were left out, z.txt first" in folder(yolo).found


LIGHT = {
    "cut short": ('{"image": "a.jpg", "obj', "line 2 column"),
    "a list": ("[]", "line 2: must be an object"),
    "no image": ("{}", "line 2: has no `image`"),
    "misspelt key": ('{"image": "b.jpg", "object": []}', "unknown key 'object'"),
    "misspelt object key": ('{"image": "b.jpg", "objects": [{"lable": "x"}]}', "unknown key 'lable'"),
    "object is text": ('{"image": "b.jpg", "objects": ["x"]}', r"line 2: objects\[0\]: must be an object"),
    "no label": ('{"image": "b.jpg", "objects": [{"box": [1, 2, 3, 4]}]}', "has no `label`"),
    "no box": ('{"image": "b.jpg", "objects": [{"label": "x"}]}', "has no `box`, `polygons` or `rle`"),
    "box of texts": (
        '{"image": "b.jpg", "objects": [{"label": "x", "box": ["1", 2, 3, 4]}]}',
        "must hold numbers",
    ),
    "ignore is text": (
        '{"image": "b.jpg", "objects": [{"label": "x", "box": [1, 2, 3, 4], "ignore": "no"}]}',
        "`ignore` must be true or false",
    ),
    "image twice": ('{"image": "a.jpg"}', "stands in line 1 too"),
    "missing image": ('{"image": "c.jpg"}', r"line 2: states no size .*c\.jpg"),
    "path outside": ('{"image": "../../../../x.jpg"}', "outside"),
    "both masks": (
        '{"image": "b.jpg", "objects": [{"label": "x", "polygons": [[1, 2, 3, 4, 5, 6]], "rle": {}}]}',
        "both `polygons` and `rle`",
    ),
}


@pytest.mark.parametrize("name", LIGHT)
def test_broken_light_lines(tmp_path: Path, write_image, name: str) -> None:
    line, message = LIGHT[name]
    for image in ("a.jpg", "b.jpg"):
        write_image(tmp_path / image)
    good = '{"image": "a.jpg", "objects": [{"label": "x", "box": [1, 2, 3, 4]}]}'
    (tmp_path / "train.jsonl").write_text(f"{good}\n{line}\n")
    with pytest.raises(DataError, match=message) as caught:
        folder(tmp_path)
    assert "train.jsonl" in str(caught.value)


@pytest.mark.parametrize("classes", ["[]", '["a", "a"]', "[1]", '"a"', '["b"]'])
def test_broken_light_classes(tmp_path: Path, write_image, classes: str) -> None:
    write_image(tmp_path / "a.jpg")
    good = '{"image": "a.jpg", "objects": [{"label": "a", "box": [1, 2, 3, 4]}]}'
    (tmp_path / "train.jsonl").write_text(f'{{"classes": {classes}}}\n{good}\n')
    with pytest.raises(DataError, match=r"train\.jsonl: line"):
        folder(tmp_path)
