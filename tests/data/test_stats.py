from pathlib import Path

import pytest
import rich

from boxwright.data import folder, statistics
from boxwright.data.stats import bar


def test_counts(coco_folder: Path, capsys: pytest.CaptureFixture) -> None:
    numbers = statistics(folder(coco_folder))
    split = numbers.splits["train"]
    assert (split.images, split.images_without_objects, split.objects, split.ignore) == (3, 1, 2, 1)
    assert split.per_class == (1, 1)
    assert (split.small, split.medium, split.large) == (2, 0, 0)
    assert sum(split.sizes) == sum(split.aspects) == 2
    assert split.aspects[4] == 1  # 10 x 8
    rich.print(numbers)
    assert "dog" in capsys.readouterr().out


def test_real_counts(shared_data: Path) -> None:
    data = folder(shared_data / "bccd", train="trainval", test="test")
    numbers = statistics(data)
    total = [sum(s.per_class[i] for s in numbers.splits.values()) for i in range(3)]
    assert dict(zip(numbers.names, total, strict=True)) == {
        "Platelets": 361,
        "RBC": 4153,
        "WBC": 372,
    }  # two empty RBC boxes were dropped


def test_no_objects(coco_folder: Path) -> None:
    path = coco_folder / "annotations" / "instances_train2017.json"
    images, categories = '[{"id": 1, "file_name": "a.jpg"}]', '[{"id": 1, "name": "x"}]'
    path.write_text(f'{{"images": {images}, "annotations": [], "categories": {categories}}}')
    split = statistics(folder(coco_folder)).splits["train"]
    assert (split.objects, split.per_class, split.per_image) == (0, (0,), (0.0, 0))


def test_bar() -> None:
    assert bar(0, 10) == ""
    assert bar(10, 10, 4) == "████"
    assert bar(5, 10, 3) == "█▌"
    assert bar(0, 0) == ""
