"""Train LiteFusion on NYU Depth V2: all frames in memory, augmented on the device, learning rate by the clock.

    python scripts/train_litefusion.py rooms rooms.pt --frames 8000 --processes 15
    python scripts/train_litefusion.py frames nyuv2.pt --data datasets/nyuv2
    python scripts/train_litefusion.py train rooms.pt --weights DIR --out runs/rooms --minutes 1
    python scripts/train_litefusion.py train nyuv2.pt --start runs/rooms/last.safetensors --out runs/box --minutes 8

``rooms`` and ``frames`` write made rooms, with the names of NYU-40, and training frames of a prepared tree, both with
their geometry.  ``--weights`` is a folder with ``tf_efficientnet_lite2*.safetensors`` and
``tf_efficientnet_lite0*.safetensors``, the ImageNet weights of timm.  With ``--hold-out-until PART`` every eighth group
of eight neighboring frames is held out and measured for that part of the time, and trained on after it.  Test frames
are never read.  The result is the last state (the average of the weights), never the best one.  Written to be run on
one GPU for minutes; it runs on a CPU, too.
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import time
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional

from litefusion_data import HHA, NYU40, VOID, Batches, Frames, make_rooms, read_frames
from rgbdseg.losses.overlap import lovasz_softmax_loss
from rgbdseg.models._registry import create_model
from rgbdseg.models.litefusion import AttentionBlock, LiteFusion
from rgbdseg.nn.blocks import DropPath
from rgbdseg.weights.checkpoint import load_bundle, save_bundle
from rgbdseg.weights.facts import ModelFacts

# B batch, H height, W width

_PARTS = {"encoder": 1.0, "depth_encoder": 2.0}  # learning rates beside that of the color encoder
_DECODER = 4.0
_FILES = ("frames", "weights", "start", "out")  # mean nothing where the weights go
_WARM_UP = 3  # steps on the first batch before they are recorded as one launch
_SYNCHRONIZE_EVERY = 10  # steps; in between the clock is read ahead of the device


class TrainingNet(nn.Module):
    """LiteFusion as it is trained: fed at its inner size, with an output that says which classes are to be seen."""

    def __init__(self, model: LiteFusion) -> None:
        super().__init__()
        self.model = model
        self.presence = nn.Linear(model.context.merge[0].out_channels, 40)

    def forward(self, rgb: Tensor, geometry: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return logits at 1/4 and 1/16, and presence logits (B, classes)."""
        model = self.model
        fine, coarse = model._decode(*model._encode(rgb, geometry))
        return model.classifier(model.drop(fine)), model.auxiliary(coarse), self.presence(coarse.mean((2, 3)))


def logits_of(model: LiteFusion, rgb: Tensor, geometry: Tensor) -> Tensor:
    """Return logits at 1/4 of the inner size."""
    return model.classifier(model._decode(*model._encode(rgb, geometry))[0])


def loss_of(output: tuple[Tensor, ...], label: Tensor, weight: Tensor, smoothing: float, lovasz: float) -> Tensor:
    """Return the weighted sum of all losses of the labels."""
    logits, auxiliary, presence = (one.float() for one in output)
    fine = functional.interpolate(logits, size=label.shape[-2:], mode="bilinear", align_corners=False)
    loss = _smoothed_cross_entropy(fine, label, weight, smoothing)
    coarse = label[:, 2::4, 2::4]
    auxiliary = functional.interpolate(auxiliary, size=coarse.shape[-2:], mode="bilinear", align_corners=False)
    loss = loss + 0.3 * functional.cross_entropy(auxiliary, coarse, weight, ignore_index=VOID)
    seen = torch.zeros(len(label), 256, device=label.device).scatter_(1, label.flatten(1), 1)[:, :40]
    loss = loss + 0.3 * functional.binary_cross_entropy_with_logits(presence, seen)
    if lovasz:
        loss = loss + lovasz * lovasz_softmax_loss(logits, coarse)
    return loss


def _smoothed_cross_entropy(logits: Tensor, label: Tensor, weight: Tensor, smoothing: float) -> Tensor:
    """Return what `torch.nn.functional.cross_entropy` does, which asks the device how many pixels are void."""
    logs = logits.log_softmax(1)
    known = label != VOID
    share = (weight[torch.where(known, label, 0)] * known).sum()
    spread = -((logs * weight[:, None, None]).sum(1) * known).sum() / share
    right = functional.nll_loss(logs, label, weight, ignore_index=VOID)
    return (1 - smoothing) * right + smoothing / logits.shape[1] * spread


