from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from rgbdseg.data import images
from rgbdseg.data.description import DepthUnit
from rgbdseg.data.images import (
    read_depth,
    read_depth_values,
    read_further,
    read_hha,
    read_label,
    read_rgb,
    write_hha,
)
from rgbdseg.data.label_codec import LabelCodec
from rgbdseg.errors import DataError
from rgbdseg.png import write_png
from rgbdseg.sample import RasterRule

MILLIMETERS = DepthUnit(0.001)
NYU_VALUES = {value: value - 1 if value else None for value in range(41)}


def save(path: Path, array: np.ndarray, mode: str | None = None) -> Path:
    image = Image.fromarray(array)
    (image.convert(mode) if mode else image).save(path)
    return path


def ramp(height: int = 3, width: int = 4) -> np.ndarray:
    return np.arange(height * width * 3, dtype=np.uint8).reshape(height, width, 3)


def test_rgb_is_channels_first_in_rgb_order(tmp_path: Path) -> None:
    rgb = read_rgb(save(tmp_path / "a b.png", ramp()))
    assert rgb.is_contiguous()
    assert torch.equal(rgb, torch.from_numpy(ramp()).permute(2, 0, 1))
    rgb += 1  # writable: no view of the decoder's read-only memory


def test_gray_images_are_repeated_palettes_resolved_and_alpha_dropped(tmp_path: Path) -> None:
    gray = read_rgb(save(tmp_path / "gray.png", ramp()[:, :, 0]))
    assert torch.equal(gray, torch.from_numpy(ramp()[:, :, 0]).expand(3, 3, 4))
    alpha = np.dstack([ramp(), np.zeros((3, 4), np.uint8)])
    assert torch.equal(read_rgb(save(tmp_path / "alpha.png", alpha)), torch.from_numpy(ramp()).permute(2, 0, 1))
    palette = Image.fromarray(np.array([[1, 0]], np.uint8), mode="P")
    palette.putpalette([10, 20, 30, 40, 50, 60])
    palette.save(tmp_path / "palette.png")
    assert read_rgb(tmp_path / "palette.png").flatten().tolist() == [40, 10, 50, 20, 60, 30]


def test_a_16_bit_picture_is_refused_as_color(tmp_path: Path) -> None:
    path = save(tmp_path / "x.png", np.array([[1000]], np.uint16))
    with pytest.raises(DataError, match=r"x\.png has 16 or 32 bits per pixel"):
        read_rgb(path)


def test_depth_of_8_bits_with_offset(tmp_path: Path) -> None:
    path = save(tmp_path / "d.png", np.array([[0, 1, 45, 255]], np.uint8))
    depth = read_depth(path, DepthUnit(0.03919792156862745, 0.5, 0))
    expected = np.float32([0, 1.5 * 0.03919792156862745, 45.5 * 0.03919792156862745, 255.5 * 0.03919792156862745])
    assert depth.shape == (1, 1, 4)
    np.testing.assert_array_equal(depth[0, 0].numpy(), expected)


def test_depth_of_16_bits_in_millimeters_is_not_cut_to_8(tmp_path: Path) -> None:
    path = save(tmp_path / "d.png", np.array([[0, 1, 256, 1800, 65535]], np.uint16))
    np.testing.assert_array_equal(
        read_depth(path, MILLIMETERS)[0, 0].numpy(), np.float32([0, 0.001, 0.256, 1.8, 65.535])
    )


def test_depth_of_32_bits(tmp_path: Path) -> None:
    path = save(tmp_path / "d.tif", np.array([[0, 100_000, -5]], np.int32))
    np.testing.assert_array_equal(read_depth(path, MILLIMETERS)[0, 0].numpy(), np.float32([0, 100, 0]))
    path = save(tmp_path / "f.tif", np.array([[0.5, np.nan]], np.float32))
    np.testing.assert_array_equal(read_depth(path, DepthUnit(1.0))[0, 0].numpy(), np.float32([0.5, 0]))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("order", ["C", "F"])
def test_depth_from_npy_in_meters(tmp_path: Path, dtype: type, order: str) -> None:
    values = np.array([[1.25, np.nan, np.inf], [-1, 0, 7.5]], dtype=dtype, order=order)  # type: ignore[call-overload]
    np.save(tmp_path / "d.npy", values)
    depth = read_depth(tmp_path / "d.npy", DepthUnit(1.0))
    assert depth.is_contiguous()
    np.testing.assert_array_equal(depth[0].numpy(), np.float32([[1.25, 0, 0], [0, 0, 7.5]]))


