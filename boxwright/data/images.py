"""The one place where image files are opened: decoding and reading the size, EXIF orientation applied."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from PIL import Image, ImageOps

from ..errors import DataError

IMAGE_SUFFIXES = frozenset(
    {".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".bmp", ".webp", ".tif", ".tiff", ".gif", ".ppm", ".pgm"}
)
_ORIENTATION = 0x0112
_TURNED = (5, 6, 7, 8)
_FACTORS = (8, 4, 2)  # by which libjpeg reduces while it decodes


def _open(path: Path) -> Image.Image:
    """Open a file and refuse absurd sizes; nothing is decoded yet."""
    if not path.exists():
        raise DataError(f"{path}: the image does not exist; restore it or remove it from the annotations")
    if not path.is_file():
        raise DataError(f"{path}: not a file; the annotation must name an image file")
    if path.stat().st_size == 0:
        raise DataError(f"{path}: the file is empty; copy the image again or remove it from the annotations")
    try:
        image = Image.open(path)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise DataError(f"{path}: {str(error).rstrip('.')}. {_bomb_remedy()}") from error
    except Exception as error:  # Pillow's plugins raise many types on damaged headers
        raise DataError(
            f"{path}: not an image that can be read ({error}); convert it to JPEG or PNG, "
            "or remove it from the annotations"
        ) from error
    width, height = image.size
    limit = Image.MAX_IMAGE_PIXELS
    if width <= 0 or height <= 0 or (limit is not None and width * height > limit):
        image.close()
        raise DataError(f"{path}: its header says {width} x {height} pixels. {_bomb_remedy()}")
    return image


def _bomb_remedy() -> str:
    return (
        f"More than {Image.MAX_IMAGE_PIXELS} pixels are refused, as such a header may be an attack: cut or "
        "scale the image, or set PIL.Image.MAX_IMAGE_PIXELS if you trust it"
    )


def _refuse_wide(image: Image.Image, path: Path) -> None:
    """Refuse pixels of 32 bits: which value is white is not said, and clipping them would spoil the image."""
    if image.mode in ("I", "F"):
        raise DataError(
            f"{path}: pixels of 32 bits (mode {image.mode}) have no known range; scale them and save the "
            "image with 8 bits a channel, or with 16 bits grey"
        )


def image_size(path: str | os.PathLike[str]) -> tuple[int, int]:
    """Width and height in pixels after EXIF orientation, read from the header alone.

    Raises:
        DataError: the file is missing, empty, not an image, larger than `PIL.Image.MAX_IMAGE_PIXELS`, or its
            pixels have 32 bits.
    """
    path = Path(path)
    with _open(path) as image:
        _refuse_wide(image, path)
        try:
            # The base method: PNG's own would decode the whole file to look for a late chunk.
            orientation = Image.Image.getexif(image).get(_ORIENTATION, 1)
        except Exception as error:  # damaged EXIF blocks raise struct, value and syntax errors
            raise DataError(f"{path}: its EXIF block is damaged ({error}); save the image again") from error
        width, height = image.size
    return (height, width) if orientation in _TURNED else (width, height)


def is_turned(path: str | os.PathLike[str]) -> bool:
    """Whether the EXIF orientation of an image that `image_size` can read exchanges width and height."""
    with _open(Path(path)) as image:
        return Image.Image.getexif(image).get(_ORIENTATION, 1) in _TURNED


def decode_image(path: str | os.PathLike[str]) -> Image.Image:
    """Decode an image file to RGB with its EXIF orientation applied.

    16-bit grey images keep their upper eight bits; transparency is dropped.

    Args:
        path: the image file.

    Returns:
        A PIL image of mode RGB.

    Raises:
        DataError: the file is missing, empty, truncated, not an image, larger than
            `PIL.Image.MAX_IMAGE_PIXELS`, or its pixels have 32 bits.
    """
    return decode_reduced(path, None)[0]


def decode_reduced(
    path: str | os.PathLike[str], needed: Callable[[tuple[int, int]], tuple[int, int]] | None
) -> tuple[Image.Image, tuple[int, int]]:
    """Decode an image file as `decode_image`, at a reduced size where that is enough.

    A JPEG file is decoded at 1/8, 1/4 or 1/2 of its size, which takes a fraction of the time: its blocks of
    8 x 8 frequencies are turned into 1, 2 x 2 or 4 x 4 pixels. The smallest is taken that still has the
    pixels needed and by which both sides can be divided, so that each pixel stands for a whole square of the
    file's. Every other image is decoded in full.

    Args:
        path: the image file.
        needed: says for the image's (height, width) which (height, width) is enough; None to decode in full.

    Returns:
        A PIL image of mode RGB, and the (height, width) of the image in full; EXIF orientation is applied to
        both.

    Raises:
        DataError: as `decode_image`.
    """
    path = Path(path)
    with _open(path) as image:
        _refuse_wide(image, path)
        try:
            factor = 1 if needed is None else _reduce(image, needed)
            image.load()
            ImageOps.exif_transpose(image, in_place=True)
            decoded = to_eight_bits(image)
            decoded = decoded if decoded.mode == "RGB" else decoded.convert("RGB")
            return decoded, (decoded.height * factor, decoded.width * factor)
        except Exception as error:  # decoders raise OSError, SyntaxError, ValueError, struct.error and others
            raise DataError(
                f"{path}: the image cannot be decoded ({error}); copy it again or remove it "
                "from the annotations"
            ) from error


def to_eight_bits(image: Image.Image) -> Image.Image:
    """Of a grey image of 16 bits the upper eight; any other image as it is."""
    if not image.mode.startswith("I;16"):
        return image
    return image.convert("I").point(lambda value: value / 256).convert("L")


def _reduce(image: Image.Image, needed: Callable[[tuple[int, int]], tuple[int, int]]) -> int:
    """Make a JPEG file that is not yet decoded give fewer pixels; by which factor on each side."""
    if image.format not in ("JPEG", "MPO"):
        return 1
    width, height = image.size
    if Image.Image.getexif(image).get(_ORIENTATION, 1) in _TURNED:
        least_width, least_height = needed((width, height))
    else:
        least_height, least_width = needed((height, width))
    for factor in _FACTORS:
        whole = width % factor == 0 and height % factor == 0
        if whole and width >= factor * least_width and height >= factor * least_height:
            image.draft(None, (width // factor, height // factor))
            return factor
    return 1


def decode_class_map(path: str | os.PathLike[str]) -> Image.Image:
    """Decode an image file whose pixels are class numbers: one channel of 8 bits, grey or of a palette.

    Args:
        path: the file, of a format without loss such as PNG.

    Returns:
        A PIL image of mode L or P; the numbers of a palette are its indices.

    Raises:
        DataError: the file is missing, damaged, or its pixels are no numbers of 8 bits.
    """
    path = Path(path)
    with _open(path) as image:
        if image.mode not in ("L", "P"):
            raise DataError(
                f"{path}: pixels of mode {image.mode} are no class numbers; save the map with one channel of "
                "8 bits (grey or palette), 255 where there is no class"
            )
        try:
            image.load()
        except Exception as error:  # decoders raise OSError, SyntaxError, ValueError, struct.error and others
            raise DataError(f"{path}: the map cannot be decoded ({error}); copy it again") from error
        return image.copy()


def looks_whole(path: str | os.PathLike[str]) -> bool:
    """Whether a JPEG or PNG has its end marker near its end; True for other formats.

    A cheap test for truncated files: False asks for a real decoding, it proves nothing by itself.
    """
    path = Path(path)
    marker = {".jpg": b"\xff\xd9", ".jpeg": b"\xff\xd9", ".png": b"IEND"}.get(path.suffix.lower())
    if marker is None:
        return True
    with path.open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(0, size - 4096))
        return marker in file.read()
