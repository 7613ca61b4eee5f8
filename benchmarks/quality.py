"""AP after a given wall time on two CPU cores: ours beside torchvision's Faster R-CNN.

    python -m benchmarks quality --data datasets/bccd --weights mobilenet_v2.pth --minutes 30

Every detector gets the same pretrained MobileNetV2, the same 640 x 480 images at 320 x 240, batches of 8,
SGD with a cosine schedule that ends with the time. About 15 times it is measured on the validation split; the
weights that do best there are measured on the test images, all by the same evaluator. Ours is trained by its
recipe as it is, and charged for everything that `boxwright.train` does: the check of the data, these
evaluations, the checkpoints and the report. torchvision flips images, and is charged for its training steps
alone, in float32 as its references train on a CPU, with its images decoded and resized beforehand; its
proposals and samples are cut to the numbers of ours.

`curve.csv` and `curve.png` show the AP on the validation split against the time.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import time
from pathlib import Path
from typing import Any

import torch
import torchvision
from torchvision.models.detection import FasterRCNN
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.backbone_utils import BackboneWithFPN
from torchvision.ops import MultiScaleRoIAlign
from torchvision.ops.misc import FrozenBatchNorm2d
from torchvision.transforms.v2.functional import pil_to_tensor

import boxwright as bw
from boxwright.data import Table, decode_image, folder
from boxwright.evaluation import evaluate_results

BATCH = 8
EVALUATIONS = 15


def measure_ours(name: str, data: Path, weights: Path, seconds: float, out: Path) -> dict[str, float]:
    """Train a recipe for about that long, as a user would, and measure it on the test split."""
    experiment = bw.recipe(name)
    experiment.data = folder(data)
    experiment.model.backbone.weights = str(weights)
    experiment.evaluate_every = 10_000
    steps = math.ceil(len(folder(data).train) / BATCH)
    experiment.epochs = 2
    start = time.perf_counter()
    bw.train(experiment, out / f"{name}_pace", console=False)
    whole = time.perf_counter() - start
    pace = seconds_per_step(out / f"{name}_pace" / "metrics.jsonl")
    rest = whole - pace * 2 * steps  # start, check, evaluation, report
    experiment.epochs = max(1, int(0.95 * (seconds - rest) / (pace * steps)))
    experiment.evaluate_every = max(1, experiment.epochs // EVALUATIONS)
    start = time.perf_counter()
    run = bw.train(experiment, out / name)
    wall = time.perf_counter() - start
    measured = bw.evaluate(run, split="test", out=out / f"{name}_test")
    points = [
        (line["seconds"] / 60, line["bbox/AP"])
        for line in read_lines(out / name / "metrics.jsonl")
        if line["kind"] == "val"
    ]
    write_curve(out, name, points)
    return {"minutes": wall / 60, "steps": experiment.epochs * steps} | select(measured)


def seconds_per_step(metrics: Path) -> float:
    """Median pace of a run from its own log."""
    paces = sorted(
        BATCH / line["images_per_second"] for line in read_lines(metrics) if line["kind"] == "train"
    )
    return paces[len(paces) // 2]


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The records of a `metrics.jsonl`."""
    return [json.loads(line) for line in path.read_text().splitlines()]


def write_curve(out: Path, name: str, points: list[tuple[float, float]]) -> None:
    """Append minutes and validation AP to `curve.csv`."""
    out.mkdir(parents=True, exist_ok=True)
    with (out / "curve.csv").open("a") as file:
        file.writelines(f"{name},{minutes:.2f},{ap:.4f}\n" for minutes, ap in points)


def plot_curves(out: Path) -> Path:
    """Draw all curves of `curve.csv` into `curve.png`."""
    import matplotlib.pyplot as plt

    curves: dict[str, list[tuple[float, float]]] = {}
    for line in (out / "curve.csv").read_text().splitlines():
        name, minutes, ap = line.split(",")
        curves.setdefault(name, []).append((float(minutes), float(ap)))
    figure, axes = plt.subplots(figsize=(7, 4), layout="constrained")
    for name, points in curves.items():
        axes.plot(*zip(*points, strict=True), marker="o", markersize=3, label=name)
    axes.set(xlabel="minutes", ylabel="AP on the validation split")
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(out / "curve.png", dpi=120)
    plt.close(figure)
    return out / "curve.png"


def torchvision_detector(weights: Path, num_classes: int) -> FasterRCNN:
    """The Faster R-CNN of torchvision, with a pyramid on MobileNetV2, sized as `faster_rcnn_mnv2_320`."""
    network = torchvision.models.mobilenet_v2(norm_layer=FrozenBatchNorm2d)
    state = torch.load(weights, weights_only=True)
    network.load_state_dict({k: v for k, v in state.items() if not k.endswith("num_batches_tracked")})
    levels = {"6": "0", "13": "1", "17": "2"}  # strides 8, 16, 32
    backbone = BackboneWithFPN(network.features, levels, [32, 96, 320], 256)
    return FasterRCNN(
        backbone,
        num_classes + 1,
        min_size=240,
        max_size=320,
        rpn_anchor_generator=AnchorGenerator(
            ((16, 32), (32, 64), (64, 128), (128, 256)), ((0.5, 1.0, 2.0),) * 4
        ),
        rpn_pre_nms_top_n_train=500,
        rpn_post_nms_top_n_train=300,
        rpn_pre_nms_top_n_test=1000,
        rpn_post_nms_top_n_test=300,
        box_batch_size_per_image=128,
        box_roi_pool=MultiScaleRoIAlign(["0", "1", "2"], 7, 2, canonical_scale=112),
    )


