"""Predicting on every kind of source, and what detections can do."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from boxwright.data.canvas import Canvas
from boxwright.data.transforms import Resize
from boxwright.errors import ConfigError, DataError
from boxwright.inference import Detector, ImageDetections, pictures_of, to_pil
from boxwright.labels import LabelMap
from boxwright.structures import Detections

LABELS = LabelMap(("dark", "bright"), (3, 7))


class WholeImage(nn.Module):
    """Finds the whole image once: bright or dark by its mean, the mean as score; three slots, one filled."""

    def __init__(self, masks: bool = False) -> None:
        super().__init__()
        self.anything = nn.Parameter(torch.zeros(1))
        self.masks = masks
        self.batches: list[tuple[int, ...]] = []

    def predict(self, images: Tensor, sizes: Tensor) -> Detections:
        self.batches.append(tuple(images.shape))
        count = len(images)
        boxes = torch.zeros(count, 3, 4)
        boxes[:, 0, 2], boxes[:, 0, 3] = sizes[:, 1].float(), sizes[:, 0].float()
        mean = images.float().sum((1, 2, 3)) / (3 * sizes.prod(1)) / 255
        scores = torch.zeros(count, 3)
        scores[:, 0] = mean
        labels = torch.zeros(count, 3, dtype=torch.int64)
        labels[:, 0] = (mean > 0.5).long()
        valid = torch.zeros(count, 3, dtype=torch.bool)
        valid[:, 0] = True
        masks = torch.ones(count, 3, 4, 4) if self.masks else None
        return Detections(boxes, scores, labels, valid, masks)


def detector(masks: bool = False) -> Detector:
    canvas = Canvas(((32, 64), (64, 32)))
    return Detector(WholeImage(masks), LABELS, (Resize(short=32, long=64),), canvas, precision="fp32")


def picture(level: int, width: int = 100, height: int = 50) -> Image.Image:
    return Image.new("RGB", (width, height), (level,) * 3)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for i, level in enumerate((100, 150, 200)):
        picture(level, *((100, 50) if i != 1 else (50, 100))).save(tmp_path / f"{i}.png")
    (tmp_path / "notes.txt").write_text("no image")
    return tmp_path


def test_every_kind_of_image_gives_the_same(folder: Path) -> None:
    found = detector()
    path = folder / "0.png"
    array = np.asarray(Image.open(path))
    tensor = torch.from_numpy(array.copy()).permute(2, 0, 1)
    sources = [path, str(path), Image.open(path), array, tensor, tensor.float() / 255]
    results = [found(source) for source in sources]
    for result in results:
        assert isinstance(result, ImageDetections)
        assert result.boxes.tolist() == [[0.0, 0.0, 100.0, 50.0]]
        assert result.scores.tolist() == pytest.approx([100 / 255], abs=1e-3)
        assert result.names == ("dark",)
        assert result.size == (50, 100)


def test_folders_lists_and_batches_keep_the_order(folder: Path) -> None:
    found = detector()
    results = found(folder, batch_size=2)
    assert isinstance(results, list)
    assert [r.size for r in results] == [(50, 100), (100, 50), (50, 100)]
    assert [r.names[0] for r in results] == ["dark", "bright", "bright"]
    again = found([folder / f"{i}.png" for i in range(3)], batch_size=3)
    one_by_one = [found(folder / f"{i}.png") for i in range(3)]
    for a, b, c in zip(results, again, one_by_one, strict=True):
        assert isinstance(c, ImageDetections)
        assert torch.equal(a.boxes, b.boxes)
        assert torch.equal(a.scores, b.scores)
        assert torch.equal(a.scores, c.scores)
    assert len(found(torch.zeros(2, 3, 40, 40, dtype=torch.uint8), score=0.0)) == 2
    assert found([]) == []


def test_images_go_through_the_transforms_and_the_canvas(folder: Path) -> None:
    found = detector()
    found(folder, batch_size=3)
    assert isinstance(found.model, WholeImage)
    assert found.model.batches == [(2, 3, 32, 64), (1, 3, 64, 32)]


def test_score_leaves_out(folder: Path) -> None:
    found = detector()
    result = found(folder / "0.png", score=0.5)
    assert isinstance(result, ImageDetections)
    assert len(result) == 0
    assert len(result.above(0.0)) == 0
    everything = found(folder / "0.png", score=0.0)
    assert isinstance(everything, ImageDetections)
    assert len(everything.above(0.39)) == 1
    assert len(everything.above(0.40)) == 0


def test_results_as_coco_and_text(folder: Path) -> None:
    result = detector()(folder / "2.png")
    assert isinstance(result, ImageDetections)
    (record,) = result.to_coco(image_id=9)
    assert record["image_id"] == 9
    assert record["category_id"] == 7
    assert record["bbox"] == [0.0, 0.0, 100.0, 50.0]
    assert "1 detections in" in repr(result)
    assert "bright" in repr(result)
    assert "2 classes: dark, bright" in repr(detector())


def test_masks_have_the_size_of_the_image(folder: Path) -> None:
    result = detector(masks=True)(folder / "2.png")
    assert isinstance(result, ImageDetections)
    assert result.masks is not None
    assert result.masks.shape == (1, 50, 100)
    assert result.masks.dtype == torch.bool
    assert result.masks[0, 20:30, 20:80].all()
    assert result.to_coco()[0]["segmentation"]["size"] == [50, 100]
    assert result.above(0.99).masks.shape == (0, 50, 100)  # pyright: ignore[reportOptionalMemberAccess]


def test_drawing_and_saving(folder: Path, tmp_path: Path) -> None:
    result = detector(masks=True)(folder / "2.png")
    assert isinstance(result, ImageDetections)
    assert result.draw().size == (100, 50)
    assert result.save(tmp_path / "new" / "drawn.png").is_file()
    assert result._repr_png_().startswith(b"\x89PNG")
    with pytest.raises(DataError, match=r"\.jpg or \.png"):
        result.save(tmp_path / "drawn.what")
    with pytest.raises(DataError, match="do not know their image"):
        ImageDetections(result.boxes, result.scores, result.labels, LABELS, result.size).draw()


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("nowhere.png", "does not exist"),
        (np.zeros((4, 4), np.uint8), "no image"),
        (np.zeros((4, 4, 3), np.float32), "float32"),
        (np.zeros((0, 4, 3), np.uint8), "no image"),
        (torch.zeros(4, 4, 3, dtype=torch.uint8), r"\(3, H, W\)"),
        (torch.full((3, 4, 4), 200.0), r"0\.\.1"),
        (torch.full((3, 4, 4), float("nan")), r"0\.\.1"),
        (7, "cannot predict on a int"),
        (np.array([object()]), "type object is no image"),
        (np.zeros((4, 4, 3), np.uint16), "uint16"),
        ("https://example.org/a.jpg", "not fetched from the web"),
        (["https://example.org/a.jpg"], "not fetched from the web"),
    ],
)
def test_what_is_no_image_is_refused(source: object, message: str) -> None:
    with pytest.raises(DataError, match=message):
        detector()(source)  # pyright: ignore[reportCallIssue, reportArgumentType]


def test_an_opened_image_is_read_as_its_file_is(tmp_path: Path) -> None:
    Image.fromarray(np.full((40, 80), 40_000, np.uint16)).save(tmp_path / "grey.png")
    opened = to_pil(Image.open(tmp_path / "grey.png"))
    assert opened.getpixel((0, 0)) == to_pil(tmp_path / "grey.png").getpixel((0, 0)) == (156, 156, 156)
    whole = tmp_path / "whole.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (40, 80, 3), np.uint8)).save(whole)
    (tmp_path / "torn.png").write_bytes(whole.read_bytes()[:2000])
    with pytest.raises(DataError, match=r"torn\.png.* cannot be read"):
        detector()(Image.open(tmp_path / "torn.png"))


def test_an_empty_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no images"):
        pictures_of(tmp_path)
    with pytest.raises(DataError, match="batch_size"):
        detector()([picture(1)], batch_size=0)


def test_exif_orientation_is_applied(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    picture(200).save(tmp_path / "turned.jpg", exif=exif)
    result = detector()(tmp_path / "turned.jpg")
    assert isinstance(result, ImageDetections)
    assert result.size == (100, 50)
    assert to_pil(tmp_path / "turned.jpg").size == (50, 100)


def test_files_are_decoded_at_a_reduced_size_where_asked_for(tmp_path: Path) -> None:
    path = tmp_path / "x.jpg"
    grain = np.random.default_rng(0).integers(0, 60, (160, 320, 3))
    Image.fromarray((grain + 120).astype(np.uint8)).save(path)
    transforms, canvas = (Resize(short=32, long=64),), Canvas(((32, 64), (64, 32)))
    reduced = Detector(WholeImage(), LABELS, transforms, canvas, precision="fp32", reduced_decoding=True)
    result = reduced(path)
    assert isinstance(result, ImageDetections)
    assert result.boxes.tolist() == [[0.0, 0.0, 320.0, 160.0]]  # in pixels of the file
    assert result.size == (160, 320)
    first, second = (each._sample(path, 0)["image"] for each in (reduced, detector()))
    assert first.shape == second.shape == (3, 32, 64)
    difference = (first.int() - second.int()).abs().float()
    assert 0 < difference.mean() < 6  # white grain is the hardest to shrink
    with pytest.raises(ConfigError, match="first transform must resize"):
        Detector(WholeImage(), LABELS, (), canvas, precision="fp32", reduced_decoding=True)
