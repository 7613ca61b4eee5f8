"""From assignment to training targets: what the criteria of dense and RoI heads share."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..ops.backends import eager_on_cpu
from ..structures import Priors, Targets


@dataclass(frozen=True)
class Sample:
    """The priors of each image that are trained in this step, in S slots.

    Args:
        index: `(B, S)` int64, which prior; None where all of them are trained in their order (S is A).
        gt_index: `(B, S)` int64, slot of the ground truth.
        positive: `(B, S)` bool.
        negative: `(B, S)` bool. Slots that are neither do not count.
        score: `(B, S)` float32, the assigner's target for the class score, or None.
    """

    index: Tensor | None
    gt_index: Tensor
    positive: Tensor
    negative: Tensor
    score: Tensor | None = None

    @property
    def valid(self) -> Tensor:
        """`(B, S)` bool: the slots that count."""
        return self.positive | self.negative

    def positive_share(self) -> Tensor:
        """Positives among the slots that count, a scalar in 0..1; 0 where none counts.

        With r positives for each negative (MegDet, arXiv:1711.07240, Table 1) it is r / (1 + r).
        """
        return self.positive.sum() / self.valid.sum().clamp(min=1)

    def take(self, values: Tensor) -> Tensor:
        """The sampled entries of `(B, A, ...)`, as `(B, S, ...)`."""
        return values if self.index is None else gather_slots(values, self.index)


def gather_slots(values: Tensor, index: Tensor) -> Tensor:
    """`values[b, index[b, s]]` for values `(B, N, ...)` and index `(B, S)`."""
    trailing = values.shape[2:]
    return values.gather(1, index.reshape(*index.shape, *[1] * len(trailing)).expand(*index.shape, *trailing))


def gather_priors(priors: Priors, index: Tensor) -> tuple[Tensor, Tensor]:
    """Boxes `(B, S, 4)` and strides `(B, S)` of the priors at `index (B, S)`, shared by the images or not."""
    boxes = priors.boxes.expand(index.shape[0], -1, 4)
    return gather_slots(boxes, index), priors.strides[index]


def boxes_and_labels(sample: Sample, targets: Targets) -> tuple[Tensor, Tensor]:
    """Ground-truth box `(B, S, 4)` and label `(B, S)` of each slot; any values where not positive."""
    return gather_slots(targets.boxes, sample.gt_index), gather_slots(targets.labels, sample.gt_index)


@dataclass(frozen=True)
class Filled:
    """Drops empty slots where that saves work, and puts results back: the one place that does so.

    Eager execution on a CPU pays for every slot, so there the filled ones are picked out. In a compiled
    graph and on an accelerator shapes stay fixed: slots are only laid one behind the other.
    """

    valid: Tensor
    index: Tensor | None

    @classmethod
    def of(cls, valid: Tensor) -> Filled:
        """For slots `(B, S)` bool of which the true ones matter."""
        if not eager_on_cpu(valid.device):
            return cls(valid, None)
        index = valid.flatten().nonzero()[:, 0]
        return cls(valid, index if len(index) < valid.numel() else None)  # full: nothing is to be picked out

    def drop(self, values: Tensor) -> Tensor:
        """`(B, S, ...)` to `(F, ...)`: only the filled slots, or all B*S of them."""
        values = values.flatten(0, 1)
        return values if self.index is None else values[self.index]

    def restore(self, values: Tensor) -> Tensor:
        """`(F, ...)` to `(B, S, ...)`, zero in slots that were not filled."""
        shape, trailing = self.valid.shape, values.shape[1:]
        if self.index is None:
            full = torch.where(self.valid.flatten().reshape(-1, *[1] * len(trailing)), values, 0)
        else:
            full = values.new_zeros(shape.numel(), *trailing).index_copy(0, self.index, values)
        return full.reshape(*shape, *trailing)


def prefixed(prefix: str, values: dict[str, Tensor]) -> dict[str, Tensor]:
    """Losses named "loss/NAME" as "loss/PREFIX_NAME", statistics likewise."""
    return {f"{kind}/{prefix}_{name}": v for key, v in values.items() for kind, name in [key.split("/", 1)]}
