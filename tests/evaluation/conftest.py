"""Small data sets and results for the evaluation tests."""

import numpy as np
import pytest


@pytest.fixture
def truth() -> dict:
    """Three images, two classes (ids 3 and 7), one crowd region, one image without objects."""
    boxes = [
        (1, 3, [10, 10, 20, 20]),
        (1, 7, [40, 10, 40, 50]),
        (2, 3, [5, 5, 30, 10]),
        (2, 3, [50, 50, 40, 40]),
    ]
    annotations = [
        {"id": i, "image_id": image, "category_id": c, "bbox": box, "area": box[2] * box[3], "iscrowd": 0}
        for i, (image, c, box) in enumerate(boxes)  # the first id is 0 on purpose
    ]
    crowd = {"id": 9, "image_id": 1, "category_id": 3, "bbox": [0, 60, 90, 30], "area": 2700, "iscrowd": 1}
    return {
        "images": [{"id": i, "width": 100, "height": 100, "file_name": f"{i}.jpg"} for i in (1, 2, 3)],
        "annotations": [*annotations, crowd],
        "categories": [{"id": 3, "name": "cat"}, {"id": 7, "name": "dog"}],
    }


@pytest.fixture
def perfect(truth) -> list[dict]:
    """The ground truth as detections."""
    return [
        {key: a[key] for key in ("image_id", "category_id", "bbox")} | {"score": 0.9 - 0.1 * i}
        for i, a in enumerate(truth["annotations"])
        if not a["iscrowd"]
    ]


@pytest.fixture
def random_set():
    """The function that makes a random data set and results."""
    return make_random_set


def make_random_set(seed: int, masks: bool = False) -> tuple[dict, list[dict]]:
    """A data set with crowds, empty images and all sizes, and results that partly find its objects."""
    from faster_coco_eval.core import mask

    rng = np.random.default_rng(seed)
    images = [{"id": 10 + i, "width": 300, "height": 200} for i in range(8)]
    annotations, results = [], []

    def rle(x, y, w, h):
        pixels = np.zeros((200, 300), np.uint8, order="F")
        pixels[int(y) : int(y + h) + 1, int(x) : int(x + w) + 1] = 1
        pixels[int(y + h / 2) :, : int(x + w / 2)] = 0  # not a plain rectangle
        return mask.encode(pixels)

    for image in images[:-1]:
        for _ in range(rng.integers(0, 9)):
            w, h = rng.choice([15, 50, 120], 2) * rng.uniform(0.5, 1, 2)
            x, y = rng.uniform(0, 300 - w), rng.uniform(0, 200 - h)
            category = int(rng.integers(1, 4))
            entry = {"image_id": image["id"], "category_id": category, "bbox": [x, y, w, h]}
            shape = {"segmentation": rle(x, y, w, h)} if masks else {}
            area = float(mask.area(shape["segmentation"])) if masks else w * h
            crowd = int(rng.uniform() < 0.1)
            annotations.append({**entry, **shape, "id": len(annotations) + 1, "area": area, "iscrowd": crowd})
            for _ in range(rng.integers(0, 3)):
                dx, dy, dw, dh = rng.normal(0, 0.12, 4) * [w, h, w, h]
                box = [max(x + dx, 0), max(y + dy, 0), max(w + dw, 2), max(h + dh, 2)]
                shape = {"segmentation": rle(*box)} if masks else {}
                found = category if rng.uniform() < 0.8 else int(rng.integers(1, 4))
                score = round(float(rng.uniform()), 2)
                results.append({**entry, **shape, "category_id": found, "bbox": box, "score": score})
    categories = [{"id": i, "name": f"class {i}"} for i in (1, 2, 3, 4)]
    return {"images": images, "annotations": annotations, "categories": categories}, results
