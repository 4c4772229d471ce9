"""Train LiteFusion on NYU Depth V2: all frames in memory, augmented on the device, learning rate by the clock.

    python scripts/train_litefusion.py rooms /tmp/rooms.npz --frames 8000 --processes 14
    python scripts/train_litefusion.py train --data datasets/nyuv2 --weights DIR --out runs/box --minutes 5
    python scripts/train_litefusion.py train --data datasets/nyuv2 --start runs/rooms/last.safetensors --out runs/box

``--weights`` is a folder with ``tf_efficientnet_lite2*.safetensors`` and ``tf_efficientnet_lite0*.safetensors``, the
ImageNet weights of timm.  ``--rooms FILE`` trains on made rooms in place of the dataset, with the names of NYU-40.
Every eighth group of eight neighboring training frames is held out and measured at the end, unless ``--all`` trains on
them, too; test frames are never read.  The result is the last state (the average of the weights), never the best one.
Written to be run on a GPU for minutes; it runs on a CPU, too.  The weights in the package come from
an earlier program for one CPU thread, with the same network and data and much the same loss and augmentation: this
script does not repeat them.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional

from rgbdseg.config.disturbance import DepthDisturbance
from rgbdseg.data.dataset import RGBDDataset
from rgbdseg.datasets import get_label_set
from rgbdseg.datasets.rooms import ROOMS
from rgbdseg.geometry.hha import HHAParameters, encode_hha
from rgbdseg.losses.overlap import lovasz_softmax_loss
from rgbdseg.models._registry import create_model
from rgbdseg.models.litefusion import LiteFusion
from rgbdseg.nn.blocks import DropPath
from rgbdseg.rooms import render_frame
from rgbdseg.transforms.disturb import disturb_depth
from rgbdseg.weights.checkpoint import load_bundle, save_bundle
from rgbdseg.weights.facts import ModelFacts

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

    rgb: (N, 3, H, W) uint8.  label: (N, H, W) uint8, 255 is void.  geometry: (V, N, 4, H/2, W/2) uint8, HHA and 255
    where there is a reading; the first variant is the depth as it is, the others have faults of sensors.
    """

    rgb: Tensor
    label: Tensor
    geometry: Tensor

    def subset(self, index: Tensor) -> Frames:
        """Return some of the frames."""
        index = index.to(self.rgb.device)
        return Frames(self.rgb[index], self.label[index], self.geometry[:, index])


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


def read_rooms(file: str, variants: int, device: torch.device) -> Frames:
    """Read what the command ``rooms`` wrote, enlarged to 480x640, the size of the dataset's frames."""
    arrays = np.load(file)
    rgb = torch.from_numpy(arrays["rgb"]).to(device)
    enlarged = torch.empty(len(rgb), 3, 480, 640, dtype=torch.uint8, device=device)
    for at in range(0, len(rgb), 64):
        part = functional.interpolate(rgb[at : at + 64].float(), size=(480, 640), mode="bilinear")
        enlarged[at : at + 64] = part.round().to(torch.uint8)
    label = torch.from_numpy(arrays["label"]).to(device).repeat_interleave(2, 1).repeat_interleave(2, 2)
    depth_m = torch.from_numpy(arrays["depth"]).float()[:, None] / 1000
    cameras = torch.from_numpy(arrays["camera"]).float().expand(len(rgb), 4)
    return Frames(enlarged, label, make_geometry(depth_m, cameras, variants, device))


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


def _render(seed: int) -> tuple[np.ndarray, ...]:
    frame = render_frame(seed, 0, (240, 320))
    depth = np.where(seed % 2, frame.raw_depth_HW, frame.depth_HW)
    return frame.rgb_3HW, np.round(depth * 1000).astype(np.uint16), frame.label_HW


def write_rooms(file: str, frames: int, processes: int) -> None:
    """Render rooms, one frame each, with every second depth map as the sensor gives it, with holes."""
    names = [_NAMES_IN_NYU40.get(name, name) for name in ROOMS.classes]
    table = np.array([NYU40.classes.index(name) for name in names], np.uint8)
    with ProcessPoolExecutor(processes) as pool:
        made = list(pool.map(_render, range(50_000, 50_000 + frames), chunksize=8))
    rgb, depth, label = (np.stack(part) for part in zip(*made, strict=True))
    focal = 160 / math.tan(math.radians(30))
    np.savez(file, rgb=rgb, depth=depth, label=table[label], camera=np.array([[focal, focal, 159.5, 119.5]]))


