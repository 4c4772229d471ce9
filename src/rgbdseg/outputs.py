"""What is written of labeled frames: label files in a dataset's own numbers, and what says which class a number is.

FOLDER/classes.json    number, name and color of every class in the label files
       legend.png      the same as a picture
       label/<id>.png  the numbers, 8 bits, or 16 where they need them
       color/<id>.png  the colors of the classes; void is black
"""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import ImageFont

from rgbdseg.errors import UsageError
from rgbdseg.files import write_text
from rgbdseg.labels import RGB, LabelSet, LabelValues
from rgbdseg.png import write_png
from rgbdseg.visualize import legend, save_png

# H height, W width, N points

CLASSES_FILE = "classes.json"
LEGEND_FILE = "legend.png"
_LEGEND_FONT_PX = 12
_LEGEND_PATCH_PX = 34
_LEGEND_COLUMNS = 5


@dataclasses.dataclass(frozen=True)
class LabelFiles:
    """How the labels of a model or dataset are written.

    Args:
        names: of the classes.
        palette: their colors.
        values: number of each class in the files; None writes class indices, 0 to len - 1, and 255 for void.
        source: whose numbers they are, in a few words; empty for class indices.
        only: names of the classes that are written, all else is void; None for all.
    """

    names: tuple[str, ...]
    palette: tuple[RGB, ...]
    values: LabelValues | None = None
    source: str = ""
    only: tuple[str, ...] | None = None

    @classmethod
    def of_classes(cls, label_set: LabelSet, values: LabelValues | None, source: str = "") -> LabelFiles:
        """Take names and colors from a label set."""
        return cls(label_set.classes, label_set.palette, values, source if values is not None else "")

    @property
    def numbers(self) -> LabelValues:
        """Number of each class, class indices where nothing else is known."""
        return self.values or LabelValues.of_indices(len(self.names))

    def encode(self, labels: NDArray[np.uint8]) -> NDArray[np.uint8] | NDArray[np.uint16]:
        """Return labels of any shape, class indices and 255 for void, in the numbers of the files."""
        return self.numbers.encode(labels)

    def describe(self) -> str:
        """Say in a few words which numbers the label files hold."""
        numbers = self.numbers
        kind = f"the values of {self.source or 'the dataset'}" if self.values is not None else "class indices"
        if self.only is not None:
            named = ", ".join(f"{numbers.classes[index]} {self.names[index]}" for index in self._written())
            return f"{kind}, {named}, {numbers.void} = void or any other class"
        low, high = min(numbers.classes), max(numbers.classes)
        return f"{kind}, {low}..{high}, {numbers.void} = void"

    def _written(self) -> list[int]:
        """Return the indices of the classes that are written."""
        return [index for index, name in enumerate(self.names) if self.only is None or name in self.only]

    def to_dict(self) -> dict[str, Any]:
        """Return the content of ``classes.json``."""
        values = self.numbers.classes
        return {
            "label_files": f"hold {self.describe()}",
            "void": self.numbers.void,
            "classes": [
                {"value": values[index], "index": index, "name": self.names[index], "color": list(self.palette[index])}
                for index in self._written()
            ],
        }

    def write_key(self, folder: str | Path, *, replace: bool = False) -> list[Path]:
        """Write ``classes.json`` and ``legend.png`` into a folder, unless they are there already.

        Args:
            folder: is created.
            replace: those of other classes.

        Raises:
            UsageError: when the folder holds labels of other classes, or files of these names that are something else.
            WriteError: when a file cannot be written.
        """
        files = [Path(folder) / CLASSES_FILE, Path(folder) / LEGEND_FILE]
        text = _dump(self.to_dict())
        found = _read(files[0])
        stated = _numbers_by_name(found)
        if stated is None:
            require_own_key(folder)
        elif not replace and stated != _numbers_by_name(text):
            raise UsageError(
                f"{files[0]} says that the labels in the folder have other classes or numbers; choose another folder, "
                "or remove it with what it holds"
            )
        if found != text or not files[1].exists():
            write_text(files[0], text)  # the first: it says whose the legend is
            save_png(files[1], self.legend())
        return files

    def legend(self) -> NDArray[np.uint8]:
        """Return a picture of the classes: color, number in the files and name."""
        written = self._written()
        captions = [f"{self.numbers.classes[index]} {self.names[index]}" for index in written]
        font = ImageFont.load_default(_LEGEND_FONT_PX)
        width = max(100, round(max(font.getlength(caption) for caption in captions)) + _LEGEND_PATCH_PX)
        colors = [self.palette[index] for index in written]
        return legend(captions, colors, min(_LEGEND_COLUMNS, len(captions)), width)

    def cloud_comments(self) -> list[str]:
        """Return lines for the header of a point cloud that name the numbers of its property ``label``."""
        values = self.numbers.classes
        named = [f"label {values[index]} {' '.join(self.names[index].split())}" for index in self._written()]
        return [*named, f"label {self.numbers.void} void"]

    def write_labels(self, path: str | Path, labels: NDArray[np.uint8]) -> None:
        """Write one label file as PNG, atomically; labels: class indices, 255 for void, (H, W)."""
        write_png(path, self.encode(labels))


def is_labeled_folder(folder: str | Path) -> bool:
    """Return whether a folder has a ``classes.json`` that `LabelFiles` has written, so that its labels are ours."""
    return _numbers_by_name(_read(Path(folder) / CLASSES_FILE)) is not None


def require_own_key(folder: str | Path) -> None:
    """Raise UsageError where ``classes.json`` or ``legend.png`` in a folder are not those of labels."""
    if is_labeled_folder(folder):
        return
    for name in (CLASSES_FILE, LEGEND_FILE):
        if os.path.lexists(Path(folder) / name):
            raise UsageError(
                f"{Path(folder) / name} is something else than the {name} of labels that would be written there; "
                "choose another folder"
            )


def require_no_others(folder: str | Path, kinds: Iterable[str]) -> None:
    """Raise UsageError where predictions in a folder would lie among, or replace, files of somebody else.

    Args:
        folder: of the predictions; one that says that it holds labels is of an earlier prediction.
        kinds: of outputs, each a folder in it.
    """
    if is_labeled_folder(folder):
        return
    require_own_key(folder)
    for kind in kinds:
        place = Path(folder) / kind
        # Subfolders, too: frames of several rooms have them.
        files = (name for _, _, names in os.walk(place) for name in names if not name.startswith("."))
        found = next(files, None) if place.is_dir() else (kind if os.path.lexists(place) else None)
        if found is not None:
            raise UsageError(
                f"{folder} holds files in {kind}/, such as {found}, that no prediction has written; choose another "
                "folder to write to"
            )


def _dump(values: dict[str, Any]) -> str:
    lines = ",\n".join(f"  {json.dumps(one, ensure_ascii=False)}" for one in values["classes"])
    rest = {key: value for key, value in values.items() if key != "classes"}
    head = "".join(f" {json.dumps(key)}: {json.dumps(value, ensure_ascii=False)},\n" for key, value in rest.items())
    return f'{{\n{head} "classes": [\n{lines}\n ]\n}}\n'


def _read(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return None


def _numbers_by_name(text: str | None) -> tuple[Any, Sequence[tuple[Any, Any]]] | None:
    """Return which numbers a ``classes.json`` states, whatever the colors; None where it is another file."""
    try:
        values = json.loads(text or "")
        return values["void"], [(one["value"], one["name"]) for one in values["classes"]]
    except (ValueError, TypeError, KeyError, RecursionError):
        return None
