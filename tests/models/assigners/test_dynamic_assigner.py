"""Dynamic label assignment (arXiv:2004.06002, Algorithm 1) against a reference that goes image by image."""

import dataclasses

import pytest
import torch
from torchvision.ops import box_iou

from boxwright.models.assigners import DynamicIoUAssigner, MaxIoUAssigner
from boxwright.structures import Priors, Targets


def scene(seed: int, images: int = 3, slots: int = 4, proposals: int = 30) -> tuple[Priors, Targets]:
    """Proposals around the objects, and as many objects as `randint` says; the last image has none."""
    generator = torch.Generator().manual_seed(seed)
    corner = torch.rand(images, slots, 2, generator=generator) * 60
    gt = torch.cat((corner, corner + 20 + torch.rand(images, slots, 2, generator=generator) * 40), -1)
    count = torch.randint(1, slots + 1, (images, 1), generator=generator)
    count[-1] = 0
    valid = torch.arange(slots) < count
    near = gt[:, torch.arange(proposals) % slots]
    boxes = near + torch.randn(images, proposals, 4, generator=generator) * 5
    taking_part = torch.rand(images, proposals, generator=generator) < 0.8
    targets = Targets(gt * valid[..., None], valid.long() * 0, valid, torch.zeros_like(valid))
    return Priors(boxes, torch.ones(proposals), (proposals,), taking_part), targets


def slow_statistic(priors: Priors, targets: Targets, top: int, with_truth: bool) -> float:
    assert priors.valid is not None
    found = []
    for boxes, valid, gt, there in zip(priors.boxes, priors.valid, targets.boxes, targets.valid, strict=True):
        if there.any():
            boxes = torch.cat((boxes[valid], gt[there])) if with_truth else boxes[valid]
            best = box_iou(boxes, gt[there]).amax(1).sort(descending=True).values
            found.append(best[min(top, len(best)) - 1].item())
    return sum(found) / len(found)


@pytest.mark.parametrize("with_truth", [False, True])
@pytest.mark.parametrize("top", [1, 7, 75])
def test_the_threshold_follows_the_proposals(top: int, with_truth: bool):
    rule = MaxIoUAssigner(0.5, 0.5)
    assigner = DynamicIoUAssigner(rule, top=top, interval=3, lowest=0.1, count_ground_truth=with_truth)
    threshold, kept = 0.5, []
    for step in range(8):
        priors, targets = scene(step)
        expected = MaxIoUAssigner(threshold, threshold, min_positive_iou=threshold)(priors, targets)
        found = assigner(priors, targets)
        for name in ("gt_index", "positive", "ignore"):
            assert torch.equal(getattr(found, name), getattr(expected, name))
        kept.append(slow_statistic(priors, targets, top, with_truth))
        if len(kept) == 3:
            threshold, kept = max(sum(kept) / 3, 0.1), []
        assert assigner.statistics()["iou_threshold"].item() == pytest.approx(threshold, abs=1e-6)


def test_bounds_and_steps_without_objects():
    assigner = DynamicIoUAssigner(top=75, interval=1, lowest=0.4)
    priors, targets = scene(0)
    none = dataclasses.replace(targets, valid=torch.zeros_like(targets.valid))
    assigner(priors, none)
    assert assigner.statistics()["iou_threshold"] == 0.5  # nothing was seen, nothing changes
    far = dataclasses.replace(priors, boxes=priors.boxes + 500)
    assigner(far, targets)
    assert assigner.statistics()["iou_threshold"].item() == pytest.approx(0.4)
    assigner.eval()
    assigner(priors, targets)
    assert assigner.statistics()["iou_threshold"].item() == pytest.approx(0.4)


def test_empty_slots_change_nothing():
    priors, targets = scene(1)

    def padded(value: torch.Tensor, slots: int) -> torch.Tensor:
        return torch.cat((value, value.new_zeros(len(value), slots, *value.shape[2:])), dim=1)

    fields = (targets.boxes, targets.labels, targets.valid, targets.ignore)
    more = Targets(*(padded(value, 3) for value in fields))
    assert priors.valid is not None
    larger = Priors(padded(priors.boxes, 9), torch.ones(39), (39,), padded(priors.valid, 9))
    first, second = DynamicIoUAssigner(top=12), DynamicIoUAssigner(top=12)
    first(priors, targets)
    second(larger, more)
    torch.testing.assert_close(first.state_dict(), second.state_dict(), equal_nan=True)


def test_one_graph_without_waiting():
    priors, targets = scene(2)
    plain, compiled = (DynamicIoUAssigner(top=5, interval=2, lowest=0.0) for _ in range(2))
    graph = torch.compile(compiled, fullgraph=True, backend="aot_eager")
    for _ in range(3):
        expected, found = plain(priors, targets), graph(priors, targets)
        assert torch.equal(found.positive, expected.positive)
    torch.testing.assert_close(compiled.state_dict(), plain.state_dict(), equal_nan=True)
