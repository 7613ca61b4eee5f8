"""Numbers that follow the training: the same on all ranks as in one process, and exact over a stop."""

from pathlib import Path

import pytest
import torch

from boxwright import distributed
from boxwright.engine import Hook
from boxwright.models.assigners import DynamicIoUAssigner
from boxwright.models.losses import DynamicSmoothL1
from boxwright.structures import Priors, Targets


class Plug(Hook):
    key = "plug"

    def __init__(self, step):
        self.step = step

    def before_train_iter(self, state):
        if state.step == self.step:
            raise RuntimeError("pulled the plug")


def following(toy):
    class Following(toy.Net):
        """The toy detector with dynamic smooth L1, whose beta changes every four steps."""

        def __init__(self):
            super().__init__(dropout=0.0)
            self.code_loss = DynamicSmoothL1(bottom=1, interval=4)

        def loss(self, batch):
            codes = self.head(self.features(batch.images))
            truth = batch.targets.boxes[:, 0]
            losses = self.code_loss(codes, truth)
            self.code_loss.observe((codes.detach() - truth)[:, None], batch.targets.valid)
            return {"loss/box": losses.mean(), "stat/beta": self.code_loss.statistics()["beta"]}

    torch.manual_seed(0)
    return Following()


@pytest.mark.parametrize("stop", [6, 8])
def test_a_stop_within_an_interval_changes_nothing(toy, tmp_path, stop):
    options = {"batches": 5, "epochs": 3, "iterations": 1, "ema_decay": 0.9}
    whole = toy.run(tmp_path / "whole", model=following(toy), **options)
    with pytest.raises(RuntimeError, match="plug"):
        toy.run(tmp_path / "cut", model=following(toy), extra=[Plug(stop)], **options)
    resumed = toy.run(tmp_path / "cut", model=following(toy), resume=True, **options)
    expected, found = toy.weights(whole), toy.weights(resumed)
    torch.testing.assert_close(found, expected, rtol=0, atol=0, equal_nan=True)
    for kind in ("model", "ema"):
        beta = found[f"{kind}.code_loss.beta.value"].item()
        assert beta == whole.model.code_loss.beta.value.item()
        assert 0 < beta < 1


def step(seed: int, slots: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Code targets of four images and which count; the first image has none."""
    generator = torch.Generator().manual_seed(seed)
    targets, chance = torch.randn(4, 12, 4, generator=generator), torch.rand(4, 12, generator=generator)
    positive = (chance < 0.4) & torch.tensor([[False], [True], [True], [True]])
    empty = slots - 12
    return torch.cat((targets, torch.zeros(4, empty, 4)), 1), torch.cat(
        (positive, torch.zeros(4, empty).bool()), 1
    )


def follow(images: slice) -> dict[str, torch.Tensor]:
    """State after some steps on these of four images, of both parts."""
    loss, assigner = DynamicSmoothL1(bottom=2, interval=3), DynamicIoUAssigner(top=4, interval=3, lowest=0.0)
    for number in range(5):
        targets, positive = step(number, slots=12 + images.start)  # ranks may differ in their slots
        loss.observe(targets[images], positive[images])
        generator = torch.Generator().manual_seed(number)
        boxes = torch.rand(4, 9, 4, generator=generator) * 10
        boxes[..., 2:] += boxes[..., :2] + 5
        valid = torch.tensor([[True], [True], [False], [number % 2 == 0]]).expand(4, 2)
        priors = Priors(boxes[images], torch.ones(9), (9,))
        assigner(priors, Targets(boxes[images, :2] + 1, valid[images].long(), valid[images], ~valid[images]))
    return {f"{i}.{k}": v for i, part in enumerate((loss, assigner)) for k, v in part.state_dict().items()}


def on_rank(out: Path) -> None:
    mine = 2 * distributed.rank()
    torch.save(follow(slice(mine, mine + 2)), out / f"{distributed.rank()}.pt")


def test_two_ranks_equal_one_on_the_joined_batch(launcher, tmp_path):
    launcher.start(tmp_path, ranks=2, call=__file__)
    assert launcher.wait() == [0, 0], launcher.said()
    first, second = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2))
    torch.testing.assert_close(first, second, rtol=0, atol=0, equal_nan=True)
    torch.testing.assert_close(first, follow(slice(0, 4)), equal_nan=True)
