"""Train LiteFusion on NYU Depth V2: all frames in memory, augmented on the device, learning rate by the clock.

    python scripts/train_litefusion.py rooms rooms.pt --frames 6000 --processes 14
    python scripts/train_litefusion.py frames nyuv2.pt --data datasets/nyuv2
    python scripts/train_litefusion.py train rooms.pt nyuv2.pt --minutes 0.7 7.3 --weights DIR --out runs/box

``rooms`` and ``frames`` write made rooms, with the names of NYU-40, and training frames of a prepared tree, both with
their geometry.  ``train`` goes from one file of frames to the next and may be started first: it waits for them, ready.
``--weights`` is a folder with ``tf_efficientnet_lite2*.safetensors`` and ``tf_efficientnet_lite0*.safetensors``, the
ImageNet weights of timm.  With ``--hold-out-until PART`` every eighth group of eight neighboring frames of the last
file is held out and measured for that part of the time, and trained on after it.  Test frames are never read.  The
result is the last state (the average of the weights), never the best one.  Written to be run on one GPU for minutes; it
runs on a CPU, too.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import time
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional

from litefusion_data import HHA, NYU40, Batch, Batches, Frames, make_rooms, read_frames
from litefusion_step import Step, TrainingNet, logits_of
from rgbdseg.models._registry import create_model
from rgbdseg.models.litefusion import AttentionBlock, LiteFusion
from rgbdseg.nn.blocks import DropPath
from rgbdseg.weights.checkpoint import load_bundle, save_bundle
from rgbdseg.weights.facts import ModelFacts

_SYNCHRONIZE_EVERY = 10  # steps; in between the clock is read ahead of the device
ModuleT = TypeVar("ModuleT", bound=nn.Module)
_FOLDERS = ("weights", "out")  # mean nothing where the weights go
_FILES = ("start", "teacher")  # mean something by their names


@torch.inference_mode()
def measure(model: LiteFusion, frames: Frames, index: Tensor, size: tuple[int, int], depth: bool = True) -> float:
    """Return the mIoU in percent of whole frames shown at ``size``, truth at full size, one scale."""
    matrix = torch.zeros(1600, device=frames.rgb.device)
    for part in index.to(frames.rgb.device).split(16):
        rgb = functional.interpolate(frames.rgb[part].float(), size=size, mode="bilinear", antialias=True) / 127.5 - 1
        raw = frames.geometry[0, part].float() / 255
        raw = torch.cat(((raw[:, :3] - 0.5) * 2 * raw[:, 3:], raw[:, 3:]), dim=1)
        pooled = functional.interpolate(raw, size=((size[0] + 1) // 2, (size[1] + 1) // 2), mode="area")
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


def read_model(file: str) -> LiteFusion:
    """Read what `save` wrote."""
    model = load_bundle(file).model.float()
    assert isinstance(model, LiteFusion)
    return model


def prepared(module: ModuleT, device: torch.device) -> ModuleT:
    """Return the module on the device, in its faster form there."""
    if device.type == "cuda":
        from litefusion_depthwise import use_fused_depthwise  # noqa: PLC0415 - Triton comes with PyTorch for GPUs

        use_fused_depthwise(module)
    # On an H100 a pass of 64 images of 240x320 and back takes 43 ms with the channels last and 102 ms otherwise.
    return module.to(device=device, memory_format=torch.channels_last)  # type: ignore[call-overload]


def start_model(options: argparse.Namespace) -> LiteFusion:
    """Build the model from ImageNet weights or from another run."""
    model = create_model(options.model, 40, reduce=options.reduce)
    assert isinstance(model, LiteFusion)
    blocks = [module for module in model.encoder.modules() if hasattr(module, "drop_path")]
    for index, block in enumerate(blocks):
        block.drop_path = DropPath(options.drop_path * index / (len(blocks) - 1))
    for attention in (module for module in model.modules() if isinstance(module, AttentionBlock)):
        attention.drop_path = DropPath(options.drop_path)
    if options.start:
        model.load_state_dict(read_model(options.start).state_dict())
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


def save(model: LiteFusion, options: argparse.Namespace, told: dict[str, object]) -> None:
    """Write the average as a bundle, convolutions in float16."""
    given = {key: value for key, value in vars(options).items() if key not in (*_FOLDERS, "frames")}
    given |= {key: Path(given[key]).name for key in _FILES}
    config = told | {"options": {key: str(value) for key, value in given.items()}}
    facts = ModelFacts(
        options.model, {"reduce": options.reduce}, model.input_spec, NYU40, "nyuv2", HHA.to_dict(), config
    )
    state = {key: value.half() if value.ndim == 4 else value for key, value in model.state_dict().items()}
    kept = {key: value.cpu().contiguous() for key, value in state.items()}
    save_bundle(facts, kept, Path(options.out) / "last.safetensors")


def _wait_for(path: str) -> str:
    if not Path(path).exists():
        print(f"waiting for {path}", flush=True)
    while not Path(path).exists():
        time.sleep(0.2)
    return path


def _check(options: argparse.Namespace) -> None:
    if len(options.frames) != len(options.minutes):
        raise SystemExit(f"--minutes has {len(options.minutes)} numbers; expected one for each of {options.frames}")
    if any(side < 8 or side % 4 for side in options.crop):
        raise SystemExit(
            f"--crop is {options.crop}; expected multiples of 4, since labels are taken at a quarter of it"
        )


def train(options: argparse.Namespace) -> None:
    """Run the command ``train``: one stage for each file of frames."""
    _check(options)
    torch.manual_seed(options.seed)
    device = torch.device(options.device)
    if device.type == "cuda":
        torch.cuda.set_device(device)  # which kernels and graphs use
    torch.backends.cudnn.benchmark = True
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
    Path(options.out).mkdir(parents=True, exist_ok=True)
    net = prepared(TrainingNet(start_model(options)), device).train()
    teacher = prepared(read_model(options.teacher), device).eval() if options.teacher else None
    began = time.time()
    step = Step(net, Batch.of_noise(options.batch, tuple(options.crop), device), options, teacher)
    print(f"ready to train after {time.time() - began:.1f} s", flush=True)
    told: dict[str, object] = {}
    for number, (path, minutes) in enumerate(zip(options.frames, options.minutes, strict=True)):
        frames = Frames.load(_wait_for(path), device)
        index = torch.arange(len(frames.rgb))
        last = number == len(options.frames) - 1
        # The same file in an earlier stage must not show what is held out in the last one.
        holds_out = options.hold_out_until > 0 and path == options.frames[-1]
        held_out = ((index // 8) % 8 == 3) & holds_out
        batches = Batches(frames, options, held_out)
        step.reset()
        step.weight.copy_(batches.class_weight)
        until, teaching = (options.hold_out_until, options.teaching) if last else (1.0, 0.0)
        stage = Stage(Path(path).name, minutes, until, teaching, options, told)
        told[f"stage {number + 1}"] = stage.run(step, batches, index[held_out])
    save(step.average, options, told)
    if options.hold_out_until >= 1:
        sizes = ((240, 320), (320, 427), (480, 640))
        scores = {f"{h}x{w}": measure(step.average, frames, index[held_out], (h, w)) for h, w in sizes}
        scores["without depth"] = measure(step.average, frames, index[held_out], stage.shown, depth=False)
        print("held out:", json.dumps(scores), flush=True)


@dataclasses.dataclass
class Stage:
    """Training on one file of frames.

    frames: name of the file.  minutes: by the clock.  hold_out_until: part of them for which frames are held out and
    measured.  teaching: weight of what the teachers say.  before: what was told of the stages before.
    """

    frames: str
    minutes: float
    hold_out_until: float
    teaching: float
    options: argparse.Namespace
    before: dict[str, object]

    @property
    def shown(self) -> tuple[int, int]:
        """Height and width at which the model sees frames of 480x640."""
        return math.ceil(480 / self.options.reduce), math.ceil(640 / self.options.reduce)

    def run(self, step: Step, batches: Batches, held_out: Tensor) -> dict[str, object]:
        """Train until the clock says so; returns how much was done."""
        log = (Path(self.options.out) / "log.jsonl").open("a")
        began = measured = time.time()
        all_frames = len(held_out) == 0
        for batch in batches:
            done = (time.time() - began) / (60 * self.minutes)
            if done >= 1 or step.count == self.options.steps:
                break
            step(batch, done, self.teaching)
            if not all_frames and done >= self.hold_out_until:
                batches.use_all_frames()
                all_frames = True
            if step.count % _SYNCHRONIZE_EVERY:
                continue
            loss = self._mean_loss(step)
            if time.time() - measured > self.options.measure_every or step.count == 10 * _SYNCHRONIZE_EVERY:
                told = self._told(step, began)
                speed = told["images"] / max(told["seconds"], 0.1)
                line = told | {"loss": loss, "images/s": round(speed, 1)}
                if not all_frames:
                    line["held out"] = round(measure(step.average, batches.frames, held_out, self.shown), 2)
                print(json.dumps(line), file=log, flush=True)
                print(json.dumps(line), flush=True)
                save(step.average, self.options, self.before | {"stage now": told})
                measured = time.time()
        self._mean_loss(step)
        device = torch.cuda.get_device_name() if batches.device.type == "cuda" else "cpu"
        return self._told(step, began) | {"device": device}

    def _mean_loss(self, step: Step) -> float:
        loss = float(step.total) / _SYNCHRONIZE_EVERY
        step.total.zero_()
        if not math.isfinite(loss):
            raise SystemExit(
                f"the loss is {loss} after {step.count} steps; the last saved state is in {self.options.out}"
            )
        return round(loss, 4)

    def _told(self, step: Step, began: float) -> dict[str, Any]:
        seconds = round(time.time() - began, 1)
        count = step.count
        return {"frames": self.frames, "images": count * self.options.batch, "steps": count, "seconds": seconds}


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    rooms = commands.add_parser("rooms")
    rooms.add_argument("--frames", type=int, default=6000, dest="count")
    rooms.add_argument("--processes", type=int, default=2)
    frames = commands.add_parser("frames")
    frames.add_argument("--data", default="datasets/nyuv2")
    for command, variants in ((rooms, 1), (frames, 8)):
        command.add_argument("frames")
        command.add_argument("--variants", type=int, default=variants, help="of the depth, most with faults of sensors")
    run = commands.add_parser("train")
    _add_training_options(run)
    for command in (rooms, frames, run):
        command.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    return parser


def _add_training_options(run: argparse.ArgumentParser) -> None:
    run.add_argument("frames", nargs="+", help="a stage each; files that are not there yet are waited for")
    run.add_argument("--model", default="litefusion_lite2_attention")
    run.add_argument("--reduce", type=float, default=1.5, help="of the model; frames held out are measured with it")
    run.add_argument("--weights", default="weights")
    run.add_argument("--start", default="", metavar="FILE")
    run.add_argument("--teacher", default="", metavar="FILE", help="of another run, beside the average of the weights")
    run.add_argument("--out", required=True)
    run.add_argument("--minutes", type=float, nargs="+", required=True, help="of each stage")
    run.add_argument("--steps", type=int, default=-1, help="end a stage after so many, whatever the clock says")
    run.add_argument(
        "--hold-out-until", type=float, default=0.0, metavar="PART", help="measures nothing if --teacher saw the frames"
    )
    run.add_argument("--measure-every", type=float, default=30.0, metavar="SECONDS")
    run.add_argument("--eager", action="store_true", help="on a GPU, launch every kernel by itself")
    run.add_argument("--seed", type=int, default=0)
    run.add_argument("--batch", type=int, default=48)
    run.add_argument("--crop", type=int, nargs=2, default=(320, 416))
    run.add_argument("--warm-up", type=int, default=200, metavar="STEPS")
    run.add_argument("--zoom", type=float, nargs=2, default=(0.95, 2.0), help="at 1 a frame has 240x320")
    run.add_argument("--rate", type=float, default=4.3e-4, help="learning rate of the color encoder")
    run.add_argument("--decay", type=float, default=0.05)
    run.add_argument("--drop-path", type=float, default=0.15)
    run.add_argument("--balance", type=float, default=0.35)
    run.add_argument("--smoothing", type=float, default=0.05)
    run.add_argument("--mix", type=float, default=0.5)
    run.add_argument("--no-depth", type=float, default=0.12)
    run.add_argument("--teaching", type=float, default=0.7, help="weight of what the teachers say, in the last stage")
    run.add_argument("--lovasz", type=float, default=0.5)
    run.add_argument("--lovasz-from", type=float, default=0.7)
    run.add_argument("--average", type=float, default=0.999)


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
