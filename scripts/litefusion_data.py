"""Frames for the training of LiteFusion, all of them in the memory of the device, and batches that are made there."""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import math
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from rgbdseg.config.disturbance import DepthDisturbance
from rgbdseg.data.dataset import RGBDDataset
from rgbdseg.datasets import get_label_set
from rgbdseg.datasets.rooms import ROOMS
from rgbdseg.geometry.hha import HHAParameters, encode_hha
from rgbdseg.rooms import render_frame
from rgbdseg.transforms.disturb import disturb_depth

# B batch, N frames, V variants of the geometry, H height, W width

NYU40 = get_label_set("nyu40")
VOID = 255
_FAULTS = DepthDisturbance(drop_probability=0)  # whole frames lose their depth in `Batches`
HHA = HHAParameters(
    normal_radius=8, gravity_radius=16, missing_fill=0, floor_percentile=1.0, singular_windows="undefined"
)
_NAMES_IN_NYU40 = {"rug": "floor mat", "cushion": "pillow"}


@dataclasses.dataclass
class Frames:
    """Frames in the memory of the device.

    rgb: (N, 3, H, W) uint8.  label: (N, H, W) uint8, 255 is void.  geometry: (V, N, 4, 240, 320) uint8, HHA and 255
    where there is a reading; the first variant is the depth as it is, the others have faults of sensors.
    """

    rgb: Tensor
    label: Tensor
    geometry: Tensor

    def save(self, path: str) -> None:
        """Write the frames for `load`; the file is whole once it has its name."""
        torch.save({field.name: getattr(self, field.name).cpu() for field in dataclasses.fields(self)}, path + ".new")
        os.replace(path + ".new", path)

    @classmethod
    def load(cls, path: str, device: torch.device) -> Frames:
        """Read what `save` wrote."""
        return cls(**torch.load(path, map_location=device, weights_only=True))


def read_frames(root: str, split: str, variants: int, device: torch.device) -> Frames:
    """Read a split of a prepared tree."""
    dataset = RGBDDataset(root, split, needs=("rgb", "depth_m", "label"))
    with ThreadPoolExecutor(16) as pool:
        samples = list(pool.map(dataset.sample, range(len(dataset))))
    rgb = torch.stack([sample.rgb for sample in samples]).to(device)
    label = torch.stack([sample.label[0] for sample in samples]).to(device, torch.uint8)
    cameras = torch.stack([torch.tensor(sample.camera.as_tuple()) for sample in samples])
    depth_m = torch.stack([sample.depth_m for sample in samples])
    return Frames(rgb, label, make_geometry(depth_m, cameras, variants, device))


def make_rooms(count: int, processes: int, variants: int, device: torch.device) -> Frames:
    """Render rooms at 240x320, one frame each, with every second depth map as the sensor gives it, with holes."""
    names = [_NAMES_IN_NYU40.get(name, name) for name in ROOMS.classes]
    table = np.array([NYU40.classes.index(name) for name in names], np.uint8)
    with ProcessPoolExecutor(processes) as pool:
        made = list(pool.map(_render, range(50_000, 50_000 + count), chunksize=8))
    rgb, depth_m, label = (np.stack(part) for part in zip(*made, strict=True))
    focal = 160 / math.tan(math.radians(30))
    cameras = torch.tensor([[focal, focal, 159.5, 119.5]]).expand(count, 4)
    geometry = make_geometry(torch.from_numpy(depth_m)[:, None], cameras, variants, device)
    return Frames(torch.from_numpy(rgb).to(device), torch.from_numpy(table[label]).to(device), geometry)


def _render(seed: int) -> tuple[np.ndarray, ...]:
    frame = render_frame(seed, 0, (240, 320))
    depth = np.where(seed % 2, frame.raw_depth_HW, frame.depth_HW)
    return frame.rgb_3HW, depth.astype(np.float32), frame.label_HW


def make_geometry(depth_m: Tensor, cameras: Tensor, variants: int, device: torch.device) -> Tensor:
    """Return geometry (V, N, 4, 240, 320) uint8 of depth maps of 480x640 or 240x320."""
    generator = torch.Generator(device).manual_seed(2)
    made = torch.empty(variants, len(depth_m), 4, 240, 320, dtype=torch.uint8, device=device)
    for at in range(0, len(depth_m), 16):
        depth, camera = depth_m[at : at + 16].to(device), cameras[at : at + 16].to(device)
        if depth.shape[-1] < 640:
            depth = depth.repeat_interleave(2, 2).repeat_interleave(2, 3)
            camera = torch.cat((camera[:, :2] * 2, camera[:, 2:] * 2 + 0.5), dim=1)
        for variant in range(variants):
            seen, focal = depth, camera
            if variant:
                seen = disturb_depth(depth[:, :, ::2, ::2].contiguous(), generator, _FAULTS)
                seen = seen.repeat_interleave(2, 2).repeat_interleave(2, 3)
                draw = torch.rand(len(depth), 2, generator=generator, device=device)
                # In three of ten frames the camera is said to see up to a quarter more or less than it does.
                factor = torch.where(draw[:, 0] < 0.3, (draw[:, 1] - 0.5) * 0.5, 0).exp()[:, None]
                focal = torch.cat((camera[:, :2] * factor, camera[:, 2:]), dim=1)
            hha = encode_hha(seen, focal, parameters=HHA)
            known = (hha[:, 2:] > 0).float()
            share = functional.avg_pool2d(known, 2)
            mean = functional.avg_pool2d(hha.float() * known, 2) / share.clamp(min=1e-6)
            geometry = torch.cat((mean.round().clamp(0, 255), (share >= 0.25) * 255.0), dim=1)
            made[variant, at : at + 16] = geometry.to(torch.uint8)
    return made


