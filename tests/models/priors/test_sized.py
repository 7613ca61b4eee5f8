import pytest

from boxwright.errors import ConfigError
from boxwright.models.priors import SizedAnchors


def test_sizes_are_exact_and_centred():
    anchors = SizedAnchors(sizes=(((10, 13), (33, 23)), ((62, 45),)))
    priors = anchors([(1, 2), (1, 1)], [8, 16], (8, 16))
    assert priors.boxes.tolist() == [
        [-1.0, -2.5, 9.0, 10.5],
        [-12.5, -7.5, 20.5, 15.5],
        [7.0, -2.5, 17.0, 10.5],
        [-4.5, -7.5, 28.5, 15.5],
        [-23.0, -14.5, 39.0, 30.5],
    ]
    assert priors.strides.tolist() == [8.0] * 4 + [16.0]
    assert priors.num_per_level == (4, 1)
    assert [anchors.num_per_place(level) for level in (0, 1)] == [2, 1]


def test_place_in_the_cell():
    priors = SizedAnchors(sizes=(((4, 4),),), offset=0.0)([(1, 2)], [8], (8, 16))
    assert priors.boxes.tolist() == [[-2.0, -2.0, 2.0, 2.0], [6.0, -2.0, 10.0, 2.0]]


def test_sizes_for_each_level():
    with pytest.raises(ConfigError, match="for 1 levels, the head has 2"):
        SizedAnchors(sizes=(((4, 4),),))([(1, 2), (1, 1)], [8, 16], (8, 16))
