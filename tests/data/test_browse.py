from pathlib import Path

import numpy as np
import pytest
from command_line import call
from PIL import Image

from boxwright.data import contact_sheets, decode_image, folder
from boxwright.data.browse import draw_record
from boxwright.errors import DataError


def test_sheets_are_written(coco_folder: Path, tmp_path: Path) -> None:
    table = folder(coco_folder).train
    (one,) = contact_sheets(table, tmp_path / "new" / "sheet.png", cell=100)
    assert Image.open(one).size == (3 * 106 + 6, 124 + 6)
    files = contact_sheets(table, tmp_path / "many.png", per_sheet=2, cell=64, seed=1)
    assert [f.name for f in files] == ["many_01.png", "many_02.png"]
    assert len(contact_sheets(table, tmp_path / "x.png", indices=[2], cell=64)) == 1
    with pytest.raises(DataError, match="at least 1"):
        contact_sheets(table, tmp_path / "y.png", columns=0)


def test_captions_stay_above_their_image(coco_folder: Path, tmp_path: Path) -> None:
    (coco_folder / "images" / "b.jpg").unlink()
    path = coco_folder / "annotations" / "instances_train2017.json"
    name = "W" * 80 + ".jpg"
    path.write_text(path.read_text().replace("a.jpg", name))
    (coco_folder / "images" / "a.jpg").rename(coco_folder / "images" / name)
    (sheet,) = contact_sheets(folder(coco_folder).train, tmp_path / "sheet.png", cell=150, indices=[0, 2])
    pixels = np.asarray(Image.open(sheet).convert("L"))
    assert (pixels[6:24, 6:100] < 100).any()
    assert (pixels[6:24, 156:162] == 255).all()


def test_the_command_shows_the_first_split_where_there_is_none_to_train_on(
    coco_folder: Path, tmp_path: Path
) -> None:
    annotations = coco_folder / "annotations"
    (annotations / "instances_train2017.json").rename(annotations / "instances_test2017.json")
    assert call("data", "browse", coco_folder, "--out", tmp_path / "sheet.png") == 0
    assert Image.open(tmp_path / "sheet.png").width > 900


def test_drawing_shows_boxes_and_masks(coco_folder: Path) -> None:
    record = folder(coco_folder).train[1]
    image = decode_image(record.file)
    drawn = np.asarray(draw_record(image, record, ("cat", "dog"), 400))
    assert drawn.shape == (300, 400, 3)
    plain = np.asarray(image.resize((400, 300), Image.Resampling.BILINEAR))
    changed = (drawn != plain).any(2)
    assert changed[64, 60:150].all()
    assert not changed[200:].any()
    with pytest.raises(DataError, match="annotations say 40 x 30"):
        draw_record(image.resize((20, 20)), record, ("cat", "dog"))
