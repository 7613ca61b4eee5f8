"""What every RoI stage is, whether regions have layers of their own or not."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from ...structures import FeatureSpec
from ...values import Count
from ..protocols import Coder
from .criterion import RoICriterion
from .postprocess import RoIPostprocess
from .predictions import RoIPredictions


class RoIStage(nn.Module):
    """What a stage carries: how it is trained and read. A subclass adds layers and `forward`.

    Args:
        in_specs: feature levels.
        num_classes: C, without background.
        coder: what a box is regressed as.
        criterion: how the stage is trained.
        postprocess: how detections are made of the outputs.
    """

    def __init__(
        self,
        in_specs: Sequence[FeatureSpec],
        *,
        num_classes: Count,
        coder: Coder,
        criterion: RoICriterion,
        postprocess: RoIPostprocess,
    ) -> None:
        super().__init__()
        self.strides = tuple(spec.stride for spec in in_specs)
        self.num_classes, self.coder = num_classes, coder
        self.criterion, self.postprocess = criterion, postprocess
        self.state = nn.ModuleDict(criterion.stateful())

    def shared(self, features: Sequence[Tensor]) -> Sequence[Tensor]:
        """What `forward` looks at for any regions of these images: here the features themselves.

        It is computed once a step, though regions may be looked at several times (mining by loss).
        """
        return features

    def forward(self, shared: Sequence[Tensor], boxes: Tensor, valid: Tensor) -> RoIPredictions:
        """Raw outputs for boxes `(B, R, 4)`; zero where not `valid (B, R)`."""
        raise NotImplementedError(f"{type(self).__name__} has to define `forward`")
