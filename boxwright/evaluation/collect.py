"""From padded predictions on the canvas to detections in pixels of the image file, kept as columns."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from torch import Tensor

from ..distributed import gather_objects
from ..errors import ConfigError, DataError, TrainingError
from ..labels import LabelMap
from ..ops.masks import paste
from ..structures import Batch, Detections
from .columns import Found, Record


class ResultCollector:
    """Base of the evaluators: takes batches of predictions, keeps the detections of each image.

    Args:
        ground_truth: COCO data set; says which images and categories there are.
        label_map: what the detector's labels mean; its source ids become the records' category ids.
        masks: also keep the masks, as run-length encodings of the original image's size.

    Raises:
        DataError: a class of the label map is not the ground truth's class of that id.
    """

    def __init__(self, ground_truth: Mapping[str, Any], label_map: LabelMap, masks: bool = False) -> None:
        check_classes(ground_truth, label_map)
        self.ground_truth = ground_truth
        self.label_map = label_map
        self.masks = masks
        self._known = {image["id"] for image in ground_truth["images"]}
        self._by_image: dict[int, Found] = {}

    def reset(self) -> None:
        """Forget all predictions."""
        self._by_image = {}

    def update(self, batch: Batch, detections: Detections) -> None:
        """Take the predictions for one batch.

        Args:
            batch: says which images these are (`image_ids`; -1 is a padding repeat and skipped), their sizes
                on the canvas and in the file.
            detections: boxes in pixels of the canvas. An image that comes again replaces what was
                kept for it.

        Raises:
            DataError: an image that the ground truth does not know, or a batch without ids or original sizes.
            TrainingError: boxes or scores that are not finite.
            ConfigError: masks are to be measured and the detector predicts none.
        """
        if batch.original_sizes is None or len(batch.image_ids) != len(batch.sizes):
            raise DataError(
                "a batch to be evaluated needs image_ids and original_sizes; load it with a Table's Loader"
            )
        if self.masks and detections.masks is None:
            raise ConfigError(
                "metric 'segm' needs masks and this detector predicts none; use metrics=('bbox',)"
            )
        unknown = sorted(set(batch.image_ids) - self._known - {-1})
        if unknown:
            raise DataError(
                f"image {unknown[0]} is not in the ground truth; evaluate with the annotations of that split"
            )
        boxes = to_original(detections.boxes, batch.sizes, batch.original_sizes).cpu()
        scores, labels, valid = (
            t.detach().cpu() for t in (detections.scores.float(), detections.labels, detections.valid)
        )
        masks = (
            detections.masks.detach().float().cpu() if self.masks and detections.masks is not None else None
        )
        for i, (image_id, size) in enumerate(
            zip(batch.image_ids, batch.original_sizes.tolist(), strict=True)
        ):
            if image_id == -1:
                continue
            kept = valid[i]
            if not (boxes[i, kept].isfinite().all() and scores[i, kept].isfinite().all()):
                raise TrainingError(
                    f"image {image_id}: predicted boxes or scores are not finite; the weights have diverged, "
                    "go on from an earlier checkpoint with a lower learning rate"
                )
            self._by_image[image_id] = to_columns(
                image_id, boxes[i, kept], scores[i, kept], labels[i, kept], self.label_map,
                None if masks is None else encode(paste(masks[i, kept], boxes[i, kept], *size)),
            )  # fmt: skip

    @property
    def results(self) -> list[Record]:
        """COCO result records of this rank (of all ranks, after `gather`), ordered by image id."""
        return self._found().records()

    def _found(self) -> Found:
        parts = [self._by_image[image_id] for image_id in sorted(self._by_image)]
        return Found.join([part for part in parts if len(part)] or parts[:1])

    def gather(self) -> Found:
        """The detections of all ranks, each image once; every rank must call it, and then holds them all."""
        merged: dict[int, Found] = {}
        for by_image in gather_objects(self._by_image):
            merged = {**by_image, **merged}  # an image that two ranks saw: the lower rank's predictions
        self._by_image = merged
        return self._found()


def to_original(boxes: Tensor, sizes: Tensor, original_sizes: Tensor) -> Tensor:
    """Boxes on the canvas in pixels of the image files.

    Args:
        boxes: `(B, K, 4)` xyxy.
        sizes: `(B, 2)` height and width of each image on the canvas.
        original_sizes: `(B, 2)` of each file.

    Returns:
        `(B, K, 4)` float32, scaled by the exact factor of each axis and clipped to the image.
    """
    original = original_sizes.to(boxes.device).double()
    factors = original / sizes.to(boxes.device).double()  # (B, 2) height, width
    scaled = boxes.detach().double() * factors.flip(1).repeat(1, 2)[:, None]
    limits = original.flip(1).repeat(1, 2)[:, None].expand_as(scaled)
    return scaled.clamp(min=0.0).minimum(limits).float()


def to_columns(
    image_id: int,
    boxes: Tensor,
    scores: Tensor,
    labels: Tensor,
    label_map: LabelMap,
    rles: list[Record] | None = None,
) -> Found:
    """The detections of one image.

    Args:
        image_id: the image's id in the data set.
        boxes: `(K, 4)` xyxy in pixels of the file.
        scores: `(K,)`.
        labels: `(K,)` 0 .. C-1.
        label_map: gives the category ids.
        rles: K masks (see `encode`).
    """
    corners = boxes.double().numpy()
    return Found(
        images=np.full(len(corners), image_id, dtype=np.int64),
        categories=np.asarray(label_map.source_ids, dtype=np.int64)[labels.numpy()],
        boxes=np.concatenate((corners[:, :2], corners[:, 2:] - corners[:, :2]), axis=1),
        scores=scores.double().numpy(),
        masks=None if rles is None else tuple(rles),
    )


def encode(masks: Tensor | np.ndarray) -> list[Record]:
    """Run-length encodings of `(K, H, W)` masks (COCO's compressed form, ready for JSON)."""
    from faster_coco_eval.core import mask

    pixels = np.asarray(masks.cpu() if isinstance(masks, Tensor) else masks).astype(np.uint8)
    if not len(pixels):
        return []
    rles = mask.encode(np.asfortranarray(pixels.transpose(1, 2, 0)))
    text = (
        rle["counts"].decode("ascii") if isinstance(rle["counts"], bytes) else rle["counts"] for rle in rles
    )
    return [
        {"size": [int(v) for v in rle["size"]], "counts": counts}
        for rle, counts in zip(rles, text, strict=True)
    ]


def check_classes(ground_truth: Mapping[str, Any], label_map: LabelMap) -> None:
    """Whether each class of a label map is the ground truth's class of that id.

    Raises:
        DataError: an id is missing or names another class there.
    """
    names = {category["id"]: category.get("name") for category in ground_truth["categories"]}
    for name, source_id in zip(label_map.names, label_map.source_ids, strict=True):
        if source_id not in names:
            raise DataError(
                f"class {name!r} has id {source_id}, which the ground truth lacks (it has {sorted(names)}); "
                "evaluate on data with the classes that the detector was trained for"
            )
        if names[source_id] is not None and str(names[source_id]) != name:
            raise DataError(
                f"id {source_id} is class {name!r} to the detector but {names[source_id]!r} in the ground "
                "truth; evaluate on data with the classes that the detector was trained for"
            )
