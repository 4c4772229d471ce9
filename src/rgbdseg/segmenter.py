"""A trained model as an object in memory: frames in, labels out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeGuard, overload

import numpy as np
import torch
from numpy.typing import NDArray

from rgbdseg.camera import PinholeCamera
from rgbdseg.config.protocol import EvaluationProtocol, for_other_images, stored_protocol
from rgbdseg.datasets import find_facts, nyuv2
from rgbdseg.depth import DepthUnit
from rgbdseg.device import AUTOCAST, choose_device, chosen_precision, dtype_name, place_model
from rgbdseg.errors import DataError, UsageError
from rgbdseg.frame_inputs import CameraLike, check_known, make_sample
from rgbdseg.geometry.hha import INDOOR, HHAParameters
from rgbdseg.inference import Segmentation, segment
from rgbdseg.inference.form import for_inference
from rgbdseg.input_spec import InputSpec
from rgbdseg.labels import LabelSet, LabelValues
from rgbdseg.models._base import SegmentationModel
from rgbdseg.options import check_choice
from rgbdseg.outputs import LabelFiles
from rgbdseg.sample import RGBDSample
from rgbdseg.segmented_frame import SegmentedFrame
from rgbdseg.training_size import enlarged_scores, seen_size, shrunk
from rgbdseg.transforms.derive import with_hha
from rgbdseg.weights.checkpoint import ModelBundle
from rgbdseg.weights.facts import ModelFacts
from rgbdseg.weights.fingerprint import weights_fingerprint

# H height, W width, N points

PRECISIONS = ("auto", *AUTOCAST)


class Segmenter:
    """A trained model with all that turns frames into what it eats; `rgbdseg.load` makes one.

    Args:
        model: is put into evaluation mode and moved to ``device``.
        label_set: names and colors of its classes.
        input_spec: by default the model's own.
        protocol: how an image is looked at (windows, scales, mirror image); by default in one piece.
        hha: parameters that HHA is computed with from depth, where the model looks at HHA.
        device: ``auto`` takes a GPU where there is one.
        precision: ``32-true``, or ``bf16-mixed`` or ``16-mixed`` for a faster network; scores stay float32.  ``auto``
            takes bf16-mixed where the device has instructions of its own for it.
        name: of the model, for messages.
        training_size: (height, width) of the images it was trained on; much larger ones are looked at in that size, see
            `rgbdseg.training_size`.  None: every image as it is.
        label_values: numbers of the classes in label files; None writes class indices.
        dataset: whose numbers they are.

    Raises:
        UsageError: for a device that is not there, and an unknown precision.
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
        label_values: LabelValues | None = None,
        dataset: str = "",
        training_size: tuple[int, int] | None = None,
    ) -> None:
        self._fingerprint: str | None = None
        self.label_values, self.dataset = label_values, dataset
        self.device = choose_device(device)
        self.label_set = label_set
        self.input_spec = input_spec or model.input_spec
        self.protocol = protocol or EvaluationProtocol()
        check_choice("precision", precision, PRECISIONS)
        self.autocast_dtype = AUTOCAST[chosen_precision(precision, self.device)]
        self.model = place_model(model, self.device, self.autocast_dtype).eval()
        self.hha = hha
        self.name = name
        self.training_size = training_size

    @classmethod
    def from_bundle(
        cls,
        bundle: ModelBundle,
        *,
        protocol: EvaluationProtocol | None = None,
        device: str | torch.device = "auto",
        precision: str = "32-true",
        fit_size: bool | None = None,
        keep_layers: bool = False,
    ) -> Segmenter:
        """Make one from a checkpoint that has been read.

        The model gets the form in which it is fastest, see `rgbdseg.inference.form`: it is not to be trained any more.

        Args:
            bundle: model and facts.
            protocol: by default that of its recipe, except for the margin and the area that belong to a dataset.
            device: see the class.
            precision: see the class.
            fit_size: whether much larger images than those of training are looked at in their size; by default where
                no protocol is given.
            keep_layers: leave the model as it was trained, layer by layer, for whoever looks into it.
        """
        facts = bundle.facts
        fingerprint = weights_fingerprint(bundle.model)
        if not keep_layers:
            check_choice("precision", precision, PRECISIONS)
            chosen = choose_device(device)
            for_inference(bundle.model, chosen, AUTOCAST[chosen_precision(precision, chosen)])
        fit_size = protocol is None if fit_size is None else fit_size
        if protocol is None:
            protocol = for_other_images(stored_protocol(facts.config))
        segmenter = cls(
            bundle.model,
            facts.label_set,
            input_spec=facts.input_spec,
            protocol=protocol,
            hha=HHAParameters.from_dict(facts.hha) if facts.hha else INDOOR,
            device=device,
            precision=precision,
            name=facts.model_name,
            label_values=facts.label_values,
            dataset=facts.dataset,
            training_size=training_size(facts) if fit_size else None,
        )
        segmenter._fingerprint = fingerprint
        return segmenter

    def weights_fingerprint(self) -> str:
        """Return a short text that differs between models with other weights, wherever they are and in any form."""
        return self._fingerprint or weights_fingerprint(self.model)

    def __repr__(self) -> str:
        streams = " + ".join(self.input_spec.names)
        return f"Segmenter({self.name}: {streams} to {len(self.label_set)} classes of {self.label_set.name})"

    @property
    def label_files(self) -> LabelFiles:
        """How the labels of frames are written: which number is which class."""
        return LabelFiles.of_classes(self.label_set, self.label_values, self.dataset)

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

    @property
    def number_format(self) -> str:
        """What the network computes in, "float32" or that of mixed precision, "bfloat16" or "float16"."""
        return dtype_name(self.autocast_dtype or torch.float32)

    def segment(self, sample: RGBDSample, *, with_confidence: bool = True) -> SegmentedFrame:
        """Label a frame that is given as a sample; HHA is computed where the model needs it and the frame has none.

        Args:
            sample: the frame.
            with_confidence: whether the confidence is asked for; it costs time.  Else it is not a number.

        Raises:
            DataError: where the frame lacks what the model needs.
        """
        with torch.inference_mode():
            result, seen = self._score(sample)
            sample = seen if seen.size == sample.size else sample
            # Asked for first, since the labels come with it; without it they take half as long.
            confidence = result.confidence.cpu().numpy() if with_confidence else no_confidence(sample.size)
            labels = result.prediction.cpu().numpy()
        return self.labeled_frame(sample, labels, confidence)

    def labeled_frame(
        self, sample: RGBDSample, labels: NDArray[np.uint8], confidence: NDArray[np.float32]
    ) -> SegmentedFrame:
        """Return a frame that has been labeled, with the names, colors and numbers of the classes.

        Args:
            sample: the frame.
            labels: class indices (H, W).
            confidence: (H, W), 0 to 1.
        """
        return SegmentedFrame(
            labels=labels,
            confidence=confidence,
            names=self.label_set.classes,
            palette=self.label_set.palette,
            sample=sample,
            label_values=self.label_values,
            dataset=self.dataset,
        )

    def score(self, sample: RGBDSample) -> Segmentation:
        """Return the scores of every class that `segment` takes the labels from.

        Raises:
            DataError: where the frame lacks what the model needs.
        """
        with torch.inference_mode():
            return self._score(sample)[0]

    def _score(self, sample: RGBDSample) -> tuple[Segmentation, RGBDSample]:
        """Return the scores of a sample at its own size, and the sample as the model saw it."""
        size = seen_size(sample.size, self.training_size)
        seen = self._complete(sample if size == sample.size else shrunk(sample, size))
        result = segment(
            self.model, seen, self.input_spec, self.protocol, device=self.device, autocast_dtype=self.autocast_dtype
        )
        if size != sample.size:
            result = Segmentation(enlarged_scores(result.log_scores, sample.size))
        return result, seen

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

    def prepare(self, sample: RGBDSample) -> RGBDSample:
        """Return the sample with what is computed from it before the network: HHA, where the model looks at it.

        An image that is looked at in a smaller size is returned as it is: its HHA is computed in that size.

        Raises:
            DataError: where the frame lacks what the model needs.
        """
        if seen_size(sample.size, self.training_size) != sample.size:
            return sample
        with torch.inference_mode():
            return self._complete(sample)

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


def no_confidence(size: tuple[int, int]) -> NDArray[np.float32]:
    """Return what stands in place of a confidence (H, W) that nobody has asked for: not a number, of no memory."""
    return np.broadcast_to(np.float32(np.nan), size)


def training_size(facts: ModelFacts) -> tuple[int, int] | None:
    """Return (height, width) of the images that a model was trained on, as its checkpoint or its dataset says."""
    if facts.image_size is not None:
        return facts.image_size
    known = find_facts(facts.dataset)
    return None if known is None else known.size


def assumed_camera(size: tuple[int, int]) -> PinholeCamera:
    """Return the camera that is assumed where none is given: that of NYU Depth V2, 63 degrees from left to right.

    RealSense and Azure Kinect are within a quarter of its focal length.

    Args:
        size: (height, width) of the image in pixels.
    """
    height, width = size
    focal_px = nyuv2.CAMERA.fx / nyuv2.SIZE[1] * width
    return PinholeCamera(focal_px, focal_px, (width - 1) / 2, (height - 1) / 2)


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