class Batches:
    """Endless augmented batches: (rgb (B, 3, h, w), geometry (B, 4, h/2, w/2), label (B, h, w))."""

    def __init__(self, frames: Frames, options: argparse.Namespace) -> None:
        self.frames, self.options = frames, options
        self.device = frames.rgb.device
        self.generator = torch.Generator(self.device).manual_seed(options.seed)
        counts = torch.stack([torch.bincount(one.flatten().long(), minlength=256)[:40] for one in frames.label])
        present = (counts > 400).float()
        chance = (present / present.sum(0).clamp(min=1).sqrt()).sum(1)
        self.chance = chance.clamp(0.5 * chance.mean(), 2.5 * chance.mean())
        share = counts.sum(0) / counts.sum()
        known = share > 0
        weight = torch.where(known, (share[known].median() / share.clamp(min=1e-9)) ** options.balance, 1)
        self.class_weight = (weight / (weight * share).sum()).clamp(0.2, 6).float()
        self.rarity = 1 / (present.mean(0) + 0.02)

    def _uniform(self, low: float, high: float, *shape: int) -> Tensor:
        return torch.rand(*shape, generator=self.generator, device=self.device) * (high - low) + low

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        while True:
            count = self.options.batch
            picks = torch.multinomial(self.chance, count, replacement=True, generator=self.generator)
            variant = torch.randint(len(self.frames.geometry), (count,), generator=self.generator, device=self.device)
            variant = torch.where(self._uniform(0, 1, count) < 0.35, 0, variant)
            rgb, geometry, label = self._cut(picks, variant)
            rgb = self._recolor(rgb)
            if self.options.mix:
                rgb, geometry, label = self._paste(rgb, geometry, label)
            keep = (self._uniform(0, 1, count, 1, 1, 1) >= self.options.no_depth).to(geometry.dtype)
            yield (rgb - 0.5) * 2, geometry * keep, label

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


