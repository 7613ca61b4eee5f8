import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from boxwright.data import decode_image, image_size
from boxwright.data.images import looks_whole
from boxwright.errors import DataError


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", [".jpg", ".png"])
def test_exif_orientation_is_honoured(tmp_path: Path, orientation: int, suffix: str) -> None:
    pixels = np.zeros((20, 30, 3), np.uint8)
    pixels[:10, :15] = 255  # the upper left quarter
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / f"x{suffix}"
    Image.fromarray(pixels).save(path, exif=exif)
    image = decode_image(path)
    assert image.size == image_size(path) == ((20, 30) if orientation > 4 else (30, 20))
    right, low = {1: (0, 0), 2: (1, 0), 3: (1, 1), 4: (0, 1), 5: (0, 0), 6: (1, 0), 7: (1, 1), 8: (0, 1)}[
        orientation
    ]
    bright = np.asarray(image)[..., 0] > 128
    h, w = bright.shape
    assert bright[low * h // 2 : (low + 1) * h // 2, right * w // 2 : (right + 1) * w // 2].mean() > 0.95
    assert bright.mean() < 0.3


@pytest.mark.parametrize("mode", ["L", "LA", "P", "RGBA", "CMYK", "1", "I;16"])
def test_every_mode_becomes_rgb(tmp_path: Path, mode: str) -> None:
    path = tmp_path / ("x.jpg" if mode == "CMYK" else "x.png")
    if mode == "I;16":
        Image.fromarray(np.full((4, 5), 200 * 256, np.uint16)).save(path)
    else:
        Image.new("RGB", (5, 4), (200, 200, 200)).convert(mode).save(path)
    image = decode_image(path)
    assert (image.mode, image.size) == ("RGB", (5, 4))
    if mode != "1":
        assert abs(int(np.asarray(image)[0, 0, 0]) - 200) <= 8


def huge_png(path: Path, width: int, height: int) -> Path:
    """A small PNG whose header says a large size."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", b"x") + chunk(b"IEND", b"")
    )
    return path


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("size", [(10_000, 10_000), (30_000, 30_000), (2**31 - 1, 2**31 - 1)])
def test_absurd_headers_are_refused(tmp_path: Path, size: tuple[int, int]) -> None:
    path = huge_png(tmp_path / "bomb.png", *size)
    for function in (decode_image, image_size):
        with pytest.raises(DataError, match=r"bomb\.png.*MAX_IMAGE_PIXELS"):
            function(path)


def test_damaged_files(tmp_path: Path, write_image) -> None:
    good = write_image(tmp_path / "good.jpg", 100, 80)
    assert looks_whole(good)
    cut = tmp_path / "cut.jpg"
    cut.write_bytes(good.read_bytes()[: good.stat().st_size // 2])
    assert not looks_whole(cut)
    assert image_size(cut) == (100, 80)
    text = tmp_path / "text.jpg"
    text.write_text("not an image")
    empty = tmp_path / "empty.jpg"
    empty.touch()
    cases = {
        cut: "truncated",
        text: "not an image",
        empty: "empty",
        tmp_path / "no.jpg": "exist",
        tmp_path: "not a file",
    }
    for path, what in cases.items():
        with pytest.raises(DataError, match=what) as caught:
            decode_image(path)
        assert str(path) in str(caught.value)
