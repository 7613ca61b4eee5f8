"""The digits data set: an ordinary COCO folder whose boxes, masks and splits are what they claim."""

from __future__ import annotations

import builtins
import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pycocotools.coco import COCO

from boxwright.demo_data import SPLITS, DigitScenes, load_sources, make_digits, outline
from boxwright.errors import DataError, MissingExtraError


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_digits(tmp_path_factory.mktemp("demo") / "digits", train=40, val=12, size=96, seed=3)


def coco(folder: Path, split: str) -> COCO:
    return COCO(str(folder / "annotations" / f"instances_{split}.json"))


def digest(folder: Path) -> dict[str, str]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


@pytest.mark.parametrize(("split", "count"), [("train", 40), ("val", 12)])
def test_is_a_coco_folder(digits: Path, split: str, count: int) -> None:
    data = coco(digits, split)
    assert len(data.imgs) == count
    assert [category["id"] for category in data.dataset["categories"]] == list(range(1, 11))
    assert data.dataset["info"]["settings"]["seed"] == 3
    for image in data.imgs.values():
        with Image.open(digits / "images" / image["file_name"]) as file:
            assert (file.width, file.height, file.mode) == (image["width"], image["height"], "RGB")


@pytest.mark.parametrize("split", SPLITS)
def test_boxes_and_areas_are_those_of_the_masks(digits: Path, split: str) -> None:
    data = coco(digits, split)
    for image_id in data.imgs:
        covered = np.zeros((96, 96), dtype=int)
        for annotation in data.loadAnns(data.getAnnIds(image_id)):
            mask = data.annToMask(annotation)
            rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
            x, y, w, h = annotation["bbox"]
            assert (x, y, x + w, y + h) == (columns[0], rows[0], columns[-1] + 1, rows[-1] + 1)
            assert annotation["area"] == mask.sum() > 0
            covered += mask
        assert covered.max() <= 1


def test_mask_pixels_differ_from_what_surrounds_them(digits: Path) -> None:
    data = coco(digits, "train")
    for annotation in data.loadAnns(data.getAnnIds()):
        pixels = np.asarray(
            Image.open(digits / "images" / data.imgs[annotation["image_id"]]["file_name"]), float
        )
        mask = data.annToMask(annotation).astype(bool)
        x, y, w, h = annotation["bbox"]
        around = np.zeros_like(mask)
        around[max(y - 2, 0) : y + h + 2, max(x - 2, 0) : x + w + 2] = True
        assert np.abs(pixels[mask].mean(axis=0) - pixels[around & ~mask].mean(axis=0)).max() > 20


def test_same_seed_same_files_other_seed_others(digits: Path, tmp_path: Path) -> None:
    again = make_digits(tmp_path / "again", train=40, val=12, size=96, seed=3)
    assert digest(again) == digest(digits)
    other = make_digits(tmp_path / "other", train=2, val=12, size=96, seed=4)
    assert digest(other)["images/val_00000.jpg"] != digest(digits)["images/val_00000.jpg"]


def test_more_training_images_leave_the_validation_images_the_same(digits: Path, tmp_path: Path) -> None:
    fewer = digest(make_digits(tmp_path / "fewer", train=2, val=12, size=96, seed=3))
    images = {name: value for name, value in digest(digits).items() if name.startswith("images/val")}
    assert images.items() <= fewer.items()


def test_splits_share_no_scan() -> None:
    sources = load_sources(DigitScenes())
    for train, val in zip(sources["train"].glyphs, sources["val"].glyphs, strict=True):
        assert len(train) > 2 * len(val) > 50
        assert not {scan.tobytes() for scan in train} & {scan.tobytes() for scan in val}


def test_a_complete_set_is_kept_and_other_files_are_not_overwritten(digits: Path, tmp_path: Path) -> None:
    image = digits / "images" / "val_00000.jpg"
    written = image.stat().st_mtime_ns
    assert make_digits(digits, train=40, val=12, size=96, seed=3) == digits
    assert image.stat().st_mtime_ns == written
    with pytest.raises(DataError, match="holds another data set"):
        make_digits(digits, train=41, val=12, size=96, seed=3)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "letter.txt").write_text("dear")
    with pytest.raises(DataError, match="not empty"):
        make_digits(tmp_path / "mine")


def test_what_was_cut_off_is_made_afresh(tmp_path: Path) -> None:
    stale = tmp_path / "digits.making"
    stale.mkdir()
    (stale / "half.jpg").write_bytes(b"\xff\xd8")
    out = make_digits(tmp_path / "digits", train=2, val=2, size=64)
    assert not stale.exists()
    assert len(list((out / "images").iterdir())) == 4


def test_some_images_hold_no_digit(tmp_path: Path) -> None:
    out = make_digits(tmp_path / "digits", train=80, val=1, size=48)
    data = json.loads((out / "annotations" / "instances_train.json").read_text())
    assert len({a["image_id"] for a in data["annotations"]}) < len(data["images"])


@pytest.mark.parametrize("where", [(0, 0, 2, 2), (1, 1, 3, 4), (3, 2, 5, 6), (0, 0, 5, 6)])
def test_outline_round_trip(where: tuple[int, int, int, int]) -> None:
    mask = np.zeros((5, 6), dtype=bool)
    top, left, bottom, right = where
    mask[top:bottom, left:right] = True
    entry = outline(mask)
    assert entry["bbox"] == [left, top, right - left, bottom - top]
    data = COCO()
    data.imgs = {1: {"height": 5, "width": 6}}
    np.testing.assert_array_equal(data.annToMask({"image_id": 1} | entry), mask)


@pytest.mark.parametrize("wrong", [{"train": 0}, {"val": 0}, {"size": 10}, {"seed": -1}])
def test_numbers_out_of_range(tmp_path: Path, wrong: dict[str, int]) -> None:
    with pytest.raises(DataError, match=next(iter(wrong))):
        make_digits(tmp_path / "digits", **wrong)


def test_without_scikit_learn(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def missing(name: str, *args: object, **kwargs: object) -> object:
        if name.startswith("sklearn"):
            raise ImportError(name)
        return real(name, *args, **kwargs)  # pyright: ignore

    monkeypatch.setattr(builtins, "__import__", missing)
    with pytest.raises(MissingExtraError, match=r"boxwright\[demo\]"):
        load_sources(DigitScenes())
