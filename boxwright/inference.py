"""Predicting with a trained detector: from paths, images, arrays or a folder to named detections."""

from __future__ import annotations

import dataclasses
import io
import itertools
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias, overload

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torchvision import tv_tensors

from .data.canvas import Canvas
from .data.collate import collate
from .data.images import IMAGE_SUFFIXES, decode_image, decode_reduced, to_eight_bits
from .data.sample import Sample, Transform, image_tensor, needed_size
from .engine.placing import place, place_model
from .engine.precision import Precision, resolve_precision
from .errors import DataError
from .evaluation.collect import encode, to_columns, to_original
from .labels import LabelMap
from .models.layers import set_folding, settle
from .ops.masks import paste
from .structures import Batch, Detections

Picture: TypeAlias = str | os.PathLike[str] | Image.Image | np.ndarray | Tensor
"""One image: a path, a PIL image, `(H, W, 3)` uint8 RGB, or `(3, H, W)` uint8 (or float in 0..1) RGB."""

WEB = (("http:",), ("https:",), ("ftp:",))
"""What the path of an address begins with."""


@dataclass(frozen=True)
class ImageDetections:
    """What a detector found in one image, in decreasing order of score.

    Args:
        boxes: `(n, 4)` float32, xyxy in pixels of the original image (after EXIF orientation).
        scores: `(n,)` float32 in 0..1.
        labels: `(n,)` int64, contiguous labels of `label_map`.
        label_map: class names and the ids of the source.
        size: height and width of the image.
        masks: `(n, H, W)` bool at the size of the image, or None.
        source: where the image comes from, to draw on it: a path or the image itself.
    """

    boxes: Tensor
    scores: Tensor
    labels: Tensor
    label_map: LabelMap
    size: tuple[int, int]
    masks: Tensor | None = None
    source: Picture | None = field(default=None, repr=False, compare=False)

    def __len__(self) -> int:
        return len(self.boxes)

    def __repr__(self) -> str:
        lines = [f"{len(self)} detections in {self._name()} ({self.size[1]} x {self.size[0]} px)"]
        for name, score, box in zip(self.names, self.scores.tolist(), self.boxes.tolist(), strict=True):
            lines.append(f"  {score:.3f}  {name}  [{', '.join(f'{value:.1f}' for value in box)}]")
        return "\n".join(lines)

    def _repr_png_(self) -> bytes:
        """The drawn image, which notebooks display."""
        buffer = io.BytesIO()
        self.draw().save(buffer, "PNG")
        return buffer.getvalue()

    @property
    def names(self) -> tuple[str, ...]:
        """Class name of each detection."""
        return tuple(self.label_map.names[label] for label in self.labels.tolist())

    @property
    def image(self) -> Image.Image:
        """The image itself.

        Raises:
            DataError: the detections were made without a source, or it can no longer be read.
        """
        if self.source is None:
            raise DataError("these detections do not know their image; pass it to `draw(image)`")
        return to_pil(self.source)

    def above(self, score: float) -> ImageDetections:
        """Only the detections with at least this score."""
        kept = self.scores >= score
        masks = None if self.masks is None else self.masks[kept]
        return dataclasses.replace(
            self, boxes=self.boxes[kept], scores=self.scores[kept], labels=self.labels[kept], masks=masks
        )

    def draw(self, image: Picture | None = None) -> Image.Image:
        """The image with boxes, masks, class names and scores drawn in.

        Args:
            image: what to draw on, instead of the image that was predicted.
        """
        from .visualize import draw_detections

        return draw_detections(
            self.image if image is None else to_pil(image),
            self.boxes,
            self.labels,
            scores=self.scores,
            masks=self.masks,
            names=self.label_map.names,
        )

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write the drawn image; the suffix says the format."""
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            self.draw().save(path)
        except ValueError as error:
            raise DataError(f"{path}: {error}; choose a name that ends in .jpg or .png") from error
        return path

    def to_coco(self, image_id: int = 0) -> list[dict[str, Any]]:
        """COCO result records (`bbox` as x, y, width, height; masks as RLE), ready for JSON.

        Args:
            image_id: id of the image in the data set that the results belong to.
        """
        rles = None if self.masks is None else encode(self.masks)
        return to_columns(image_id, self.boxes, self.scores, self.labels, self.label_map, rles).records()

    def _name(self) -> str:
        return str(self.source) if isinstance(self.source, str | os.PathLike) else "an image"


class Detector:
    """A trained model together with all that lies between an image file and its named detections.

    `boxwright.load` makes one. The images go through the transforms and the canvas that the training's
    evaluation used, so that both see the same pixels.

    Args:
        model: has `predict(images, sizes)`; put into eval mode on `device`.
        label_map: classes of the model.
        transforms: from the decoded image to the network's input.
        canvas: shapes that images are padded to.
        device: where to predict.
        precision: "auto", "fp32", "bf16" or "fp16".
        config: the experiment that the model comes from, where it is known.
        reduced_decoding: decode JPEG files no larger than the first transform needs.
    """

    def __init__(
        self,
        model: nn.Module,
        label_map: LabelMap,
        transforms: Sequence[Transform] = (),
        canvas: Canvas | None = None,
        device: str | torch.device = "cpu",
        precision: str = "auto",
        config: Any = None,
        reduced_decoding: bool = False,
    ) -> None:
        self.device = torch.device(device)
        usable = "auto" if precision == "fp16" and self.device.type != "cuda" else precision
        self.precision: Precision = resolve_precision(usable, self.device)
        self.model = prepare(model, self.device, self.precision)
        self.label_map = label_map
        self.transforms = tuple(transforms)
        self.canvas = canvas or Canvas()
        self.config = config
        self.reduced_decoding = reduced_decoding
        self._needed = needed_size(self.transforms) if reduced_decoding else None

    def __repr__(self) -> str:
        parameters = sum(p.numel() for p in self.model.parameters()) / 1e6
        names = ", ".join(self.label_map.names[:6]) + (", ..." if len(self.label_map) > 6 else "")
        return (
            f"Detector({type(self.model).__name__}, {parameters:.1f} M parameters, "
            f"{len(self.label_map)} classes: {names}; {self.precision.name} on {self.device})"
        )

    @overload
    def __call__(
        self, source: Picture, score: float = ..., batch_size: int = ...
    ) -> ImageDetections | list[ImageDetections]: ...
    @overload
    def __call__(
        self, source: Iterable[Picture], score: float = ..., batch_size: int = ...
    ) -> list[ImageDetections]: ...
    def __call__(
        self, source: Picture | Iterable[Picture], score: float = 0.3, batch_size: int = 8
    ) -> ImageDetections | list[ImageDetections]:
        """Detect objects.

        Args:
            source: an image (see `Picture`), a folder, a `(B, 3, H, W)` tensor, or several images.
            score: detections below it are left out.
            batch_size: images of one pass through the network.

        Returns:
            The detections of the image; a list of them, in order, for anything but a single image.

        Raises:
            DataError: an image cannot be read, or has a shape or type that is no image.
        """
        pictures, single = pictures_of(source)
        results = list(self.stream(pictures, score, batch_size))
        return results[0] if single else results

    def stream(
        self, pictures: Iterable[Picture], score: float = 0.3, batch_size: int = 8
    ) -> Iterator[ImageDetections]:
        """The detections of one image after the other, in order; holds no more than one batch in memory."""
        if batch_size < 1:
            raise DataError(f"batch_size={batch_size} must be at least 1")
        pictures = iter(pictures)
        while chunk := list(itertools.islice(pictures, batch_size)):
            samples = [self._sample(picture, i) for i, picture in enumerate(chunk)]
            found: dict[int, ImageDetections] = {}
            for wide in (True, False):  # the canvas may have shapes for one orientation at a time
                group = [i for i, sample in enumerate(samples) if _is_wide(sample) is wide]
                if group:
                    detections = self.predict(collate([samples[i] for i in group], self.canvas))
                    found |= dict(
                        zip(group, self._split(detections, samples, group, score, chunk), strict=True)
                    )
            yield from (found[i] for i in range(len(chunk)))

    def predict(self, batch: Batch) -> Detections:
        """Padded detections of a batch, in pixels of its canvas, on the detector's device."""
        moved = place(Batch(batch.images, batch.sizes), self.device, self.precision.channels_last)
        with torch.inference_mode(), self.precision.autocast(self.device):
            return self.model.predict(moved.images, moved.sizes)  # pyright: ignore[reportCallIssue]

    def _sample(self, picture: Picture, number: int) -> Sample:
        if isinstance(picture, str | os.PathLike):
            image, size = decode_reduced(picture, self._needed)
        else:
            image = to_pil(picture)
            size = (image.height, image.width)
        boxes = tv_tensors.BoundingBoxes(torch.zeros(0, 4), format="XYXY", canvas_size=size)  # pyright: ignore
        sample: Sample = {
            "image": image_tensor(image),
            "boxes": boxes,
            "labels": torch.zeros(0, dtype=torch.int64),
            "ignore": torch.zeros(0, dtype=torch.bool),
            "image_id": number,
            "original_size": size,
            "file": str(picture) if isinstance(picture, str | os.PathLike) else f"image {number}",
        }
        generator = torch.Generator().manual_seed(0)
        for transform in self.transforms:
            sample = transform(sample, generator)
        return sample

    def _split(
        self,
        detections: Detections,
        samples: Sequence[Sample],
        group: Sequence[int],
        score: float,
        pictures: Sequence[Picture],
    ) -> Iterator[ImageDetections]:
        """Padded detections of a batch as one result for each of its images."""
        sizes = torch.tensor([tuple(samples[i]["image"].shape[-2:]) for i in group])
        originals = torch.tensor([samples[i]["original_size"] for i in group])
        boxes = to_original(detections.boxes, sizes, originals).cpu()
        scores, labels, valid = (
            value.cpu() for value in (detections.scores.float(), detections.labels, detections.valid)
        )
        for row, i in enumerate(group):
            kept = valid[row] & (scores[row] >= score)
            size = samples[i]["original_size"]
            masks = None
            if detections.masks is not None:
                masks = paste(detections.masks[row].float().cpu()[kept], boxes[row, kept], *size)
            yield ImageDetections(
                boxes[row, kept],
                scores[row, kept],
                labels[row, kept],
                self.label_map,
                size,
                masks,
                pictures[i],
            )


