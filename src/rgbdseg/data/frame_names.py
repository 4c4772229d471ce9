"""Which frame a file of a recording belongs to, by its name: without what says that it is color, depth or a label."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path, PurePosixPath

from rgbdseg.errors import DataError
from rgbdseg.sample import RASTERS

_COLOR = ("rgb", "color", "colour", "image", "img")
_DEPTH = ("depth",)
_LABEL = ("label", "labels", "mask", "masks", "seg", "semantic", "gt")

_AT_END = re.compile(r"[-_.](rgb|color|colour|image|depth|label|labels|mask)$", re.I)
_WORDS = "|".join(sorted({*_COLOR, *_DEPTH, *_LABEL}, key=len, reverse=True))
_ALIGNED = re.compile(r"(?<![a-z0-9])aligned[-_. ]depth[-_. ]to[-_. ]colou?r(?![a-z])", re.IGNORECASE)
_ANYWHERE = re.compile(rf"(?<![a-z0-9])(?:{_WORDS}|aligned)(?![a-z])", re.IGNORECASE)
_SEPARATORS = re.compile(r"[-_. ]*([-_. ])[-_. ]*")


def frame_name(stem: str) -> str:
    """Return the name without the kind of file that many recorders end it with: "7-color" and "7-depth" are of "7"."""
    return _AT_END.sub("", stem)


def bare_frame_name(stem: str) -> str:
    """Return the name without any word for the kind of file: "color_7" and "rgb7" are of "7", "x_Color_7" is of "x_7".

    Folders in front are kept.
    """
    folder, slash, name = stem.rpartition("/")
    shortened = _ANYWHERE.sub("", _ALIGNED.sub("", name))
    shortened = _SEPARATORS.sub(r"\1", shortened).strip("-_. ")
    return f"{folder}{slash}{shortened or name}"


def kind_of(stem: str) -> str | None:
    """Return the raster that a file is by its name: rgb, depth_m or label; None where it says nothing, or several."""
    name = stem.rpartition("/")[2]
    if _ALIGNED.search(name):
        return "depth_m"
    words = {found.lower() for found in _ANYWHERE.findall(name)}
    kinds = [raster for raster, ours in (("label", _LABEL), ("depth_m", _DEPTH)) if words & set(ours)]
    # "depth_image_7" and "label_img_7" are no color images.
    if words & (set(_COLOR[:3]) if kinds else set(_COLOR)):
        kinds.append("rgb")
    return kinds[0] if len(kinds) == 1 else None


def agreeing_names(files: Sequence[Mapping[str, str]]) -> list[dict[str, str]]:
    """Return files of several kinds, frame -> path, under names that agree, with no more left out of them than needed.

    Args:
        files: name -> path of each kind; returned as they are where all names agree, or where shorter names agree no
            better or are those of several files.
    """
    given = [dict(ours) for ours in files]
    if all(ours.keys() == given[0].keys() for ours in given):
        return given
    bare = [{bare_frame_name(name): path for name, path in ours.items()} for ours in given]
    unique = all(len(shorter) == len(ours) for shorter, ours in zip(bare, given, strict=True))
    return bare if unique and _in_common(bare) > _in_common(given) else given


def _in_common(files: Sequence[Mapping[str, str]]) -> int:
    first, *others = [set(ours) for ours in files]
    return len(first.intersection(*others))


def files_of_kind(names: Iterable[str], raster: str) -> list[str]:
    """Return the files of a flat folder that hold one raster, by what their names say.

    Color images may be named by nothing but their frame, where depth and labels are named as such.
    """
    fitting = [name for name in names if PurePosixPath(name).suffix.lower() in RASTERS[raster].suffixes]
    kinds = {name: kind_of(PurePosixPath(name).stem) for name in fitting}
    if raster == "rgb" and "rgb" not in kinds.values():
        return [name for name in fitting if kinds[name] is None]
    return [name for name in fitting if kinds[name] == raster]


def is_flat(folder: Path) -> bool:
    """Tell whether a folder itself holds color images and depth maps side by side, told apart by their names."""
    names = _visible_files(folder)
    return bool(files_of_kind(names, "rgb")) and bool(files_of_kind(names, "depth_m"))


def _visible_files(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.is_file() and not path.name.startswith("."))


def _holds_depth_of_its_images(names: Sequence[str]) -> bool:
    """Tell whether every image of a flat folder has a depth map beside it: then neither is taken for the other."""
    images, depth = (
        {bare_frame_name(PurePosixPath(name).stem) for name in files_of_kind(names, raster)}
        for raster in ("rgb", "depth_m")
    )
    return bool(images) and images == depth


_REASONS = {
    "label": "JPEG changes the values at the borders of classes, so labels stored in it are lost; export them as PNG",
    "depth_m": "JPEG changes the values, so depth stored in it is lost; export it as 16-bit PNG",
}


def why_unusable(names: Iterable[str], raster: str) -> str:
    """Return, to be put behind a message, why files of other suffixes are not taken for a raster; empty without any."""
    found = sorted({PurePosixPath(name).suffix.lower() for name in names} - {"", *RASTERS[raster].suffixes})
    if not found:
        return ""
    lossy = {".jpg", ".jpeg", ".webp"} & set(found)
    reason = f"; {_REASONS[raster]}" if lossy and raster in _REASONS else ""
    return f"; it holds {', '.join(found)}{reason}"


def pair_files(rgb: Path, places: Mapping[str, Path]) -> dict[str, dict[str, Path]]:
    """Return the files in folders by raster, each frame -> file; every image has a file of every raster.

    Files of one frame have the same name without suffix, or one that differs in words such as color and depth alone.  A
    folder that holds several rasters is told apart by such words.

    Args:
        rgb: folder of the images.
        places: raster -> folder.

    Raises:
        DataError: for empty folders, several files of one frame, and images without a partner (the first is named).
    """
    shared = [folder for folder in (rgb, *places.values()) if [rgb, *places.values()].count(folder) > 1]
    folders = {"rgb": rgb, **places}
    found = {raster: _stems(folder, raster, by_kind=folder in shared) for raster, folder in folders.items()}
    named = dict(zip(found, agreeing_names(list(found.values())), strict=True))
    images = named["rgb"]
    for raster in places:
        unpaired = [name for name in images if name not in named[raster]]
        if unpaired:
            what = "depth map" if raster == "depth_m" else f"{raster} file"
            raise DataError(
                f"{len(unpaired)} of {len(images)} images have no {what} of the same name in {places[raster]}, "
                f"first: {images[unpaired[0]]}"
            )
    return {raster: {name: folders[raster] / file for name, file in files.items()} for raster, files in named.items()}


def _stems(folder: Path, raster: str, *, by_kind: bool) -> dict[str, str]:
    """Return name without suffix -> file of the files of a raster in a folder, subfolders left out."""
    names = _visible_files(folder)
    suffixes = RASTERS.get(raster).suffixes
    by_kind = by_kind or (raster in ("rgb", "depth_m") and _holds_depth_of_its_images(names))
    ours = (
        files_of_kind(names, raster) if by_kind else [n for n in names if PurePosixPath(n).suffix.lower() in suffixes]
    )
    if not ours:
        what = "images" if raster == "rgb" else f"{raster} files"
        told = ", told by their names, such as 7_rgb.png and 7_depth.png" if by_kind else ""
        raise DataError(
            f"{folder} holds no {what}{told}; expected files ending in {', '.join(suffixes)}"
            f"{why_unusable(names, raster)}"
        )
    stems: dict[str, str] = {}
    for name in ours:
        stem = PurePosixPath(name).stem
        if stem in stems:
            raise DataError(f"{folder} holds both {stems[stem]} and {name}; keep one")
        stems[stem] = name
    return stems
