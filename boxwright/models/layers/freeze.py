"""Keeping parts of a network as they are."""

from __future__ import annotations

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm


def freeze(module: nn.Module) -> None:
    """Take the parameters out of training and put the module into evaluation mode.

    A later `train()` on a parent puts it back into training mode: the parent's `train` calls this again.
    """
    module.requires_grad_(False)
    module.eval()


def set_batch_norm_eval(module: nn.Module) -> None:
    """Put every batch norm inside into evaluation mode: it uses its running statistics and keeps them."""
    for layer in module.modules():
        if isinstance(layer, _BatchNorm):
            layer.eval()
