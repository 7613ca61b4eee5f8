"""Normalising: the formula to the last bit, in either layout, and nothing of the input is changed."""

import pytest
import torch

from boxwright.models.detectors import Normalise


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
@pytest.mark.parametrize("bgr", [False, True])
def test_the_formula_holds_and_the_padding_is_zero(layout, dtype, bgr):
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (2, 3, 12, 16), generator=generator).to(dtype)
    images = images.contiguous(memory_format=layout)
    before = images.clone()
    normalise = Normalise(bgr=bgr)
    out = normalise(images, torch.tensor([[12, 10], [7, 16]]))
    expected = (images.float() - normalise.mean) / normalise.std
    inside = torch.zeros(2, 1, 12, 16)
    inside[0, :, :, :10], inside[1, :, :7] = 1, 1
    expected = expected * inside
    assert torch.equal(out, expected.flip(1) if bgr else expected)
    assert out.is_contiguous(memory_format=layout)
    assert torch.equal(images, before)
