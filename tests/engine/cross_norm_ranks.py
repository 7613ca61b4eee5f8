"""Called on each rank, which holds a part of a batch: it compares with batch norm on the joined one."""

import copy
import os
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from boxwright.errors import ConfigError
from boxwright.models.layers import CrossBatchNorm2d, join_norms

PARTS = (2, 1, 0, 3)


def joined_parts(dtype: torch.dtype) -> list[torch.Tensor]:
    g = torch.Generator().manual_seed(0)
    sizes = ((5, 4), (3, 6), (4, 4), (2, 7))
    return [
        (torch.randn(n, 3, *size, generator=g) * 3 + 5).to(dtype)
        for n, size in zip(PARTS, sizes, strict=True)
    ]


def flat(parts: list[torch.Tensor]) -> torch.Tensor:
    """All pixels of some parts as one batch `(N, 3, 1, 1)`."""
    return torch.cat([p.permute(0, 2, 3, 1).reshape(-1, 3, 1, 1) for p in parts])


def compare(ours: CrossBatchNorm2d, ranks: int, dtype: torch.dtype, tolerance: float) -> None:
    rank = dist.get_rank()
    parts = joined_parts(dtype)
    first = rank // ranks * ranks
    group = parts[first : first + ranks]
    plain = nn.BatchNorm2d(3)
    for norm in (plain, ours):
        nn.init.constant_(norm.weight, 1.5)
        nn.init.constant_(norm.bias, -0.5)
    assert list(plain.state_dict()) == list(ours.state_dict())
    whole = flat(group).float().requires_grad_()
    expected = plain(whole)
    (expected.sin() * expected).sum().backward()
    mine = parts[rank].clone().requires_grad_()
    output = ours(mine)
    assert output.dtype == dtype
    (output.float().sin() * output.float()).sum().backward()
    begin = sum(len(flat([p])) for p in group[: rank - first])
    own = slice(begin, begin + len(flat([parts[rank]])))
    torch.testing.assert_close(flat([output.float()]), expected[own], rtol=tolerance, atol=tolerance)
    torch.testing.assert_close(flat([mine.grad.float()]), whole.grad[own], rtol=tolerance, atol=tolerance)
    grads = torch.stack((ours.weight.grad, ours.bias.grad))
    dist.all_reduce(grads, group=ours.process_group)
    torch.testing.assert_close(grads[0], plain.weight.grad, rtol=tolerance, atol=10 * tolerance)
    torch.testing.assert_close(grads[1], plain.bias.grad, rtol=tolerance, atol=10 * tolerance)
    # Statistics and the sums behind them are float32, whatever the input is.
    torch.testing.assert_close(ours.running_mean, plain.running_mean, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(ours.running_var, plain.running_var, rtol=1e-5, atol=1e-5)
    assert ours.num_batches_tracked == 1


def groups() -> None:
    rank = dist.get_rank()
    os.environ["GROUP_RANK"] = str(rank // 2)  # two "machines" of two ranks
    by_images = CrossBatchNorm2d(3, images=6)
    by_images.join(3)
    compare(CrossBatchNorm2d(3), 4, torch.float32, 1e-5)
    compare(CrossBatchNorm2d(3, ranks=2), 2, torch.float32, 1e-5)
    compare(CrossBatchNorm2d(3, ranks="node"), 2, torch.float32, 1e-5)
    compare(copy.deepcopy(by_images), 2, torch.float32, 1e-5)
    compare(CrossBatchNorm2d(3), 4, torch.bfloat16, 0.05)


def mistakes() -> None:
    model = nn.Sequential(nn.Conv2d(3, 3, 1), CrossBatchNorm2d(3, ranks=3))
    with pytest.raises(ConfigError, match=r"model\.1: groups of 3 ranks cannot be made of 4 processes"):
        join_norms(model, 2)
    for images, held in ((6, 4), (2, 4)):
        with pytest.raises(ConfigError, match=f"images={images} cannot be made of ranks with {held} images"):
            join_norms(nn.Sequential(CrossBatchNorm2d(3, images=images)), held)
    told = "images=12 cannot be made of ranks with 4 images each, of which there are 4: choose images=4 or 8"
    with pytest.raises(ConfigError, match=told):
        join_norms(nn.Sequential(CrossBatchNorm2d(3, images=12)), 4)
    with pytest.raises(ConfigError, match="Call join_norms"):
        CrossBatchNorm2d(3, images=8)(torch.ones(1, 3, 2, 2))


def nothing_anywhere() -> None:
    norm = CrossBatchNorm2d(3)
    assert norm(torch.ones(0, 3, 2, 2)).shape == (0, 3, 2, 2)
    assert norm.running_mean.abs().max() == 0
    assert (norm.running_var == 1).all()


def network(norm: type[nn.Module]) -> nn.Sequential:
    torch.manual_seed(1)
    layers = nn.Conv2d(3, 8, 3, padding=1), norm(8), nn.ReLU(), nn.Conv2d(8, 4, 3, padding=1), norm(4)
    return nn.Sequential(*layers)


def training(autocast: bool, tolerance: float, compiled: bool = False) -> None:
    """A network with several such norms under DistributedDataParallel equals one process with all images."""
    g = torch.Generator().manual_seed(2)
    images = torch.randn(2 * dist.get_world_size(), 3, 8, 8, generator=g)
    images[:, :, 6:] = 0  # padding, which counts here as there
    towards = torch.randn(len(images), 4, 8, 8, generator=g)
    mine = slice(2 * dist.get_rank(), 2 * dist.get_rank() + 2)
    plain, ours = network(nn.BatchNorm2d), network(CrossBatchNorm2d)
    join_norms(ours, 2)
    if compiled:
        ours.compile(fullgraph=True, backend="aot_eager")
    wrapped = DistributedDataParallel(ours)
    for model, part in ((plain, slice(None)), (wrapped, mine)):
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            loss = (model(images[part]).float() - towards[part]).square().mean()
        loss.backward()
    for (name, theirs), own in zip(plain.named_parameters(), ours.parameters(), strict=True):
        torch.testing.assert_close(own.grad, theirs.grad, rtol=tolerance, atol=tolerance, msg=name)
    for (name, theirs), own in zip(plain.named_buffers(), ours.buffers(), strict=True):
        torch.testing.assert_close(own, theirs, rtol=tolerance, atol=tolerance, msg=name)


def on_rank(out: Path) -> None:
    if dist.get_world_size() == 2:
        training(autocast=False, tolerance=1e-5, compiled=True)
    else:
        groups()
        mistakes()
        nothing_anywhere()
        training(autocast=False, tolerance=1e-5)
        training(autocast=True, tolerance=0.02)
    dist.barrier()