def test_npy_with_a_channel_axis_is_taken_and_other_shapes_are_not(tmp_path: Path) -> None:
    values = np.arange(1, 7, dtype=np.float32).reshape(2, 3)
    for name, array in (("first", values[None]), ("last", values[:, :, None])):
        np.save(tmp_path / f"{name}.npy", array)
        np.testing.assert_array_equal(read_depth(tmp_path / f"{name}.npy", DepthUnit(1.0))[0].numpy(), values)
    np.save(tmp_path / "wrong.npy", np.ones((2, 3, 3), np.float32))
    with pytest.raises(DataError, match=r"wrong\.npy has the shape \(2, 3, 3\); expected \(height, width\)"):
        read_depth(tmp_path / "wrong.npy", DepthUnit(1.0))


def test_pickled_npy_is_never_loaded(tmp_path: Path) -> None:
    np.save(tmp_path / "d.npy", np.array([{"a": 1}], dtype=object), allow_pickle=True)
    with pytest.raises(DataError, match=r"d\.npy is not a readable \.npy array"):
        read_depth(tmp_path / "d.npy", DepthUnit(1.0))


def test_three_channels_are_too_many_for_depth_and_labels(tmp_path: Path) -> None:
    path = save(tmp_path / "x.png", ramp())
    with pytest.raises(DataError, match=r"x\.png has 3 channels \(mode RGB\); expected a depth map with one channel"):
        read_depth(path, MILLIMETERS)
    with pytest.raises(DataError, match=r"x\.png has 3 channels .* colored rendering of labels"):
        read_label(path, LabelCodec(NYU_VALUES))
    with pytest.raises(DataError, match=r"y\.png has 1 channel \(mode L\); expected an 8-bit HHA image"):
        read_hha(save(tmp_path / "y.png", ramp()[:, :, 0]))


@pytest.mark.parametrize(
    ("unit", "hint"),
    [
        (DepthUnit(1.0), r"0\.001 m for each unit \(millimeters\) would make it 2\.7 m"),
        (DepthUnit(1e-6), "the depth unit is wrong"),
    ],
)
def test_depth_in_the_wrong_unit_is_an_error(tmp_path: Path, unit: DepthUnit, hint: str) -> None:
    path = save(tmp_path / "d.png", np.full((4, 4), 2700, np.uint16))
    with pytest.raises(DataError, match=rf"d\.png: the median depth is .*, expected .*{hint}"):
        read_depth(path, unit)
    assert read_depth(path, MILLIMETERS).unique().tolist() == pytest.approx([2.7])


def test_a_frame_without_any_reading_is_not_a_wrong_unit(tmp_path: Path) -> None:
    assert read_depth(save(tmp_path / "d.png", np.zeros((4, 4), np.uint16)), MILLIMETERS).sum() == 0


def test_labels_are_shifted_and_void_becomes_255(tmp_path: Path) -> None:
    path = save(tmp_path / "l.png", np.array([[0, 1, 40]], np.uint8))
    label = read_label(path, LabelCodec(NYU_VALUES))
    assert label.dtype == torch.uint8
    assert label.tolist() == [[[255, 0, 39]]]


def test_labels_of_16_bits_and_palette_indices(tmp_path: Path) -> None:
    codec = LabelCodec({1000: 0, 1001: 1, 65535: None})
    path = save(tmp_path / "l.png", np.array([[1000, 1001, 65535]], np.uint16))
    assert read_label(path, codec).tolist() == [[[0, 1, 255]]]
    palette = Image.fromarray(np.array([[0, 40]], np.uint8), mode="P")
    palette.putpalette(list(range(123)))
    palette.save(tmp_path / "p.png")
    assert read_label(tmp_path / "p.png", LabelCodec(NYU_VALUES)).tolist() == [[[255, 39]]]


def test_unknown_label_values_are_listed_and_never_wrap(tmp_path: Path) -> None:
    codec = LabelCodec(NYU_VALUES)
    path = save(tmp_path / "l.png", np.array([[0, 41, 255]], np.uint8))
    with pytest.raises(DataError, match=r"l\.png: unknown label values 41, 255; expected 1\.\.40, void 0"):
        read_label(path, codec)
    path = save(tmp_path / "wide.png", np.array([[1, 257]], np.uint16))  # 257 mod 256 would be the class 1
    with pytest.raises(DataError, match=r"unknown label value 257;"):
        read_label(path, codec)
    with pytest.raises(DataError, match=r"unknown label value -1;"):
        codec.decode(np.array([[-1, 3]], np.int32), "x")
    with pytest.raises(DataError, match=r"unknown label value -1;"):  # whose byte is that of 255
        LabelCodec({3: 0, 255: None}).decode(np.array([[-1, 3]], np.int8), "x")


