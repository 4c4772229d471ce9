"""A folder of computed HHA images, with a record of what they were computed from."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from rgbdseg.data.images import read_hha, write_hha
from rgbdseg.data.json_fields import FieldReader, load_json, renamed
from rgbdseg.data.output_folder import require_inside
from rgbdseg.data.tree import PreparedTree
from rgbdseg.depth import EARLIER_KEYS
from rgbdseg.errors import DataError, UsageError
from rgbdseg.files import write_text
from rgbdseg.geometry.hha import HHA_CHANNELS, HHAParameters

RECORD_FILE = "hha.json"
FORMAT = 1


class HHAStore:
    """HHA of one tree as ``FOLDER/<id>.png``; ``FOLDER/hha.json`` records parameters, depth unit and camera.

    Opening a folder whose record differs is refused, so that images computed differently are never mixed.

    Args:
        folder: of the images, which need not exist yet: that of the tree itself, or a cache elsewhere.
        tree: whose HHA it is.
        parameters: that the images are computed with.
        check: whether an existing record is compared; False for whoever is about to replace it.

    Raises:
        DataError: for a record that differs, and for a cache that holds files but no record.
    """

    def __init__(self, folder: Path, tree: PreparedTree, parameters: HHAParameters, *, check: bool = True) -> None:
        self.folder = folder
        self.in_tree = folder.resolve() == (tree.root / tree.description.folder("hha")).resolve()
        self.channels = tree.description.hha_channels if self.in_tree else HHA_CHANNELS
        self._tree_root = tree.root
        self._record = _record(tree, parameters, None if self.in_tree else str(tree.root.resolve()))
        self._check_is_cache()
        if check:
            self._check_record()

    def path(self, sample_id: str) -> Path:
        """Return where the HHA of a frame belongs."""
        return self.folder / f"{sample_id}.png"

    def read(self, sample_id: str) -> Tensor | None:
        """Return the stored HHA, uint8 (3, H, W), or None when it has not been computed yet."""
        path = self.path(sample_id)
        return read_hha(path, self.channels) if path.exists() else None

    def write(self, sample_id: str, hha: Tensor) -> None:
        """Store HHA, uint8 (3, H, W), atomically; several processes may do so at once."""
        if not (self.folder / RECORD_FILE).exists():
            self.write_record()
        self._require_own(self.path(sample_id))
        write_hha(self.path(sample_id), hha, self.channels)

    def require_writable(self) -> None:
        """Raise DataError where nothing may be written: in a folder that is a link out of the tree."""
        self._require_own(self.folder / RECORD_FILE)

    def write_record(self) -> None:
        """Write ``hha.json``: before the first image, so that no image is ever without its record."""
        self._require_own(self.folder / RECORD_FILE)
        write_text(self.folder / RECORD_FILE, json.dumps(self._record, indent=2) + "\n")

    def remove_others(self, ids: Iterable[str]) -> None:
        """Remove the images of these frames, and the record, if they were computed otherwise.

        Without it, an interrupted run would leave old images under a new record.
        """
        file = self.folder / RECORD_FILE
        if not file.exists():
            return
        found = load_json(file)
        if isinstance(found, dict) and {key: _current(key, value) for key, value in found.items()} == self._record:
            return
        for sample_id in ids:
            self._require_own(self.path(sample_id))
            self.path(sample_id).unlink(missing_ok=True)
        file.unlink()

    def _require_own(self, path: Path) -> None:
        """Raise DataError for a path that links, or a pattern of folders, put elsewhere than into the store."""
        if "*" in self.folder.parts:
            raise DataError(f"{self.folder} stands for several folders, where nothing is written; keep HHA in a cache")
        require_inside(path, self._tree_root if self.in_tree else self.folder)

    def _check_is_cache(self) -> None:
        holds_others = not (self.folder / RECORD_FILE).exists() and self.folder.is_dir() and any(self.folder.iterdir())
        if holds_others and not self.in_tree:
            raise DataError(
                f"{self.folder} holds files but no {RECORD_FILE}, so it is not an HHA cache; choose an empty folder"
            )

    def _check_record(self) -> None:
        file = self.folder / RECORD_FILE
        if file.exists():
            found = FieldReader(str(file), load_json(file))
            for key, expected in self._record.items():
                value = _current(key, found.get(key))
                if value != expected:
                    raise DataError(
                        f"{file}: these HHA images were computed with {_difference(key, value, expected)}; remove the "
                        "folder to compute them anew, or choose another one"
                    )


def is_complete_png(path: Path) -> bool:
    """Tell whether a PNG exists and ends as one does; a copy that was cut off does not."""
    try:
        if not path.is_file():
            return False
        with open(path, "rb") as file:
            file.seek(-12, 2)
            return file.read(12) == b"\x00\x00\x00\x00IEND\xaeB`\x82"
    except OSError:
        return False


def _record(tree: PreparedTree, parameters: HHAParameters, owner: str | None) -> dict[str, Any]:
    description = tree.description
    camera: object = description.camera and description.camera.to_dict()
    if tree.cameras:
        rows = sorted((key, camera.as_tuple()) for key, camera in tree.cameras.items())
        camera = "sha256 " + hashlib.sha256(json.dumps(rows).encode()).hexdigest()
    return {
        "format": FORMAT,
        # An outside folder says whose it is: two trees of equal description may hold different depth.
        "tree": owner,
        "parameters": parameters.to_dict(),
        "depth": description.depth and description.depth.to_dict(),
        "raw_depth": description.raw_depth and description.raw_depth.to_dict(),
        "camera": camera,
        # None where it is usual, as records of earlier versions, which lack the key, are read.
        "channels": None
        if owner is not None or description.hha_channels == HHA_CHANNELS
        else [*description.hha_channels],
    }


def _current(key: str, value: object) -> object:
    """Return one entry of a record as this version writes it, with what later versions added at its defaults."""
    if not isinstance(value, dict):
        return value
    if key in ("depth", "raw_depth"):
        return renamed(value, EARLIER_KEYS)
    try:
        return HHAParameters.from_dict(value).to_dict() if key == "parameters" else value
    except UsageError:
        return value


def _difference(key: str, found: object, expected: object) -> str:
    if isinstance(found, Mapping) and isinstance(expected, Mapping):
        for name in expected:
            if found.get(name) != expected[name]:
                return f"{key}.{name} {found.get(name)!r}, expected {expected[name]!r}"
    return f"{key} {found!r}, expected {expected!r}"
