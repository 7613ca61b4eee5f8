"""What MMDetection does to images before its model sees them, as our transforms."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from fiddle import Config

from ..data.transforms import Resize, ResizeFixed
from ..errors import ConfigError
from .settings import Settings

HARMLESS = (
    "LoadImageFromFile",
    "LoadAnnotations",
    "PackDetInputs",
    "RandomFlip",
    "Normalize",
    "DefaultFormatBundle",
    "ImageToTensor",
    "ToTensor",
    "Collect",
)
"""Steps of a test pipeline that leave the pixels as they are, or whose work our detectors do."""


def test_steps(settings: Mapping[str, Any]) -> list[Settings]:
    """The steps of the test pipeline, those inside a test-time augmentation included.

    The data loader's pipeline is the one that is run; the entry `test_pipeline` is what it was made of.

    Raises:
        ConfigError: there are several scales, or flipped images.
    """
    loader = settings.get("test_dataloader") or settings.get("data", {}).get("test", {})
    loader = loader if isinstance(loader, Mapping) else {}
    steps = loader.get("dataset", loader).get("pipeline") or settings.get("test_pipeline") or []
    flat: list[Settings] = []
    for number, values in enumerate(steps):
        step = Settings(values, f"test_pipeline[{number}]")
        if step.kind == "MultiScaleFlipAug":
            flat += _augmented(step)
        else:
            flat.append(step)
    return flat


def _augmented(step: Settings) -> list[Settings]:
    """The steps inside a test-time augmentation of one scale."""
    step.expect("flip", False)
    scale = step("img_scale")
    if isinstance(scale[0], Sequence):
        if len(scale) != 1:
            raise ConfigError(
                f"{step.path}.img_scale has {len(scale)} scales; Boxwright looks at images once"
            )
        scale = scale[0]
    inner = [Settings(values, f"{step.path}.transforms[{i}]") for i, values in enumerate(step("transforms"))]
    for one in inner:
        if one.kind == "Resize":
            one.values.setdefault("img_scale", scale)
    return inner


def resizing(steps: Sequence[Settings]) -> list[Config[Any]] | None:
    """How images get their size; None if the pipeline is not known.

    Raises:
        ConfigError: the pipeline does something else to the pixels.
    """
    made: list[Config[Any]] = []
    for step in steps:
        if step.kind == "Resize":
            made.append(_resize(step))
        elif step.kind == "Pad":
            padding(step)
        elif step.kind not in HARMLESS:
            raise step.unknown("a step of the test pipeline", (*HARMLESS, "Resize", "Pad"))
    return made if steps else None


def _resize(step: Settings) -> Config[Any]:
    # 2.x calls it img_scale and keeps the ratio unless told otherwise; 3.x does not.
    before = "img_scale" in step.values
    with step:
        step.ignore("clip_object_border", "multiscale_mode", "bbox_clip_border", "_scope_")
        step.expect("backend", "cv2")
        step.expect("interpolation", "bilinear")
        scale = step("img_scale" if before else "scale", None)
        keep_ratio = step("keep_ratio", before)
        step.expect("override", False)
        if isinstance(scale, int):
            scale = (scale, scale)
        if not isinstance(scale, Sequence) or len(scale) != 2 or isinstance(scale[0], Sequence):
            raise ConfigError(f"{step.path}.scale is {scale!r}; Boxwright needs one width and height")
    if keep_ratio:
        return Config(Resize, short=min(scale), long=max(scale))
    return Config(ResizeFixed, size=(scale[1], scale[0]))  # width, height there


def padding(step: Settings) -> int:
    """The multiple that `Pad` pads images to.

    Raises:
        ConfigError: it pads to something else, or not with zeros.
    """
    with step:
        step.expect("pad_val", 0, {"img": 0}, {"img": (0, 0, 0)}, {"img": [0, 0, 0]})
        step.expect("pad_to_square", False)
        step.expect("size", None)
        return int(step("size_divisor", None) or 1)


def normalisation(steps: Sequence[Settings]) -> dict[str, Any] | None:
    """`Normalize` and `Pad` of a 2.x pipeline."""
    step = next((step for step in steps if step.kind == "Normalize"), None)
    if step is None:
        return None
    found = {name: step.values[name] for name in ("mean", "std", "to_rgb") if name in step.values}
    pad = next((step for step in steps if step.kind == "Pad"), None)
    return found | ({} if pad is None else {"pad_size_divisor": padding(pad)})
