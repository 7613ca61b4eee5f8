"""`boxwright predict`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ..errors import ConfigError
from .options import NMS, Device, Trust


def predict(
    source: Annotated[Path, typer.Argument(help="A run folder or a checkpoint.", show_default=False)],
    images: Annotated[list[Path], typer.Argument(help="Image files and folders.", show_default=False)],
    out: Annotated[Path, typer.Option(help="Folder for the drawn images and predictions.json.")] = Path(
        "predictions"
    ),
    score: Annotated[
        float, typer.Option(min=0.0, max=1.0, help="Leave out detections below this score.")
    ] = 0.3,
    device: Device = "auto",
    batch_size: Annotated[int, typer.Option(min=1, help="Images of one pass.")] = 8,
    draw: Annotated[bool, typer.Option(help="Write the drawn images; the JSON comes in any case.")] = True,
    nms: NMS = None,
    trust: Trust = None,
) -> None:
    """Detect objects in image files and folders.

    Writes each image with its detections drawn in, and all of them as COCO results (`predictions.json`; which
    image has which id, and the classes, stand in `images.json`):

        boxwright predict runs/bccd photo.jpg holiday/ --out found --score 0.5

    An image that cannot be read is reported and skipped; the exit code is 1 then.
    """
    from rich.console import Console
    from rich.progress import track

    from .. import api
    from ..errors import DataError
    from ..evaluation.files import make_folder, write_json
    from ..inference import ImageDetections, pictures_of

    detector = api.load(source, device=device, trust=trust or (), nms=nms)
    files = [Path(str(file)) for given in images for file in pictures_of(given)[0]]
    drawn = names_for(files)
    spare(out, files, drawn if draw else [])
    make_folder(out)
    errors = Console(stderr=True)
    results: list[dict] = []
    listed: list[dict] = []

    def keep(number: int, found: ImageDetections) -> None:
        if draw:
            found.save(out / drawn[number])
        listed.append(
            {"id": number, "file_name": str(files[number]), "height": found.size[0], "width": found.size[1]}
        )
        results.extend(found.to_coco(number))

    skipped = 0
    starts = range(0, len(files), batch_size)
    for start in track(starts, "predicting", console=errors, transient=True):
        numbers = range(start, min(start + batch_size, len(files)))
        try:
            together = detector([files[n] for n in numbers], score, batch_size)
        except DataError:  # find the one that cannot be read
            together = [None] * len(numbers)
        for number, found in zip(numbers, together, strict=True):
            try:
                keep(number, detector([files[number]], score)[0] if found is None else found)
            except DataError as error:
                skipped += 1
                told = f"boxwright: skipped: {error}"
                errors.print(told, style="yellow", highlight=False, markup=False, soft_wrap=True)
    categories = [
        {"id": i, "name": name}
        for i, name in zip(detector.label_map.source_ids, detector.label_map.names, strict=True)
    ]
    write_json(out / "predictions.json", results)
    write_json(out / "images.json", {"images": listed, "categories": categories}, indent=1)
    typer.echo(f"{len(results)} detections in {len(listed)} images: {out}")
    if skipped:
        raise typer.Exit(1)


def spare(out: Path, files: list[Path], drawn: list[str]) -> None:
    """Refuse a folder in which the results would replace what they are made of.

    Args:
        out: where they go.
        files: the images.
        drawn: names of those that are drawn.

    Raises:
        ConfigError: a drawn image would come in place of one of the images, or the predictions in place of
            those that a run was evaluated with.
    """
    given = {file.resolve() for file in files}
    if lost := next((name for name in drawn if (out / name).resolve() in given), None):
        raise ConfigError(
            f"--out {out}: the drawn image would replace {out / lost} itself; choose another folder"
        )
    if (out / "config.json").is_file():
        raise ConfigError(
            f"--out {out} is a run folder, whose predictions.json is that of its evaluation; choose another "
            f"folder, such as {out / 'found'}"
        )


def names_for(files: list[Path]) -> list[str]:
    """A file name for each drawn image; equal names of different folders get a number."""
    names: list[str] = []
    taken: set[str] = set()
    for file in files:
        suffix = file.suffix.lower() if file.suffix.lower() in (".jpg", ".jpeg", ".png") else ".png"
        name, count = f"{file.stem}{suffix}", 1
        while name in taken:
            count += 1
            name = f"{file.stem}_{count}{suffix}"
        taken.add(name)
        names.append(name)
    return names
