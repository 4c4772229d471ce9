"""Frames that a graph is compared on: of a dataset, or rooms made for it."""

from __future__ import annotations

from pathlib import Path

import torch

from rgbdseg.data.dataset import RGBDDataset
from rgbdseg.datasets._registry import get_label_set
from rgbdseg.errors import UsageError
from rgbdseg.export.plan import Size
from rgbdseg.input_spec import InputSpec
from rgbdseg.labels import LabelSet
from rgbdseg.rooms.samples import render_room
from rgbdseg.sample import RASTERS, RGBDSample


def dataset_frames(root: Path, split: str, count: int, spec: InputSpec) -> tuple[list[RGBDSample], LabelSet | None]:
    """Return frames spread over a split, with labels where the dataset has them, and its classes.

    Args:
        root: folder of the prepared tree.
        split: a name of its description, or "all".
        count: number of frames, 1 or more; a smaller split gives all that it has.
        spec: of the model, which says what is loaded.

    Returns:
        tuple: the frames, and the classes; None for a dataset without labels.

    Raises:
        DataError: for what the dataset lacks.
        UsageError: for a count below 1 or an unknown split.
    """
    if count < 1:
        raise UsageError(f"{count} frames are asked for; expected 1 at least")
    needs = set(spec.rasters) - {"hha", "rgb"}
    if "hha" in spec.rasters:
        needs.add("depth_m")
    unlabeled = RGBDDataset(root, split, needs=needs)
    label_set = unlabeled.description.label_set
    dataset = unlabeled if label_set is None else RGBDDataset(root, split, needs={*needs, "label"})
    count = min(count, len(dataset))
    return [dataset.sample(index * len(dataset) // count) for index in range(count)], label_set


def room_frames(size: Size, count: int, spec: InputSpec, first_seed: int = 0) -> tuple[list[RGBDSample], LabelSet]:
    """Return made rooms of a size, every second one with the holes of its sensor, and their classes.

    Further rasters, which rooms do not have, are filled with the brightness of the picture.

    Args:
        size: (height, width) in pixels, 16 or more.
        count: number of rooms, one frame of each.
        spec: of the model, which says which further rasters there are.
        first_seed: of the first room, 0 or more; the others follow.

    Raises:
        UsageError: for a smaller size, or a negative seed.
    """
    frames = []
    for index in range(count):
        sample = render_room(first_seed + index, 0, size)
        if index % 2 and sample.raw_depth_m is not None and bool((sample.raw_depth_m > 0).any()):
            sample = sample.replace(depth_m=sample.raw_depth_m)
        gray = sample.rgb.float().mean(0, keepdim=True)
        for name in spec.rasters:
            if sample.raster(name) is None and name not in ("hha", "noise"):
                rule = RASTERS[name]
                values = gray.expand(rule.channels, -1, -1)
                sample = sample.replace(**{name: values.to(rule.dtype if rule.dtype == torch.uint8 else torch.float32)})
        frames.append(sample)
    return frames, get_label_set("rooms")
