"""Called on each rank: precise statistics over ranks with unequal batches equal those of the joined data."""

import torch
from torch import nn

from boxwright import distributed
from boxwright.engine.hooks.precise_norm import precise_statistics
from boxwright.models.layers import CrossBatchNorm2d
from boxwright.structures import Batch


class Norms(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second = nn.BatchNorm2d(3), CrossBatchNorm2d(3)

    def forward(self, batch):
        self.first(batch.images)
        return self.second(batch.images)


def batches(rank):
    g = torch.Generator().manual_seed(rank)
    return [
        Batch(torch.randn(n, 3, 4, 2 + n, generator=g) * 2 + rank, torch.tensor([[4, 5]] * n))
        for n in (1 + rank, 3, 2)
    ]


def on_rank(out):
    model = Norms()
    assert precise_statistics(model, batches(distributed.rank())) == 2
    ranks = range(distributed.world_size())
    pixels = torch.cat([b.images.transpose(0, 1).flatten(1) for rank in ranks for b in batches(rank)], 1)
    for norm in (model.first, model.second):
        torch.testing.assert_close(norm.running_mean, pixels.mean(1))
        torch.testing.assert_close(norm.running_var, pixels.var(1))
        assert norm.num_batches_tracked == 0
    (out / f"agree{distributed.rank()}").touch()
