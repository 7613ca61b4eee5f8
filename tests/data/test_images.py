import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from boxwright.data import decode_image, image_size
from boxwright.data.images import decode_reduced, looks_whole
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


def photograph(height: int, width: int) -> np.ndarray:
    """Smooth colours with edges and a little grain, `(height, width, 3)` uint8: what JPEG is made for."""
    random = np.random.default_rng(0)
    y, x = np.mgrid[:height, :width] / max(height, width)
    picture = np.zeros((height, width, 3))
    for channel in range(3):
        for _ in range(6):
            fx, fy, phase = random.uniform(1, 25), random.uniform(1, 25), random.uniform(0, 6)
            picture[..., channel] += np.sin(fx * x + fy * y + phase)
    for _ in range(30):
        top, left = random.integers(0, height - 20), random.integers(0, width - 20)
        high, wide = random.integers(10, height // 3), random.integers(10, width // 3)
        picture[top : top + high, left : left + wide] += random.normal(0, 1.5, 3)
    return (128 + 30 * picture + random.normal(0, 3, picture.shape)).clip(0, 255).astype(np.uint8)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", [".jpg", ".mpo"])
def test_reduced_decoding_keeps_size_and_orientation(tmp_path: Path, orientation: int, suffix: str) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / f"x{suffix}"
    more = {"save_all": True, "append_images": [Image.new("RGB", (8, 8))]} if suffix == ".mpo" else {}
    Image.fromarray(photograph(160, 320)).save(path, exif=exif, quality=92, **more)
    whole = decode_image(path)
    asked = []

    def needed(size: tuple[int, int]) -> tuple[int, int]:
        asked.append(size)
        return size[0] // 4, size[1] // 4

    reduced, size = decode_reduced(path, needed)
    assert asked == [size] == [(whole.height, whole.width)]
    assert reduced.size == (whole.width // 4, whole.height // 4)
    expected = np.asarray(whole.resize(reduced.size, Image.Resampling.BOX), dtype=int)
    # Each pixel stands for its own 4 x 4 pixels: any shift or turn would differ at the edges.
    assert np.abs(np.asarray(reduced, dtype=int) - expected).mean() < 2


@pytest.mark.parametrize(
    ("size", "needed", "factor"),
    [
        ((160, 320), (20, 40), 8),
        ((160, 320), (20, 41), 4),
        ((160, 320), (81, 160), 1),
        ((160, 324), (20, 40), 4),  # 324 is no multiple of 8
        ((161, 320), (20, 40), 1),
        ((160, 320), (400, 400), 1),
    ],
)
def test_the_factor_leaves_enough_and_divides_both_sides(tmp_path: Path, size, needed, factor) -> None:
    path = tmp_path / "x.jpg"
    Image.fromarray(photograph(*size)).save(path)
    decoded, full = decode_reduced(path, lambda _: needed)
    assert full == size
    assert decoded.size == (size[1] // factor, size[0] // factor)


def test_other_formats_are_decoded_in_full(tmp_path: Path) -> None:
    path = tmp_path / "x.png"
    Image.fromarray(photograph(160, 320)).save(path)
    decoded, full = decode_reduced(path, lambda _: (10, 10))
    assert decoded.size == (320, 160)
    assert full == (160, 320)


def test_damage_is_found_in_a_reduced_decoding_too(tmp_path: Path) -> None:
    good, cut = tmp_path / "good.jpg", tmp_path / "cut.jpg"
    Image.fromarray(photograph(160, 320)).save(good)
    cut.write_bytes(good.read_bytes()[: good.stat().st_size // 2])
    with pytest.raises(DataError, match=r"cut\.jpg.*truncated"):
        decode_reduced(cut, lambda _: (10, 10))
