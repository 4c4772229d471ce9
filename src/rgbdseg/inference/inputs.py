"""Rules that resize what the network is fed, after normalization, and its logits back to the image.

So evaluate DFormer, CMNeXt, HDBFormer, DPLNet and AsymFormer as released: the logits of every view have the size of the
image before they are combined with others.
"""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor
from torch.nn import functional

from rgbdseg.errors import UsageError
from rgbdseg.inference.setup import Setup, logits_of, logits_of_views
from rgbdseg.inference.windows import Size, window_positions
from rgbdseg.sample import RASTERS, RGBDBatch, RGBDSample
from rgbdseg.transforms.pack import pack_placed
from rgbdseg.transforms.placement import Placement
from rgbdseg.transforms.spatial import flip_batch

# V views, C classes, H height, W width


def score_inputs(setup: Setup, sample: RGBDSample) -> Tensor:
    """Return log scores (C, H, W) of a sample at its own size.

    Raises:
        UsageError: for scaled sides that the model cannot take.
    """
    protocol, size = setup.protocol, sample.size
    placement = Placement.centered(size, size)
    batch = pack_placed([(sample, placement)], setup.spec).to(sample.rgb.device)
    total: Tensor | None = None
    for scale in protocol.scales:
        scaled = _resized(setup, batch, size, protocol.scaled_size(size, scale))
        for logits in _views(setup, scaled):
            own_size = functional.interpolate(logits, size, mode="bilinear", align_corners=True)[0]
            scores = own_size if protocol.combination == "logits" else own_size.softmax(0)
            total = scores if total is None else total.add_(scores)
    assert total is not None
    if protocol.combination == "logits":
        return total
    return total.div_(len(protocol.scales) * (2 if protocol.flip else 1)).log_()


def _resized(setup: Setup, batch: RGBDBatch, size: Size, target: Size) -> RGBDBatch:
    """Return normalized inputs of one image at another size, the camera with them."""
    protocol = setup.protocol
    if protocol.mode == "sliding" and protocol.crop_size is not None:
        # As released: an image lower or narrower than the window takes its size on both sides.
        crop = protocol.crop_size
        chain = [target, crop] if target[0] < crop[0] or target[1] < crop[1] else [target]
    else:
        chain = [target]
        if setup.spec.padded_size(target) != target:
            raise UsageError(
                f"an input of {target[0]}x{target[1]} is not divisible by {setup.spec.size_divisor}, which this model "
                f"needs; use side_multiple {setup.spec.size_divisor}"
            )
    aligned = protocol.resize == "input"
    for new in chain:
        images = {
            stream.name: _resize(batch.images[stream.name], new, aligned, RASTERS[stream.raster].interpolation)
            for stream in setup.spec.streams
        }
        camera = None if batch.camera is None else _move(batch.camera, size, new, aligned)
        batch, size = dataclasses.replace(batch, images=images, camera=camera), new
    return batch


def _resize(image: Tensor, size: Size, aligned: bool, interpolation: str) -> Tensor:
    if aligned:
        return functional.interpolate(image, size, mode="bilinear", align_corners=True)
    if interpolation == "nearest":
        return functional.interpolate(image, size, mode="nearest-exact")
    return functional.interpolate(image, size, mode="bilinear", align_corners=False)


def _move(camera: Tensor, old: Size, new: Size, aligned: bool) -> Tensor:
    """Return cameras (V, 4) of images resized from ``old`` to ``new``."""
    if aligned:
        height, width = ((n - 1) / max(1, o - 1) for n, o in zip(new, old, strict=True))
        return camera * camera.new_tensor([width, height, width, height])
    height, width = (n / o for n, o in zip(new, old, strict=True))
    half = camera.new_tensor([0.0, 0.0, 0.5, 0.5])
    return (camera + half) * camera.new_tensor([width, height, width, height]) - half


def _views(setup: Setup, batch: RGBDBatch) -> list[Tensor]:
    """Return float32 logits (1, C, h, w) of an input and, where asked for, of its mirror image, mirrored back."""
    protocol = setup.protocol
    if protocol.mode == "whole" or protocol.crop_size is None:
        return logits_of_views(setup, batch)
    # Windows begin at the left border of what is looked at, so those of the mirror image show other parts.
    logits = [_mean_of_windows(setup, batch, protocol.crop_size)]
    if protocol.flip:
        logits.append(_mean_of_windows(setup, flip_batch(batch), protocol.crop_size).flip(-1))
    return logits


def _mean_of_windows(setup: Setup, batch: RGBDBatch, window: Size) -> Tensor:
    """Return float32 logits (1, C, h, w) of an input, averaged over windows."""
    size = next(iter(batch.images.values())).shape[-2:]
    positions = window_positions((size[0], size[1]), window, setup.protocol.stride_rate, "down")
    total: Tensor | None = None
    count = torch.zeros(size, device=next(iter(batch.images.values())).device)
    for start in range(0, len(positions), setup.window_batch):
        areas = [
            (slice(top, top + window[0]), slice(left, left + window[1]))
            for top, left in positions[start : start + setup.window_batch]
        ]
        images = {name: torch.cat([image[..., *area] for area in areas]) for name, image in batch.images.items()}
        logits = logits_of(setup, images, _cropped(batch.camera, areas))
        total = logits.new_zeros((logits.shape[1], *size)) if total is None else total
        for area, one in zip(areas, logits, strict=True):
            total[..., *area] += one
            count[area] += 1
    assert total is not None
    return (total / count)[None]


def _cropped(camera: Tensor | None, areas: list[tuple[slice, slice]]) -> Tensor | None:
    if camera is None:
        return None
    corners = [[0, 0, columns.start, rows.start] for rows, columns in areas]
    return camera - camera.new_tensor(corners)
