"""What a model sees in one frame, with the pictures, points and files that are made of it."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from rgbdseg.labels import IGNORE_INDEX, RGB, LabelSet, LabelValues
from rgbdseg.options import check_choice
from rgbdseg.outputs import LabelFiles, require_no_others
from rgbdseg.sample import RGBDSample
from rgbdseg.visualize import Picture, colorize, labeled_point_cloud, overlay, picture, save_png, write_ply

# H height, W width, N points

OUTPUTS = {"label": ".png", "color": ".png", "overlay": ".png", "cloud": ".ply"}
"""What can be written of a labeled frame, with the suffix of its files."""


@dataclasses.dataclass(frozen=True, eq=False)
class SegmentedFrame:
    """What a model sees in one frame.

    Args:
        labels: uint8 (H, W), the class of every pixel, an index into ``names``.
        confidence: float32 (H, W), 0 to 1, the share of the most likely class in the scores of all.
        names: of the classes.
        palette: a color of 0 to 255 for each class.
        sample: the frame.
        label_values: numbers of the classes in label files; None writes class indices.
        dataset: whose numbers they are.
        only: names of the classes that the frame was restricted to; all else is void (255).  None for all.
    """

    labels: NDArray[np.uint8]
    confidence: NDArray[np.float32]
    names: tuple[str, ...]
    palette: tuple[RGB, ...]
    sample: RGBDSample
    label_values: LabelValues | None = None
    dataset: str = ""
    only: tuple[str, ...] | None = None

    @property
    def label_files(self) -> LabelFiles:
        """How the labels are written: which number is which class."""
        source = self.dataset if self.label_values else ""
        return LabelFiles(self.names, self.palette, self.label_values, source, self.only)

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

        Overlays show the image there, clouds have no points there, and ``classes.json`` and the legend leave them out.

        Raises:
            UsageError: for a name that is none of ``names``.
        """
        label_set = LabelSet("the model", self.names, self.palette)
        kept = [label_set.index(name) for name in names]
        labels = np.where(np.isin(self.labels, kept), self.labels, np.uint8(IGNORE_INDEX))
        return dataclasses.replace(self, labels=labels, only=tuple(self.names[index] for index in sorted(set(kept))))

    def colors(self) -> Picture:
        """Return the labels as a picture, uint8 (H, W, 3), in the colors of the palette."""
        return colorize(self.labels, self.palette)

    def overlay(self, alpha: float = 0.5) -> Picture:
        """Return the colored labels over the image, uint8 (H, W, 3); alpha 0 shows the image, 1 the labels.

        Void shows the image.
        """
        return self._laid_over(self.colors(), alpha)

    def _laid_over(self, colors: Picture, alpha: float = 0.5) -> Picture:
        image = picture(self.sample.rgb)
        void = self.labels[..., None] == IGNORE_INDEX
        return np.where(void, image, overlay(image, colors, alpha))

    def point_cloud(self) -> tuple[NDArray[np.float32], NDArray[np.uint8], NDArray[np.uint8]]:
        """Return the pixels with a depth reading and a class as points in the camera's frame.

        Returns:
            tuple: xyz_cam_m float32 (N, 3) (+x right, +y down, +z forward), colors uint8 (N, 3), labels uint8 (N,).

        Raises:
            DataError: for a frame without depth or camera.
        """
        xyz_cam_m, colors, labels = labeled_point_cloud(self.sample, self.labels, self.palette)
        known = labels != IGNORE_INDEX
        return (xyz_cam_m, colors, labels) if known.all() else (xyz_cam_m[known], colors[known], labels[known])

    def save(self, folder: str | Path, name: str | None = None, *, outputs: Sequence[str] | None = None) -> list[Path]:
        """Write label/NAME.png, color/NAME.png, overlay/NAME.png and, with depth, cloud/NAME.ply.

        Label files hold the numbers of the dataset that the model was trained on, or class indices where they are not
        known; ``classes.json`` and ``legend.png`` in the folder say which is which.

        Args:
            folder: is created.
            name: by default the frame's own.
            outputs: some of `OUTPUTS`; by default all, the cloud where there is depth with a camera.

        Returns:
            list: the files.

        Raises:
            DataError: when a cloud is asked for of a frame without depth or camera.
            UsageError: for unknown outputs, and when the folder holds labels of other classes or files of somebody
                else under these names.
            WriteError: when a file cannot be written; none is left half-written.
        """
        require_no_others(folder, OUTPUTS)
        self.label_files.write_key(folder)
        stem = self.sample.sample_id if name is None else name
        if outputs is None:
            has_cloud = self.sample.depth_m is not None and self.sample.camera is not None
            outputs = [kind for kind in OUTPUTS if kind != "cloud" or has_cloud]
        return self.write(folder, stem, outputs)

    def write(self, folder: str | Path, name: str, outputs: Sequence[str]) -> list[Path]:
        """Write what `save` writes, but neither ``classes.json`` nor ``legend.png``: many frames need them once.

        Args:
            folder: is created.
            name: of the files.
            outputs: some of `OUTPUTS`.

        Returns:
            list: the files.

        Raises:
            DataError: when a cloud is asked for of a frame without depth or camera.
            UsageError: for unknown outputs.
            WriteError: when a file cannot be written; none is left half-written.
        """
        colored = functools.cache(self.colors)  # two kinds show them
        files = []
        for kind in outputs:
            check_choice("output", kind, OUTPUTS)
            files.append(Path(folder) / kind / f"{name}{OUTPUTS[kind]}")
            if kind == "cloud":
                xyz_cam_m, colors, labels = self.point_cloud()
                numbers = self.label_files
                write_ply(files[-1], xyz_cam_m, colors, numbers.encode(labels), numbers.cloud_comments())
            elif kind == "label":
                self.label_files.write_labels(files[-1], self.labels)
            else:
                shown = colored() if kind == "color" else self._laid_over(colored())
                save_png(files[-1], shown)
        return files
