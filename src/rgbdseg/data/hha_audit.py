"""HHA of a few frames computed anew: whether stored images fit the depth beside them, and whether channels saturate."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Sequence
from pathlib import Path

import torch
from torch import Tensor

from rgbdseg.data.depth_survey import spread
from rgbdseg.data.description import DESCRIPTION_FILE
from rgbdseg.data.hha_store import RECORD_FILE
from rgbdseg.data.images import read_depth, read_hha
from rgbdseg.data.tree import PreparedTree, natural_key, open_tree
from rgbdseg.errors import DataError
from rgbdseg.geometry.hha import HHA_CHANNELS, encode_hha
from rgbdseg.geometry.hha_quality import (
    channel_correlation,
    channels_are_equal,
    saturated_shares,
    saturation_text,
    stored_order,
)

AUDITED = 8
"""So many frames, spread over all of them, are looked at."""

_DIFFERENT_LEVELS = 8.0
_REMEDY = "remove them to compute HHA from depth"

AuditedFrame = tuple[Tensor, Tensor | None, Tensor]
"""Computed and stored HHA, uint8 (3, H, W), and where there are readings, bool (H, W)."""


@dataclasses.dataclass(frozen=True)
class HHAAudit:
    """What was found in a few frames; texts are None where nothing is wrong.

    Args:
        compared: frames whose stored HHA was compared with what their depth gives.
        fault: what is wrong with stored HHA: channels in another order, no HHA at all, HHA of other depth.
        difference: stored HHA fits, but not to a few gray levels.
        saturation: a channel that holds next to nothing.
    """

    compared: int = 0
    fault: str | None = None
    difference: str | None = None
    saturation: str | None = None


def audit_hha(tree: PreparedTree, ids: Sequence[str]) -> HHAAudit:
    """Compute HHA of a few frames and compare it with what is stored.

    Frames without depth in meters or without a camera, and files that cannot be read, are passed over.  HHA that this
    program computed, which ``hha.json`` beside it says, is not compared.

    Args:
        tree: of the frames.
        ids: of frames to choose from.
    """
    description = tree.description
    usable = [key for key in ids if key in tree.index("depth_m").files and tree.camera(key) is not None]
    if description.depth is None or not usable:
        return HHAAudit()
    own = (tree.root / description.folder("hha") / RECORD_FILE).exists()
    frames = filter(None, (_frame(tree, sample_id) for sample_id in spread(usable, AUDITED)))
    place = f"the images in {description.folder('hha')}/"
    return audit_frames(frames, place, own=own, declared=description.hha_channels)


def audit_frames(
    frames: Iterable[AuditedFrame],
    place: str,
    *,
    own: bool = False,
    declared: Sequence[str] | None = HHA_CHANNELS,
) -> HHAAudit:
    """Compare stored with computed HHA.

    Args:
        frames: to be compared.
        place: of stored HHA, in words of plural.
        own: whether it is sure that this program has computed what is stored, so that only saturation is looked at.
        declared: order of the channels in the files, which ``dataset.json`` can state; None where nothing can state it.
    """
    correlations, differences, shares, equal = [], [], [], 0
    for computed, stored, reading in frames:
        shares.append(saturated_shares(computed if stored is None else stored, reading))
        if stored is not None and not own:
            equal += channels_are_equal(stored)
            correlations.append(channel_correlation(stored, computed, reading))
            differences.append((stored.float() - computed.float())[:, reading].abs().mean(1))
    near, high, low = (sum(one[k] for one in shares) / max(1, len(shares)) for k in range(3))
    saturation = saturation_text((near, high, low))
    if not correlations:
        return HHAAudit(saturation=saturation)
    count = len(correlations)
    if 2 * equal > count:
        fault: str | None = f"{place} have three equal channels: they are gray pictures, not HHA; {_REMEDY}"
    else:
        fault = _order_fault(torch.stack(correlations).mean(0), count, place, declared)
    if fault is not None:
        return HHAAudit(count, fault)
    return HHAAudit(count, None, _difference(torch.stack(differences).mean(0), count), saturation)


def audit_tree(root: str | Path) -> HHAAudit:
    """Look at frames of a whole tree, with or without lists; see `audit_hha`."""
    tree = open_tree(root)
    return audit_hha(tree, sorted(tree.index("rgb").files, key=natural_key))


def require_fitting_hha(tree: PreparedTree, ids: Sequence[str]) -> None:
    """Raise DataError when stored HHA of another program does not fit the depth beside it; see `audit_hha`."""
    if (tree.root / tree.description.folder("hha") / RECORD_FILE).exists():
        return
    stored = [sample_id for sample_id in ids if sample_id in tree.index("hha").files]
    fault = audit_hha(tree, stored).fault if stored else None
    if fault is not None:
        raise DataError(f"{tree.root}: {fault}")


def _frame(tree: PreparedTree, sample_id: str) -> AuditedFrame | None:
    """Return a frame to be compared; None where its files are no use."""
    description, camera = tree.description, tree.camera(sample_id)
    assert description.depth is not None
    assert camera is not None
    raw_path, hha_path = (tree.index(raster).files.get(sample_id) for raster in ("raw_depth_m", "hha"))
    try:
        depth_m = read_depth(tree.root / tree.index("depth_m").files[sample_id], description.depth)
        raw_depth_m = None
        if raw_path is not None and description.raw_depth is not None:
            raw_depth_m = read_depth(tree.root / raw_path, description.raw_depth)[None]
        stored = None if hha_path is None else read_hha(tree.root / hha_path, description.hha_channels)
        computed = encode_hha(
            depth_m[None], torch.tensor([camera.as_tuple()], dtype=torch.float64), raw_depth_m, description.hha
        )[0]
    except DataError:
        return None
    if not (depth_m > 0).any() or (stored is not None and stored.shape != computed.shape):
        return None
    return computed, stored, depth_m[0] > 0


def _order_fault(correlation_33: Tensor, count: int, place: str, declared: Sequence[str] | None) -> str | None:
    """Say that the channels are in another order than declared, or show something else than the depth."""
    order = stored_order(correlation_33)
    if order == HHA_CHANNELS:
        return None
    if order is None:
        return (
            f"{place} do not fit the depth beside them ({count} frames computed anew): they are of other frames, or no "
            f"HHA; {_REMEDY}"
        )
    # What was read as channel k lies in the file where the declaration puts that channel.
    in_file = [order[HHA_CHANNELS.index(name)] for name in declared or HHA_CHANNELS]
    expected = f"not {', '.join(declared or HHA_CHANNELS)}"
    if declared is None:
        remedy = f"reorder them, or {_REMEDY}"
    else:
        remedy = f'declare it in {DESCRIPTION_FILE}: "hha_channels": {json.dumps(in_file)}'
    found = f"{', '.join(in_file)} ({count} frames computed anew)"
    return f"{place} have the channels in the order {found}, {expected}; {remedy}"


def _difference(levels_3: Tensor, count: int) -> str | None:
    if float(levels_3.max()) <= _DIFFERENT_LEVELS:
        return None
    by_channel = ", ".join(f"{name} {level:.0f}" for name, level in zip(HHA_CHANNELS, levels_3.tolist(), strict=True))
    return (
        f"stored HHA differs from what depth and camera give, in gray levels on average: {by_channel} ({count} frames "
        "computed anew); was it made with other constants, or another camera?"
    )
