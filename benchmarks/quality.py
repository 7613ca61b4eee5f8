"""AP after a given wall time on two CPU cores: ours beside torchvision's Faster R-CNN, one run of each.

    python -m benchmarks quality --data datasets/bccd --weights mobilenet_v2.pth --minutes 30

Every detector gets the same pretrained MobileNetV2, the same 640 x 480 images at 320 x 240, batches of 8,
SGD with a cosine schedule that ends with the time. About 15 times it is measured on the validation split; the
weights that do best there are measured on the test images, all by the same evaluator.

Ours is trained by its recipe as it is: in the precision that the processor is fast in, with crops, changed
colours and averaged weights. torchvision flips images, in float32 as its references train on a CPU and, as
`torchvision_bf16`, under autocast (its evaluations are float32). Its pyramid and heads have the widths, the
anchors, the proposals and the samples of ours, and it sees images resized by the same filter in training and
in evaluation. Its norms are frozen; ours keep their statistics and train scale and shift.

The budget of ours holds everything that `boxwright.train` does: the check of the data, these evaluations, the
checkpoints and the report. torchvision's holds its training steps alone, with images decoded and resized
beforehand. So it is in the curve: minutes from the first step on, those of ours with its evaluations, those
of torchvision without.

`curve.csv` and `curve.png` show the AP on the validation split against the time.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import statistics
import time
from pathlib import Path
from typing import Any

import torch
import torchvision
from torchvision.models.detection import FasterRCNN
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.backbone_utils import BackboneWithFPN
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.ops import MultiScaleRoIAlign
from torchvision.ops.misc import FrozenBatchNorm2d
from torchvision.transforms.v2.functional import pil_to_tensor

import boxwright as bw
from boxwright.data import Table, decode_image, folder
from boxwright.engine.precision import resolve_precision
from boxwright.evaluation import evaluate_results

BATCH = 8
SIZE = (320, 240)
"""Width and height of the images as torchvision's detector gets them."""

EVALUATIONS = 15
LABELS = {
    "torchvision": "torchvision Faster R-CNN (float32)",
    "torchvision_bf16": "torchvision Faster R-CNN (bf16)",
}
"""What torchvision's runs are called in the picture and in the table."""


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
    lines = read_lines(out / f"{name}_pace" / "metrics.jsonl")
    epoch, evaluation = steps * seconds_per_step(lines), seconds_of_evaluation(lines)
    once = whole - 2 * epoch - evaluation  # start, check, report
    experiment.epochs = epochs_within(0.97 * seconds - once, epoch, evaluation)
    experiment.evaluate_every = math.ceil(experiment.epochs / EVALUATIONS)
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


def seconds_per_step(lines: list[dict[str, Any]]) -> float:
    """Median pace of a run from its own log."""
    return statistics.median(BATCH / line["images_per_second"] for line in lines if line["kind"] == "train")


def seconds_of_evaluation(lines: list[dict[str, Any]]) -> float:
    """What the last evaluation of a run took, from its own log."""
    last = {line["kind"]: line["seconds"] for line in lines}
    return last["val"] - last["train"]


def epochs_within(seconds: float, epoch: float, evaluation: float) -> int:
    """How many epochs, one at least, fit into a time with the evaluations between them."""
    fitting = int((seconds - EVALUATIONS * evaluation) / epoch)
    if fitting < EVALUATIONS:  # then each epoch is evaluated
        fitting = int(seconds / (epoch + evaluation))
    return max(1, fitting)


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The records of a `metrics.jsonl`."""
    return [json.loads(line) for line in path.read_text().splitlines()]


def write_curve(out: Path, name: str, points: list[tuple[float, float]]) -> None:
    """Write minutes and validation AP to `curve.csv`, instead of the name's former ones."""
    out.mkdir(parents=True, exist_ok=True)
    path = out / "curve.csv"
    former = path.read_text().splitlines(keepends=True) if path.exists() else []
    kept = [line for line in former if not line.startswith(f"{name},")]
    path.write_text("".join([*kept, *(f"{name},{minutes:.2f},{ap:.4f}\n" for minutes, ap in points)]))


def plot_curves(out: Path) -> Path:
    """Draw all curves of `curve.csv`, torchvision's dashed, into `curve.png`."""
    import matplotlib.pyplot as plt

    curves: dict[str, list[tuple[float, float]]] = {}
    for line in (out / "curve.csv").read_text().splitlines():
        name, minutes, ap = line.split(",")
        curves.setdefault(name, []).append((float(minutes), float(ap)))
    figure, axes = plt.subplots(figsize=(7, 4), layout="constrained")
    for name, points in curves.items():
        line = "--" if name.startswith("torchvision") else "-"
        axes.plot(*zip(*points, strict=True), line, marker="o", markersize=3, label=label(name))
    axes.set(xlabel="minutes (ours: with its evaluations; torchvision: its steps alone)")
    axes.set(ylabel="AP on the validation split", ylim=(0, None))
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
    backbone = BackboneWithFPN(network.features, levels, [32, 96, 320], 128)
    return FasterRCNN(
        backbone,
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
        box_head=TwoMLPHead(128 * 49, 512),
        box_predictor=FastRCNNPredictor(512, num_classes + 1),
    )