def prepare(model: nn.Module, device: torch.device, precision: Precision) -> nn.Module:
    """The model as a `Detector` predicts with it, in place.

    Values differ in the last bits from those of the model as it was built: norms with fixed statistics are
    folded in float32, too. What is made of kernels for it (folded, cast, sorted) is kept and takes up to
    twice as much memory again.

    Args:
        model: has `predict(images, sizes)`.
        device: where to predict.
        precision: to predict in.
    """
    place_model(model.eval(), device, precision.channels_last)
    set_folding(model, "always")
    settle(model)
    return model


def pictures_of(source: Picture | Iterable[Picture]) -> tuple[list[Picture], bool]:
    """The single images of a source, and whether it is just one image.

    Raises:
        DataError: a path does not exist, or a folder holds no images.
    """
    if isinstance(source, str | os.PathLike):
        path = Path(source)
        if path.parts[:1] in WEB:
            raise DataError(f"{source}: images are not fetched from the web; download it and give its path")
        if not path.exists():
            raise DataError(f"{path} does not exist; check the path")
        if not path.is_dir():
            return [path], True
        files = sorted(p for p in path.iterdir() if p.suffix.lower() in IMAGE_SUFFIXES)
        if not files:
            raise DataError(f"{path}: the folder holds no images ({', '.join(sorted(IMAGE_SUFFIXES))})")
        return list(files), False
    if isinstance(source, Image.Image) or (isinstance(source, np.ndarray | Tensor) and source.ndim <= 3):
        return [source], True
    if isinstance(source, np.ndarray | Tensor):
        return [source[i] for i in range(len(source))], False
    if not isinstance(source, Iterable):
        raise DataError(
            f"cannot predict on a {type(source).__name__}; give a path, image, array, tensor or list"
        )
    return [picture for item in source for picture in pictures_of(item)[0]], False


