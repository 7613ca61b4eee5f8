"""Other norms in the place of a network's own, whoever wrote the network."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from ...errors import CheckpointError
from ..layers import NormLayer


class NormAct(nn.Module):
    """A norm, and what timm's norms have behind them: dropout and an activation.

    Args:
        norm: the norm.
        drop: dropout.
        act: the activation.
    """

    def __init__(self, norm: nn.Module, drop: nn.Module, act: nn.Module) -> None:
        super().__init__()
        self.norm, self.drop, self.act = norm, drop, act

    def forward(self, x: Tensor) -> Tensor:
        """`(B, C, H, W)` to the same shape."""
        return self.act(self.drop(self.norm(x)))


def exchange_norms(net: nn.Module, make: NormLayer, keep: bool) -> int:
    """Put norms of another kind in the place of a network's batch norms, in place.

    Args:
        net: the network.
        make: makes the norm of a number of channels.
        keep: whether weights and statistics stay as they are; the new norm has to have them all.

    Returns:
        How many norms were exchanged.

    Raises:
        CheckpointError: the network's weights are those of a norm that keeps other things.
    """
    count = 0
    for parent in list(net.modules()):
        for name, norm in list(parent.named_children()):
            if not isinstance(norm, _BatchNorm):
                continue
            new = make(norm.num_features)
            if keep:
                _take_over(new, norm)
            drop, act = (getattr(norm, part, None) or nn.Identity() for part in ("drop", "act"))
            plain = isinstance(drop, nn.Identity) and isinstance(act, nn.Identity)
            setattr(parent, name, new if plain else NormAct(new, drop, act))
            count += 1
    return count


def _take_over(new: nn.Module, old: nn.Module) -> None:
    own = set(new.state_dict())
    state = {name: value for name, value in old.state_dict().items() if name != "num_batches_tracked"}
    if own - {"num_batches_tracked"} != set(state):
        raise CheckpointError(
            f"the pretrained weights are those of {type(old).__name__} with {', '.join(sorted(state))}; "
            f"{type(new).__name__} has {', '.join(sorted(own)) or 'none'}: choose weights that were trained "
            "with it, or set weights=None"
        )
    new.load_state_dict(state, strict=False)