class TrainingNet(nn.Module):
    """LiteFusion as it is trained: fed at its inner size, with an output that says which classes are to be seen."""

    def __init__(self, model: LiteFusion) -> None:
        super().__init__()
        self.model = model
        self.presence = nn.Linear(model.context.merge[0].out_channels, 40)

    def forward(self, rgb: Tensor, geometry: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return logits at 1/4 and 1/16, and presence logits (B, classes)."""
        model = self.model
        colors, depths = model._encode(rgb, geometry)
        fine, coarse = model._decode(colors, depths)
        return model.classifier(model.drop(fine)), model.auxiliary(coarse), self.presence(coarse.mean((2, 3)))


def loss_of(output: tuple[Tensor, ...], label: Tensor, weight: Tensor, smoothing: float, lovasz: float) -> Tensor:
    """Return the weighted sum of all losses."""
    logits, auxiliary, presence = (one.float() for one in output)
    fine = functional.interpolate(logits, size=label.shape[-2:], mode="bilinear", align_corners=False)
    loss = functional.cross_entropy(fine, label, weight, ignore_index=VOID, label_smoothing=smoothing)
    coarse = label[:, 2::4, 2::4]
    auxiliary = functional.interpolate(auxiliary, size=coarse.shape[-2:], mode="bilinear", align_corners=False)
    loss = loss + 0.3 * functional.cross_entropy(auxiliary, coarse, weight, ignore_index=VOID)
    seen = torch.zeros(len(label), 256, device=label.device).scatter_(1, label.flatten(1), 1)[:, :40]
    loss = loss + 0.3 * functional.binary_cross_entropy_with_logits(presence, seen)
    if lovasz:
        loss = loss + lovasz * lovasz_softmax_loss(logits, coarse)
    return loss


@torch.inference_mode()
def measure(model: LiteFusion, frames: Frames, size: tuple[int, int], depth: bool = True) -> float:
    """Return the mIoU in percent of whole frames shown at ``size``, truth at full size, one scale."""
    model.eval()
    matrix = torch.zeros(1600, device=frames.rgb.device)
    for at in range(0, len(frames.rgb), 16):
        part = frames.subset(torch.arange(at, min(at + 16, len(frames.rgb))))
        rgb = functional.interpolate(part.rgb.float(), size=size, mode="bilinear", antialias=True) / 127.5 - 1
        raw = part.geometry[0].float() / 255
        raw = torch.cat(((raw[:, :3] - 0.5) * 2 * raw[:, 3:], raw[:, 3:]), dim=1)
        pooled = functional.interpolate(raw, size=(size[0] // 2, size[1] // 2), mode="area")
        enough = (pooled[:, 3:] >= 0.25).float()
        geometry = torch.cat((pooled[:, :3] / pooled[:, 3:].clamp(min=1e-6) * enough, enough), dim=1) * float(depth)
        colors, depths = model._encode(rgb, geometry)
        logits = model.classifier(model._decode(colors, depths)[0])
        best = functional.interpolate(logits, size=part.label.shape[-2:], mode="bilinear").argmax(1)
        known = part.label < 40
        matrix += torch.bincount(part.label[known].long() * 40 + best[known], minlength=1600)
    counts = matrix.view(40, 40).double()
    union = counts.sum(0) + counts.sum(1) - counts.diag()
    present = counts.sum(1) > 0
    return float((counts.diag() / union.clamp(min=1))[present].mean()) * 100


def start_model(options: argparse.Namespace, device: torch.device) -> LiteFusion:
    """Build the model from ImageNet weights or from another run."""
    model = create_model("litefusion_lite2", 40)
    assert isinstance(model, LiteFusion)
    blocks = [module for module in model.encoder.modules() if hasattr(module, "drop_path")]
    for index, block in enumerate(blocks):
        block.drop_path = DropPath(options.drop_path * index / (len(blocks) - 1))
    if options.start:
        model.load_state_dict(load_bundle(options.start).model.float().state_dict())
    else:
        for encoder, name in ((model.encoder, "lite2"), (model.depth_encoder, "lite0")):
            (file,) = Path(options.weights).glob(f"tf_efficientnet_{name}*.safetensors")
            state = {key: value.float() for key, value in load_file(file).items()}
            if encoder is model.depth_encoder:
                stem = state["conv_stem.weight"]
                state["conv_stem.weight"] = torch.cat((stem, torch.zeros_like(stem[:, :1])), dim=1)
            own = encoder.state_dict()
            renamed = encoder.rename_weights(state)
            encoder.load_state_dict({key: renamed[key].to(own[key].dtype) for key in own})
    return model.to(device, memory_format=torch.channels_last)


def _groups(net: TrainingNet, options: argparse.Namespace) -> list[dict[str, object]]:
    groups: dict[tuple[str, bool], list[nn.Parameter]] = {}
    for name, parameter in net.named_parameters():
        part = name.removeprefix("model.").split(".")[0]
        kind = part if part in ("encoder", "depth_encoder") else "decoder"
        groups.setdefault((kind, parameter.ndim > 1), []).append(parameter)
    factor = {"encoder": 1.0, "depth_encoder": 2.0, "decoder": 4.0}
    return [
        {"params": members, "factor": factor[kind] * options.rate, "weight_decay": options.decay if matrix else 0.0}
        for (kind, matrix), members in groups.items()
    ]


def train(options: argparse.Namespace) -> None:
    """Run the command ``train``."""
    torch.manual_seed(options.seed)
    device = torch.device(options.device)
    torch.backends.cudnn.benchmark = True
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
    out = Path(options.out)
    out.mkdir(parents=True, exist_ok=True)
    read = time.time()
    if options.rooms:
        frames = read_rooms(options.rooms, min(options.variants, 2), device)
    else:
        frames = read_frames(options.data, "train", options.variants, device)
    index = torch.arange(len(frames.rgb))
    held = (index // 8) % 8 == 3
    training = frames if options.all or options.rooms else frames.subset(index[~held])
    print(f"{len(training.rgb)} frames, read and encoded in {time.time() - read:.1f} s", flush=True)
    net = TrainingNet(start_model(options, device)).to(device)
    average = {key: value.clone() for key, value in net.model.state_dict().items()}
    images, steps = _loop(net, average, Batches(training, options), options, out)
    net.model.load_state_dict(average)
    told = {"images": images, "steps": steps, "options": {key: str(value) for key, value in vars(options).items()}}
    facts = ModelFacts("litefusion_lite2", {}, net.model.input_spec, NYU40, "nyuv2", HHA.to_dict(), told)
    state = {k: v.half() if v.ndim == 4 else v for k, v in net.model.cpu().state_dict().items()}
    save_bundle(facts, {k: v.contiguous() for k, v in state.items()}, out / "last.safetensors")
    if not options.rooms and not options.all:
        net.model.to(device)
        apart = frames.subset(index[held])
        scores = {f"{h}x{w}": measure(net.model, apart, (h, w)) for h, w in ((240, 320), (320, 426), (480, 640))}
        scores["240x320 without depth"] = measure(net.model, apart, (240, 320), depth=False)
        print("held out:", json.dumps(scores), flush=True)
        (out / "held_out.json").write_text(json.dumps(scores | {"images": images, "steps": steps}))


def _loop(
    net: TrainingNet, average: dict[str, Tensor], batches: Batches, options: argparse.Namespace, out: Path
) -> tuple[int, int]:
    """Train until the clock says so; returns how many images and steps it took."""
    device = batches.device
    optimizer = torch.optim.AdamW(_groups(net, options), lr=1.0, betas=(0.9, 0.99), fused=device.type == "cuda")
    floats = [key for key, value in average.items() if value.is_floating_point()]
    net.train()
    log = (out / "log.jsonl").open("a")
    began, step, total = time.time(), 0, torch.zeros((), device=device)
    for rgb, geometry, label in batches:
        done = (time.time() - began) / (60 * options.minutes)
        if done >= 1 or step == options.steps:
            break
        factor = min(1.0, (step + 1) / 200) * max(0.002, 0.5 * (1 + math.cos(math.pi * done)))
        for group in optimizer.param_groups:
            group["lr"] = group["factor"] * factor
        channels_last = torch.channels_last
        with torch.autocast(device.type, torch.bfloat16):
            output = net(rgb.contiguous(memory_format=channels_last), geometry.contiguous(memory_format=channels_last))
        lovasz = options.lovasz if done > options.lovasz_from else 0.0
        loss = loss_of(output, label, batches.class_weight, options.smoothing, lovasz)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(net.parameters(), 5.0)
        optimizer.step()
        step += 1
        with torch.no_grad():
            decay = min(options.average, (step + 1) / (step + 10))
            live = net.model.state_dict()
            torch._foreach_lerp_([average[key] for key in floats], [live[key] for key in floats], 1 - decay)
            total += loss.detach()
        if step % 100 == 0 or step in (5, 20):
            seconds = time.time() - began
            line = {"step": step, "images": step * options.batch, "seconds": round(seconds, 1), "sum": float(total)}
            print(json.dumps(line), file=log, flush=True)
            if step % 500 == 0 or step in (5, 20):
                print(json.dumps(line | {"images/s": step * options.batch / seconds}), flush=True)
            total.zero_()
    return step * options.batch, step


def main() -> None:
    """Read the command line and run one command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    rooms = commands.add_parser("rooms")
    rooms.add_argument("file")
    rooms.add_argument("--frames", type=int, default=8000)
    rooms.add_argument("--processes", type=int, default=2)
    run = commands.add_parser("train")
    run.add_argument("--data", default="datasets/nyuv2")
    run.add_argument("--rooms", default="", metavar="FILE")
    run.add_argument("--weights", default="weights")
    run.add_argument("--start", default="", metavar="FILE")
    run.add_argument("--out", required=True)
    run.add_argument("--minutes", type=float, required=True)
    run.add_argument("--steps", type=int, default=-1, help="stop after so many, whatever the clock says")
    run.add_argument("--all", action="store_true")
    run.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    run.add_argument("--seed", type=int, default=0)
    run.add_argument("--batch", type=int, default=48)
    run.add_argument("--variants", type=int, default=8)
    run.add_argument("--crop", type=int, nargs=2, default=(240, 320))
    run.add_argument("--zoom", type=float, nargs=2, default=(0.8, 2.2))
    run.add_argument("--rate", type=float, default=4e-4, help="learning rate of the color encoder")
    run.add_argument("--decay", type=float, default=0.05)
    run.add_argument("--drop-path", type=float, default=0.1)
    run.add_argument("--balance", type=float, default=0.35)
    run.add_argument("--smoothing", type=float, default=0.05)
    run.add_argument("--mix", type=float, default=0.5)
    run.add_argument("--no-depth", type=float, default=0.12)
    run.add_argument("--lovasz", type=float, default=0.5)
    run.add_argument("--lovasz-from", type=float, default=0.7)
    run.add_argument("--average", type=float, default=0.999)
    options = parser.parse_args()
    if options.command == "rooms":
        write_rooms(options.file, options.frames, options.processes)
    else:
        train(options)


if __name__ == "__main__":
    main()
