"""What a RoI stage predicts."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class RoIPredictions:
    """Raw outputs for R regions of B images.

    Args:
        class_logits: `(B, R, columns)`; how many columns, the class loss says.
        codes: `(B, R, C, 4)`, or `(B, R, 1, 4)` where all classes share one code.
    """

    class_logits: Tensor
    codes: Tensor

    def codes_of(self, labels: Tensor) -> Tensor:
        """`(B, R, 4)` codes of one label a region, `(B, R)`."""
        if self.codes.shape[2] == 1:
            return self.codes[:, :, 0]
        return self.codes.gather(2, labels[..., None, None].expand(*labels.shape, 1, 4))[:, :, 0]
