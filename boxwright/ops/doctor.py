"""Which backend each operator uses here, and how far it is from its plain reference."""

from __future__ import annotations

import torch
from torch import Tensor

from boxwright.ops.backends import use_triton
from boxwright.ops.deform_conv import deform_conv2d, deform_conv2d_reference
from boxwright.ops.masks import mask_targets, mask_targets_reference, pack, paste, paste_reference
from boxwright.ops.nms import nms, nms_reference
from boxwright.ops.ps_roi import ps_roi_pool, ps_roi_pool_reference
from boxwright.ops.roi_align import assign_levels, roi_align, roi_align_reference
from boxwright.ops.soft_nms import soft_nms, soft_nms_reference


def backends(device: torch.device | str = "cpu") -> dict[str, str]:
    """How each operator runs on `device`, in words."""
    if torch.device(device).type == "cpu":
        return {
            "nms": "torch, block by block in order of score until enough are kept",
            "roi_align": "torchvision in float32; in bf16 and for gradients torch embedding_bag",
            "soft_nms": "torch, a round for each box kept",
            "ps_roi_pool": "torchvision, on maps with a cell more at the end",
            "deform_conv2d": "torch embedding_bag, then matrix products",
            "mask_targets": "torchvision, one call per object on its crop",
            "paste": "torch, rows and columns inside each box",
        }
    if use_triton(torch.device(device)):
        return {
            "nms": "Triton, pairs as bits",
            "roi_align": "Triton, channels innermost",
            "soft_nms": "torch, a round for each box kept",
            "ps_roi_pool": "torchvision, on maps with a cell more at the end",
            "deform_conv2d": "torchvision, in float32",
            "mask_targets": "Triton, from the objects' crops",
            "paste": "torch grid_sample over the image, in chunks",
        }
    return {
        "nms": "torchvision, groups set apart in float64",
        "soft_nms": "torch, a round for each box kept",
        "ps_roi_pool": "torchvision, on maps with a cell more at the end",
        "roi_align": "torchvision, each level pools all slots",
        "deform_conv2d": "torchvision, in float32",
        "mask_targets": "torchvision, one call per object on its crop",
        "paste": "torch grid_sample over the image, in chunks",
    }


def errors(device: torch.device | str = "cpu", seed: int = 0) -> dict[str, float]:
    """Largest difference of each operator from its reference on small random input.

    For `nms` it is the share of slots that differ, for `paste` that of pixels.
    """
    generator = torch.Generator().manual_seed(seed)
    boxes = random_boxes(2, 24, 64.0, generator).to(device)
    scores = torch.rand(2, 24, generator=generator).to(device)
    groups = torch.randint(0, 3, (2, 24), generator=generator).to(device)
    valid = (torch.rand(2, 24, generator=generator) < 0.8).to(device)
    return {
        "nms": _nms_error(boxes, scores, groups, valid),
        **_roi_align_errors(boxes, valid, generator),
        "mask_targets": _mask_targets_error(boxes, valid, generator),
        "paste": _paste_error(boxes[0], generator),
        **_deform_conv_errors(generator, device),
        "soft_nms": _soft_nms_error(boxes, scores, groups, valid),
        **_ps_roi_pool_errors(boxes, valid, generator),
    }


def random_boxes(batch: int, count: int, extent: float, generator: torch.Generator) -> Tensor:
    """`(batch, count, 4)` boxes of at least one pixel, some of which reach a little outside [0, extent]."""
    centre = torch.rand(batch, count, 2, generator=generator) * extent
    half = torch.rand(batch, count, 2, generator=generator) * extent / 4 + 0.5
    return torch.cat((centre - half, centre + half), -1)


def _difference(a: Tensor, b: Tensor) -> float:
    return (a.double() - b.double()).abs().max().item()


def _nms_error(boxes: Tensor, scores: Tensor, groups: Tensor, valid: Tensor) -> float:
    index, keep = nms(boxes, scores, groups, valid, 0.3, 20)
    expected, expected_keep = nms_reference(boxes, scores, groups, valid, 0.3, 20)
    return ((index != expected) | (keep != expected_keep)).double().mean().item()


