"""Batch norm over ranks equals batch norm on the joined batch."""

import os
import subprocess
import sys
from pathlib import Path

import torch
from torch import nn

from boxwright.models.layers import CrossBatchNorm2d

SCRIPT = Path(__file__).with_name("cross_norm_ranks.py")


def test_four_ranks_and_groups_of_two_equal_the_joined_batch() -> None:
    launch = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node=4",
        str(SCRIPT),
    ]
    done = subprocess.run(
        launch, env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True, timeout=300
    )
    assert "agree" in done.stdout, done.stderr[-4000:]


def test_one_process_is_plain_batch_norm() -> None:
    torch.manual_seed(0)
    plain, ours = nn.BatchNorm2d(4), CrossBatchNorm2d(4)
    x = torch.randn(2, 4, 5, 5)
    torch.testing.assert_close(ours(x), plain(x))
    plain.eval(), ours.eval()
    torch.testing.assert_close(ours(x), plain(x))
