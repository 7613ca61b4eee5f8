"""Broken annotations: each is a DataError that names file and record, or a counted drop, nothing else."""

import copy
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from boxwright.data import check, folder
from boxwright.errors import DataError

NAME = "instances_train2017.json"


def base() -> dict[str, Any]:
    return {
        "images": [{"id": 1, "file_name": "a.jpg", "width": 40, "height": 30}],
        "annotations": [
            {"id": 1, "image_id": 1, "category_id": 1, "bbox": [1, 2, 10, 10], "area": 100, "iscrowd": 0}
        ],
        "categories": [{"id": 1, "name": "cat"}],
    }


@pytest.fixture
def root(tmp_path: Path, write_image) -> Path:
    write_image(tmp_path / "images" / "a.jpg")
    (tmp_path / "annotations").mkdir()
    return tmp_path


def put(*path: Any) -> Callable[[Any], Callable[[Any], None]]:
    """`put("images", 0, "id")("x")` sets that value."""

    def value(new: Any) -> Callable[[Any], None]:
        def edit(content: Any) -> None:
            for key in path[:-1]:
                content = content[key]
            content[path[-1]] = new

        return edit

    return value


def delete(*path: Any) -> Callable[[Any], None]:
    def edit(content: Any) -> None:
        for key in path[:-1]:
            content = content[key]
        del content[path[-1]]

    return edit


def again(section: str) -> Callable[[Any], None]:
    return lambda content: content[section].append(copy.deepcopy(content[section][0]))


rle = put("annotations", 0, "segmentation")
COCO = {
    "images is a dict": (put("images")({}), "`images` must be a list"),
    "annotations is text": (put("annotations")("x"), "`annotations` must be a list"),
    "categories is null": (put("categories")(None), "`categories` must be a list"),
    "no images key": (delete("images"), "has no `images`"),
    "no annotations key": (delete("annotations"), "has no `annotations`"),
    "no categories key": (delete("categories"), "has no `categories`"),
    "no image": (put("images")([]), "image"),
    "no category": (put("categories")([]), "`categories` is empty"),
    "image is a list": (put("images", 0)([]), r"images\[0\]: must be an object"),
    "annotation is a number": (put("annotations", 0)(3), r"annotations\[0\]: must be an object"),
    "category is text": (put("categories", 0)("cat"), r"categories\[0\]: must be an object"),
    "no file name": (delete("images", 0, "file_name"), r"images\[0\]: has no `file_name`"),
    "no image id": (delete("images", 0, "id"), "has no `id`"),
    "file name is a number": (put("images", 0, "file_name")(5), "`file_name` must be text"),
    "file name is empty": (put("images", 0, "file_name")(""), "`file_name` must be text"),
    "file name with NUL": (put("images", 0, "file_name")("a\0.jpg"), "no file can be named"),
    "file name with a surrogate": (put("images", 0, "file_name")("\ud800.jpg"), "no file can be named"),
    "path outside": (put("images", 0, "file_name")("../../../../etc/passwd"), "image id 1: .*outside"),
    "absolute path": (put("images", 0, "file_name")("/etc/passwd"), "outside"),
    "windows path": (put("images", 0, "file_name")("C:\\x.jpg"), "outside"),
    "width 0": (put("images", 0, "width")(0), "image id 1: the image size 0 x 30 is impossible"),
    "height negative": (put("images", 0, "height")(-30), "impossible"),
    "width absurd": (put("images", 0, "width")(10**12), "impossible"),
    "width is text": (put("images", 0, "width")("40"), "`width` must be a whole number"),
    "image id is text": (put("images", 0, "id")("one"), "`id` must be a whole number"),
    "image id too large": (put("images", 0, "id")(10**30), "`id` must be a whole number"),
    "image id is true": (put("images", 0, "id")(True), "`id` must be a whole number"),
    "image twice": (again("images"), "image id 1: stands twice"),
    "category twice": (again("categories"), "category 'cat' .* stands twice"),
    "category name is null": (put("categories", 0, "name")(None), "`name` must be text"),
    "unknown image id": (put("annotations", 0, "image_id")(9), "annotation id 1: image_id 9 is not in"),
    "unknown category id": (put("annotations", 0, "category_id")(9), "category_id 9 is not in"),
    "no category id": (delete("annotations", 0, "category_id"), "has no `category_id`"),
    "no box and no mask": (delete("annotations", 0, "bbox"), "neither `bbox` nor"),
    "box is text": (put("annotations", 0, "bbox")("1,2,3,4"), "`bbox` must be a list of 4 numbers"),
    "box of texts": (put("annotations", 0, "bbox")(["1", "2", "3", "4"]), "`bbox` must hold numbers"),
    "box of three": (put("annotations", 0, "bbox")([1, 2, 3]), "list of 4 numbers, found 3 values"),
    "box with an endless number": (put("annotations", 0, "bbox")([10**400, 1, 1, 1]), "too large"),
    "crowd is text": (put("annotations", 0, "iscrowd")("yes"), "`iscrowd` must be true or false"),
    "area is text": (put("annotations", 0, "area")("big"), "`area` must hold numbers"),
    "mask is text": (rle("abc"), "segmentation"),
    "polygon of texts": (rle([["1", "2", "3", "4", "5", "6"]]), "must hold numbers"),
    "polygon not nested": (rle([1, 2, 3, 4, 5, 6]), "must be a list of numbers"),
    "RLE without size": (rle({"counts": [1200]}), "`size` must be"),
    "RLE of another size": (rle({"size": [10, 10], "counts": [100]}), "differs from the image's"),
    "RLE with a wrong sum": (rle({"size": [30, 40], "counts": [3, 4]}), "annotation id 1: .*sum to 7"),
    "RLE with a negative count": (rle({"size": [30, 40], "counts": [1300, -100]}), "negative"),
    "RLE with a number": (rle({"size": [30, 40], "counts": 7}), "list or text"),
    "RLE damaged": (rle({"size": [30, 40], "counts": "zz~"}), "damaged|sum to"),
    "RLE cut short": (rle({"size": [30, 40], "counts": "`"}), "damaged"),
    "RLE not ASCII": (rle({"size": [30, 40], "counts": "äö"}), "characters"),
}


