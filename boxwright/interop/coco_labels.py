"""The classes of COCO detection, which published detectors are trained for."""

from __future__ import annotations

from ..labels import LabelMap

_WITHOUT = {12, 26, 29, 30, 45, 66, 68, 69, 71, 83}
"""Numbers of 1 to 90 that COCO's annotations do not use."""

COCO = LabelMap(
    (
        *("person", "bicycle", "car", "motorcycle", "airplane", "bus", "train", "truck", "boat"),
        *("traffic light", "fire hydrant", "stop sign", "parking meter", "bench", "bird", "cat", "dog"),
        *("horse", "sheep", "cow", "elephant", "bear", "zebra", "giraffe", "backpack", "umbrella"),
        *("handbag", "tie", "suitcase", "frisbee", "skis", "snowboard", "sports ball", "kite"),
        *("baseball bat", "baseball glove", "skateboard", "surfboard", "tennis racket", "bottle"),
        *("wine glass", "cup", "fork", "knife", "spoon", "bowl", "banana", "apple", "sandwich", "orange"),
        *("broccoli", "carrot", "hot dog", "pizza", "donut", "cake", "chair", "couch", "potted plant"),
        *("bed", "dining table", "toilet", "tv", "laptop", "mouse", "remote", "keyboard", "cell phone"),
        *("microwave", "oven", "toaster", "sink", "refrigerator", "book", "clock", "vase", "scissors"),
        *("teddy bear", "hair drier", "toothbrush"),
    ),
    tuple(i for i in range(1, 91) if i not in _WITHOUT),
)
"""Names in the order of the contiguous label, and the numbers of the annotation files."""