@torch.inference_mode()
def measure(model: LiteFusion, frames: Frames, index: Tensor, size: tuple[int, int], depth: bool = True) -> float:
    """Return the mIoU in percent of whole frames shown at ``size``, truth at full size, one scale."""
    matrix = torch.zeros(1600, device=frames.rgb.device)
    for part in index.to(frames.rgb.device).split(16):
        rgb = functional.interpolate(frames.rgb[part].float(), size=size, mode="bilinear", antialias=True) / 127.5 - 1
        raw = frames.geometry[0, part].float() / 255
        raw = torch.cat(((raw[:, :3] - 0.5) * 2 * raw[:, 3:], raw[:, 3:]), dim=1)
        pooled = functional.interpolate(raw, size=(size[0] // 2, size[1] // 2), mode="area")
        enough = (pooled[:, 3:] >= 0.25).float()
        geometry = torch.cat((pooled[:, :3] / pooled[:, 3:].clamp(min=1e-6) * enough, enough), dim=1) * float(depth)
        label = frames.label[part]
        best = functional.interpolate(logits_of(model, rgb, geometry), size=label.shape[-2:], mode="bilinear").argmax(1)
        known = label < 40
        matrix += torch.bincount(label[known].long() * 40 + best[known], minlength=1600)
    counts = matrix.view(40, 40).double()
    union = counts.sum(0) + counts.sum(1) - counts.diag()
    present = counts.sum(1) > 0
    return float((counts.diag() / union.clamp(min=1))[present].mean()) * 100


def start_model(options: argparse.Namespace) -> LiteFusion:
    """Build the model from ImageNet weights or from another run."""
    model = create_model(options.model, 40)
    assert isinstance(model, LiteFusion)
    blocks = [module for module in model.encoder.modules() if hasattr(module, "drop_path")]
    for index, block in enumerate(blocks):
        block.drop_path = DropPath(options.drop_path * index / (len(blocks) - 1))
    for attention in (module for module in model.modules() if isinstance(module, AttentionBlock)):
        attention.drop_path = DropPath(options.drop_path)
    if options.start:
        model.load_state_dict(load_bundle(options.start).model.float().state_dict())
        return model
    for encoder, name in ((model.encoder, "lite2"), (model.depth_encoder, "lite0")):
        (file,) = Path(options.weights).glob(f"tf_efficientnet_{name}*.safetensors")
        state = {key: value.float() for key, value in load_file(file).items()}
        if encoder is model.depth_encoder:
            stem = state["conv_stem.weight"]
            state["conv_stem.weight"] = torch.cat((stem, torch.zeros_like(stem[:, :1])), dim=1)
        own = encoder.state_dict()
        renamed = encoder.rename_weights(state)
        encoder.load_state_dict({key: renamed[key].to(own[key].dtype) for key in own})
    return model


def _recorded(work: Callable[[], None]) -> torch.cuda.CUDAGraph:
    """Do ``work`` as often as `_WARM_UP` says and record it as one launch."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(_WARM_UP):
            work()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        work()
    return graph


def faster_format(net: TrainingNet, rgb: Tensor, geometry: Tensor, eager: bool) -> torch.memory_format:
    """Return the memory format in which a pass forward and backward takes less time on this device."""
    if rgb.device.type != "cuda" or eager:
        return torch.channels_last
    seconds: dict[torch.memory_format, float] = {}
    for memory_format in (torch.channels_last, torch.contiguous_format):
        trial = copy.deepcopy(net).to(memory_format=memory_format)  # type: ignore[call-overload]
        images = [image.contiguous(memory_format=memory_format) for image in (rgb, geometry)]

        def work(trial: TrainingNet = trial, images: list[Tensor] = images) -> None:
            trial.zero_grad(set_to_none=True)
            with torch.autocast("cuda", torch.bfloat16):
                loss = sum(output.float().square().mean() for output in trial(*images))
            loss.backward()  # type: ignore[union-attr]

        graph = _recorded(work)
        torch.cuda.synchronize()
        began = time.perf_counter()
        for _ in range(5):
            graph.replay()
        torch.cuda.synchronize()
        seconds[memory_format] = (time.perf_counter() - began) / 5
        print(f"{memory_format}: {1000 * seconds[memory_format]:.1f} ms per pass of {len(rgb)}", flush=True)
    return min(seconds, key=seconds.__getitem__)


class Step:
    """A step of training and of the average of the weights; on a GPU one launch instead of thousands.

    The average is also the teacher: it sees the colors as they are and the depth of every image, and what it says is
    learned beside the labels.
    """

    def __init__(
        self, net: TrainingNet, batch: tuple[Tensor, ...], weight: Tensor, options: argparse.Namespace
    ) -> None:
        self.memory_format = faster_format(net, batch[0], batch[1], options.eager)
        self.net = net.to(memory_format=self.memory_format)  # type: ignore[call-overload]
        self.average = copy.deepcopy(net.model).eval().requires_grad_(False)
        self.weight, self.options = weight, options
        device = batch[0].device
        fused = device.type == "cuda"
        self.optimizer = torch.optim.AdamW(self._groups(), betas=(0.9, 0.99), fused=fused, capturable=fused)
        self.total, self.teaching = torch.zeros((), device=device), torch.zeros((), device=device)
        self.batch = [self._laid_out(part).clone() for part in batch]
        live, average = net.model.state_dict(), self.average.state_dict()
        floats = [key for key, value in average.items() if value.is_floating_point()]
        self._live, self._averaged = [live[key] for key in floats], [average[key] for key in floats]
        self._graph: torch.cuda.CUDAGraph | None = None
        self._lovasz = -1.0
        self.count = 0

    def _laid_out(self, part: Tensor) -> Tensor:
        return part.contiguous(memory_format=self.memory_format) if part.ndim == 4 else part

    def _groups(self) -> list[dict[str, object]]:
        groups: dict[tuple[float, bool], list[nn.Parameter]] = {}
        for name, parameter in self.net.named_parameters():
            part = name.removeprefix("model.").split(".")[0]
            groups.setdefault((_PARTS.get(part, _DECODER), parameter.ndim > 1), []).append(parameter)
        return [
            {
                "params": members,
                "lr": torch.zeros((), device=members[0].device),
                "factor": factor * self.options.rate,
                "weight_decay": self.options.decay if matrix else 0.0,
            }
            for (factor, matrix), members in groups.items()
        ]

    def _work(self) -> None:
        rgb, geometry, label, plain, whole = self.batch
        self.optimizer.zero_grad(set_to_none=True)
        with torch.autocast(rgb.device.type, torch.bfloat16):
            output = self.net(rgb, geometry)
            with torch.no_grad():
                told = logits_of(self.average, plain, whole).float().softmax(1)
        loss = loss_of(output, label, self.weight, self.options.smoothing, self._lovasz)
        taught = functional.cross_entropy(output[0].float(), told)
        (loss + self.teaching * taught).backward()
        nn.utils.clip_grad_norm_(self.net.parameters(), 5.0)
        self.optimizer.step()
        self.total += loss.detach()

    def __call__(self, batch: tuple[Tensor, ...], done: float) -> None:
        """Do one step; ``done`` is the part of the training that is over, from 0 to 1."""
        options = self.options
        with torch.no_grad():
            for own, new in zip(self.batch, batch, strict=True):
                own.copy_(new)
        factor = min(1.0, (self.count + 1) / 200) * max(0.002, 0.5 * (1 + math.cos(math.pi * done)))
        for group in self.optimizer.param_groups:
            group["lr"].fill_(group["factor"] * factor)
        self.teaching.fill_(options.teaching * min(max((done - 0.15) / 0.2, 0.0), 1.0))
        lovasz = options.lovasz if done > options.lovasz_from else 0.0
        if options.eager or self.batch[0].device.type != "cuda":
            self._lovasz = lovasz
            self._work()
        else:
            if lovasz != self._lovasz:
                self._lovasz = lovasz
                self._graph = _recorded(self._work)
                self.count += _WARM_UP
            assert self._graph is not None
            self._graph.replay()
        self.count += 1
        decay = min(options.average, (self.count + 1) / (self.count + 10))
        torch._foreach_lerp_(self._averaged, self._live, 1 - decay)


def save(model: LiteFusion, options: argparse.Namespace, told: dict[str, object]) -> None:
    """Write the average as a bundle, convolutions in float16."""
    config = told | {"options": {key: str(value) for key, value in vars(options).items() if key not in _FILES}}
    facts = ModelFacts(options.model, {}, model.input_spec, NYU40, "nyuv2", HHA.to_dict(), config)
    state = {key: value.half() if value.ndim == 4 else value for key, value in model.state_dict().items()}
    kept = {key: value.cpu().contiguous() for key, value in state.items()}
    save_bundle(facts, kept, Path(options.out) / "last.safetensors")


def train(options: argparse.Namespace) -> None:
    """Run the command ``train``."""
    torch.manual_seed(options.seed)
    device = torch.device(options.device)
    torch.backends.cudnn.benchmark = True
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
    Path(options.out).mkdir(parents=True, exist_ok=True)
    frames = Frames.load(options.frames, device)
    index = torch.arange(len(frames.rgb))
    held_out = ((index // 8) % 8 == 3) & (options.hold_out_until > 0)
    batches = Batches(frames, options, held_out)
    net = TrainingNet(start_model(options)).to(device).train()
    step = Step(net, next(iter(batches)), batches.class_weight, options)
    told = _loop(step, batches, index[held_out], options)
    save(step.average, options, told)
    if options.hold_out_until >= 1:
        sizes = ((240, 320), (320, 426), (480, 640))
        scores = {f"{h}x{w}": measure(step.average, frames, index[held_out], (h, w)) for h, w in sizes}
        scores["240x320 without depth"] = measure(step.average, frames, index[held_out], (240, 320), depth=False)
        print("held out:", json.dumps(scores), flush=True)


def _loop(step: Step, batches: Batches, held_out: Tensor, options: argparse.Namespace) -> dict[str, object]:
    """Train until the clock says so; returns how much was done."""
    log = (Path(options.out) / "log.jsonl").open("a")
    began = measured = time.time()
    done, all_frames = 0.0, len(held_out) == 0
    told: dict[str, object] = {}
    for batch in batches:
        done = (time.time() - began) / (60 * options.minutes)
        if done >= 1 or step.count == options.steps:
            break
        step(batch, done)
        if not all_frames and done >= options.hold_out_until:
            batches.use_all_frames()
            all_frames = True
        if step.count % _SYNCHRONIZE_EVERY == 0:
            total = float(step.total) / _SYNCHRONIZE_EVERY
            step.total.zero_()
            if not math.isfinite(total):
                raise SystemExit(
                    f"the loss is {total} after {step.count} steps; the last saved state is in {options.out}"
                )
            if time.time() - measured > options.measure_every or step.count == 10 * _SYNCHRONIZE_EVERY:
                seconds = time.time() - began
                told = {"images": step.count * options.batch, "steps": step.count, "seconds": round(seconds, 1)}
                line = told | {"loss": round(total, 4), "images/s": round(step.count * options.batch / seconds, 1)}
                if not all_frames:
                    line["held out"] = round(measure(step.average, batches.frames, held_out, (240, 320)), 2)
                print(json.dumps(line), file=log, flush=True)
                print(json.dumps(line), flush=True)
                save(step.average, options, told)
                measured = time.time()
    seconds = round(time.time() - began, 1)
    device = torch.cuda.get_device_name() if batches.device.type == "cuda" else "cpu"
    return {"images": step.count * options.batch, "steps": step.count, "seconds": seconds, "device": device}


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    rooms = commands.add_parser("rooms")
    rooms.add_argument("--frames", type=int, default=8000, dest="count")
    rooms.add_argument("--processes", type=int, default=2)
    frames = commands.add_parser("frames")
    frames.add_argument("--data", default="datasets/nyuv2")
    for command, variants in ((rooms, 1), (frames, 8)):
        command.add_argument("frames")
        command.add_argument("--variants", type=int, default=variants, help="of the depth, most with faults of sensors")
    run = commands.add_parser("train")
    run.add_argument("frames")
    run.add_argument("--model", default="litefusion_lite2_attention")
    run.add_argument("--weights", default="weights")
    run.add_argument("--start", default="", metavar="FILE")
    run.add_argument("--out", required=True)
    run.add_argument("--minutes", type=float, required=True)
    run.add_argument("--steps", type=int, default=-1, help="stop after so many, whatever the clock says")
    run.add_argument("--hold-out-until", type=float, default=0.0, metavar="PART")
    run.add_argument("--measure-every", type=float, default=30.0, metavar="SECONDS")
    run.add_argument("--eager", action="store_true", help="on a GPU, launch every kernel by itself")
    run.add_argument("--seed", type=int, default=0)
    run.add_argument("--batch", type=int, default=64)
    run.add_argument("--crop", type=int, nargs=2, default=(240, 320))
    run.add_argument("--zoom", type=float, nargs=2, default=(0.8, 2.2))
    run.add_argument("--rate", type=float, default=5e-4, help="learning rate of the color encoder")
    run.add_argument("--decay", type=float, default=0.05)
    run.add_argument("--drop-path", type=float, default=0.15)
    run.add_argument("--balance", type=float, default=0.35)
    run.add_argument("--smoothing", type=float, default=0.05)
    run.add_argument("--mix", type=float, default=0.5)
    run.add_argument("--no-depth", type=float, default=0.12)
    run.add_argument("--teaching", type=float, default=0.5, help="weight of what the average of the weights says")
    run.add_argument("--lovasz", type=float, default=0.5)
    run.add_argument("--lovasz-from", type=float, default=0.7)
    run.add_argument("--average", type=float, default=0.999)
    for command in (rooms, frames, run):
        command.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    return parser


def main() -> None:
    """Read the command line and run one command."""
    options = _parser().parse_args()
    began = time.time()
    if options.command == "train":
        train(options)
        return
    device = torch.device(options.device)
    if options.command == "rooms":
        make_rooms(options.count, options.processes, options.variants, device).save(options.frames)
    else:
        read_frames(options.data, "train", options.variants, device).save(options.frames)
    print(f"{options.frames} written in {time.time() - began:.1f} s", flush=True)


if __name__ == "__main__":
    main()