@pytest.mark.parametrize("name", COCO)
def test_coco_that_cannot_be_meant(root: Path, name: str) -> None:
    edit, message = COCO[name]
    content = base()
    edit(content)
    (root / "annotations" / NAME).write_text(json.dumps(content))
    with pytest.raises(DataError, match=message) as caught:
        folder(root)
    assert NAME in str(caught.value)
    assert "; " in str(caught.value)  # a remedy follows


DROPS = {
    "NaN box": ([float("nan"), 1, 2, 3], "box_not_finite"),
    "infinite box": ([1, 1, float("inf"), 3], "box_not_finite"),
    "zero width": ([1, 1, 0, 3], "box_degenerate"),
    "negative height": ([1, 10, 5, -3], "box_degenerate"),
    "outside": ([100, 1, 5, 5], "box_outside"),
    "absurd place": ([1e300, 1, 1e300, 5], "box_outside"),
    "over the edge": ([30, 20, 50, 50], "box_clipped"),
    "absurd size": ([-1e12, -1e12, 3e12, 3e12], "box_clipped"),
}


@pytest.mark.parametrize("name", DROPS)
def test_coco_boxes_that_are_mended_or_dropped(root: Path, name: str) -> None:
    box, code = DROPS[name]
    content = base()
    content["annotations"].append({**content["annotations"][0], "id": 2, "bbox": box})
    (root / "annotations" / NAME).write_text(json.dumps(content))
    table = folder(root).train
    (issue,) = table.issues
    assert (issue.code, issue.count) == (code, 1)
    assert NAME in issue.examples[0]
    assert "annotation id 2" in issue.examples[0]
    assert len(table[0].labels) == (2 if code == "box_clipped" else 1)
    assert (table[0].boxes >= 0).all()
    assert (table[0].boxes <= [40, 30, 40, 30]).all()
    assert code in {f.code for f in check(folder(root)).findings}


@pytest.mark.parametrize(
    "ring", [[1, 2, 3, 4], [1, 2, 3, 4, 5], [], [1, 2, 3, 4, float("nan"), 6], [1, 2, 3, 4, 1e9, 6]]
)
def test_polygons_that_are_left_out(root: Path, ring: list[float]) -> None:
    content = base()
    content["annotations"][0]["segmentation"] = [ring, [1, 2, 11, 2, 11, 12]]
    (root / "annotations" / NAME).write_text(json.dumps(content))
    table = folder(root).train
    assert [(i.code, i.count) for i in table.issues] == [("polygon_dropped", 1)]
    assert table[0].masks == [[[1, 2, 11, 2, 11, 12]]]


