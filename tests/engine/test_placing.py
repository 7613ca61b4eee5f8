"""Batches lie in memory as the convolutions want them, whatever the loader made."""

import pytest
import torch

from boxwright.engine.placing import place
from boxwright.structures import Batch


@pytest.mark.parametrize("loaded", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("channels_last", [False, True])
def test_images_get_the_layout_that_is_asked_for(loaded: torch.memory_format, channels_last: bool) -> None:
    images = torch.randint(0, 256, (2, 3, 8, 6), dtype=torch.uint8).contiguous(memory_format=loaded)
    batch = Batch(images, torch.tensor([[8, 6], [8, 6]]))
    placed = place(batch, torch.device("cpu"), channels_last)
    wanted = torch.channels_last if channels_last else torch.contiguous_format
    assert placed.images.is_contiguous(memory_format=wanted)
    assert torch.equal(placed.images, images)
    assert placed.images.dtype == torch.uint8
