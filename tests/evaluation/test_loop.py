"""The loop runs the model once over the data and gives it back as it was."""

import pytest
import torch
from torch import nn

from boxwright.evaluation import CocoEvaluator, VocEvaluator, evaluate
from boxwright.labels import LabelMap
from boxwright.structures import Batch, Detections

LABELS = LabelMap(("cat", "dog"), (3, 7))


class Oracle(nn.Module):
    """Knows the ground truth; the first pixel of an image names it."""

    def __init__(self, truth: dict) -> None:
        super().__init__()
        self.truth = truth
        self.layer = nn.Linear(2, 2)

    def predict(self, images: torch.Tensor, sizes: torch.Tensor) -> Detections:
        assert not self.training
        assert torch.is_inference_mode_enabled()
        self.dtype = self.layer(torch.ones(1, 2)).dtype
        boxes, labels = torch.zeros(len(images), 4, 4), torch.zeros(len(images), 4, dtype=torch.int64)
        valid = torch.zeros(len(images), 4, dtype=torch.bool)
        for i, image in enumerate(images):
            objects = [
                a for a in self.truth["annotations"] if a["image_id"] == image[0, 0, 0] and not a["iscrowd"]
            ]
            for k, a in enumerate(objects):
                x, y, w, h = a["bbox"]
                boxes[i, k] = torch.tensor([x, y, x + w, y + h]) / 2
                labels[i, k], valid[i, k] = LABELS.from_source(a["category_id"]), True
        return Detections(boxes, valid * 0.5, labels, valid)


def batches() -> list[Batch]:
    images = torch.zeros(3, 3, 64, 64, dtype=torch.uint8)
    images[:, 0, 0, 0] = torch.arange(1, 4)
    half, full = torch.full((3, 2), 50), torch.full((3, 2), 100)
    groups = ([0, 1], [2, 0])
    ids = ((1, 2), (3, -1))
    return [Batch(images[g], half[g], None, i, full[g]) for g, i in zip(groups, ids, strict=True)]


def test_evaluate(truth, capfd):
    model, calls = Oracle(truth).train(), []
    evaluators = [CocoEvaluator(truth, LABELS), VocEvaluator(truth, LABELS)]
    metrics = evaluate(
        model,
        batches(),
        evaluators,
        before_iter=lambda batch: calls.append(("before", batch.image_ids)),
        after_iter=lambda batch, detections: calls.append(("after", detections.boxes.shape)),
    )
    assert metrics["bbox/AP"] == metrics["voc/AP50"] == 1.0
    assert [name for name, _ in calls] == ["before", "after"] * 2
    assert model.training
    assert model.dtype == torch.float32
    assert evaluate(model, batches(), evaluators, progress=False, autocast=torch.bfloat16)["bbox/AP"] == 1.0
    assert model.dtype == torch.bfloat16


def test_mode_is_restored_after_an_error(truth):
    model = Oracle(truth).train()
    with pytest.raises(RuntimeError, match="stop"):
        evaluate(model, batches(), [], progress=False, before_iter=lambda batch: raise_stop())
    assert model.training


def raise_stop() -> None:
    raise RuntimeError("stop")


def test_two_evaluators_of_one_metric_clash(truth):
    evaluators = [CocoEvaluator(truth, LABELS), CocoEvaluator(truth, LABELS)]
    with pytest.raises(ValueError, match="bbox/AP"):
        evaluate(Oracle(truth), batches(), evaluators, progress=False)
