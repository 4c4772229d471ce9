"""PNG files of our own: what other programs read in them, and what the quick way of reading takes and refuses."""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image, ImageFile

from rgbdseg.data.images import read_depth, read_hha, read_label_values, read_rgb, write_hha
from rgbdseg.depth import DepthUnit
from rgbdseg.errors import DataError
from rgbdseg.png import decode_png, encode_png, write_png

KINDS = [("uint8", ()), ("uint8", (3,)), ("uint16", ())]
MODES = {("uint8", ()): "L", ("uint8", (3,)): "RGB", ("uint16", ()): "I;16"}


def noise(size: tuple[int, int], dtype: str, channels: tuple[int, ...]) -> NDArray[Any]:
    return np.random.default_rng(0).integers(0, np.iinfo(dtype).max + 1, (*size, *channels), dtype=dtype)


def saved_by_pillow(pixels: NDArray[Any]) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="PNG")
    return buffer.getvalue()


@pytest.mark.parametrize("size", [(1, 1), (1, 7), (7, 1), (37, 53)])
@pytest.mark.parametrize(("dtype", "channels"), KINDS)
@pytest.mark.parametrize("smooth", [False, True])
def test_pixels_come_back_here_and_in_other_programs(
    tmp_path: Path, size: tuple[int, int], dtype: str, channels: tuple[int, ...], smooth: bool
) -> None:
    pixels = noise(size, dtype, channels)
    if smooth:  # beyond the largest value and back to 0 as well
        pixels = np.cumsum(pixels % 3, axis=0, dtype=dtype)
    write_png(tmp_path / "map.png", pixels)
    with Image.open(tmp_path / "map.png") as image:
        assert image.mode == MODES[dtype, channels]
        image.load()
        np.testing.assert_array_equal(np.asarray(image), pixels)
    decoded = decode_png((tmp_path / "map.png").read_bytes())
    assert decoded is not None
    assert decoded.dtype == pixels.dtype
    assert decoded.dtype.isnative
    np.testing.assert_array_equal(decoded, pixels)
    assert [file.name for file in tmp_path.iterdir()] == ["map.png"]


def test_every_check_of_a_strict_reader_holds() -> None:
    data, at, names = encode_png(noise((5, 4), "uint8", (3,))), 8, []
    while at < len(data):
        (length,), name = struct.unpack_from(">I", data, at), data[at + 4 : at + 8]
        body = data[at + 8 : at + 8 + length]
        assert struct.unpack_from(">I", data, at + 8 + length) == (zlib.crc32(name + body),)
        names.append(name)
        at += 12 + length
    assert names == [b"IHDR", b"IDAT", b"IEND"]


def test_channels_that_lie_apart_in_memory_are_written_alike() -> None:
    planes = np.random.default_rng(1).integers(0, 256, (3, 11, 13), dtype=np.uint8)
    assert encode_png(planes.transpose(1, 2, 0)) == encode_png(np.ascontiguousarray(planes.transpose(1, 2, 0)))


@pytest.mark.parametrize(
    "pixels",
    [
        np.zeros((4, 4), np.int64),
        np.zeros((4, 4), np.int8),
        np.zeros((4, 4), bool),
        np.zeros((4, 4, 4), np.uint8),
        np.zeros((4, 4, 3), np.uint16),
        np.zeros((0, 4), np.uint8),
        np.zeros(4, np.uint8),
    ],
    ids=lambda pixels: f"{pixels.dtype}{pixels.shape}",
)
def test_what_is_no_picture_is_refused(pixels: NDArray[Any]) -> None:
    with pytest.raises(ValueError, match="expected uint8"):
        encode_png(pixels)


