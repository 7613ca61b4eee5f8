"""What MMDetection's dense heads have in common, as our settings."""

from __future__ import annotations

from dataclasses import dataclass

import fiddle as fdl
from fiddle import Config, Partial

from ..errors import ConfigError
from ..models.dense_heads import DenseCriterion, DensePostprocess, Positives, Samples
from ..models.priors import TrainableArea
from ..models.samplers import AllSampler
from . import parts
from .layers import conv_of, norm_of
from .losses import box_losses, class_loss
from .settings import Settings

EVERY = 2**31 - 1
"""As many candidates as there are."""


@dataclass(frozen=True)
class Context:
    """What a head is told besides its own settings.

    Args:
        train: its `train_cfg`.
        test: its `test_cfg`.
        divisor: multiple that images are padded to, px.
        strides: of the levels that it looks at, from fine to coarse.
    """

    train: Settings
    test: Settings
    divisor: int
    strides: tuple[int, ...]

    def area(self, offset: float = 0.0) -> Config[TrainableArea]:
        """Which priors are trained."""
        border = self.train("allowed_border", -1)
        return Config(
            TrainableArea,
            divisor=self.divisor,
            allowed_border=None if border < 0 else float(border),
            offset=offset,
        )

    def sampler(self) -> Config:
        """The sampler of the training settings."""
        return parts.sampler(self.train.optional("sampler"))

    def every_prior(self) -> None:
        """Fail unless every prior is trained."""
        if fdl.get_callable(self.sampler()) is not AllSampler:
            raise ConfigError(f"{self.train.path}.sampler must be a PseudoSampler, or absent, for this head")

    def postprocess(self, config: Config[DensePostprocess]) -> Config[DensePostprocess]:
        """Set what the test settings say of detections."""
        config.score_threshold = self.test("score_thr", 0.0)
        return self.candidates(config)

    def proposals(self, config: Config[DensePostprocess]) -> Config[DensePostprocess]:
        """The same for proposals, of which no score is too low."""
        test = self.test
        test.ignore("score_thr")
        test.expect("nms_across_levels", False)
        per_level = test("nms_post", EVERY)
        self.candidates(config)
        if per_level < config.max_detections:
            raise ConfigError(
                f"{test.path}.nms_post is {per_level}, the most of one level, but {config.max_detections} "
                "of all levels are kept; Boxwright has no bound of one level"
            )
        return config

    def candidates(self, config: Config[DensePostprocess]) -> Config[DensePostprocess]:
        """Set how many candidates there are and what is left of them; names of 2.x are understood."""
        test = self.test
        test.ignore("mask_thr_binary")
        before, side = test("nms_pre", -1), test("min_bbox_size", -1)
        config.candidates = before if before > 0 else EVERY
        config.min_side = float(side) if side >= 0 else -1.0  # not even boxes of no width are too small
        most = test("max_per_img", test("max_num", None) or test("nms_post", None))
        if most is None or most <= 0:
            raise ConfigError(f"{test.path}.max_per_img is {most}; Boxwright needs a number of detections")
        config.max_detections = most
        threshold = test("nms_thr", None)
        if "nms" not in test.values and threshold is not None:
            config.nms = parts.suppression(Settings({"iou_threshold": threshold}, f"{test.path}.nms_thr"))
        else:
            config.nms = parts.suppression(test.part("nms"))
        return config


def usual_training(train: Settings) -> None:
    """Read the training settings that have one meaning here: positives and negatives weigh the same."""
    train.ignore("debug")
    weight = train("pos_weight", -1)
    if weight > 0 and weight != 1:
        raise ConfigError(f"{train.path}.pos_weight is {weight}; Boxwright weighs positives as negatives")


def layers(settings: Settings, config: Partial) -> Partial:
    """Set classes, widths and norms that most heads have."""
    config.num_classes = settings("num_classes")
    config.channels = settings("feat_channels", 256)
    config.tower_convs = settings("stacked_convs", 4)
    config.norm = norm_of(settings.optional("norm_cfg"))
    conv = settings.optional("conv_cfg")
    if conv is not None:
        config.conv = conv_of(conv)
    return config


def losses(settings: Settings, criterion: Config[DenseCriterion], decoded: bool, *allowed: type) -> None:
    """Set the losses of classes, of those `allowed`, and of boxes."""
    criterion.class_loss = class_loss(settings.part("loss_cls"), *allowed)
    for slot, loss in box_losses(settings.part("loss_bbox"), decoded).items():
        setattr(criterion, slot, loss)


def divisor(sampler: Config) -> Config:
    """What losses are divided by: the samples where they are drawn, else the positives."""
    return Config(Positives if fdl.get_callable(sampler) is AllSampler else Samples)