def to_pil(picture: Picture) -> Image.Image:
    """One image as a PIL image of mode RGB.

    Raises:
        DataError: it cannot be read, or its shape or type is not that of an image.
    """
    if isinstance(picture, str | os.PathLike):
        return decode_image(picture)
    if isinstance(picture, Image.Image):
        return _to_rgb(picture)
    pixels = picture.detach().cpu() if isinstance(picture, Tensor) else _to_tensor(picture)
    if isinstance(picture, Tensor):
        if pixels.ndim != 3 or pixels.shape[0] != 3:
            raise DataError(f"a tensor of shape {tuple(pixels.shape)} is no image; give (3, H, W), RGB")
        if pixels.is_floating_point():
            if not bool(((pixels >= 0) & (pixels <= 1)).all()):
                raise DataError("a float tensor must lie in 0..1; give uint8 for 0..255")
            pixels = (pixels * 255).round().to(torch.uint8)
        pixels = pixels.permute(1, 2, 0)
    if pixels.ndim != 3 or pixels.shape[2] != 3 or pixels.dtype != torch.uint8 or not pixels.numel():
        raise DataError(
            f"an array of shape {tuple(pixels.shape)} and type {str(pixels.dtype).removeprefix('torch.')} "
            "is no image; give (H, W, 3) uint8 in RGB order"
        )
    return Image.fromarray(pixels.numpy())


def _to_rgb(image: Image.Image) -> Image.Image:
    """A PIL image as RGB; one that was only opened is read now, and may be damaged."""
    try:
        image.load()
        return to_eight_bits(image).convert("RGB")
    except Exception as error:  # decoders raise OSError, SyntaxError, ValueError, struct.error and others
        raise DataError(f"the image {getattr(image, 'filename', '')!r} cannot be read ({error})") from error


def _to_tensor(array: np.ndarray) -> Tensor:
    """An array as a tensor of the same type, which need not be that of an image."""
    try:
        return torch.from_numpy(np.array(array))
    except TypeError as error:
        raise DataError(
            f"an array of type {np.asarray(array).dtype} is no image; give (H, W, 3) uint8 in RGB order"
        ) from error


def _is_wide(sample: Sample) -> bool:
    return sample["original_size"][1] >= sample["original_size"][0]
