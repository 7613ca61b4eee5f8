"""Batch norm over ranks in one process; `tests/engine/test_cross_norm.py` has several."""

import copy

import pytest
import torch
from torch import nn

from boxwright.errors import ConfigError
from boxwright.models.layers import CrossBatchNorm2d, join_norms


def test_one_process_is_plain_batch_norm() -> None:
    torch.manual_seed(0)
    plain, ours = nn.BatchNorm2d(4), CrossBatchNorm2d(4, ranks=2)
    x = torch.randn(2, 4, 5, 5)
    torch.testing.assert_close(ours(x), plain(x))
    for name, value in plain.state_dict().items():
        torch.testing.assert_close(ours.state_dict()[name], value)
    plain.eval(), ours.eval()
    torch.testing.assert_close(ours(x), plain(x))
    assert ours.num_batches_tracked == 1
    # What computes it on CUDA asks for no more than the layer has.
    torch.testing.assert_close(nn.SyncBatchNorm.forward(ours.train(), x), plain.train()(x))
    assert ours.num_batches_tracked == 2


def test_a_copy_keeps_who_shares() -> None:
    norm = CrossBatchNorm2d(4, images=8)
    norm.join(8)
    again = copy.deepcopy(norm)
    assert (again.ranks, again.images, again.images_of_rank) == (None, 8, 8)
    assert "images=8" in repr(again)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"ranks": 2, "images": 4}, "ranks=2 and images=4 are two ways"),
        ({"ranks": 0}, "ranks=0 must be one of: a number from 1 on, 'node', None"),
        ({"ranks": "host"}, "ranks='host' must be one of"),
        ({"images": "node"}, "images='node' must be one of: a number from 1 on, None"),
    ],
)
def test_bad_arguments_are_refused(arguments: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        CrossBatchNorm2d(4, **arguments)


def test_what_cannot_be_shared_is_an_error_in_one_process_too() -> None:
    assert join_norms(nn.Sequential(CrossBatchNorm2d(4), nn.BatchNorm2d(4)), 2) == 1
    with pytest.raises(ConfigError, match=r"model\.0: groups of 4 ranks cannot be made of 1 processes"):
        join_norms(nn.Sequential(CrossBatchNorm2d(4, ranks=4)), 2)
    with pytest.raises(ConfigError, match="images=3 cannot be made of ranks with 2 images"):
        join_norms(nn.Sequential(CrossBatchNorm2d(4, images=3)), 2)
