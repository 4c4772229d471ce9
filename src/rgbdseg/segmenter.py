"""A trained model as an object in memory: frames in, labels out."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeGuard, overload

import numpy as np
import torch
from numpy.typing import NDArray

from rgbdseg.camera import PinholeCamera
from rgbdseg.config.protocol import EvaluationProtocol, stored_protocol
from rgbdseg.depth import DepthUnit
from rgbdseg.errors import DataError, UsageError
from rgbdseg.frame_inputs import CameraLike, check_known, make_sample
from rgbdseg.geometry.hha import INDOOR, HHAParameters
from rgbdseg.inference import AUTOCAST, Segmentation, segment
from rgbdseg.input_spec import InputSpec
from rgbdseg.labels import IGNORE_INDEX, RGB, LabelSet
from rgbdseg.models._base import SegmentationModel
from rgbdseg.options import check_choice
from rgbdseg.sample import RGBDSample
from rgbdseg.transforms.derive import with_hha
from rgbdseg.visualize import Picture, colorize, labelled_point_cloud, overlay, picture, save_png, write_ply
from rgbdseg.weights.checkpoint import ModelBundle, load_bundle
from rgbdseg.weights.source import resolve_source

# H height, W width, N points


@dataclasses.dataclass(frozen=True, eq=False)
class SegmentedFrame:
    """What a model sees in one frame.

    Args:
        labels: uint8 (H, W), the class of every pixel, an index into ``names``.
        confidence: float32 (H, W), 0 to 1, the share of the most likely class in the scores of all.
        names: of the classes.
        palette: a color of 0 to 255 for each class.
        sample: the frame.
    """

    labels: NDArray[np.uint8]
    confidence: NDArray[np.float32]
    names: tuple[str, ...]
    palette: tuple[RGB, ...]
    sample: RGBDSample

    @property
    def shares(self) -> dict[str, float]:
        """Share of the pixels of every class that is there, 0 to 1, the largest first."""
        counts = np.bincount(self.labels.ravel(), minlength=len(self.names))[: len(self.names)]
        order = np.argsort(-counts, kind="stable")
        return {self.names[index]: float(counts[index] / self.labels.size) for index in order if counts[index]}

    def mask(self, name: str) -> NDArray[np.bool_]:
        """Return bool (H, W), where the class ``name`` is.

        Raises:
            UsageError: for a name that is none of ``names``.
        """
        return self.labels == LabelSet("the model", self.names, self.palette).index(name)

    def restricted_to(self, names: Sequence[str]) -> SegmentedFrame:
        """Return the same frame with every other class void (255).

        Raises:
            UsageError: for a name that is none of ``names``.
        """
        label_set = LabelSet("the model", self.names, self.palette)
        kept = [label_set.index(name) for name in names]
        return dataclasses.replace(
            self, labels=np.where(np.isin(self.labels, kept), self.labels, np.uint8(IGNORE_INDEX))
        )

    def colors(self) -> Picture:
        """Return the labels as a picture, uint8 (H, W, 3), in the colors of the palette."""
        return colorize(self.labels, self.palette)

    def overlay(self, alpha: float = 0.5) -> Picture:
        """Return the colored labels over the image, uint8 (H, W, 3); alpha 0 shows the image, 1 the labels."""
        return overlay(picture(self.sample.rgb), self.colors(), alpha)

    def point_cloud(self) -> tuple[NDArray[np.float32], NDArray[np.uint8], NDArray[np.uint8]]:
        """Return the pixels with a depth reading as points in the camera's frame.

        Returns:
            tuple: xyz_cam_m float32 (N, 3) (+x right, +y down, +z forward), colors uint8 (N, 3), labels uint8 (N,).

        Raises:
            DataError: for a frame without depth or camera.
        """
        return labelled_point_cloud(self.sample, self.labels, self.palette)

    def save(self, folder: str | Path, name: str | None = None) -> list[Path]:
        """Write label/NAME.png (class indices), color/NAME.png, overlay/NAME.png and, with depth, cloud/NAME.ply.

        Args:
            folder: is created.
            name: by default the frame's own.

        Returns:
            list: the files.

        Raises:
            WriteError: when a file cannot be written; none is left half-written.
        """
        stem = self.sample.sample_id if name is None else name
        pictures = {"label": self.labels, "color": self.colors(), "overlay": self.overlay()}
        files = []
        for kind, image in pictures.items():
            files.append(Path(folder) / kind / f"{stem}.png")
            save_png(files[-1], image)
        if self.sample.depth_m is not None and self.sample.camera is not None:
            files.append(Path(folder) / "cloud" / f"{stem}.ply")
            write_ply(files[-1], *self.point_cloud())
        return files


class Segmenter:
    """A trained model with all that turns frames into what it eats; `rgbdseg.load` makes one.

    Args:
        model: is put into evaluation mode and moved to ``device``.
        label_set: names and colors of its classes.
        input_spec: by default the model's own.
        protocol: how an image is looked at (windows, scales, mirror image); by default in one piece.
        hha: parameters that HHA is computed with from depth, where the model looks at HHA.
        device: ``auto`` takes a GPU where there is one.
        precision: ``32-true``, or ``bf16-mixed`` or ``16-mixed`` for a faster network; scores stay float32.
        name: of the model, for messages.
    """

    def __init__(
        self,
        model: SegmentationModel,
        label_set: LabelSet,
        *,
        input_spec: InputSpec | None = None,
        protocol: EvaluationProtocol | None = None,
        hha: HHAParameters = INDOOR,
        device: str | torch.device = "auto",
        precision: str = "32-true",
        name: str = "the model",
    ) -> None:
        self.device = choose_device(device)
        self.model = model.to(self.device).eval()
        self.label_set = label_set
        self.input_spec = input_spec or model.input_spec
        self.protocol = protocol or EvaluationProtocol()
        check_choice("precision", precision, AUTOCAST)
        self.autocast_dtype = AUTOCAST[precision]
        self.hha = hha
        self.name = name

    @classmethod
    def from_bundle(
        cls,
        bundle: ModelBundle,
        *,
        protocol: EvaluationProtocol | None = None,
        device: str | torch.device = "auto",
        precision: str = "32-true",
    ) -> Segmenter:
        """Make one from a checkpoint that has been read.

        Args:
            bundle: model and facts.
            protocol: by default that of its recipe, except for the margin and the area that belong to a dataset.
            device: see the class.
            precision: see the class.
        """
        facts = bundle.facts
        if protocol is None:
            protocol = dataclasses.replace(stored_protocol(facts.config), margin=0, area="full")
        return cls(
            bundle.model,
            facts.label_set,
            input_spec=facts.input_spec,
            protocol=protocol,
            hha=HHAParameters.from_dict(facts.hha) if facts.hha else INDOOR,
            device=device,
            precision=precision,
            name=facts.model_name,
        )

    def __repr__(self) -> str:
        streams = " + ".join(self.input_spec.names)
        return f"Segmenter({self.name}: {streams} to {len(self.label_set)} classes of {self.label_set.name})"

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the classes."""
        return self.label_set.classes

    @overload
    def __call__(
        self,
        rgb: Sequence[Any],
        depth: Sequence[Any] | None = None,
        camera: CameraLike | None = None,
        *,
        depth_unit: str | float | DepthUnit | None = None,
        images: Sequence[Mapping[str, Any]] | None = None,
        name: Sequence[str] | None = None,
    ) -> list[SegmentedFrame]: ...

    @overload
    def __call__(
        self,
        rgb: Any,
        depth: Any = None,
        camera: CameraLike | None = None,
        *,
        depth_unit: str | float | DepthUnit | None = None,
        images: Mapping[str, Any] | None = None,
        name: str | None = None,
    ) -> SegmentedFrame: ...

    def __call__(
        self,
        rgb: Any,
        depth: Any = None,
        camera: CameraLike | None = None,
        *,
        depth_unit: str | float | DepthUnit | None = None,
        images: Any = None,
        name: Any = None,
    ) -> SegmentedFrame | list[SegmentedFrame]:
        """Label one frame, or a list of frames.

        Args:
            rgb: uint8 in RGB order, (H, W, 3) or (3, H, W), as NumPy array or tensor; or a list of such.
            depth: z-depth of the same pixels, (H, W), 0 = no reading; for a list, one for each.
            camera: (fx, fy, cx, cy) in pixels counted from 0, a 3x3 matrix or a `rgbdseg.PinholeCamera`; for a list,
                one for all, or a list of `rgbdseg.PinholeCamera`.
            depth_unit: of ``depth``: "m", "cm", "mm" or the meters per unit; needed where depth is of whole numbers,
                which have no unit of their own.  Numbers with a fraction are meters by default.
            images: further rasters by name, such as ``{"thermal": ...}``; for a list, one mapping for each.
            name: of the frame, for messages and files; for a list, one for each.

        Returns:
            SegmentedFrame: or a list of them.

        Raises:
            DataError: for arrays of another type, shape or size, and where the model needs what is not given.
            UsageError: for names that are not known.
        """
        if isinstance(rgb, list | tuple) or getattr(rgb, "ndim", 3) == 4:
            count = len(rgb)
            depths, further = (
                _one_each(values, count, what) for values, what in ((depth, "depth"), (images, "images"))
            )
            cameras: list[Any] = list(camera) if _several_cameras(camera) else [camera] * count
            if len(cameras) != count:
                raise UsageError(f"there are {len(cameras)} cameras for {count} frames; expected one for each, or one")
            names = _one_each(name, count, "name") if name is not None else [f"frame-{i}" for i in range(count)]
            return [
                self._frame(*frame[:3], depth_unit=depth_unit, images=frame[3], name=frame[4])
                for frame in zip(rgb, depths, cameras, further, names, strict=True)
            ]
        return self._frame(rgb, depth, camera, depth_unit=depth_unit, images=images, name=name or "frame")

    def segment(self, sample: RGBDSample) -> SegmentedFrame:
        """Label a frame that is given as a sample; HHA is computed where the model needs it and the frame has none.

        Raises:
            DataError: where the frame lacks what the model needs.
        """
        sample = self._complete(sample)
        with torch.inference_mode():
            result = self.score(sample)
            confidence = result.log_scores.softmax(0).amax(0)
        return SegmentedFrame(
            labels=result.prediction.cpu().numpy(),
            confidence=confidence.cpu().numpy(),
            names=self.label_set.classes,
            palette=self.label_set.palette,
            sample=sample,
        )

    def score(self, sample: RGBDSample) -> Segmentation:
        """Return the scores of every class that `segment` takes the labels from.

        Raises:
            DataError: where the frame lacks what the model needs.
        """
        with torch.inference_mode():
            return segment(
                self.model,
                self._complete(sample),
                self.input_spec,
                self.protocol,
                device=self.device,
                autocast_dtype=self.autocast_dtype,
            )

    def _frame(
        self,
        rgb: Any,
        depth: Any,
        camera: CameraLike | None,
        *,
        depth_unit: str | float | DepthUnit | None,
        images: Mapping[str, Any] | None,
        name: str,
    ) -> SegmentedFrame:
        check_known(list(images or ()), [*self.input_spec.rasters, "raw_depth_m"], self.name)
        sample = make_sample(rgb, depth, camera, depth_unit=depth_unit, images=images, name=name, device=self.device)
        return self.segment(sample)

    def _complete(self, sample: RGBDSample) -> RGBDSample:
        """Return the sample with what is computed from it; raises DataError naming what has to be given."""
        needs_hha = "hha" in self.input_spec.rasters and sample.hha is None
        if needs_hha and self._is_optional("hha"):
            if sample.depth_m is None:
                return sample.replace(hha=torch.zeros_like(sample.rgb))
            if sample.camera is None:
                sample = sample.replace(camera=assumed_camera(sample.size))
        if sample.depth_m is None and (needs_hha or "depth_m" in self.input_spec.rasters):
            shown = " (as HHA)" if needs_hha else ""
            raise DataError(f"{self.name} looks at depth{shown}, but '{sample.sample_id}' has none; give depth=")
        if sample.camera is None and (needs_hha or self.input_spec.needs_camera):
            raise DataError(
                f"{self.name} needs the camera{' to compute HHA' if needs_hha else ''}, but '{sample.sample_id}' has "
                "none; give camera=(fx, fy, cx, cy) in pixels, counted from 0"
            )
        return with_hha(sample, self.hha) if needs_hha else sample

    def _is_optional(self, raster: str) -> bool:
        return all(stream.optional for stream in self.input_spec.streams if stream.raster == raster)


