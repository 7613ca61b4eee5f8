"""Run by torchrun: each rank holds a part of a batch and compares with batch norm on the joined one."""

import pytest
import torch
import torch.distributed as dist
from torch import nn

from boxwright.errors import ConfigError
from boxwright.models.layers import CrossBatchNorm2d

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


def compare(ranks: int | None, dtype: torch.dtype, tolerance: float) -> None:
    rank, world = dist.get_rank(), dist.get_world_size()
    parts = joined_parts(dtype)[:world]
    first = 0 if ranks is None else rank // ranks * ranks
    group = parts[first : first + (world if ranks is None else ranks)]
    plain, ours = nn.BatchNorm2d(3), CrossBatchNorm2d(3, ranks=ranks)
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
    torch.testing.assert_close(ours.running_mean, plain.running_mean, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(ours.running_var, plain.running_var, rtol=1e-4, atol=1e-5)


if __name__ == "__main__":
    dist.init_process_group("gloo")
    compare(None, torch.float32, 1e-5)
    compare(2, torch.float32, 1e-5)
    compare(None, torch.bfloat16, 0.05)
    with pytest.raises(ConfigError, match="groups of 3 ranks cannot be made of 4 processes"):
        CrossBatchNorm2d(3, ranks=3).join()
    dist.barrier()
    if dist.get_rank() == 0:
        print("agree", flush=True)
    dist.destroy_process_group()
