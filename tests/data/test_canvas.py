import pytest

from boxwright.data.canvas import Canvas
from boxwright.errors import ConfigError, DataError


def test_without_shapes_the_maximum_is_rounded_up():
    assert Canvas().shape_for([(33, 64), (10, 65)]) == (64, 96)
    assert Canvas(divisor=1).shape_for([(33, 64)]) == (33, 64)
    assert Canvas().varies


def test_the_smallest_shape_that_holds_all():
    canvas = Canvas(((800, 1344), (1344, 800), (1344, 1344)))
    assert canvas.varies
    assert canvas.shape_for([(800, 1333), (600, 900)]) == (800, 1344)
    assert canvas.shape_for([(1333, 800)]) == (1344, 800)
    assert canvas.shape_for([(1333, 800), (800, 1333)]) == (1344, 1344)
    assert not Canvas(((320, 320),)).varies


def test_an_image_that_fits_nothing_is_named():
    with pytest.raises(DataError, match=r"b\.jpg.*33 x 10.*\(64, 32\)"):
        Canvas(((32, 32), (32, 64))).shape_for([(32, 32), (33, 10)], ["a.jpg", "b.jpg"])


def test_a_mixed_batch_says_so():
    with pytest.raises(DataError, match=r"orientation.*\(64, 64\)"):
        Canvas(((32, 64), (64, 32))).shape_for([(32, 64), (64, 32)])


def test_shapes_are_checked():
    with pytest.raises(ConfigError, match=r"\(320, 352\)"):
        Canvas(((320, 333),))
    with pytest.raises(ConfigError, match="divisor"):
        Canvas(divisor=0)
    assert Canvas([[32, 64]]).shapes == ((32, 64),)  # pyright: ignore
    assert Canvas(((32, 64),)) == Canvas(((32, 64),))
