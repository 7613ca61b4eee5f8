"""MMDetection's parts without weights as ours: coders, assigners, samplers, anchors, suppression."""

from __future__ import annotations

from collections.abc import Sequence

from fiddle import Config

from ..errors import ConfigError
from ..models.assigners import ATSSAssigner, MaxIoUAssigner
from ..models.coders import DeltaCoder
from ..models.priors import Anchors
from ..models.samplers import AllSampler, OHEMSampler, RandomSampler
from ..models.suppression import GreedyNMS, SoftNMS
from .settings import Settings


def delta_coder(settings: Settings) -> Config:
    """`DeltaXYWHBBoxCoder`."""
    with settings:
        if settings.kind == "LegacyDeltaXYWHBBoxCoder":
            raise ConfigError(
                f'{settings.path} adds a pixel to widths ("legacy"), which Boxwright never does'
            )
        settings.only("a box coder", "DeltaXYWHBBoxCoder")
        means = tuple(settings("target_means", (0.0,) * 4))
        if any(means):
            raise ConfigError(f"{settings.path}.target_means is {means}; Boxwright has means of 0 only")
        settings.expect("clip_border", True)
        settings.expect("add_ctr_clamp", False)
        settings.ignore("ctr_clamp", "use_box_type")
        return Config(DeltaCoder, stds=tuple(settings("target_stds", (1.0,) * 4)))


def distance_coder(settings: Settings | None) -> None:
    """`DistancePointBBoxCoder`, which heads on points have by themselves here."""
    if settings is not None:
        with settings:
            settings.only("a box coder here", "DistancePointBBoxCoder")
            settings.expect("clip_border", True)
            settings.ignore("use_box_type")


def check_strides(path: str, given: Sequence[int | Sequence[int]], levels: Sequence[int]) -> None:
    """Fail unless the strides that a configuration gives are those of its pyramid's first levels.

    Args:
        path: where they stand.
        given: one a level, or one vertical and one horizontal.
        levels: strides of the pyramid.
    """
    wanted = [(stride, stride) for stride in levels[: len(given)]]
    pairs = [tuple(s) if isinstance(s, Sequence) else (s, s) for s in given]
    if pairs != wanted:
        raise ConfigError(
            f"{path} is {list(given)}, but the levels that its features come from have the strides "
            f"{list(levels)}; Boxwright takes those"
        )


def anchors(settings: Settings, levels: Sequence[int]) -> Config:
    """`AnchorGenerator`, on levels of these strides."""
    with settings:
        settings.only("an anchor generator here", "AnchorGenerator")
        settings.expect("base_sizes", None)
        settings.expect("centers", None)
        settings.expect("scale_major", True)
        settings.ignore("use_box_type")
        all_strides(settings, levels)
        scales = settings("scales", None)
        if scales is None:
            octave, count = settings("octave_base_scale"), settings("scales_per_octave")
            scales = [octave * 2 ** (i / count) for i in range(count)]
        else:
            settings.expect("octave_base_scale", None)
            settings.expect("scales_per_octave", None)
        return Config(
            Anchors,
            scales=tuple(float(scale) for scale in scales),
            ratios=tuple(float(ratio) for ratio in settings("ratios")),
            offset=float(settings("center_offset", 0.0)),
        )


def all_strides(settings: Settings, levels: Sequence[int]) -> None:
    """Fail unless a generator's `strides` are those of the pyramid's levels, of each one."""
    strides = settings("strides")
    check_strides(f"{settings.path}.strides", strides, levels)
    if len(strides) != len(levels):
        raise ConfigError(f"{settings.path}.strides has {len(strides)} entries for {len(levels)} levels")


def max_iou(settings: Settings, kind: str = "MaxIoUAssigner") -> Config:
    """The rule of `MaxIoUAssigner`, or of one that has the same settings."""
    with settings:
        settings.only("an assigner here", kind)
        settings.ignore("gpu_assign_thr")
        settings.expect("perm_repeat_gt_cfg", None)
        plain_overlap(settings)
        if not isinstance(settings("neg_iou_thr"), int | float):
            raise ConfigError(f"{settings.path}.neg_iou_thr has a lower bound, which Boxwright does not have")
        config = Config(
            MaxIoUAssigner,
            positive_iou=settings("pos_iou_thr"),
            negative_iou=settings("neg_iou_thr"),
            min_positive_iou=settings("min_pos_iou", 0.0),
            match_low_quality=settings("match_low_quality", True),
            low_quality_ties=settings("gt_max_assign_all", True),
        )
        return ignored_regions(settings, config)


def plain_overlap(settings: Settings) -> None:
    """Fail unless overlaps are measured as usual."""
    calculator = settings.optional("iou_calculator")
    if calculator is not None:
        with calculator:
            calculator.only("a measure of overlap", "BboxOverlaps2D")


def ignored_regions(settings: Settings, config: Config) -> Config:
    """Set what share of a prior lies in an ignored region.

    Without a threshold such priors are negatives there. Here ignored regions never count either way.
    """
    share = settings("ignore_iof_thr", -1)
    settings.expect("ignore_wrt_candidates", True)
    if share > 0:
        config.ignore_iof = float(share)
    return config


def atss(settings: Settings) -> Config:
    """`ATSSAssigner`."""
    with settings:
        settings.only("an assigner here", "ATSSAssigner")
        settings.expect("alpha", None)
        plain_overlap(settings)
        return ignored_regions(settings, Config(ATSSAssigner, topk=settings("topk")))


def sampler(settings: Settings | None) -> Config:
    """A sampler; all priors where there is none."""
    if settings is None:
        return Config(AllSampler)
    with settings:
        settings.ignore("add_gt_as_proposals", "context")
        if settings.kind == "PseudoSampler":
            return Config(AllSampler)
        kinds = {"RandomSampler": RandomSampler, "OHEMSampler": OHEMSampler}
        settings.only("a sampler", *kinds, "PseudoSampler")
        bound = settings("neg_pos_ub", -1)
        return Config(
            kinds[settings.kind],
            number=settings("num"),
            positive_share=settings("pos_fraction"),
            negatives_per_positive=None if bound < 0 else float(bound),
        )


def suppression(settings: Settings) -> Config:
    """What an `nms` entry says."""
    with settings:
        settings.ignore("split_thr")
        settings.expect("class_agnostic", False)
        settings.expect("max_num", -1)
        settings.expect("offset", 0)
        name = "iou_thr" if "iou_thr" in settings.values else "iou_threshold"
        if settings.kind in ("nms", ""):
            settings.expect("score_threshold", 0, 0.0)
            return Config(GreedyNMS, iou=settings(name))
        settings.only("a suppression", "nms", "soft_nms")
        return Config(
            SoftNMS,
            method=settings.choice("method", {"linear": "linear", "gaussian": "gaussian"}, "linear"),
            iou=settings(name, 0.3),
            sigma=settings("sigma", 0.5),
            min_score=settings("min_score", 1e-3),
        )