def assumed_camera(size: tuple[int, int]) -> PinholeCamera:
    """Return the camera that is assumed where none is given: 63 degrees from left to right, as usual RGB-D cameras.

    Args:
        size: (height, width) of the image in pixels.
    """
    height, width = size
    focal_px = ASSUMED_FOCAL_WIDTHS * width
    return PinholeCamera(focal_px, focal_px, (width - 1) / 2, (height - 1) / 2)


ASSUMED_FOCAL_WIDTHS = 0.81
"""Focal length over image width of NYU Depth V2's Kinect; RealSense and Azure Kinect are within a quarter of it."""


def load(
    source: str | Path | None = None,
    *,
    protocol: EvaluationProtocol | None = None,
    device: str | torch.device = "auto",
    precision: str = "32-true",
) -> Segmenter:
    """Load a trained model, ready to label frames.

    Args:
        source: a run folder, a checkpoint (.ckpt), a .safetensors file that `rgbdseg convert` wrote, an .onnx file that
            `rgbdseg export` wrote or a name of the zoo, see `rgbdseg.weights.source.resolve_source`; None: the model
            that comes with this package.
        protocol: how an image is looked at; by default as its recipe evaluates.  An exported graph has its own inside.
        device: ``auto`` takes a GPU where there is one.
        precision: ``32-true``, or ``bf16-mixed`` or ``16-mixed`` for a faster network; an exported graph has its own.

    Raises:
        CheckpointError: when there is no model at ``source``, or it cannot be read.
    """
    file = resolve_source(source)
    if file.suffix == ".onnx":
        # Only here, so that nobody needs ONNX Runtime who has no such file.
        from rgbdseg.export.onnx_segmenter import load_onnx  # noqa: PLC0415

        if protocol is not None or precision != "32-true":
            raise UsageError(f"{file} holds how an image is looked at, and in which precision; leave both out")
        return load_onnx(file, device=device)
    bundle = load_bundle(file)
    return Segmenter.from_bundle(bundle, protocol=protocol, device=device, precision=precision)