@pytest.mark.parametrize("value", [1, 0, None])
def test_annotation_ids_are_renumbered(root: Path, value: int | None) -> None:
    content = base()
    content["annotations"].append({**content["annotations"][0], "id": value})
    (root / "annotations" / NAME).write_text(json.dumps(content))
    table = folder(root).train
    assert table.issues[0].code == ("annotation_id_twice" if value else "annotation_id_zero")
    assert table.objects().ids.tolist() == [1, 2]


GOOD = json.dumps(base())
FILES = {
    "cut short": (GOOD[:-40].encode(), "line 1 column"),
    "empty": (b"", "empty"),
    "only spaces": (b" \n ", "empty"),
    "only a mark": (b"\xef\xbb\xbf", "empty"),
    "latin-1": (GOOD.replace("cat", "k\xe4tz").encode("latin-1"), "byte .*UTF-8"),
    "UTF-16": (GOOD.encode("utf-16"), "UTF-8"),
    "a list": (b"[1, 2]", "must be an object"),
    "a number": (b"17", "must be an object"),
    "deep": (b"[" * 100_000, "JSON"),
    "long number": (b'{"images": ' + b"9" * 5000 + b"}", "JSON"),
    "two documents": ((GOOD + GOOD).encode(), "Extra data"),
}


@pytest.mark.parametrize("name", FILES)
def test_files_that_are_no_json(root: Path, name: str) -> None:
    content, message = FILES[name]
    (root / "annotations" / NAME).write_bytes(content)
    with pytest.raises(DataError, match=message) as caught:
        folder(root)
    assert NAME in str(caught.value)


def test_a_byte_order_mark_does_no_harm(root: Path) -> None:
    (root / "annotations" / NAME).write_bytes(b"\xef\xbb\xbf" + GOOD.encode())
    assert len(folder(root).train) == 1


def test_a_folder_in_place_of_a_file(root: Path) -> None:
    (root / "annotations" / NAME).mkdir()
    with pytest.raises(DataError, match="annotations"):
        folder(root, format="coco")
    with pytest.raises(DataError, match="annotations"):
        folder(root, train=f"annotations/{NAME}", format="coco")


def test_a_file_that_cannot_be_read(root: Path) -> None:
    if os.geteuid() == 0:
        os.symlink("/proc/self/mem", root / "annotations" / NAME)  # reading it fails even for root
    else:
        (root / "annotations" / NAME).write_text(GOOD)
        (root / "annotations" / NAME).chmod(0)
    with pytest.raises(DataError, match=NAME):
        folder(root, train=f"annotations/{NAME}")


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.just([1, 2, 3, 4]),
    lambda inner: (
        st.lists(inner, max_size=6) | st.dictionaries(st.sampled_from(["id", "size", "counts", "x"]), inner)
    ),
    max_leaves=6,
)
PLACES = [
    *[(section,) for section in base()],
    *[(section, 0) for section in base()],
    *[(section, 0, key) for section, entries in base().items() for key in entries[0]],
    ("annotations", 0, "segmentation"),
    *[("annotations", 0, "bbox", i) for i in range(4)],
]
FUZZ = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@FUZZ
@given(place=st.sampled_from(PLACES), value=JSON)
def test_coco_with_any_value_anywhere(root: Path, place: tuple, value: Any) -> None:
    content = base()
    put(*place)(value)(content)
    (root / "annotations" / NAME).write_text(json.dumps(content))
    opens_or_says_why(root)


@FUZZ
@given(data=st.data())
def test_files_with_changed_bytes(root: Path, data: st.DataObject) -> None:
    content = bytearray(GOOD.encode())
    for _ in range(data.draw(st.integers(1, 3))):
        place = data.draw(st.integers(0, len(content) - 1))
        content[place : place + data.draw(st.integers(0, 4))] = data.draw(st.binary(max_size=3))
    (root / "annotations" / NAME).write_bytes(bytes(content))
    opens_or_says_why(root)


@FUZZ
@given(value=JSON)
def test_light_with_any_value(root: Path, value: Any) -> None:
    line = {"image": "a.jpg", "objects": [{"label": "x", "box": value, "polygons": value}]}
    (root / "train.jsonl").write_text(json.dumps(line) + "\n" + json.dumps(value))
    opens_or_says_why(root)


def opens_or_says_why(root: Path) -> None:
    try:
        data = folder(root)
    except DataError:
        return
    for table in data.splits.values():
        json.dumps(table.to_coco(), allow_nan=False)
        for record in table:
            assert (record.boxes[:, 2:] > record.boxes[:, :2]).all()
    check(data)
