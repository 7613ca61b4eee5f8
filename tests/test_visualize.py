"""Drawing: where the colour goes, and what is left as it was."""

import numpy as np
import pytest
import torch
from PIL import Image

from boxwright.visualize import IGNORED, color_of, contact_sheet, draw_detections, line_width, side_by_side

BOX = [[20, 30, 60, 80]]


def blank(width: int = 100, height: int = 120) -> Image.Image:
    return Image.new("RGB", (width, height), (250, 250, 250))


def test_box_line_lies_on_the_box():
    image = blank()
    drawn = np.array(draw_detections(image, BOX, [2]))
    color = np.array(color_of(2))
    assert (drawn[30, 20:60] == color).all()
    assert (drawn[79, 20:60] == color).all()
    assert (drawn[30:80, 20] == color).all()
    assert (drawn[30:80, 59] == color).all()
    assert (drawn[32:78, 22:58] == 250).all()
    assert (np.array(image) == 250).all()  # the original is left alone


def test_inputs_of_all_kinds_give_the_same_picture():
    pixels = np.random.default_rng(0).integers(0, 255, (120, 100, 3), dtype=np.uint8)
    expected = np.array(draw_detections(Image.fromarray(pixels), BOX, [1], scores=[0.5], names=["a", "b"]))
    array = draw_detections(pixels, np.array(BOX), np.array([1]), scores=np.array([0.5]), names=["a", "b"])
    tensor = draw_detections(
        torch.from_numpy(pixels).permute(2, 0, 1), torch.tensor(BOX), torch.tensor([1]),
        scores=torch.tensor([0.5], requires_grad=True), names=["a", "b"],
    )  # fmt: skip
    assert np.array_equal(expected, np.array(array))
    assert np.array_equal(expected, np.array(tensor))


def test_nothing_to_draw_changes_nothing():
    pixels = np.random.default_rng(0).integers(0, 255, (50, 40, 3), dtype=np.uint8)
    empty = draw_detections(
        pixels, torch.zeros(0, 4), torch.zeros(0), scores=[], masks=np.zeros((0, 50, 40)), names=[]
    )
    assert np.array_equal(np.array(empty), pixels)


def test_mask_is_tinted_and_its_edge_full():
    mask = np.zeros((1, 120, 100), bool)
    mask[0, 40:60, 30:50] = True
    drawn = np.array(draw_detections(blank(), BOX, [0], masks=mask, opacity=0.5)).astype(int)
    assert (drawn[40, 30:50] == color_of(0)).all()
    assert np.abs(drawn[50, 40] - (np.array(color_of(0)) + 250) / 2).max() <= 1
    assert (drawn[65, 40] == 250).all()
    empty = draw_detections(blank(), BOX, [0], masks=np.zeros((1, 120, 100), bool))
    assert np.array_equal(np.array(empty), np.array(draw_detections(blank(), BOX, [0])))


def test_names_stay_inside_the_image_and_apart():
    # Two names wanted at one place at the top edge: both are written inside, one below the other.
    one = np.array(draw_detections(blank(200, 200), [[150, 0, 199, 60]], [0], names=["long name"]))
    assert (one == color_of(0)).all(axis=2).sum() > 700  # the chip, not the line alone
    two = draw_detections(
        blank(200, 200), [[10, 0, 60, 90]] * 2, [0, 1], scores=[0.9, 0.8], names=["first", "second"]
    )
    counts = [(np.array(two) == color_of(k)).all(axis=2).sum() for k in (0, 1)]
    assert min(counts) > 300


def test_crowded_pictures_have_boxes_only():
    boxes = [[x, y, x + 9, y + 9] for x in range(0, 100, 10) for y in range(0, 120, 10)]
    labels = [3] * len(boxes)
    with_names = draw_detections(blank(), boxes, labels, names=["class"] * 4)
    assert np.array_equal(np.array(with_names), np.array(draw_detections(blank(), boxes, labels)))


def test_ignored_regions_are_grey_and_best_scores_on_top():
    drawn = np.array(draw_detections(blank(), BOX, [2], ignore=[True]))
    assert (drawn[30, 20:60] == IGNORED).all()
    drawn = np.array(draw_detections(blank(), BOX * 2, [0, 1], scores=[0.9, 0.5]))
    assert (drawn[79, 20:60] == color_of(0)).all()


def test_degenerate_and_outside_boxes_are_drawn_without_complaint():
    boxes = [[20, 30, 20, 30], [-50, -50, 500, 500], [60, 60, 40, 40.5], [99.7, 119.8, 100, 120]]
    assert draw_detections(blank(), boxes, [0, 1, 2, 3], names=list("abcd")).size == (100, 120)


@pytest.mark.parametrize(
    "what", [{"labels": [1, 2]}, {"scores": [0.1, 0.2]}, {"masks": np.zeros((2, 120, 100))}]
)
def test_lengths_must_agree(what):
    labels = what.pop("labels", [1])
    with pytest.raises(ValueError, match="1 boxes but 2"):
        draw_detections(blank(), BOX, labels, **what)


def test_wrong_pixels_are_refused():
    with pytest.raises(ValueError, match="float"):
        draw_detections(np.zeros((10, 10, 3)), BOX, [0])


def test_line_width_follows_the_image():
    assert [line_width((s, s)) for s in (100, 320, 1000, 4000)] == [1, 1, 3, 12]


def test_side_by_side_and_contact_sheet():
    pair = side_by_side(blank(100, 120), blank(50, 60))
    assert pair.width > 200
    assert pair.height > 120
    assert side_by_side(blank(), blank(), captions=None).height == 120
    sheet = contact_sheet([blank()] * 5, captions=["a very long caption " * 20] * 5, cell=(100, 80))
    assert sheet.width == 3 * 108 + 8
    with pytest.raises(ValueError, match="at least one"):
        contact_sheet([])