def choose_device(device: str | torch.device) -> torch.device:
    """Return the device of that name; ``auto`` is a GPU where there is one.

    Raises:
        UsageError: for unknown names and GPUs that are not there.
    """
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        chosen = torch.device(device)
    except RuntimeError:
        raise UsageError(f"unknown device '{device}'; expected auto, cpu, cuda or cuda:N") from None
    if chosen.type not in ("cpu", "cuda"):
        raise UsageError(f"unknown device '{device}'; expected auto, cpu, cuda or cuda:N")
    if chosen.type == "cuda" and (chosen.index or 0) >= torch.cuda.device_count():
        raise UsageError(
            f"device '{device}' is not available: PyTorch sees {torch.cuda.device_count()} CUDA devices; use 'cpu' or "
            "another number"
        )
    return chosen


def _one_each(values: Any, count: int, what: str) -> list[Any]:
    if values is None:
        return [None] * count
    if isinstance(values, str | Mapping) or not hasattr(values, "__len__") or len(values) != count:
        found = f"{len(values)}" if isinstance(values, list | tuple) else type(values).__name__
        raise UsageError(f"{what}= has {found} for {count} frames; expected a list with one for each")
    return list(values)


def _several_cameras(camera: Any) -> TypeGuard[Sequence[Any]]:
    """Tell a list of cameras from one that is given by its numbers."""
    if not isinstance(camera, list | tuple):
        return False
    if any(isinstance(one, PinholeCamera | Mapping) for one in camera):
        return True
    return np.shape(camera) not in ((4,), (3, 3))
