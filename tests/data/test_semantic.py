"""Maps of semantic classes: found beside the images, read, moved with them, and padded."""

import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from command_line import call
from PIL import Image
from torchvision import tv_tensors

from boxwright.data import Canvas, check, convert, folder
from boxwright.data.collate import collate
from boxwright.data.loader import Loader
from boxwright.data.sample import Sample, as_boxes, load_sample
from boxwright.data.transforms import (
    Expand,
    HorizontalFlip,
    MinIoURandomCrop,
    RandomCrop,
    Resize,
    ResizeFixed,
)
from boxwright.errors import DataError
from boxwright.structures import NO_CLASS

NAMES = ("a", "b", "empty")


def class_map(seed: int, width: int = 40, height: int = 30) -> np.ndarray:
    random = np.random.default_rng(seed)
    coarse = random.integers(0, 184, (height // 5, width // 5), dtype=np.uint8)
    coarse[coarse == 183] = NO_CLASS
    return coarse.repeat(5, 0).repeat(5, 1)


def write_maps(root: Path) -> None:
    root.mkdir(parents=True)
    for seed, name in enumerate(NAMES):
        image = Image.fromarray(class_map(seed))
        if name == "b":  # a palette's numbers are its indices
            image.putpalette([255 - i // 3 for i in range(768)])
            assert image.mode == "P"
        image.save(root / f"{name}.png")


@pytest.mark.parametrize("place", ["stuffthingmaps", "elsewhere/maps/images"])
def test_maps_are_found_and_padded(coco_folder: Path, place: str):
    write_maps(coco_folder / place)
    data = folder(coco_folder, semantic=place.removesuffix("/images"))
    assert f"train: semantic maps such as {coco_folder / place / 'a.png'}" in data.found
    assert data.arguments is not None
    assert folder(**data.arguments).train.semantic == data.train.semantic
    table = pickle.loads(pickle.dumps(data.train.subset([2, 0, 1])))
    assert [record.semantic for record in table] == [
        coco_folder / place / f"{n}.png" for n in ("empty", "a", "b")
    ]

    loader = Loader(data.train, (), Canvas(shapes=((32, 64),)), batch_size=3)
    (batch,) = loader
    assert batch.targets is not None
    maps = batch.targets.semantic
    assert maps is not None
    assert maps.shape == (3, 32, 64)
    assert maps.dtype == torch.uint8
    for ident, found in zip(batch.image_ids, maps, strict=True):
        expected = class_map((7, 3, 5).index(ident))
        assert torch.equal(found[:30, :40], torch.from_numpy(expected))
        assert (found[30:] == NO_CLASS).all()
        assert (found[:, 40:] == NO_CLASS).all()
    (plain,) = Loader(data.train, (), Canvas(), batch_size=3, shuffle=False)
    assert plain.targets is not None
    assert plain.targets.semantic is None


def test_without_maps_there_are_none(coco_folder: Path):
    data = folder(coco_folder)
    assert data.train.semantic is None
    (batch,) = Loader(data.train, (), Canvas(), batch_size=3)
    assert batch.targets is not None
    assert batch.targets.semantic is None
    with pytest.raises(
        DataError, match=r"this split has none: name their folder with folder\(..., semantic=\)"
    ):
        Loader(data.train, with_semantic=True)
    with pytest.raises(DataError, match="has no semantic map"):
        load_sample(data.train[0], with_semantic=True)


def test_faults_name_the_map(coco_folder: Path):
    with pytest.raises(DataError, match=r"semantic='maps': .* does not exist"):
        folder(coco_folder, semantic="maps")
    with pytest.raises(
        DataError,
        match=r"annotations: holds no semantic map .*annotations/images/a\.png, .*annotations/a\.png",
    ):
        folder(coco_folder, semantic="annotations")
    maps = coco_folder / "maps"
    write_maps(maps)
    data = folder(coco_folder, semantic="maps")
    assert not [f for f in check(data).findings if f.code.startswith("semantic")]
    with pytest.raises(DataError, match=r"coco cannot hold 3 semantic maps\. Convert with lossy=True"):
        convert(data, coco_folder / "out", "coco")
    (maps / "a.png").unlink()
    Image.fromarray(class_map(1, 20, 15)).save(maps / "b.png")
    Image.new("RGB", (40, 30)).save(maps / "empty.png")
    found = {f.code: f for f in check(data).findings if f.code.startswith("semantic")}
    assert set(found) == {"semantic_missing", "semantic_size"}
    assert found["semantic_missing"].file == str(maps / "a.png")
    assert found["semantic_size"].file == str(maps / "b.png")
    for row, message in enumerate(
        (r"a\.png: the image does not exist", "b.png: the semantic map has 20 x 15", "mode RGB")
    ):
        with pytest.raises(DataError, match=message):
            load_sample(data.train[row], with_semantic=True)


def sample(seed: int) -> Sample:
    """The image shows the map itself in its three channels."""
    labels = torch.from_numpy(class_map(seed))
    boxes = as_boxes(torch.tensor([[3.0, 4, 20, 22], [10, 2, 35, 28]]), (30, 40))
    return {
        "image": tv_tensors.Image(labels.expand(3, -1, -1).contiguous()),
        "boxes": boxes,
        "labels": torch.tensor([0, 1]),
        "ignore": torch.tensor([False, False]),
        "semantic": tv_tensors.Mask(labels),
        "image_id": seed,
        "original_size": (30, 40),
        "file": f"{seed}.jpg",
    }


MOVES = (
    HorizontalFlip(1.0),
    RandomCrop(size=(12, 17)),
    MinIoURandomCrop(),
    Expand(1.0, 2.0, (NO_CLASS,) * 3),
)


@pytest.mark.parametrize("move", MOVES, ids=lambda m: type(m).__name__)
@pytest.mark.parametrize("seed", range(3))
def test_maps_move_with_the_image(move, seed: int):
    given = sample(seed)
    before = given["semantic"].clone()
    moved = move(given, torch.Generator().manual_seed(seed))
    assert torch.equal(moved["semantic"], moved["image"][0])
    assert torch.equal(given["semantic"], before)


@pytest.mark.parametrize("move", [Resize(48, 64), ResizeFixed((20, 20)), Resize(15, 20)])
def test_resized_maps_take_the_nearest_pixel(move):
    moved = move(sample(0), torch.Generator())
    old = sample(0)["semantic"]
    height, width = moved["image"].shape[-2:]
    rows = ((torch.arange(height) + 0.5) * 30 / height).long()
    columns = ((torch.arange(width) + 0.5) * 40 / width).long()
    assert torch.equal(
        moved["semantic"].as_subclass(torch.Tensor), old.as_subclass(torch.Tensor)[rows][:, columns]
    )


def test_a_batch_has_all_maps_or_none():
    lacking = sample(1)
    del lacking["semantic"]  # pyright: ignore
    with pytest.raises(DataError, match=r"1\.jpg.* has no semantic map"):
        collate([sample(0), lacking], Canvas())
    small = sample(1)
    small["semantic"] = sample(1)["semantic"][:10]  # pyright: ignore
    with pytest.raises(DataError, match=r"1\.jpg.* moved the image but not its semantic map"):
        collate([sample(0), small], Canvas())


def test_the_check_of_the_command_line_sees_maps(
    coco_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_maps(coco_folder / "maps")
    (coco_folder / "maps" / "b.png").unlink()
    assert call("data", "check", coco_folder, "semantic=maps") == 1
    told = capsys.readouterr().out
    assert "train: semantic maps such as" in told
    assert "semantic_missing in train x 1" in told
