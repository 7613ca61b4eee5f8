"""A small detection data set made on the spot: scanned handwritten digits on photographs and textures.

The digits are the real 8x8 scans that scikit-learn bundles (UCI "Optical Recognition of Handwritten
Digits"), the photographs its two sample images. Nothing is downloaded. The result is an ordinary COCO
folder: `images/*.jpg`, `annotations/instances_train.json` and `instances_val.json`.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from rich.progress import track

from .errors import DataError, MissingExtraError

NAMES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
SPLITS = ("train", "val")

Array = NDArray[np.float32]


@dataclass(frozen=True)
class DigitScenes:
    """How the images are made; it is written into `info` of the annotation files.

    Args:
        train: images for training.
        val: images for validation, made from other scans and other parts of the photographs.
        size: side of the square images, px.
        seed: the same seed gives the same bytes.
        digits: least and most digits in an image that has any.
        heights: least and most height of a digit before it is rotated, as a part of the image's side.
        angle: greatest rotation to either side, degrees.
        empty: part of the images that hold no digit.
        val_scans: part of each class's scans that only validation images show.
    """

    train: int = 600
    val: int = 150
    size: int = 160
    seed: int = 0
    digits: tuple[int, int] = (1, 6)
    heights: tuple[float, float] = (0.14, 0.42)
    angle: float = 25.0
    empty: float = 0.04
    val_scans: float = 0.25


@dataclass(frozen=True)
class Sources:
    """What the images of one split are made of.

    Args:
        glyphs: per class, `(n, 8, 8)` ink of the scans, 0 to 1.
        photos: photographs for backgrounds, `(H, W, 3)`, 0 to 255.
    """

    glyphs: tuple[Array, ...]
    photos: tuple[Array, ...]


def make_digits(out: Path, train: int = 600, val: int = 150, size: int = 160, seed: int = 0) -> Path:
    """Write a COCO folder of handwritten digits with boxes and instance masks.

    A folder that already holds the same set is left as it is.

    Args:
        out: folder to write; made if it does not exist.
        train: images for training.
        val: images for validation; they show other scans than the training images.
        size: side of the square images, px.
        seed: the same seed gives the same files.

    Returns:
        The folder.

    Raises:
        DataError: a number is out of range, or the folder holds something else.
        MissingExtraError: scikit-learn, which brings the scans, is not installed.
    """
    out = Path(out)
    scenes = DigitScenes(train, val, size, seed)
    _check(scenes)
    description = json.loads(json.dumps(describe(scenes)))
    if _info(out) == description:
        return out
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise DataError(f"{out} is not empty and holds another data set; remove it or name another folder")
    # Made beside its place and moved there whole: a run that is cut off leaves nothing half made.
    making = out.with_name(out.name + ".making")
    shutil.rmtree(making, ignore_errors=True)
    (making / "images").mkdir(parents=True)
    (making / "annotations").mkdir()
    sources = load_sources(scenes)
    for number, split in enumerate(SPLITS):
        # A stream of its own for each image: more training images leave the validation images the same.
        streams = [np.random.default_rng((seed, number, i)) for i in range(getattr(scenes, split))]
        coco = {
            "info": description,
            "licenses": [],
            "images": [],
            "annotations": [],
            "categories": categories(),
        }
        for index, rng in enumerate(track(streams, f"Making {split} images", transient=True)):
            pixels, objects = draw_scene(sources[split], scenes, rng)
            name = f"{split}_{index:05d}.jpg"
            Image.fromarray(pixels).save(making / "images" / name, quality=92)
            coco["images"].append({"id": index + 1, "file_name": name, "width": size, "height": size})
            for label, mask in objects:
                entry = {"id": len(coco["annotations"]) + 1, "image_id": index + 1, "category_id": label + 1}
                coco["annotations"].append(entry | outline(mask))
        path = making / "annotations" / f"instances_{split}.json"
        path.write_text(json.dumps(coco, separators=(",", ":")), encoding="utf-8")
    making.replace(out)
    return out


def describe(scenes: DigitScenes) -> dict[str, object]:
    """The `info` of the annotation files."""
    return {
        "description": "Handwritten digits on photographs and textures, made by `boxwright demo`",
        "sources": "scikit-learn's load_digits (UCI handwritten digits) and its two sample images",
        "masks": "pixels that ink covers by half or more; boxes are the tight extent of the masks",
        "version": "1.0",
        "settings": asdict(scenes),
    }


def categories() -> list[dict[str, object]]:
    """The COCO categories: id 1 is the digit 0."""
    return [{"id": i + 1, "name": name, "supercategory": "digit"} for i, name in enumerate(NAMES)]


def load_sources(scenes: DigitScenes) -> dict[str, Sources]:
    """Scans and photographs of each split; the splits share neither a scan nor a part of a photograph.

    Raises:
        MissingExtraError: scikit-learn is not installed.
    """
    try:
        from sklearn.datasets import load_digits, load_sample_image
    except ImportError as error:
        raise MissingExtraError("scikit-learn", "demo", "making the digits data set") from error
    values, labels = load_digits(return_X_y=True)
    inks: Array = np.asarray(values, dtype=np.float32).reshape(-1, 8, 8) / np.float32(16)
    rng = np.random.default_rng((scenes.seed, len(SPLITS)))
    glyphs: dict[str, list[Array]] = {split: [] for split in SPLITS}
    for label in range(len(NAMES)):
        scans = inks[np.asarray(labels) == label]
        scans = scans[rng.permutation(len(scans))]
        held = round(len(scans) * scenes.val_scans)
        glyphs["val"].append(scans[:held])
        glyphs["train"].append(scans[held:])
    photos = [load_sample_image(name).astype(np.float32) for name in ("china.jpg", "flower.jpg")]
    edge = [round(photo.shape[1] * 0.65) for photo in photos]
    parts = {
        "train": tuple(photo[:, :x] for photo, x in zip(photos, edge, strict=True)),
        "val": tuple(photo[:, x:] for photo, x in zip(photos, edge, strict=True)),
    }
    return {split: Sources(tuple(glyphs[split]), parts[split]) for split in SPLITS}


def draw_scene(
    sources: Sources, scenes: DigitScenes, rng: np.random.Generator
) -> tuple[NDArray[np.uint8], list[tuple[int, NDArray[np.bool_]]]]:
    """One image `(size, size, 3)` and its objects: label and mask `(size, size)` of each."""
    size = scenes.size
    canvas = background(sources, size, rng)
    taken = np.zeros((size, size), dtype=bool)
    objects = []
    count = 0 if rng.random() < scenes.empty else int(rng.integers(scenes.digits[0], scenes.digits[1] + 1))
    for _ in range(count):
        label = int(rng.integers(len(NAMES)))
        scans = sources.glyphs[label]
        low, high = np.log(scenes.heights[0] * size), np.log(scenes.heights[1] * size)
        height = float(np.exp(rng.uniform(low, high)))
        ink = glyph(scans[rng.integers(len(scans))], height, float(rng.uniform(-scenes.angle, scenes.angle)))
        place = _free_place(taken, ink, rng)
        if place is None:  # the image is full enough
            continue
        window = (slice(place[0], place[0] + ink.shape[0]), slice(place[1], place[1] + ink.shape[1]))
        cover = ink[..., None] * np.float32(rng.uniform(0.8, 1.0))
        canvas[window] = canvas[window] * (1 - cover) + cover * ink_colour(canvas[window], ink, rng)
        mask = np.zeros_like(taken)
        mask[window] = ink >= 0.5
        taken[window] |= ink > 0.02
        objects.append((label, mask))
    grain = rng.normal(0, rng.uniform(0, 5), canvas.shape)
    return np.clip(canvas + grain, 0, 255).round().astype(np.uint8), objects


def glyph(scan: Array, height: float, degrees: float) -> Array:
    """Ink of a scan at a given height and rotation, 0 to 1, cropped to what ink covers.

    Args:
        scan: `(8, 8)` ink, 0 to 1.
        height: of the upright digit, px.
        degrees: counter-clockwise.
    """
    fine = 12  # the strokes are formed far above the final resolution, then reduced with antialiasing
    wide = np.pad(scan, 3)
    mean = sum(wide[i : i + 12, j : j + 12] for i in range(3) for j in range(3)) / 9
    sharp = wide[1:-1, 1:-1] + 2 * (wide[1:-1, 1:-1] - mean)  # or the loops of most eights fill up
    image = Image.fromarray(sharp.astype(np.float32))
    level = np.asarray(image.resize((12 * fine, 12 * fine), Image.Resampling.BICUBIC))
    strokes = np.clip((level - 0.46) / 0.25, 0, 1)
    strokes = strokes * strokes * (3 - 2 * strokes)
    rows = np.flatnonzero((strokes > 0.5).any(axis=1))
    scale = height / (rows[-1] - rows[0] + 1)
    turned = Image.fromarray(strokes).rotate(degrees, Image.Resampling.BICUBIC, expand=True)
    side = (max(1, round(turned.width * scale)), max(1, round(turned.height * scale)))
    ink = np.clip(np.asarray(turned.resize(side, Image.Resampling.BOX)), 0, 1)
    top, left, bottom, right = _extent(ink > 0.02)
    return ink[top:bottom, left:right]


def background(sources: Sources, size: int, rng: np.random.Generator) -> Array:
    """A part of a photograph or a texture, `(size, size, 3)`, 0 to 255."""
    if rng.random() < 0.6:
        photo = sources.photos[rng.integers(len(sources.photos))]
        side = int(rng.integers(min(size, *photo.shape[:2]) // 2, min(photo.shape[:2]) + 1))
        top, left = (int(rng.integers(0, extent - side + 1)) for extent in photo.shape[:2])
        crop = photo[top : top + side, left : left + side]
        crop = crop[:, ::-1] if rng.random() < 0.5 else crop
        image = Image.fromarray(crop.astype(np.uint8)).resize((size, size), Image.Resampling.BICUBIC)
        pixels = np.asarray(image, dtype=np.float32)
        # Paler and softer than the ink, as a page or a wall with digits on it would be chosen.
        flat = pixels.mean(axis=(0, 1))
        return flat + (pixels - flat) * float(rng.uniform(0.35, 0.8))
    return texture(size, rng)


def texture(size: int, rng: np.random.Generator) -> Array:
    """Smooth coloured noise of several scales, `(size, size, 3)`, 0 to 255."""
    base = rng.uniform(30, 225, 3)
    pixels = np.tile(base, (size, size, 1))
    for cells in (3, 6, 24, size // 2):
        noise = rng.normal(0, 1, (cells, cells)).astype(np.float32)
        layer = np.asarray(Image.fromarray(noise).resize((size, size), Image.Resampling.BICUBIC))
        pixels = pixels + layer[..., None] * rng.uniform(2, 14) * rng.uniform(0.5, 1.0, 3)
    return np.clip(pixels, 0, 255).astype(np.float32)


def ink_colour(under: Array, ink: Array, rng: np.random.Generator) -> Array:
    """A colour, `(3,)`, that is clearly darker or clearly lighter than what lies under the ink."""
    weights = np.array([0.299, 0.587, 0.114])
    dark, light = np.percentile((under @ weights)[ink >= 0.5], (10, 90))
    for _ in range(100):
        colour = rng.uniform(0, 255, 3)
        grey = float(colour @ weights)
        if grey <= dark - 70 or grey >= light + 70:
            return colour.astype(np.float32)
    return np.full(3, 0.0 if dark > 255 - light else 255.0, dtype=np.float32)


def outline(mask: NDArray[np.bool_]) -> dict[str, object]:
    """Box, area and run lengths of a mask `(H, W)`, as COCO writes them."""
    top, left, bottom, right = _extent(mask)
    # COCO counts down the columns and begins with the pixels outside.
    flat = np.concatenate([[False], mask.ravel(order="F")])
    counts = np.diff(np.flatnonzero(flat[1:] != flat[:-1]), prepend=0, append=mask.size)
    return {
        "bbox": [left, top, right - left, bottom - top],
        "area": int(mask.sum()),
        "iscrowd": 0,
        "segmentation": {"size": list(mask.shape), "counts": counts.tolist()},
    }


def _extent(mask: NDArray[np.bool_]) -> tuple[int, int, int, int]:
    """Top, left, bottom, right of what is true, the last two exclusive."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    return int(rows[0]), int(columns[0]), int(rows[-1]) + 1, int(columns[-1]) + 1


