"""Which images of a YOLO folder belong to which split: data.yaml, lists of images, layouts, folders below."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from boxwright.data import Data, check, convert, folder
from boxwright.errors import DataError

BOX = "0 0.5 0.5 0.5 0.5\n"


@pytest.fixture
def put(tmp_path: Path, write_image: Callable[..., Path]) -> Callable[..., Path]:
    """Writes images, each with a label file in `labels/` in place of `images/`, or beside it."""

    def write(*images: str, labels: bool = True) -> Path:
        for name in images:
            image = write_image(tmp_path / name)
            label = Path(str(image).replace("/images/", "/labels/")).with_suffix(".txt")
            if labels:
                label.parent.mkdir(parents=True, exist_ok=True)
                label.write_text(BOX)
        return tmp_path

    return write


def files(data: Data) -> dict[str, list[str]]:
    tables = data.splits.items()
    return {split: [str(record.file.relative_to(data.root)) for record in table] for split, table in tables}


@pytest.mark.parametrize(
    "yaml",
    [
        "train: images/first\nval: images/second\ntest: # none\n",
        "path: .\ntrain: ./images/first\nval: 'images/second'\ntest:\n",
        "path: ../somewhere\ntrain: images/first\nval:\n  - images/second\ntest: ''\n",
        "path: /content/datasets/x\ntrain: [images/first]\nvalid: images/second # 20 %\n",
        "train: ../images/first\nval: ../images/second\ntest: null\n",
        "train: first.txt\nval: images/second\n",
    ],
)
def test_data_yaml_says_the_splits(put: Callable[..., Path], yaml: str) -> None:
    root = put("images/first/a.jpg", "images/second/b.jpg")
    (root / "first.txt").write_text("./images/first/a.jpg\n")
    (root / "data.yaml").write_text(yaml + "names: [cat]\n")
    data = folder(root)
    assert files(data) == {"train": ["images/first/a.jpg"], "val": ["images/second/b.jpg"]}
    assert data.train[0].boxes.tolist() == [[10, 7.5, 30, 22.5]]


def test_data_yaml_that_names_a_folder_elsewhere_says_so(put: Callable[..., Path]) -> None:
    root = put("images/train/a.jpg", "images/val/b.jpg")
    (root / "data.yaml").write_text("train: images/train\nval: /content/other/val\nnames: [cat]\n")
    data = folder(root)
    assert files(data) == {"train": ["images/train/a.jpg"], "val": ["images/val/b.jpg"]}
    assert "data.yaml: val: /content/other/val holds no labelled images" in data.found


def test_a_folder_without_labels_is_said_to_be_left_out(put: Callable[..., Path]) -> None:
    root = put("images/train/a.jpg")
    put("images/val/b.jpg", labels=False)
    (root / "classes.txt").write_text("cat\n")
    data = folder(root)
    assert files(data) == {"train": ["images/train/a.jpg"]}
    assert "images/val was left out: no labels in labels/val" in data.found


def test_several_folders_are_one_split(put: Callable[..., Path]) -> None:
    root = put("images/x/a.jpg", "images/y/a.jpg", "images/z/a.jpg")
    (root / "custom.yaml").write_text("train:\n- images/x\n- images/y\nval: images/z\nnames: {0: cat}\n")
    assert files(folder(root)) == {"train": ["images/x/a.jpg", "images/y/a.jpg"], "val": ["images/z/a.jpg"]}


@pytest.mark.parametrize(
    "form", ["images/{}.jpg", "./images/{}.jpg", "/content/darknet/images/{}.jpg", "data\\images\\{}.jpg"]
)
def test_lists_of_images_are_splits(put: Callable[..., Path], form: str) -> None:
    root = put("images/a.jpg", "images/b c.jpg", "images/d.jpg")
    (root / "labels" / "d.txt").unlink()
    (root / "train.txt").write_text(form.format("a") + "\n\n" + form.format("d") + "\n")
    (root / "val.txt").write_text(form.format("b c") + "\n")
    (root / "classes.txt").write_text("cat\n")
    data = folder(root)
    assert files(data) == {"train": ["images/a.jpg", "images/d.jpg"], "val": ["images/b c.jpg"]}
    assert data.train.object_counts.tolist() == [1, 0]
    assert files(folder(root, train="val.txt", format="yolo")) == {"train": ["images/b c.jpg"]}


def test_export_of_cvat(put: Callable[..., Path]) -> None:
    root = put("obj_train_data/a.jpg", "obj_train_data/sub/b.jpg")
    (root / "obj.data").write_text("classes = 1\ntrain = data/train.txt\nnames = data/obj.names\n")
    (root / "obj.names").write_text("cat\n")
    (root / "train.txt").write_text("data/obj_train_data/a.jpg\ndata/obj_train_data/sub/b.jpg\n")
    data = folder(root)
    assert files(data) == {"train": ["obj_train_data/a.jpg", "obj_train_data/sub/b.jpg"]}
    assert data.train.object_counts.tolist() == [1, 1]


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ("images/x.jpg\nimages/y.jpg\n", r"train\.txt: line 1: there is no image 'images/x\.jpg'"),
        ("images/a.jpg\nimages/a.jpg\n", r"train\.txt: line 2: .*listed twice"),
        ("images/a.jpg\nimages/../../../a.jpg\n", r"train\.txt: line 2: .*outside"),
        ("images/a.jpg\nimages/z.jpg\n", r"images/z\.jpg: the image does not exist"),
        (b"images/a.jpg\n\xff\xfe\n", r"train\.txt: .*UTF-8"),
    ],
)
def test_broken_lists(put: Callable[..., Path], lines: str | bytes, message: str) -> None:
    root = put("images/a.jpg")
    (root / "classes.txt").write_text("cat\n")
    (root / "train.txt").write_bytes(lines if isinstance(lines, bytes) else lines.encode())
    with pytest.raises(DataError, match=message):
        folder(root)


def test_folders_below_count_and_circles_do_no_harm(put: Callable[..., Path]) -> None:
    names = ("a.jpg", "x/a.jpg", "x/y/b.jpg", ".hidden/c.jpg")
    root = put(*(f"images/train/{name}" for name in names))
    (root / "images" / "train" / "._a.jpg").write_bytes(b"resource fork of another system")
    os.symlink(root / "images", root / "images" / "train" / "x" / "circle")
    os.symlink("loop.jpg", root / "images" / "train" / "loop")
    (root / "classes.txt").write_text("cat\n")
    data = folder(root)
    assert files(data) == {
        "train": ["images/train/a.jpg", "images/train/x/a.jpg", "images/train/x/y/b.jpg"],
    }
    assert data.train.object_counts.tolist() == [1, 1, 1]
    assert not check(data).errors


def test_labels_of_keypoints_are_refused(put: Callable[..., Path]) -> None:
    root = put("images/train/a.jpg")
    line = "0 0.5 0.5 0.5 0.5" + " 0.5 0.5 2" * 4  # as many columns as a polygon may have
    (root / "labels" / "train" / "a.txt").write_text(line)
    (root / "data.yaml").write_text("train: images/train\nkpt_shape: [4, 3]\nnames: [cat]\n")
    with pytest.raises(DataError, match=r"keypoints.*first five columns"):
        folder(root)


def test_files_that_name_other_classes_are_refused(put: Callable[..., Path]) -> None:
    root = put("images/train/a.jpg")
    (root / "data.yaml").write_text("train: images/train\nnames: [cat, dog]\n")
    (root / "labels" / "train" / "classes.txt").write_text("dog\ncat\n")
    message = r"classes\.txt: names other classes \(dog, cat\).*data\.yaml \(cat, dog\)"
    with pytest.raises(DataError, match=message):
        folder(root)
    (root / "labels" / "train" / "classes.txt").write_text("cat\ndog\n")
    assert folder(root).label_map.names == ("cat", "dog")


def test_images_elsewhere(put: Callable[..., Path], tmp_path: Path) -> None:
    root = put("set/images/a.jpg")
    (root / "set" / "images").rename(tmp_path / "photos")
    (root / "set" / "classes.txt").write_text("cat\n")
    data = folder(root / "set", images=str(tmp_path / "photos"))
    assert data.train[0].file == tmp_path / "photos" / "a.jpg"
    assert len(data.train[0].labels) == 1


def test_what_is_converted_has_the_same_splits(put: Callable[..., Path], tmp_path: Path) -> None:
    root = put("in/images/a.jpg", "in/images/b.jpg") / "in"
    for split, name in (("train", "a"), ("val", "b")):
        (root / f"{split}.txt").write_text(f"images/{name}.jpg\n")
    (root / "classes.txt").write_text("cat\n")
    again = folder(convert(folder(root), tmp_path / "out", "yolo"))
    assert files(again) == {"train": ["images/train/a.jpg"], "val": ["images/val/b.jpg"]}
