"""Codes of a place in a cell: the paper's formula, round trip, limits."""

import math

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from boxwright.models.coders import GridCoder
from boxwright.models.priors import SizedAnchors

ANCHORS = SizedAnchors(sizes=(((10, 13), (33, 23)), ((62, 45), (20, 90))))
PRIORS = ANCHORS([(4, 6), (2, 3)], [8, 16], (32, 48))


def logit(codes: torch.Tensor) -> torch.Tensor:
    """Raw codes that decode to what was encoded."""
    return torch.cat((codes[..., :2].logit(), codes[..., 2:]), dim=-1)


def reference(codes: torch.Tensor) -> torch.Tensor:
    """b_x = sigmoid(t_x) + c_x in cells, b_w = p_w exp(t_w); prior by prior, level by level (Sec. 2.1)."""
    boxes = []
    for (height, width), stride, sizes in zip([(4, 6), (2, 3)], [8, 16], ANCHORS.sizes, strict=True):
        for row in range(height):
            for column in range(width):
                for prior_width, prior_height in sizes:
                    tx, ty, tw, th = codes[len(boxes)].tolist()
                    x = (1 / (1 + math.exp(-tx)) + column) * stride
                    y = (1 / (1 + math.exp(-ty)) + row) * stride
                    w, h = prior_width * math.exp(tw), prior_height * math.exp(th)
                    boxes.append([x - w / 2, y - h / 2, x + w / 2, y + h / 2])
    return torch.tensor(boxes)


def test_decode_is_the_formula_of_the_paper():
    codes = torch.randn(len(PRIORS.boxes), 4, generator=torch.Generator().manual_seed(0)) * 2
    torch.testing.assert_close(GridCoder().decode(codes, PRIORS.boxes, PRIORS.strides), reference(codes))


@given(st.integers(0, 10_000))
@settings(max_examples=30, deadline=None)
def test_round_trip(seed: int):
    generator = torch.Generator().manual_seed(seed)
    count = len(PRIORS.boxes)
    cell = (PRIORS.boxes[:, :2] + PRIORS.boxes[:, 2:]) / 2 - PRIORS.strides[:, None] / 2
    centre = cell + (0.05 + 0.9 * torch.rand(count, 2, generator=generator)) * PRIORS.strides[:, None]
    size = 2 + 80 * torch.rand(count, 2, generator=generator)
    boxes = torch.cat((centre - size / 2, centre + size / 2), dim=-1)
    codes = GridCoder().encode(boxes, PRIORS.boxes, PRIORS.strides)
    found = GridCoder().decode(logit(codes), PRIORS.boxes, PRIORS.strides)
    torch.testing.assert_close(found, boxes, atol=1e-3, rtol=1e-4)


def test_encode_by_hand():
    # The cell (row 0, column 1) of stride 8; the centre (10, 6) is a quarter and three quarters into it.
    prior, box = torch.tensor([[7.0, -2.5, 17.0, 10.5]]), torch.tensor([[0.0, -0.5, 20.0, 12.5]])
    codes = GridCoder().encode(box, prior, torch.tensor([8.0]))
    torch.testing.assert_close(codes, torch.tensor([[0.25, 0.75, math.log(2.0), 0.0]]))


def test_codes_stay_finite():
    coder, prior, stride = GridCoder(), PRIORS.boxes[:1], PRIORS.strides[:1]
    far = coder.encode(torch.tensor([[100.0, -90.0, 100.0, -90.0]]), prior, stride)
    torch.testing.assert_close(far[0, :2], torch.tensor([1 - 1e-6, 1e-6]))
    assert far.isfinite().all()
    assert coder.decode(torch.full((1, 4), 1e4), prior, stride).isfinite().all()
    assert coder.decode(torch.ones(1, 4, dtype=torch.bfloat16), prior, stride).dtype == torch.float32
