"""Make `docs/scaling.md` and its picture: measured rows, the model on paper, and what papers print."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from . import harness, step_model
from .step_model import Assumptions, Bucket, Work
from .table import BEGIN, END, newest

DOCS = Path(__file__).parents[1] / "docs"
PAGE, PICTURE = DOCS / "scaling.md", DOCS / "images" / "scaling.png"
# MMDetection (arXiv:1906.07155), figure 5: images/s of Mask R-CNN on so many V100s, two images each.
FIGURE_5 = {8: 36.0, 16: 69.0, 32: 129.0, 64: 253.0}
IMAGES = 2  # of a GPU (section 4.1)
DEVICES = (8, 16, 32, 64, 128, 256, 512)
NETWORKS = {"10 Gbit/s": 1.25e9, "25 Gbit/s": 3.125e9, "100 Gbit/s": 12.5e9}
FASTER = 10


def main() -> None:
    """Rewrite what stands between the marks, and draw."""
    PAGE.write_text(render(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
    draw(PICTURE, work_of(read("scaling_compute")), Assumptions())
    print(f"wrote {PAGE} and {PICTURE}")


def render(text: str) -> str:
    """The page with its tables made anew."""
    work, assumed = work_of(read("scaling_compute")), Assumptions()
    parts = {
        "processes": processes(read("scaling")),
        "work": describe(work, assumed),
        "assumptions": assumptions(assumed),
        "figure 5": figure_5(work, assumed),
        "devices": devices(work, assumed),
    }
    for name, part in parts.items():
        begin, end = BEGIN.format(name=name), END.format(name=name)
        before, rest = text.split(begin, 1)
        text = f"{before}{begin}\n\n{part}\n\n{end}{rest.split(end, 1)[1]}"
    return text


def read(name: str) -> list[dict[str, str]]:
    """The newest row of each case."""
    with (harness.ROWS / f"{name}.csv").open(newline="") as file:
        return newest(list(csv.DictReader(file)))


def work_of(rows: Sequence[Mapping[str, str]]) -> Work:
    """A device's share of a step, from the rows of `scaling_compute`."""
    seconds = {row["case"].split()[1]: float(row["seconds"]) for row in rows if "bucket" not in row["case"]}
    buckets = [row for row in rows if " bucket " in row["case"]]
    return Work(
        int(rows[0]["batch"]),
        seconds["forward"],
        seconds["backward"],
        seconds["update"],
        tuple(
            Bucket(int(float(row["value"])), float(row["seconds"]) / seconds["backward"]) for row in buckets
        ),
    )