def test_a_full_set_of_classes_leaves_void_unknown_unless_declared() -> None:
    codec = LabelCodec({value: value for value in range(255)})
    assert codec.decode(np.array([[254]], np.uint8), "x").item() == 254
    with pytest.raises(DataError, match=r"unknown label value 255; expected 0\.\.254 and no void value"):
        codec.decode(np.array([[255]], np.uint8), "x")


@pytest.mark.parametrize("suffix", [".png", ".jpg"])
def test_truncated_images_are_named(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"cut{suffix}"
    noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(noise).save(path)
    content = path.read_bytes()
    for length in (0, 10, len(content) // 3, len(content) * 3 // 4):
        path.write_bytes(content[:length])
        with pytest.raises(DataError, match=rf"cut\{suffix}") as caught:
            read_rgb(path)
        assert "\n" not in str(caught.value)


def test_a_damaged_byte_in_a_png_is_noticed(tmp_path: Path) -> None:
    path = save(tmp_path / "bad.png", np.random.default_rng(0).integers(0, 255, (64, 64), dtype=np.uint8))
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0xFF
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"bad\.png is damaged"):
        read_label(path, LabelCodec(dict.fromkeys(range(256))))


def test_missing_files_and_files_of_another_type_are_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"none\.png does not exist"):
        read_rgb(tmp_path / "none.png")
    with pytest.raises(DataError, match=r"none\.npy does not exist"):
        read_depth(tmp_path / "none.npy", MILLIMETERS)
    (tmp_path / "text.png").write_text("hello")
    with pytest.raises(DataError, match=r"text\.png is not an image"):
        read_rgb(tmp_path / "text.png")
    (tmp_path / "text.npy").write_text("hello")
    with pytest.raises(DataError, match=r"text\.npy is not a readable \.npy"):
        read_depth(tmp_path / "text.npy", MILLIMETERS)


def test_hha_keeps_its_channel_order_through_a_file(tmp_path: Path) -> None:
    hha = torch.stack([torch.full((4, 5), value, dtype=torch.uint8) for value in (200, 100, 38)])
    write_hha(tmp_path / "new" / "h.png", hha)
    assert torch.equal(read_hha(tmp_path / "new" / "h.png"), hha)
    with Image.open(tmp_path / "new" / "h.png") as image:
        assert image.getpixel((0, 0)) == (200, 100, 38)


def test_sizes_come_from_the_header(tmp_path: Path) -> None:
    write_png(tmp_path / "a.png", np.zeros((3, 7), np.uint8))
    np.save(tmp_path / "a.npy", np.zeros((3, 7)))
    assert images.image_size(tmp_path / "a.png") == images.image_size(tmp_path / "a.npy") == (3, 7)


def test_unknown_values_of_any_width_decode_to_void_when_asked() -> None:
    codec = LabelCodec({0: None, 1: 0, 2: 1})
    assert codec.decode_known(np.array([[0, 1, 2, 3]], np.uint8)).tolist() == [[255, 0, 1, 255]]
    assert codec.decode_known(np.array([[-1, 1, 300, 70000]], np.int32)).tolist() == [[255, 0, 255, 255]]


def test_indices_into_a_palette_are_no_depth(tmp_path: Path) -> None:
    """Programs that make files smaller number the grays as they like."""
    image = Image.fromarray(np.array([[1, 0, 2]], np.uint8), mode="P")
    image.putpalette([40] * 3 + [80] * 3 + [200] * 3)
    image.save(tmp_path / "gray.png")
    assert read_depth_values(tmp_path / "gray.png").tolist() == [[80, 40, 200]]
    gray = read_further(tmp_path / "gray.png", "thermal", RasterRule(1, torch.uint8, "bilinear"))
    assert gray.tolist() == [[[80, 40, 200]]]
    image.putpalette([40, 40, 41] + [80] * 3 + [200] * 3)
    image.save(tmp_path / "colors.png")
    with pytest.raises(DataError, match=r"colors\.png has a palette of colors; expected a depth map"):
        read_depth_values(tmp_path / "colors.png")


def test_lossy_depth_is_refused_with_the_reason(tmp_path: Path) -> None:
    for name in ("d.jpg", "jpeg.png"):
        Image.fromarray(np.full((8, 8), 90, np.uint8)).save(tmp_path / name, format="JPEG")
        with pytest.raises(
            DataError, match=f"{name} is a JPEG file, which changes the values everywhere, so the depth"
        ):
            read_depth_values(tmp_path / name)


def test_colors_that_cannot_be_converted_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = save(tmp_path / "x.png", ramp()[:, :, 0])

    def convert(image: Image.Image, mode: str) -> Image.Image:
        raise ValueError(f"conversion from {image.mode} to {mode} not supported")

    monkeypatch.setattr(Image.Image, "convert", convert)
    with pytest.raises(DataError, match=r"x\.png has the mode L, which cannot be turned into RGB"):
        read_rgb(path)
