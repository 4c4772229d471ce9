"""From a frame and a model to what is shown and sent: pictures, shares of classes, a point cloud, an archive."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import struct
import tempfile
import zipfile
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rgbdseg.errors import RGBDSegError
from rgbdseg.png import encode_png
from rgbdseg.sample import RGBDSample
from rgbdseg.segmented_frame import SegmentedFrame
from rgbdseg.segmenter import Segmenter, assumed_camera
from rgbdseg.serve.frames import RequestError
from rgbdseg.serve.shelf import ModelShelf
from rgbdseg.visualize import Picture, depth_image, picture, write_ply

# H height, W width, N points

_CLOUD_POINTS = 200_000
# Sure is bright: dark blue to yellow.
_CONFIDENCE_COLORS = ((33, 22, 66), (64, 60, 138), (44, 113, 142), (32, 163, 134), (122, 209, 81), (253, 231, 37))


@dataclasses.dataclass(frozen=True, eq=False)
class Answer:
    """A labeled frame.

    Args:
        model: its name on the shelf.
        frame: what the model sees.
        notes: what was assumed, in sentences.
    """

    model: str
    frame: SegmentedFrame
    notes: tuple[str, ...]

    @property
    def mean_confidence(self) -> float:
        """Of all pixels, 0 to 1."""
        return float(self.frame.confidence.mean())

    def to_dict(self) -> dict[str, Any]:
        """Return what can be said in words and numbers, ready for JSON; the largest class comes first."""
        frame, height = self.frame, self.frame.labels.shape[0]
        return {
            "model": self.model,
            "height": height,
            "width": int(frame.labels.shape[1]),
            "mean_confidence": round(self.mean_confidence, 4),
            "classes": [
                {
                    "index": frame.names.index(name),
                    "name": name,
                    "color": list(frame.palette[frame.names.index(name)]),
                    "share": round(share, 6),
                }
                for name, share in frame.shares.items()
            ],
            "notes": list(self.notes),
        }

    def overlay(self, alpha: float = 0.5, shown: Collection[str] | None = None) -> Picture:
        """Return the colored labels over the image, uint8 (H, W, 3).

        Args:
            alpha: 0 shows the image, 1 the labels.
            shown: names of classes that are painted; None for all.
        """
        if shown is None:
            return self.frame.overlay(alpha)
        painted = self.frame.overlay(alpha)
        return np.where(self._mask(shown)[..., None], painted, picture(self.frame.sample.rgb))

    def confidence(self) -> Picture:
        """Return a picture of the confidence, dark for 0 and bright for 1, uint8 (H, W, 3)."""
        anchors = np.array(_CONFIDENCE_COLORS, dtype=np.float64)
        at = np.linspace(0, 1, len(anchors))
        table = np.stack([np.interp(np.linspace(0, 1, 256), at, channel) for channel in anchors.T], axis=1)
        return np.rint(table).astype(np.uint8)[np.rint(255 * self.frame.confidence).astype(np.intp)]

    def depth(self) -> Picture | None:
        """Return a picture of the depth, near bright and far dark; None without depth."""
        depth_m = self.frame.sample.depth_m
        return None if depth_m is None else depth_image(depth_m.cpu().numpy())

    def cloud(
        self, shown: Collection[str] | None = None, limit: int | None = None
    ) -> tuple[NDArray[np.float32], Picture, NDArray[np.uint8]] | None:
        """Return points in the camera's frame, meters, their colors and labels; None without depth.

        Args:
            shown: names of classes in the colors of the palette, the others have those of the image; None for all.
            limit: at most as many points, spread over the frame.
        """
        frame, depth_m = self.frame, self.frame.sample.depth_m
        if depth_m is None:
            return None
        if frame.sample.camera is None:
            sample = dataclasses.replace(frame.sample, camera=assumed_camera(frame.sample.size))
            frame = dataclasses.replace(frame, sample=sample)
        xyz_cam_m, colors, labels = frame.point_cloud()
        if shown is not None:
            there = depth_m[0].cpu().numpy() > 0
            colors = np.where(self._mask(shown)[there][:, None], colors, picture(frame.sample.rgb)[there])
        step = 1 if limit is None else max(1, -(-len(labels) // limit))
        return xyz_cam_m[::step], colors[::step], labels[::step]

    def save_glb(self, path: Path, shown: Collection[str] | None = None) -> Path | None:
        """Write the point cloud for viewers in the browser; None without depth."""
        cloud = self.cloud(shown, _CLOUD_POINTS)
        if cloud is None:
            return None
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(points_as_glb(cloud[0], cloud[1]))
        return path

    def archive(self) -> bytes:
        """Return all there is as a .zip: label, color, overlay, confidence, shares, facts and the point cloud."""
        frame, name = self.frame, self.frame.sample.sample_id
        confidence = np.rint(65535 * frame.confidence).astype(np.uint16)
        files = {
            f"{name}_label.png": encode_png(frame.labels),
            f"{name}_color.png": encode_png(frame.colors()),
            f"{name}_overlay.png": encode_png(self.overlay()),
            f"{name}_confidence.png": encode_png(confidence),
            f"{name}_shares.csv": self._csv(),
            f"{name}.json": (json.dumps(self._facts(), indent=2) + "\n").encode(),
        }
        buffer = io.BytesIO()
        with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:
            for file, content in files.items():
                archive.writestr(file, content)
            cloud = self.cloud()
            if cloud is not None:
                archive.writestr(f"{name}_cloud.ply", _ply(*cloud), zipfile.ZIP_DEFLATED, compresslevel=1)
        return buffer.getvalue()

    def _mask(self, shown: Collection[str]) -> NDArray[np.bool_]:
        names = self.frame.names
        painted = np.zeros(256, dtype=bool)
        painted[[index for index, name in enumerate(names) if name in shown]] = True
        return painted[self.frame.labels]

    def _facts(self) -> dict[str, Any]:
        camera = self.frame.sample.camera
        facts = {
            **self.to_dict(),
            "camera": None if camera is None else camera.to_dict(),
            "palette": [list(color) for color in self.frame.palette],
            "names": list(self.frame.names),
        }
        facts["files"] = (
            "label: 8 bits, index into names. confidence: 16 bits, 65535 is 1. cloud: meters, +x right, +y down, "
            "+z forward."
        )
        return facts

    def _csv(self) -> bytes:
        text = io.StringIO()
        writer = csv.writer(text)
        writer.writerow(["class", "index", "share"])
        for one in self.to_dict()["classes"]:
            writer.writerow([one["name"], one["index"], one["share"]])
        return text.getvalue().encode()


def answer(shelf: ModelShelf, model: str | None, sample: RGBDSample) -> Answer:
    """Label a frame with a model of the shelf.

    Raises:
        RequestError: for a model that is not there, and a frame that lacks what it looks at.
    """
    name = model or shelf.default
    segmenter = shelf.get(name)
    _check_needs(segmenter, sample, name)
    try:
        with shelf.turn():
            frame = segmenter.segment(sample)
    except RequestError:
        raise
    except RGBDSegError as error:
        raise RequestError("frame", str(error)) from error
    # What was computed for the network alone is not kept; a visitor's frame is as it was sent.
    return Answer(name, dataclasses.replace(frame, sample=sample), tuple(_notes(segmenter, sample)))


def _check_needs(segmenter: Segmenter, sample: RGBDSample, name: str) -> None:
    spec = segmenter.input_spec
    for raster in spec.rasters:
        if raster not in ("rgb", "depth_m", "hha", "raw_depth_m"):
            raise RequestError("model", f"{name} looks at {raster}, which cannot be sent here; choose another model")
    if spec.needs_depth and sample.depth_m is None:
        raise RequestError("depth-missing", f"{name} looks at depth; send a depth map of the same pixels")
    if spec.asks_for_camera and sample.camera is None:
        raise RequestError("camera-missing", f"{name} needs the camera; give fx, fy, cx, cy in pixels")


def _notes(segmenter: Segmenter, sample: RGBDSample) -> list[str]:
    notes = []
    looks_at_depth = any(stream.from_depth for stream in segmenter.input_spec.streams)
    if sample.depth_m is None and looks_at_depth:
        notes.append("Without depth: labels from color alone, which are less accurate.")
    elif sample.depth_m is None:
        notes.append("The model looks at color alone.")
    elif not looks_at_depth:
        notes.append("The model looks at color alone; depth is used for the point cloud.")
    if sample.depth_m is not None and sample.camera is None:
        notes.append("Without a camera: a horizontal view of 63 degrees is assumed.")
    return notes


def points_as_glb(xyz_cam_m: NDArray[np.float32], colors: NDArray[np.uint8]) -> bytes:
    """Return points as binary glTF 2.0 (mode POINTS), turned from the camera's frame to glTF's: +y up, -z forward.

    Args:
        xyz_cam_m: (N, 3).
        colors: uint8 (N, 3), sRGB; glTF's vertex colors are linear.
    """
    positions = (xyz_cam_m * np.array([1, -1, -1], np.float32)).astype("<f4")
    share = colors.astype(np.float64) / 255
    linear = np.where(share <= 0.04045, share / 12.92, ((share + 0.055) / 1.055) ** 2.4)
    rgba = np.full((len(colors), 4), 255, dtype=np.uint8)
    rgba[:, :3] = np.rint(255 * linear)
    body = positions.tobytes() + rgba.tobytes()
    low, high = (
        (positions.min(0), positions.max(0)) if len(positions) else (np.zeros(3, np.float32), np.zeros(3, np.float32))
    )
    head = {
        "asset": {"version": "2.0", "generator": "rgbdseg"},
        "scene": 0,
        "scenes": [{"nodes": [0]}],
        "nodes": [{"mesh": 0}],
        "meshes": [{"primitives": [{"attributes": {"POSITION": 0, "COLOR_0": 1}, "mode": 0, "material": 0}]}],
        "materials": [{"extensions": {"KHR_materials_unlit": {}}}],
        "extensionsUsed": ["KHR_materials_unlit"],
        "accessors": [
            {
                "bufferView": 0, "componentType": 5126, "count": len(positions), "type": "VEC3",
                "min": low.tolist(), "max": high.tolist(),
            },
            {"bufferView": 1, "componentType": 5121, "count": len(positions), "type": "VEC4", "normalized": True},
        ],
        "bufferViews": [
            {"buffer": 0, "byteOffset": 0, "byteLength": positions.nbytes, "target": 34962},
            {"buffer": 0, "byteOffset": positions.nbytes, "byteLength": rgba.nbytes, "target": 34962},
        ],
        "buffers": [{"byteLength": len(body)}],
    }  # fmt: skip
    text = json.dumps(head).encode()
    text += b" " * (-len(text) % 4)
    length = 12 + 8 + len(text) + 8 + len(body)
    return b"".join(
        (
            struct.pack("<III", 0x46546C67, 2, length),
            struct.pack("<II", len(text), 0x4E4F534A),
            text,
            struct.pack("<II", len(body), 0x004E4942),
            body,
        )
    )


def _ply(xyz_cam_m: NDArray[np.float32], colors: NDArray[np.uint8], labels: NDArray[np.uint8]) -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        write_ply(Path(folder) / "cloud.ply", xyz_cam_m, colors, labels)
        return (Path(folder) / "cloud.ply").read_bytes()


def legend_style(names: Sequence[str], palette: Sequence[tuple[int, int, int]], element: str) -> str:
    """Return CSS that puts a patch of its color before each entry of a list of check boxes.

    Args:
        names: of the classes, in the order of the entries.
        palette: their colors.
        element: id of the list.
    """
    rules = []
    for index, color in enumerate(palette[: len(names)], start=1):
        rules.append(
            f"#{element} .wrap label:nth-of-type({index}) span::before "
            f"{{ background: rgb({','.join(map(str, color))}) }}"
        )
    return f"<style>{''.join(rules)}</style>"
