"""Holds the Triton kernels to their references; run with TRITON_INTERPRET=1 on a CPU, or on a GPU."""

import sys

import torch
import triton
import triton.language as tl

from boxwright.ops import _mask_targets_triton, _nms_triton, _roi_align_triton, nms
from boxwright.ops._roi_align_bags import Layout
from boxwright.ops.doctor import random_boxes
from boxwright.ops.masks import mask_targets_reference, pack
from boxwright.ops.nms import nms_reference
from boxwright.ops.roi_align import roi_align_reference


@triton.jit
def _count(bound, output) -> None:
    total = 0
    for _ in range(tl.load(bound)):
        total += 1
    tl.store(output, total)


def has_loops(device: torch.device) -> bool:
    """Whether loops to bounds in memory run: those of an old interpreter do not with a new NumPy."""
    bound = torch.tensor([3], dtype=torch.int32, device=device)
    output = torch.zeros_like(bound)
    try:
        _count[(1,)](bound, output)
    except Exception as error:
        if "only 0-dimensional arrays can be converted" in str(error):
            return False
        raise
    return int(output) == 3


def check_roi_align(device: torch.device) -> None:
    strides = [4, 8]
    for ratio, aligned, channels in ((2, True, 3), (0, True, 5), (0, False, 4)):
        g = torch.Generator().manual_seed(ratio)
        features = [torch.randn(2, channels, 48 // s, 64 // s, generator=g) for s in strides]
        features = [f.to(device).requires_grad_() for f in features]
        boxes = random_boxes(2, 5, 60.0, g).to(device)
        level = torch.randint(-1, 2, (2, 5), generator=g).to(device)
        layout = Layout(strides, [12, 6], [16, 8], 3, ratio, aligned)
        with torch.no_grad():
            output = _roi_align_triton.forward(features, boxes, level, layout)
        expected = roi_align_reference(features, boxes, level, strides, 3, ratio, aligned)
        torch.testing.assert_close(output, expected, atol=2e-5, rtol=1e-4)
        weight = torch.randn(expected.shape, generator=g).to(device)
        grads = _roi_align_triton.backward(weight, boxes, level, layout)
        wanted = torch.autograd.grad((expected * weight).sum(), features)
        for a, b in zip(grads, wanted, strict=True):
            torch.testing.assert_close(a, b, atol=2e-5, rtol=1e-4)


def check_nms(device: torch.device) -> None:
    for count, threshold, whole in ((1, 0.5, False), (40, 0.3, False), (40, 0.5, True), (70, 0.5, False)):
        g = torch.Generator().manual_seed(count)
        boxes = random_boxes(2, count, 40.0, g)
        boxes = boxes.round() if whole else boxes  # some IoUs are the threshold itself
        groups = torch.randint(0, 3, (2, count), generator=g)
        valid = torch.rand(2, count, generator=g) < 0.8
        scores = torch.linspace(1, 0.1, count).expand(2, -1)
        limit = nms._below(threshold)
        keep = _nms_triton.suppress(boxes.to(device), groups.to(device), valid.to(device), limit).cpu()
        index, kept = nms_reference(boxes, scores, groups, valid, threshold, count)
        for b in range(2):
            assert keep[b].nonzero()[:, 0].tolist() == index[b, kept[b]].tolist()


def check_mask_targets(device: torch.device) -> None:
    g = torch.Generator().manual_seed(0)
    masks = [torch.rand(n, 40, 48, generator=g) < 0.5 for n in (3, 1)]
    masks[0][1, :, :20] = False
    crops = pack(masks, 4)
    crops = type(crops)(crops.pixels.to(device), crops.boxes.to(device), crops.offset.to(device))
    boxes = random_boxes(2, 6, 44.0, g).to(device)
    index = torch.randint(0, 4, (2, 6), generator=g).to(device)
    positive = (torch.rand(2, 6, generator=g) < 0.7).to(device)
    for aligned in (True, False):
        found = _mask_targets_triton.mask_targets(crops, boxes, index, positive, (40, 48), 7, aligned)
        expected = mask_targets_reference(crops, boxes, index, positive, (40, 48), 7, aligned)
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)


if __name__ == "__main__":
    place = torch.device(sys.argv[1])
    if not has_loops(place):
        sys.exit("no loops")
    check_roi_align(place)
    check_nms(place)
    check_mask_targets(place)
    print("agree")