class Batch(NamedTuple):
    """Images of h x w, augmented.

    rgb: (B, 3, h, w).  geometry: (B, 4, h/2, w/2).  half_label, quarter_label: (B, h/2, w/2) and (B, h/4, w/4).
    present: (B, 40), 1 for each class that can be seen.  plain_rgb, whole_geometry: the same rgb without changes of
    color and the geometry with the depth of every image.
    """

    rgb: Tensor
    geometry: Tensor
    half_label: Tensor
    quarter_label: Tensor
    present: Tensor
    plain_rgb: Tensor
    whole_geometry: Tensor

    @classmethod
    def of_noise(cls, count: int, crop: tuple[int, int], device: torch.device) -> Batch:
        """Return a batch of the right sizes without any meaning."""
        height, width = crop
        rgb = torch.randn(count, 3, height, width, device=device).contiguous(memory_format=torch.channels_last)
        geometry = torch.randn(count, 4, height // 2, width // 2, device=device)
        geometry = geometry.contiguous(memory_format=torch.channels_last)
        label = torch.randint(40, (count, height, width), device=device)
        present = torch.ones(count, 40, device=device)
        return cls(rgb, geometry, label[:, ::2, ::2], label[:, 2::4, 2::4], present, rgb, geometry).map(Tensor.clone)

    def map(self, change: Callable[[Tensor], Tensor]) -> Batch:
        """Return a batch of what ``change`` returns for each part."""
        return Batch(*map(change, self))


class Batches:
    """Endless augmented batches."""

    def __init__(self, frames: Frames, options: argparse.Namespace, held_out: Tensor) -> None:
        self.frames, self.options = frames, options
        self.device = frames.rgb.device
        held_out = held_out.to(self.device)
        self.generator = torch.Generator(self.device).manual_seed(options.seed)
        counts = torch.stack([torch.bincount(one.flatten().int(), minlength=256)[:40] for one in frames.label])
        present = (counts > 400).float()
        chance = (present / present.sum(0).clamp(min=1).sqrt()).sum(1)
        self.all_chances = chance.clamp(0.5 * chance.mean(), 2.5 * chance.mean())
        self.chance = self.all_chances * ~held_out
        counts, present = counts[~held_out], present[~held_out]
        share = counts.sum(0) / counts.sum()
        known = share > 0
        weight = torch.where(known, (share[known].median() / share.clamp(min=1e-9)) ** options.balance, 1)
        self.class_weight = (weight / (weight * share).sum()).clamp(0.2, 6).float()
        self.rarity = 1 / (present.mean(0) + 0.02)

    def use_all_frames(self) -> None:
        """Draw from the frames that were held out, too, from now on."""
        self.chance = self.all_chances

    def _uniform(self, low: float, high: float, *shape: int) -> Tensor:
        return torch.rand(*shape, generator=self.generator, device=self.device) * (high - low) + low

    def __iter__(self) -> Iterator[Batch]:
        for number in itertools.count():
            count = self.options.batch
            picks = torch.multinomial(self.chance, count, replacement=True, generator=self.generator)
            variant = torch.randint(len(self.frames.geometry), (count,), generator=self.generator, device=self.device)
            variant = torch.where(self._uniform(0, 1, count) < 0.35, 0, variant)
            rgb, geometry, label = self._cut(picks, variant)
            images = torch.cat((self._recolor(rgb), rgb), dim=1)
            if self.options.mix:
                images, geometry, label = self._paste(images, geometry, label)
            keep = (self._uniform(0, 1, count, 1, 1, 1) >= self.options.no_depth).to(geometry.dtype)
            rgb, plain = ((images - 0.5) * 2).split(3, dim=1)
            present = torch.zeros(count, 256, device=self.device).scatter_(1, label.flatten(1), 1)[:, :40]
            # Each pixel of four has its turn, so that the coarser label lies neither above nor below the image.
            half = label[:, number // 2 % 2 :: 2, number % 2 :: 2]
            yield Batch(rgb, geometry * keep, half, label[:, 2::4, 2::4], present, plain, geometry)

    def _grid(self, count: int) -> tuple[Tensor, Tensor]:
        """Return how a crop lies in its frame: factors and shifts (B, 2) of x and y in the frame's -1..1."""
        height, width = self.options.crop
        low, high = self.options.zoom
        zoom = torch.exp(self._uniform(math.log(low), math.log(high), count))
        stretch = torch.exp(self._uniform(-0.15, 0.15, count))
        flip = torch.where(self._uniform(0, 1, count) < 0.5, -1.0, 1.0)
        # At zoom 1 the frame is shown at 240x320.
        extent = torch.stack((width / 320 / zoom * stretch.rsqrt(), height / 240 / zoom * stretch.sqrt()), dim=1)
        room = (1 - extent).clamp(min=0)
        shift = (self._uniform(0, 1, count, 2) * 2 - 1) * room
        return extent * torch.stack((flip, torch.ones_like(flip)), dim=1), shift

    def _cut(self, picks: Tensor, variant: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        count, (height, width) = len(picks), self.options.crop
        factor, shift = self._grid(count)
        theta = torch.zeros(count, 2, 3, device=self.device)
        theta[:, 0, 0], theta[:, 1, 1], theta[:, :, 2] = factor[:, 0], factor[:, 1], shift

        def sample(image: Tensor, size: tuple[int, int], mode: str) -> Tensor:
            grid = functional.affine_grid(theta, [count, 1, *size], align_corners=False)
            return functional.grid_sample(image, grid, mode=mode, padding_mode="zeros", align_corners=False)

        # Sampled at twice the size and averaged, since bilinear readings alone would skip pixels of the frame.
        rgb = sample(self.frames.rgb[picks].float() / 255, (2 * height, 2 * width), "bilinear")
        rgb = functional.avg_pool2d(rgb, 2)
        label = sample(self.frames.label[picks][:, None].float() - VOID, (height, width), "nearest")[:, 0] + VOID
        raw = self.frames.geometry[variant, picks].float() / 255
        known = raw[:, 3:]
        raw = torch.cat(((raw[:, :3] - 0.5) * 2 * known, known), dim=1)
        sampled = sample(raw, (height // 2, width // 2), "bilinear")
        share = sampled[:, 3:]
        enough = (share > 0.3).to(share.dtype)
        geometry = torch.cat((sampled[:, :3] / share.clamp(min=0.3) * enough, enough), dim=1)
        return rgb, geometry, label.round().long()

    def _recolor(self, x: Tensor) -> Tensor:
        count = len(x)
        each = (count, 1, 1, 1)
        x = x * self._uniform(0.6, 1.4, *each) * self._uniform(0.85, 1.15, count, 3, 1, 1)
        mean = x.mean((1, 2, 3), keepdim=True)
        x = (x - mean) * self._uniform(0.6, 1.4, *each) + mean
        gray = x.mean(1, keepdim=True)
        saturation = self._uniform(0.3, 1.6, *each) * (self._uniform(0, 1, *each) > 0.08)
        x = ((x - gray) * saturation + gray).clamp(1e-4, 1).pow(self._uniform(0.75, 1.33, *each))
        blurred = functional.avg_pool2d(functional.pad(x, (1, 1, 1, 1), mode="replicate"), 3, 1)
        x = torch.where(self._uniform(0, 1, *each) < 0.12, blurred, x)
        noise = torch.randn(x.shape, generator=self.generator, device=self.device) * 0.03
        return (x + noise * (self._uniform(0, 1, *each) < 0.2)).clamp(0, 1)

    def _paste(self, rgb: Tensor, geometry: Tensor, label: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Paste the pixels of some classes, rare ones first, of each image's neighbor into it, where they were."""
        count = len(rgb)
        source = torch.arange(count, device=self.device).roll(1)
        present = torch.zeros(count, 256, device=self.device).scatter_(1, label.flatten(1), 1)[:, :40]
        order = self.rarity.log() + torch.randn(count, 40, generator=self.generator, device=self.device) * 1.5
        order = order.masked_fill(present[source] == 0, -1e9)
        number = (present[source].sum(1) * self._uniform(0.1, 0.6, count)).ceil()
        chosen = torch.zeros(count, 256, dtype=torch.bool, device=self.device)
        rank = order.argsort(1, descending=True).argsort(1)
        chosen[:, :40] = (rank < number[:, None]) & (self._uniform(0, 1, count)[:, None] < self.options.mix)
        mask = chosen.gather(1, label[source].flatten(1)).view_as(label)
        coarse = mask[:, None, ::2, ::2]
        rgb = torch.where(mask[:, None], rgb[source], rgb)
        geometry = torch.where(coarse, geometry[source], geometry)
        return rgb, geometry, torch.where(mask, label[source], label)
