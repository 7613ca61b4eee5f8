import torch

from boxwright.ops.box_voting import vote_boxes
from boxwright.ops.boxes import pairwise_iou
from boxwright.ops.doctor import random_boxes


def test_a_vote_by_hand():
    # Two of one class overlap the chosen box more than 0.5 (itself, 9/11); one does less; one is of another
    # class; one slot is empty. x1 is (0.75 * 0 + 0.25 * 1) / (0.75 + 0.25).
    boxes = torch.tensor([[[0.0, 0, 10, 10], [1, 0, 11, 10], [6, 0, 16, 10], [2, 0, 12, 10], [1, 1, 9, 9]]])
    scores = torch.tensor([[0.75, 0.25, 0.7, 0.6, 0.9]])
    groups = torch.tensor([[0, 0, 0, 1, 0]])
    valid = torch.tensor([[True, True, True, True, False]])
    index = torch.tensor([[0, 2]])
    voted = vote_boxes(boxes, scores, groups, valid, index, 0.5)
    torch.testing.assert_close(voted, torch.tensor([[[0.25, 0, 10.25, 10], [6.0, 0, 16, 10]]]))


def test_agrees_with_one_box_after_the_other():
    g = torch.Generator().manual_seed(0)
    boxes, scores = random_boxes(3, 40, 40.0, g), torch.rand(3, 40, generator=g)
    groups, valid = torch.randint(0, 2, (3, 40), generator=g), torch.rand(3, 40, generator=g) < 0.8
    index = torch.randint(0, 40, (3, 7), generator=g)
    found = vote_boxes(boxes, scores, groups, valid, index, 0.2)
    for b in range(3):
        for k in range(7):
            i = int(index[b, k])
            if not valid[b, i]:
                continue
            near = (pairwise_iou(boxes[b, i : i + 1], boxes[b])[0] > 0.2) & (groups[b] == groups[b, i])
            near &= valid[b]
            weight = scores[b, near]
            expected = (weight[:, None] * boxes[b, near]).sum(0) / weight.sum()
            torch.testing.assert_close(found[b, k], expected)


def test_a_box_without_area_stays():
    boxes = torch.tensor([[[3.0, 3, 3, 3], [0, 0, 10, 10]]])
    index = torch.tensor([[0]])
    every = torch.ones(1, 2).bool()
    voted = vote_boxes(boxes, torch.ones(1, 2), torch.zeros(1, 2).long(), every, index, 0.5)
    assert torch.equal(voted, boxes[:, :1])


def test_what_stands_in_empty_slots_does_not_matter():
    boxes = torch.tensor([[[0.0, 0, 10, 10], [float("nan")] * 4]])
    valid = torch.tensor([[True, False]])
    voted = vote_boxes(
        boxes, torch.ones(1, 2), torch.zeros(1, 2).long(), valid, torch.zeros(1, 1).long(), 0.5
    )
    assert torch.equal(voted, boxes[:, :1])
