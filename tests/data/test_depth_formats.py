"""Depth files of other programs: every format gives the stored values, exactly."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from rgbdseg.data.images import image_size, read_depth, read_depth_values
from rgbdseg.depth import DepthUnit
from rgbdseg.errors import DataError

MILLIMETERS = np.array([[0, 1, 999, 1000], [1500, 2500, 4321, 9999], [600, 700, 800, 10000]], dtype=np.uint16)
METERS = MILLIMETERS / 1000


def tiff_of_64_bits(values: np.ndarray, order: str = "<", deflate: bool = False, **changes: int) -> bytes:
    height, width = values.shape
    rows = [values[:2].astype(f"{order}f8").tobytes(), values[2:].astype(f"{order}f8").tobytes()]
    strips = [zlib.compress(row) if deflate else row for row in rows]
    entries = {
        256: width, 257: height, 258: 64, 259: 8 if deflate else 1, 262: 1, 277: 1, 278: 2, 339: 3,
        **{int(code.removeprefix("tag")): value for code, value in changes.items()},
    }  # fmt: skip
    count = len(entries) + 2
    at = 8 + 2 + 12 * count + 4
    starts, sizes = (at + 16, at + 16 + len(strips[0])), tuple(map(len, strips))
    tags = [(code, 4, 1, value) for code, value in entries.items()]
    tags += [(273, 4, 2, at), (279, 4, 2, at + 8)]
    header = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(f"{order}I", 8) + struct.pack(f"{order}H", count)
    table = b"".join(struct.pack(f"{order}HHII", *tag) for tag in sorted(tags)) + struct.pack(f"{order}I", 0)
    return header + table + struct.pack(f"{order}4I", *starts, *sizes) + b"".join(strips)


@pytest.mark.parametrize("largest", [10000, 65535])
def test_gray_maps_keep_their_values_whatever_largest_they_state(tmp_path: Path, largest: int) -> None:
    data = MILLIMETERS.astype(">u2").tobytes()
    (tmp_path / "a.pgm").write_bytes(b"P5\n# Kinect\n4 3\n%d\n" % largest + data)
    values = read_depth_values(tmp_path / "a.pgm")
    assert values.dtype == np.uint16
    assert np.array_equal(values, MILLIMETERS)
    assert image_size(tmp_path / "a.pgm") == (3, 4)
    (tmp_path / "b.pgm").write_text(f"P2 4 3 {largest}\n" + " ".join(map(str, MILLIMETERS.ravel())))
    assert np.array_equal(read_depth_values(tmp_path / "b.pgm"), MILLIMETERS)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"P5 4 3 65535\n" + bytes(10), "truncated: it has 5 of 12 pixels"),
        (b"P6 4 3 255\n" + bytes(36), r"is not a gray map \(PGM\)"),
        (b"P5 40000000 30000000 255\n", "it is damaged"),
        (b"P5 " + b"9" * 2000, "not a gray map"),
        (b"P5 " + b"9" * 2000 + b" 3 255\n", "absurd numbers"),
        (b"", "not a gray map"),
    ],
)
def test_damaged_gray_maps(tmp_path: Path, data: bytes, message: str) -> None:
    (tmp_path / "a.pgm").write_bytes(data)
    with pytest.raises(DataError, match=message):
        read_depth_values(tmp_path / "a.pgm")


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("deflate", [False, True])
def test_tiff_of_64_bits(tmp_path: Path, order: str, deflate: bool) -> None:
    (tmp_path / "a.tiff").write_bytes(tiff_of_64_bits(METERS, order, deflate))
    values = read_depth_values(tmp_path / "a.tiff")
    assert values.dtype == np.float64
    assert np.array_equal(values, METERS)
    assert np.allclose(read_depth(tmp_path / "a.tiff", DepthUnit(1.0))[0], METERS)


def test_other_tiffs_are_read_as_before_and_other_packings_refused(tmp_path: Path) -> None:
    Image.fromarray(METERS.astype(np.float32)).save(tmp_path / "a.tif")
    assert np.array_equal(read_depth_values(tmp_path / "a.tif"), METERS.astype(np.float32))
    (tmp_path / "b.tif").write_bytes(tiff_of_64_bits(METERS, tag259=5))
    with pytest.raises(
        DataError, match=r"64-bit numbers in a packing that is not read; store it as float32 TIFF or \.npy"
    ):
        read_depth_values(tmp_path / "b.tif")
    whole = tiff_of_64_bits(METERS)
    for length in (9, 60, 150, len(whole) - 8):
        (tmp_path / "c.tif").write_bytes(whole[:length])
        with pytest.raises(DataError, match=r"c\.tif"):
            read_depth_values(tmp_path / "c.tif")


def test_npz_archives(tmp_path: Path) -> None:
    np.savez(tmp_path / "one.npz", anything=MILLIMETERS)
    np.savez_compressed(tmp_path / "several.npz", rgb=np.zeros((3, 4, 3), np.uint8), depth=METERS[None])
    assert np.array_equal(read_depth_values(tmp_path / "one.npz"), MILLIMETERS)
    assert np.array_equal(read_depth_values(tmp_path / "several.npz"), METERS)
    np.savez(tmp_path / "other.npz", a=METERS, b=METERS)
    with pytest.raises(DataError, match=r"other\.npz holds a, b; expected one array, or one named depth"):
        read_depth_values(tmp_path / "other.npz")
    (tmp_path / "bad.npz").write_bytes((tmp_path / "one.npz").read_bytes()[:100])
    with pytest.raises(DataError, match=r"bad\.npz is not a readable \.npz archive"):
        read_depth_values(tmp_path / "bad.npz")
    np.savez(tmp_path / "objects.npz", depth=np.array([[object()]]))
    with pytest.raises(DataError, match=r"objects\.npz"):
        read_depth_values(tmp_path / "objects.npz")


def test_portable_float_maps_begin_with_the_lowest_row(tmp_path: Path) -> None:
    data = METERS[::-1].astype("<f4").tobytes()
    (tmp_path / "a.pfm").write_bytes(b"Pf\n4 3\n-1.0\n" + data)
    assert np.array_equal(read_depth_values(tmp_path / "a.pfm"), METERS.astype(np.float32))


@pytest.mark.parametrize(
    "channels", [{"Z": METERS}, {"R": METERS, "G": METERS, "B": METERS}, {"R": METERS * 0, "Depth.Z": METERS}]
)
def test_openexr(tmp_path: Path, channels: dict[str, np.ndarray]) -> None:
    openexr = pytest.importorskip("OpenEXR")
    stored = {}
    for name, values in channels.items():
        stored[name] = values.astype(np.float32)
        stored[name][0, :2] = np.inf, 1e10  # what renderers say of the background
    header = {"compression": openexr.ZIP_COMPRESSION, "type": openexr.scanlineimage}
    openexr.File(header, stored).write(str(tmp_path / "a.exr"))
    expected = METERS.astype(np.float32)
    expected[0, :2] = 0
    assert np.array_equal(read_depth_values(tmp_path / "a.exr"), expected)


def test_openexr_without_its_package_or_damaged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.exr").write_bytes(b"\x76\x2f\x31\x01")
    if pytest.importorskip("OpenEXR"):
        with pytest.raises(DataError, match=r"a\.exr is damaged or no OpenEXR file"):
            read_depth_values(tmp_path / "a.exr")
    monkeypatch.setitem(__import__("sys").modules, "OpenEXR", None)
    with pytest.raises(DataError, match=r"pip install 'rgbdseg\[data\]'; or store depth as \.npy or float32 TIFF"):
        read_depth_values(tmp_path / "a.exr")
