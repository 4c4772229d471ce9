"""A look at a user's files before they are labeled: the unit of depth, the camera, orientation and HHA."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import torch

from rgbdseg.camera import PinholeCamera
from rgbdseg.camera_check import camera_oddity, require_plausible_camera
from rgbdseg.data.depth_survey import DepthSurvey, MissingValues, spread, survey_depth
from rgbdseg.data.hha_audit import AuditedFrame, audit_frames
from rgbdseg.data.images import exif_orientation, image_size, read_depth, read_hha
from rgbdseg.datasets import median_range_m
from rgbdseg.depth import DepthUnit
from rgbdseg.engine.predict import FramePaths
from rgbdseg.errors import DataError
from rgbdseg.geometry.hha import HHAParameters, encode_hha
from rgbdseg.labels import LabelSet
from rgbdseg.training_size import size_note

_FRAMES_OF_HHA = 3
_BEYOND_TRAINING = (0.25, 1.5)  # of the range that whole datasets have: single scenes lie nearer and farther


@dataclasses.dataclass(frozen=True)
class FrameSurvey:
    """What a few frames show.

    Args:
        depth: of their depth files, None without any.
        notes: what to tell the user, one line each.
    """

    depth: DepthSurvey | None
    notes: tuple[str, ...]


def survey_frames(
    frames: Sequence[FramePaths],
    *,
    unit: DepthUnit | None = None,
    missing: MissingValues = "usual",
    largest_m: float | None = None,
    camera: PinholeCamera | None = None,
    label_set: LabelSet | None = None,
    hha: HHAParameters | None = None,
    training_size: tuple[int, int] | None = None,
) -> FrameSurvey:
    """Look at a few of the frames.

    Args:
        frames: see `rgbdseg.engine.predict.find_frames`.
        unit: of stored depth, where it is stated.
        missing: stored depth that means "no reading"; see `rgbdseg.data.depth_survey.survey_depth`.
        largest_m: depth beyond is no reading.
        camera: of all frames.
        label_set: classes of the model.
        hha: parameters of the HHA that the model looks at, None where it looks at none.
        training_size: of the images that the model was trained on, where its size is fitted.

    Raises:
        DataError: for depth and cameras that cannot be right.
    """
    images = spread([frame.rgb for frame in frames])
    notes = []
    sizes = _sizes(images)
    for name, size in sizes.items():
        require_plausible_camera(camera, size, name)
    oddities = [camera_oddity(camera, size) for size in sizes.values()] if camera is not None else []
    notes += [f"note: camera {oddity}" for oddity in oddities[:1] if oddity is not None]
    notes += [note for size in [*sizes.values()][:1] if (note := size_note(size, training_size)) is not None]
    turned = [image for image in images if image.name in sizes and exif_orientation(image) != 1]
    if turned:
        notes.append(f"{turned[0].name} is turned upright as its EXIF orientation says; so are its labels")
    with_depth = [frame for frame in frames if frame.depth is not None]
    depth_paths = [frame.depth for frame in with_depth if frame.depth is not None]
    if not depth_paths:
        return FrameSurvey(None, tuple(notes))
    depth = survey_depth(depth_paths, unit, missing=missing, largest_m=largest_m)
    if depth.files:  # else whoever reads all of them says why they cannot be read
        notes.append(depth.line())
    low, high = (limit * factor for limit, factor in zip(median_range_m(label_set), _BEYOND_TRAINING, strict=True))
    if depth.median_m is not None and label_set is not None and not low <= depth.median_m <= high:
        notes.append(
            f"WARNING the median depth is {depth.median_m:.3g} m; scenes with the classes of {label_set.name} have "
            f"{low:.2g}..{high:.3g} m: is the unit right, and is this what the model was trained for?"
        )
    if hha is not None and camera is not None:
        found = (_hha(frame, depth.unit, camera, hha) for frame in spread(with_depth, _FRAMES_OF_HHA))
        audit = audit_frames(filter(None, found), "the HHA images given", declared=None)
        if audit.fault is not None:
            raise DataError(audit.fault)
        notes += [f"WARNING HHA: {text}" for text in (audit.difference, audit.saturation) if text is not None]
    return FrameSurvey(depth, tuple(notes))


def _sizes(images: Sequence[Path]) -> dict[str, tuple[int, int]]:
    """Return the sizes of the images that can be read, by name; whoever reads all of them names the others."""
    sizes = {}
    for image in images:
        try:
            sizes[image.name] = image_size(image)
        except DataError:
            continue
    return sizes


def _hha(frame: FramePaths, unit: DepthUnit, camera: PinholeCamera, parameters: HHAParameters) -> AuditedFrame | None:
    """Return HHA of a frame, computed and where it is given; None where a file cannot be read, as is found later."""
    assert frame.depth is not None
    try:
        depth_m = read_depth(frame.depth, unit)
        given = None if "hha" not in frame.further else read_hha(frame.further["hha"])
    except DataError:
        return None
    row = torch.tensor([camera.as_tuple()], dtype=torch.float64)
    computed = encode_hha(depth_m[None], row, parameters=parameters)[0]
    if not (depth_m > 0).any() or (given is not None and given.shape != computed.shape):
        return None
    return computed, given, depth_m[0] > 0