def table(head: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """A Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(map(str, line))} |" for line in lines)


def processes(rows: Sequence[Mapping[str, str]]) -> str:
    """What was measured on this machine."""
    last = rows[-1]
    about = f"{last['machine']}; torch {last['torch']}, boxwright {last['boxwright']}; {last['date']}"
    cells = []
    for row in rows:
        seconds, value = float(row["seconds"]), float(row["value"])
        pace = f"{int(row['batch']) / seconds:.3g}" if seconds else ""
        shown = f"{value:.0%} {row['note']}" if seconds else f"{value:.1e}: {row['note']}"
        time = f"{seconds:.3g} s (±{float(row['spread']):.0%})" if seconds else ""
        cells.append((row["case"], row["precision"], row["batch"], row["size"], time, pace, shown))
    return f"{about}\n\n" + table(("what", "precision", "batch", "size", "a step", "images/s", ""), cells)


def describe(work: Work, assumed: Assumptions) -> str:
    """The measured parts of a step, and its gradients."""
    parts = {"forward": work.forward, "backward": work.backward, "update": work.update}
    shares = ", ".join(f"{name} {value / work.seconds:.0%}" for name, value in parts.items())
    rows = [
        (i, f"{b.values:,}", f"{4 * b.values / 2**20:.1f} MiB", f"{b.ready:.0%}")
        for i, b in enumerate(work.buckets)
    ]
    total = step_model.gradient_bytes(work, replace(assumed, bytes_per_value=4))
    head = ("bucket", "gradients", "in float32", "ready after this share of the backward pass")
    return f"Shares of a step: {shares}. Gradients: {total / 1e6:.0f} MB in float32.\n\n{table(head, rows)}"


def assumptions(assumed: Assumptions) -> str:
    """All of them."""
    rows = []
    for name, value, why in step_model.listed(assumed):
        large = isinstance(value, int | float) and value > 1000
        rows.append((f"`{name}`", f"{value:,.0f}" if large else value, why.removesuffix(".")))
    return table(("assumption", "value", "meaning"), rows)


def published(work: Work) -> Work:
    """The measured work at the pace of the first point of figure 5."""
    images = IMAGES * 8
    return replace(work, images=IMAGES).taking(images / FIGURE_5[8])


def figure_5(work: Work, assumed: Assumptions) -> str:
    """The model beside MMDetection's figure."""
    work = published(work)
    rows = []
    for n, actual in FIGURE_5.items():
        cells: list[object] = [n, f"{actual:.0f}", f"{actual / (FIGURE_5[8] * n / 8):.0%}"]
        for variant in (replace(assumed, spread=0.0), assumed):
            share = step_model.efficiency(work, n, variant, base=8)
            cells += [f"{FIGURE_5[8] * n / 8 * share:.0f}", f"{share:.0%}"]
        rows.append(cells)
    spread = f"spread {assumed.spread:.0%}"
    head = ("GPUs", "figure 5, images/s", "of linear", "model, no spread", "of linear", f"model, {spread}")
    return table((*head, "of linear"), rows)


def devices(work: Work, assumed: Assumptions) -> str:
    """Share of the linear speed from 8 to 512 devices, by network and by the device's pace."""
    work = published(work)
    columns = {
        f"{name}, {pace}": (replace(assumed, outer_bandwidth=rate), work.taking(work.seconds / factor))
        for pace, factor in (("V100's pace", 1), (f"{FASTER} times the pace", FASTER))
        for name, rate in NETWORKS.items()
    }
    rows = [
        [n, IMAGES * n, *(f"{step_model.efficiency(w, n, a, base=8):.0%}" for a, w in columns.values())]
        for n in DEVICES
    ]
    return table(("devices", "batch", *columns), rows)


def draw(path: Path, work: Work, assumed: Assumptions) -> None:
    """Share of the linear speed against devices: the model on three networks, and figure 5."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    work = published(work)
    figure = Figure(figsize=(9, 3.8), layout="constrained")
    paces = {"Mask R-CNN at the pace of figure 5": 1, f"on a device {FASTER} times as fast": FASTER}
    for axes, (title, factor) in zip(figure.subplots(1, 2, sharey=True), paces.items(), strict=True):
        faster = work.taking(work.seconds / factor)
        for name, rate in NETWORKS.items():
            variant = replace(assumed, outer_bandwidth=rate)
            shares = [step_model.efficiency(faster, n, variant, base=8) for n in DEVICES]
            axes.plot(DEVICES, shares, marker=".", label=f"model, {name} a node")
        if factor == 1:
            shares = [actual / (FIGURE_5[8] * n / 8) for n, actual in FIGURE_5.items()]
            axes.plot([*FIGURE_5], shares, "k*", markersize=9, label="MMDetection, figure 5")
        axes.set(xscale="log", ylim=(0, 1.05), xlabel="devices", ylabel="share of linear", title=title)
        axes.set_xticks(DEVICES, [str(n) for n in DEVICES])
        axes.minorticks_off()
        axes.grid(alpha=0.3)
        axes.legend(frameon=False, fontsize="small", loc="lower left" if factor == 1 else "best")
    FigureCanvasAgg(figure)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110, metadata={"Software": None})