def test_smooth_maps_take_no_more_bytes_than_pillows() -> None:
    rows, columns = np.mgrid[:120, :160]
    noise = np.random.default_rng(2).integers(0, 3, (120, 160))
    pixels = np.stack((rows + columns // 3, columns, (rows * columns) // 90 + noise), axis=-1).astype(np.uint8)
    usual = io.BytesIO()
    Image.fromarray(pixels).save(usual, format="PNG", compress_level=1)
    assert len(encode_png(pixels)) < 1.1 * len(usual.getvalue())


def test_own_files_are_read_without_pillows_decoder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rgb, label, depth_mm = (noise((9, 8), dtype, channels) for dtype, channels in (KINDS[1], KINDS[0], KINDS[2]))
    for name, pixels in (("rgb", rgb), ("label", label), ("depth", depth_mm)):
        write_png(tmp_path / f"{name}.png", pixels)
    write_hha(tmp_path / "hha.png", read_rgb(tmp_path / "rgb.png"))

    def refused(self: ImageFile.ImageFile) -> None:
        raise AssertionError("decoded by Pillow")

    monkeypatch.setattr(ImageFile.ImageFile, "load", refused)
    np.testing.assert_array_equal(read_rgb(tmp_path / "rgb.png").permute(1, 2, 0).numpy(), rgb)
    np.testing.assert_array_equal(read_hha(tmp_path / "hha.png").permute(1, 2, 0).numpy(), rgb)
    np.testing.assert_array_equal(read_label_values(tmp_path / "label.png"), label)
    depth_m = read_depth(tmp_path / "depth.png", DepthUnit(0.0001))
    np.testing.assert_allclose(depth_m[0].numpy(), depth_mm * 0.0001, rtol=1e-6)


@pytest.mark.parametrize(("dtype", "channels"), KINDS)
def test_files_of_other_programs_are_left_to_pillow(tmp_path: Path, dtype: str, channels: tuple[int, ...]) -> None:
    pixels = np.cumsum(noise((40, 30), dtype, channels) % 3, axis=0, dtype=dtype)
    assert decode_png(saved_by_pillow(pixels)) is None
    (tmp_path / "map.png").write_bytes(saved_by_pillow(pixels))
    read = read_label_values if channels == () else read_rgb
    values = np.asarray(read(tmp_path / "map.png"))
    np.testing.assert_array_equal(values if channels == () else values.transpose(1, 2, 0), pixels)


def repacked(data: bytes, change: int | None = None, *, extra: bytes = b"") -> bytes:
    """Return a file with the filter of one row changed, or with more bytes than its rows."""
    rows = bytearray(zlib.decompress(data[41:-16]))
    if change is not None:
        rows[change] = 0
    stream = zlib.compress(bytes(rows) + extra)
    checksum = zlib.crc32(b"IDAT" + stream)
    return data[:33] + struct.pack(">I", len(stream)) + b"IDAT" + stream + struct.pack(">I", checksum) + data[-12:]


def test_a_row_with_another_filter_is_read_with_it(tmp_path: Path) -> None:
    pixels = noise((6, 5), "uint8", ())
    data = repacked(encode_png(pixels), change=3 * 6)
    assert decode_png(data) is None
    (tmp_path / "map.png").write_bytes(data)
    expected = pixels.copy()
    expected[3] -= pixels[2]
    for row in (4, 5):
        expected[row] = expected[row - 1] + (pixels[row] - pixels[row - 1])
    np.testing.assert_array_equal(read_label_values(tmp_path / "map.png"), expected)


def test_a_file_that_unfolds_into_more_than_it_states_is_not_unfolded() -> None:
    assert decode_png(repacked(encode_png(noise((6, 5), "uint8", ())), extra=bytes(50_000_000))) is None


@pytest.mark.parametrize(("width", "height"), [(5, 7), (4, 6), (0, 6), (5, 0), (2**31 - 1, 2**31 - 1)])
def test_a_header_that_does_not_fit_is_left_to_pillow(width: int, height: int) -> None:
    data = encode_png(noise((6, 5), "uint8", ()))
    header = b"IHDR" + struct.pack(">II", width, height) + data[24:29]
    assert decode_png(data[:12] + header + struct.pack(">I", zlib.crc32(header)) + data[33:]) is None


@pytest.mark.parametrize("cut", [1, 8, 20, 41, 60, -1, -13, -40])
def test_files_that_end_early_are_left_to_pillow(cut: int) -> None:
    assert decode_png(encode_png(noise((20, 30), "uint8", (3,)))[:cut]) is None


@pytest.mark.parametrize("cut", [1, 20, 60, -600])
def test_damaged_files_are_refused_in_words(tmp_path: Path, cut: int) -> None:
    (tmp_path / "map.png").write_bytes(encode_png(noise((20, 30), "uint8", (3,)))[:cut])
    with pytest.raises(DataError, match=r"map\.png"):
        read_rgb(tmp_path / "map.png")


def test_changed_bytes_are_noticed() -> None:
    data = bytearray(encode_png(noise((20, 30), "uint8", (3,))))
    data[900] ^= 0x40
    assert decode_png(bytes(data)) is None