def measure_torchvision(name: str, data: Path, weights: Path, seconds: float, out: Path) -> dict[str, float]:
    """Train torchvision's detector for that long and measure its best weights on the test split."""
    opened = folder(data)
    torch.manual_seed(0)
    model = torchvision_detector(weights, len(opened.label_map)).train()
    images = [read(opened.train, i) for i in range(len(opened.train))]
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(parameters, lr=0.02, momentum=0.9, weight_decay=1e-4)

    def step(number: int, total: int) -> None:
        lr = 0.02 * min(1.0, (number + 1) / 100) * (1 + math.cos(math.pi * number / total)) / 2
        for group in optimizer.param_groups:
            group["lr"] = lr
        chosen = torch.randint(len(images), (BATCH,)).tolist()
        pairs = [sample(images[i], opened.train, i, flip=torch.rand(()).item() < 0.5) for i in chosen]
        with torch.autocast("cpu", torch.bfloat16, enabled=name.endswith("bf16")):
            losses = model([image for image, _ in pairs], [target for _, target in pairs])
        optimizer.zero_grad()
        torch.stack([value.float() for value in losses.values()]).sum().backward()
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
    write_curve(out, name, points)
    model.load_state_dict(best[1])
    return {"minutes": passed / 60, "steps": done} | evaluate_torchvision(model, opened.test or opened.val)


def read(table: Table, index: int) -> torch.Tensor:
    """The pixels of an image as torchvision's detector gets them, in training and in evaluation."""
    return pil_to_tensor(decode_image(table[index].file).resize(SIZE))


def sample(
    image: torch.Tensor, table: Table, index: int, flip: bool
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """An image in 0..1 and its targets as torchvision wants them: background is label 0."""
    record = table[index]
    scale = torch.tensor([SIZE[0] / record.width, SIZE[1] / record.height]).repeat(2)
    keep = ~torch.from_numpy(record.ignore.copy())
    boxes = torch.from_numpy(record.boxes.copy())[keep] * scale
    if flip:
        image = image.flip(-1)
        boxes = torch.stack((SIZE[0] - boxes[:, 2], boxes[:, 1], SIZE[0] - boxes[:, 0], boxes[:, 3]), -1)
    labels = torch.from_numpy(record.labels.copy())[keep] + 1
    return image.float() / 255, {"boxes": boxes.reshape(-1, 4), "labels": labels}


def evaluate_torchvision(model: FasterRCNN, table: Table | None) -> dict[str, float]:
    """COCO metrics of a torchvision detector, by our evaluator."""
    assert table is not None
    model.eval()
    results = []
    for index in range(len(table)):
        record = table[index]
        with torch.inference_mode():
            found = model([read(table, index).float() / 255])[0]
        scale = torch.tensor([record.width / SIZE[0], record.height / SIZE[1]]).repeat(2)
        rows = zip(
            (found["boxes"] * scale).tolist(), found["scores"].tolist(), found["labels"].tolist(), strict=True
        )
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
    parser.add_argument(
        "--only",
        nargs="*",
        default=["faster_rcnn_mnv2_320", "torchvision", "torchvision_bf16", "fcos_mnv2_320"],
    )
    arguments = parser.parse_args()
    seconds = arguments.minutes * 60
    machine = f"{os.cpu_count()} cores, {platform.machine()}, torch {torch.__version__}"
    print(f"{machine}, torchvision {torchvision.__version__}, {arguments.minutes} minutes each", flush=True)
    for name in arguments.only:
        measure = measure_torchvision if name.startswith("torchvision") else measure_ours
        row = measure(name, arguments.data, arguments.weights, seconds, arguments.out)
        print(table_row(name, arguments.minutes, row), flush=True)
        arguments.out.mkdir(parents=True, exist_ok=True)
        with (arguments.out / "rows.jsonl").open("a") as file:
            file.write(
                json.dumps({"name": name, "machine": machine, "budget": arguments.minutes, **row}) + "\n"
            )
    print(plot_curves(arguments.out))


def label(name: str) -> str:
    """A detector and the precision that it is trained in, in words."""
    return LABELS.get(name) or f"{name} ({resolve_precision('auto', 'cpu').name})"


def table_row(name: str, budget: float, row: dict[str, float]) -> str:
    """The row of a Markdown table: detector, budget, minutes, steps, AP, AP50, AP75."""
    aps = " | ".join(f"{row[key]:.3f}" for key in ("AP", "AP50", "AP75"))
    return f"| {label(name)} | {budget:g} | {row['minutes']:.2f} | {row['steps']} | {aps} |"
