"""Run by torchrun: two ranks hold parts of a batch and compare with two layers on the joined one."""

import torch
import torch.distributed as dist
from torch import nn

from boxwright.models.layers import InPlaceBatchNorm2d


def main() -> None:
    dist.init_process_group("gloo")
    rank = dist.get_rank()
    torch.manual_seed(0)
    whole = (torch.randn(5, 3, 6, 4, dtype=torch.float64) * 3 + 5).requires_grad_()
    part = whole.detach()[slice(0, 2) if rank == 0 else slice(2, 5)].clone().requires_grad_()
    plain, ours = nn.BatchNorm2d(3, dtype=torch.float64), InPlaceBatchNorm2d(3).double()
    for norm in (plain, ours):
        nn.init.constant_(norm.weight, -1.5)
        nn.init.constant_(norm.bias, 0.5)
    expected, mine = nn.functional.leaky_relu(plain(whole), 0.01), ours.activated(part, nn.ReLU())
    (expected.sin() * expected).sum().backward()
    (mine.sin() * mine).sum().backward()
    own = slice(0, 2) if rank == 0 else slice(2, 5)
    torch.testing.assert_close(mine, expected[own])
    torch.testing.assert_close(part.grad, whole.grad[own])
    grads = torch.stack((ours.weight.grad, ours.bias.grad))
    dist.all_reduce(grads)
    torch.testing.assert_close(grads, torch.stack((plain.weight.grad, plain.bias.grad)))
    for name, value in plain.named_buffers():
        torch.testing.assert_close(dict(ours.named_buffers())[name], value)
    dist.barrier()
    if rank == 0:
        print("agree", flush=True)
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
