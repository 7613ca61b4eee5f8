"""Ground truth written as lists, in slots."""

from __future__ import annotations

import torch

from boxwright.structures import Targets


def targets_of(boxes: list[list[list[float]]], slots: int) -> Targets:
    """Objects of class 0 of several images, given by their boxes."""
    full = torch.zeros(len(boxes), slots, 4)
    valid = torch.zeros(len(boxes), slots, dtype=torch.bool)
    for i, image in enumerate(boxes):
        if image:
            full[i, : len(image)], valid[i, : len(image)] = torch.tensor(image), True
    return Targets(full, torch.zeros(len(boxes), slots, dtype=torch.long), valid, torch.zeros_like(valid))