def measure_torchvision(data: Path, weights: Path, seconds: float, out: Path) -> dict[str, float]:
    """Train torchvision's detector for that long and measure its best weights on the test split."""
    opened = folder(data)
    torch.manual_seed(0)
    model = torchvision_detector(weights, len(opened.label_map)).train()
    images = [
        pil_to_tensor(decode_image(opened.train[i].file).resize((320, 240))) for i in range(len(opened.train))
    ]
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(parameters, lr=0.02, momentum=0.9, weight_decay=1e-4)

    def step(number: int, total: int) -> None:
        lr = 0.02 * min(1.0, (number + 1) / 100) * (1 + math.cos(math.pi * number / total)) / 2
        for group in optimizer.param_groups:
            group["lr"] = lr
        chosen = torch.randint(len(images), (BATCH,)).tolist()
        pairs = [sample(images[i], opened.train, i, flip=torch.rand(()).item() < 0.5) for i in chosen]
        losses = model([image for image, _ in pairs], [target for _, target in pairs])
        optimizer.zero_grad()
        sum(losses.values()).backward()  # pyright: ignore[reportAttributeAccessIssue]
        torch.nn.utils.clip_grad_norm_(parameters, 10.0)
        optimizer.step()

    passed, done, total = 0.0, 0, 10_000
    points: list[tuple[float, float]] = []
    best: tuple[float, dict[str, torch.Tensor]] = (-1.0, {})
    while passed < seconds:
        start = time.perf_counter()
        if done >= 5:  # the schedule ends when the time does
            total = max(done + 1, round(done * seconds / passed))
        step(done, total)
        done += 1
        passed += time.perf_counter() - start
        if passed >= min(seconds, (len(points) + 1) * seconds / EVALUATIONS):
            ap = evaluate_torchvision(model, opened.evaluation)["AP"]
            points.append((passed / 60, ap))
            if ap >= best[0]:
                best = ap, {key: value.clone() for key, value in model.state_dict().items()}
            model.train()
    write_curve(out, "torchvision", points)
    model.load_state_dict(best[1])
    return {"minutes": passed / 60, "steps": done} | evaluate_torchvision(model, opened.test or opened.val)


def sample(
    image: torch.Tensor, table: Table, index: int, flip: bool
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """An image in 0..1 and its targets as torchvision wants them: background is label 0."""
    record = table[index]
    scale = 320 / record.width
    keep = ~torch.from_numpy(record.ignore.copy())
    boxes = torch.from_numpy(record.boxes.copy())[keep] * scale
    if flip:
        image = image.flip(-1)
        boxes = torch.stack((320 - boxes[:, 2], boxes[:, 1], 320 - boxes[:, 0], boxes[:, 3]), dim=-1)
    labels = torch.from_numpy(record.labels.copy())[keep] + 1
    return image.float() / 255, {"boxes": boxes.reshape(-1, 4), "labels": labels}


def evaluate_torchvision(model: FasterRCNN, table: Table | None) -> dict[str, float]:
    """COCO metrics of a torchvision detector, by our evaluator."""
    assert table is not None
    model.eval()
    results = []
    for index in range(len(table)):
        record = table[index]
        image = pil_to_tensor(decode_image(record.file)).float() / 255
        with torch.inference_mode():
            found = model([image])[0]
        rows = zip(found["boxes"].tolist(), found["scores"].tolist(), found["labels"].tolist(), strict=True)
        for (x1, y1, x2, y2), score, label in rows:
            category = table.label_map.source_ids[label - 1]
            box = [x1, y1, x2 - x1, y2 - y1]
            results.append(
                {"image_id": record.image_id, "category_id": category, "bbox": box, "score": score}
            )
    return select(evaluate_results(table.to_coco(), results, "bbox").metrics)


def select(metrics: dict[str, float]) -> dict[str, float]:
    """What the table shows."""
    return {key: metrics[f"bbox/{key}"] for key in ("AP", "AP50", "AP75")}


def main() -> None:
    """Measure one after the other, print a table, and append rows to a file."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument(
        "--weights", type=Path, required=True, help="state dict of torchvision's mobilenet_v2"
    )
    parser.add_argument("--minutes", type=float, default=30)
    parser.add_argument("--out", type=Path, default=Path("runs/quality"))
    parser.add_argument("--only", nargs="*", default=["faster_rcnn_mnv2_320", "torchvision", "fcos_mnv2_320"])
    arguments = parser.parse_args()
    seconds = arguments.minutes * 60
    machine = f"{os.cpu_count()} cores, {platform.machine()}, torch {torch.__version__}"
    print(f"{machine}, torchvision {torchvision.__version__}, {arguments.minutes} minutes each", flush=True)
    for name in arguments.only:
        if name == "torchvision":
            row = measure_torchvision(arguments.data, arguments.weights, seconds, arguments.out)
        else:
            row = measure_ours(name, arguments.data, arguments.weights, seconds, arguments.out)
        text = ", ".join(f"{key} {value:.4g}" for key, value in row.items())
        print(f"{name}: {text}", flush=True)
        arguments.out.mkdir(parents=True, exist_ok=True)
        with (arguments.out / "rows.jsonl").open("a") as file:
            file.write(
                json.dumps({"name": name, "machine": machine, "budget": arguments.minutes, **row}) + "\n"
            )
    print(plot_curves(arguments.out))


if __name__ == "__main__":
    main()