def _roi_align_errors(boxes: Tensor, valid: Tensor, generator: torch.Generator) -> dict[str, float]:
    strides = (4, 8)
    level = assign_levels(boxes, valid, 2, finest_scale=12.0)
    features = [
        torch.randn(2, 3, 64 // s, 64 // s, generator=generator).to(boxes.device).requires_grad_()
        for s in strides
    ]
    output = roi_align(features, boxes, level, strides, 5)
    expected = roi_align_reference(features, boxes, level, strides, 5)
    weight = torch.randn(output.shape, generator=generator).to(boxes.device)
    grads = torch.autograd.grad((output * weight).sum(), features)
    expected_grads = torch.autograd.grad((expected * weight).sum(), features)
    backward = max(_difference(a, b) for a, b in zip(grads, expected_grads, strict=True))
    return {"roi_align": _difference(output.detach(), expected.detach()), "roi_align_backward": backward}


def _deform_conv_errors(generator: torch.Generator, device: torch.device | str) -> dict[str, float]:
    """Two groups of channels with offsets of their own, three times three modulated taps, stride 2."""
    shapes = ((2, 4, 9, 12), (2, 36, 5, 6), (6, 4, 3, 3), (2, 18, 5, 6))
    inputs = [torch.randn(shape, generator=generator).to(device).requires_grad_() for shape in shapes]
    output, expected = (
        function(*inputs[:3], stride=2, padding=1, mask=inputs[3])
        for function in (deform_conv2d, deform_conv2d_reference)
    )
    weight = torch.randn(output.shape, generator=generator).to(device)
    grads = torch.autograd.grad((output * weight).sum(), inputs)
    expected_grads = torch.autograd.grad((expected * weight).sum(), inputs)
    backward = max(_difference(a, b) for a, b in zip(grads, expected_grads, strict=True))
    return {
        "deform_conv2d": _difference(output.detach(), expected.detach()),
        "deform_conv2d_backward": backward,
    }


def _soft_nms_error(boxes: Tensor, scores: Tensor, groups: Tensor, valid: Tensor) -> float:
    arguments = (boxes, scores, groups, valid, "gaussian", 0.5, 0.01, 20)
    return _difference(soft_nms(*arguments)[1], soft_nms_reference(*arguments)[1])


def _ps_roi_pool_errors(boxes: Tensor, valid: Tensor, generator: torch.Generator) -> dict[str, float]:
    maps = torch.randn(2, 18, 8, 8, generator=generator).to(boxes.device).requires_grad_()
    output, expected = (pool(maps, boxes, valid, 8, 3) for pool in (ps_roi_pool, ps_roi_pool_reference))
    weight = torch.randn(output.shape, generator=generator).to(boxes.device)
    grad, expected_grad = (torch.autograd.grad((v * weight).sum(), maps)[0] for v in (output, expected))
    return {
        "ps_roi_pool": _difference(output.detach(), expected.detach()),
        "ps_roi_pool_backward": _difference(grad, expected_grad),
    }


def _mask_targets_error(boxes: Tensor, positive: Tensor, generator: torch.Generator) -> float:
    device = boxes.device
    crops = pack([torch.rand(n, 64, 64, generator=generator) < 0.5 for n in (3, 1)], 4)
    crops = type(crops)(crops.pixels.to(device), crops.boxes.to(device), crops.offset.to(device))
    best = torch.randint(0, 4, positive.shape, generator=generator).to(device)
    arguments = (crops, boxes, best, positive, (64, 64), 14)
    return _difference(mask_targets(*arguments), mask_targets_reference(*arguments))


def _paste_error(boxes: Tensor, generator: torch.Generator) -> float:
    masks = torch.rand(len(boxes), 7, 7, generator=generator).to(boxes.device)
    return _difference(paste(masks, boxes, 64, 64), paste_reference(masks, boxes, 64, 64))
