"""Fixtures shared by all tests."""

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import settings
from PIL import Image

# The same examples each time, so that a failure is a change's; `--hypothesis-profile default` draws new ones.
settings.register_profile("repeatable", derandomize=True, deadline=None)
settings.load_profile("repeatable")

sys.path.insert(0, str(Path(__file__).with_name("support")))  # what tests of several folders import

SHARED = Path(__file__).resolve().parents[2] / "shared"


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Folder of small real data sets beside the checkout; tests that use it skip where it is absent."""
    path = SHARED / "data"
    if not path.is_dir():
        pytest.skip("no shared data beside the checkout")
    return path


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Tests neither read nor leave anything in the user's cache."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("BOXWRIGHT_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="session")
def tiny_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A COCO folder of eight 64 x 48 images with one bright rectangle each, as `train` and as `val`."""
    root = tmp_path_factory.mktemp("tiny_data")
    (root / "images").mkdir()
    (root / "annotations").mkdir()
    generator = np.random.default_rng(0)
    images, annotations = [], []
    for i in range(8):
        pixels = generator.integers(0, 60, (48, 64, 3), dtype=np.uint8)
        x, y = (int(v) for v in generator.integers(0, 24, 2))
        pixels[y : y + 20, x : x + 24, i % 2] = 250
        Image.fromarray(pixels).save(root / "images" / f"{i}.png")
        outline = [[x, y, x + 24, y, x + 24, y + 20, x, y + 20]]
        images.append({"id": i + 1, "file_name": f"{i}.png", "width": 64, "height": 48})
        box = {"bbox": [x, y, 24, 20], "area": 480, "iscrowd": 0, "segmentation": outline}
        annotations.append({"id": i + 1, "image_id": i + 1, "category_id": 3 + i % 2, **box})
    categories = [{"id": 3, "name": "red"}, {"id": 4, "name": "green"}]
    content = {"images": images, "annotations": annotations, "categories": categories}
    for split in ("train", "val"):
        (root / "annotations" / f"instances_{split}.json").write_text(json.dumps(content))
    return root
