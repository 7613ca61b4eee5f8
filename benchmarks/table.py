"""Make the tables of `docs/benchmarks.md` from the rows that were recorded, the newest of each case.

Rows of `savings` have a table of their own in `docs/memory.md`, which is made here as well.
"""

from __future__ import annotations

import csv
from pathlib import Path

from . import harness, savings

PAGE = Path(__file__).parents[1] / "docs" / "benchmarks.md"
BEGIN, END = "<!-- {name}: begin -->", "<!-- {name}: end -->"


def newest(rows: list[dict[str, str]]) -> list[dict[str, str]]:
    """The last row of each case, competitor, precision, batch, size and machine."""
    keys = ("machine", "case", "who", "precision", "batch", "size")
    return list({tuple(row[key] for key in keys): row for row in rows}.values())


def table(rows: list[dict[str, str]]) -> str:
    """A Markdown table."""
    lines = [
        "| what | who | precision | batch | size | median | images/s | spread | ours is | matmul share | |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for row in rows:
        seconds, share = float(row["seconds"]), float(row["share"])
        time = f"{seconds:.3g} s" if seconds >= 1 else f"{seconds * 1e3:.3g} ms" if seconds else ""
        ratio = "" if row["who"] == "ours" else f"{float(row['ratio']):.2f}x"
        spread = f"{float(row['spread']):.0%}" if seconds else ""
        value = f"{float(row['value']):.4g} {row['note']}" if row["note"] else ""
        batch = row["batch"] if row["batch"] != "0" else ""
        pace = f"{int(batch) / seconds:.3g}" if batch and seconds else ""
        cells = [row["case"], row["who"], row["precision"], batch, row["size"], time, pace, spread, ratio]
        lines.append(f"| {' | '.join([*cells, f'{share:.0%}' if share else '', value])} |")
    return "\n".join(lines)


def main() -> None:
    """Rewrite what stands between the marks of each benchmark on the page."""
    text = PAGE.read_text(encoding="utf-8")
    for path in sorted(harness.ROWS.glob("*.csv")):
        if path.stem.startswith("scaling"):
            continue  # docs/scaling.md, which `python -m benchmarks scaling --page` makes
        if path.stem == "savings":
            savings.write_page()
            continue
        begin, end = BEGIN.format(name=path.stem), END.format(name=path.stem)
        if begin not in text or end not in text:
            print(f"{PAGE} has no place for {path.stem}: write {begin} and {end} where it shall stand")
            continue
        with path.open(newline="") as file:
            rows = newest(list(csv.DictReader(file)))
        parts = []
        for machine in dict.fromkeys(row["machine"] for row in rows):
            of_machine = [row for row in rows if row["machine"] == machine]
            last = of_machine[-1]
            about = ", ".join(f"{key} {last[key]}" for key in ("torch", "torchvision", "boxwright"))
            parts.append(f"{machine}; {about}; {last['date']}\n\n{table(of_machine)}")
        before, rest = text.split(begin, 1)
        text = f"{before}{begin}\n\n" + "\n\n".join(parts) + f"\n\n{end}{rest.split(end, 1)[1]}"
    PAGE.write_text(text, encoding="utf-8")
    print(f"wrote {PAGE}")