def _free_place(taken: NDArray[np.bool_], ink: Array, rng: np.random.Generator) -> tuple[int, int] | None:
    """Top and left at which the ink covers no other ink; boxes may touch. None if 30 tries find none."""
    room = (taken.shape[0] - ink.shape[0], taken.shape[1] - ink.shape[1])
    if min(room) < 0 or not (ink >= 0.5).any():
        return None
    for _ in range(30):
        top, left = int(rng.integers(room[0] + 1)), int(rng.integers(room[1] + 1))
        window = taken[top : top + ink.shape[0], left : left + ink.shape[1]]
        if window.mean() < 0.04 and not (window & (ink > 0.02)).any():
            return top, left
    return None


def _check(scenes: DigitScenes) -> None:
    for field in SPLITS:
        if getattr(scenes, field) < 1:
            raise DataError(f"digits data set: {field} is {getattr(scenes, field)}; it must be at least 1")
    if not 48 <= scenes.size <= 1024:
        raise DataError(f"digits data set: size is {scenes.size} px; it must be between 48 and 1024")
    if scenes.seed < 0:
        raise DataError(f"digits data set: seed is {scenes.seed}; it must not be negative")


def _info(out: Path) -> object:
    """`info` of the set in a folder; None where there is none that can be read."""
    path = out / "annotations" / "instances_val.json"
    if not path.is_file():
        return None
    try:
        return json.loads(path.read_text(encoding="utf-8")).get("info")
    except (ValueError, AttributeError):
        return None
