"""Why gates do not beat plain summation early in training: a small study of SA-Gate on NYU Depth V2.

    python -m pip install --group figures
    python scripts/gates.py run  --data datasets/nyuv2 --weights tf_efficientnet_lite0.safetensors --out /tmp/gates
    python scripts/gates.py plot --out /tmp/gates --picture docs/images/gates.png

Frames are at a quarter of their size, crops are 64x96.  Every run starts from the same ImageNet weights and sees, at
one seed, the same crops in the same order; what differs is how the two streams meet.  Every eighth group of eight
neighboring training frames is held out and scored (whole frames, one scale); test frames are never read.  Finished runs
are kept in OUT/runs.jsonl, a line each, and are not run again; what was stopped in the middle goes on.  Sized for one
CPU thread and less than an hour.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from rgbdseg.data.dataset import RGBDDataset
from rgbdseg.files import atomic_path
from rgbdseg.geometry.hha import HHAParameters, encode_hha
from rgbdseg.metrics import SegmentationMetrics
from rgbdseg.models._registry import create_model
from rgbdseg.models.sagate import SAGate, SeparationAggregationGate
from rgbdseg.recipes.nyuv2_lite import NETWORK
from rgbdseg.weights.imagenet import load_encoder_weights

# N frames, B batch, C channels, H height, W width

CLASSES, VOID = 40, 255
SIZE, CROP = (120, 160), (64, 96)
BATCH, MEASURED_AT, KEPT_EVERY = 8, 4, 25
HHA = HHAParameters(
    normal_radius=2, gravity_radius=4, missing_fill=0, floor_percentile=1.0, singular_windows="undefined"
)


class PatientGate(SeparationAggregationGate):
    """A gate whose start is the plain sum: equal shares, twice their mean, and no propagation until it is learned."""

    def __init__(self, channels: int, reduction: int = 16, *, min_width: int = 1, rectify: bool = True) -> None:
        super().__init__(channels, reduction, min_width=min_width, rectify=rectify)
        self.strength = nn.Parameter(torch.zeros(2))
        for score in (self.score_rgb, self.score_geometry):
            nn.init.zeros_(score.weight)
            nn.init.zeros_(score.bias)

    def forward(self, rgb: Tensor, second: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return (fused, propagated rgb, propagated second) like the released gate."""
        mean, _, _ = super().forward(rgb, second)
        own = [
            feature + weight * (mean - feature) for feature, weight in zip((rgb, second), self.strength, strict=True)
        ]
        return 2 * mean, own[0], own[1]


class MergingGate(SeparationAggregationGate):
    """A gate that decides what is fused and propagates nothing: the encoders stay what they were trained to be."""

    def forward(self, rgb: Tensor, second: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return (fused, rgb, second)."""
        return super().forward(rgb, second)[0], rgb, second


@dataclasses.dataclass(frozen=True)
class Way:
    """One way in which the streams meet.

    Args:
        gate: class of the gates; None adds the features instead.
        rate: learning rate of the gates, as a multiple of the encoders'.
    """

    gate: type[SeparationAggregationGate] | None
    rate: float = 1.0


WAYS = {
    "sum": Way(None),
    "gates as released": Way(SeparationAggregationGate),
    "gates, rate x10": Way(SeparationAggregationGate, 10),
    "gates without propagation": Way(MergingGate),
    "gates that start as the sum": Way(PatientGate),
    "gates that start as the sum, rate x10": Way(PatientGate, 10),
}
_PAIR = ("sum", "gates as released")
PLAN = [
    *((way, 250, 0) for way in (*_PAIR, "gates that start as the sum", "gates, rate x10")),
    *((way, 250, 1) for way in _PAIR),
    *((way, 80, seed) for seed in (0, 1) for way in _PAIR),
    *((way, 250, 0) for way in ("gates that start as the sum, rate x10", "gates without propagation")),
    *((way, 250, 1) for way in WAYS if way not in _PAIR),
    *((way, 800, 0) for way in (*_PAIR, "gates that start as the sum, rate x10")),
]
"""(way, steps, seed) in the order of what matters most, since time may end it."""


@dataclasses.dataclass(frozen=True)
class Frames:
    """Frames at a quarter of their size: rgb and hha (N, 3, 120, 160) uint8, label (N, 120, 160) uint8, 255 is void."""

    rgb: Tensor
    hha: Tensor
    label: Tensor

    def subset(self, index: Tensor) -> Frames:
        """Return some of the frames."""
        return Frames(self.rgb[index], self.hha[index], self.label[index])


def read_frames(root: str, cache: Path) -> Frames:
    """Read the training split, reduced; what was read once is kept in ``cache``."""
    if cache.is_file():
        kept = np.load(cache)
        return Frames(*(torch.from_numpy(kept[name]) for name in ("rgb", "hha", "label")))
    dataset = RGBDDataset(root, "train", needs=("rgb", "depth_m", "label"))
    rgb, hha, label = [], [], []
    for index in range(len(dataset)):
        sample = dataset.sample(index)
        assert sample.depth_m is not None
        assert sample.label is not None
        assert sample.camera is not None
        small = functional.interpolate(sample.rgb[None].float(), size=SIZE, mode="area")
        rgb.append(small.round().to(torch.uint8))
        known = (sample.depth_m > 0).float()
        share = functional.adaptive_avg_pool2d(known, SIZE)
        depth_m = functional.adaptive_avg_pool2d(sample.depth_m, SIZE) / share.clamp(min=1e-6) * (share >= 0.25)
        fx, fy, cx, cy = sample.camera.as_tuple()
        camera = torch.tensor([[fx / 4, fy / 4, (cx + 0.5) / 4 - 0.5, (cy + 0.5) / 4 - 0.5]], dtype=torch.float64)
        hha.append(encode_hha(depth_m[None], camera, parameters=HHA))
        label.append(sample.label[:, 2::4, 2::4])
    frames = Frames(torch.cat(rgb), torch.cat(hha), torch.cat(label))
    np.savez(cache, **{name: getattr(frames, name).numpy() for name in ("rgb", "hha", "label")})
    return frames


def make_batch(frames: Frames, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """Return an augmented batch: rgb and hha (B, 3, 64, 96) in -1..1, label (B, 64, 96)."""
    picks = torch.randint(len(frames.rgb), (BATCH,), generator=generator)
    draw = torch.rand(BATCH, 7, generator=generator)
    # The crop's extent as a share of the frame's sides, at zooms of 0.7 to 1.4; mirrored in half of the cases.
    zoom = 0.7 * 2 ** draw[:, 0]
    extent = torch.stack([CROP[1] / SIZE[1] / zoom, CROP[0] / SIZE[0] / zoom], dim=1)
    shift = (draw[:, 1:3] * 2 - 1) * (1 - extent).clamp(min=0)
    theta = torch.zeros(BATCH, 2, 3)
    theta[:, 0, 0] = extent[:, 0] * torch.where(draw[:, 3] < 0.5, -1.0, 1.0)
    theta[:, 1, 1], theta[:, :, 2] = extent[:, 1], shift
    grid = functional.affine_grid(theta, [BATCH, 1, *CROP], align_corners=False)

    def sample(values: Tensor, mode: str) -> Tensor:
        return functional.grid_sample(values.float(), grid, mode=mode, align_corners=False)

    rgb, hha = (sample(values[picks], "bilinear") / 255 for values in (frames.rgb, frames.hha))
    label = sample(frames.label[picks][:, None].float() - VOID, "nearest")[:, 0] + VOID  # void outside the frame
    gain, contrast, saturation = (1 + 0.6 * (draw[:, k] - 0.5)[:, None, None, None] for k in (4, 5, 6))
    mean = rgb.mean((1, 2, 3), keepdim=True)
    rgb = ((rgb - mean) * contrast + mean) * gain
    gray = rgb.mean(1, keepdim=True)
    rgb = ((rgb - gray) * saturation + gray).clamp(0, 1)
    return rgb * 2 - 1, hha * 2 - 1, label.round().long()


def build(way: Way, seed: int, weights: str) -> SAGate:
    """Return the network, with equal first values of all that is not a gate."""
    torch.manual_seed(seed)
    model = create_model("sagate", CLASSES, fusion="sum", **NETWORK)
    assert isinstance(model, SAGate)
    load_encoder_weights(model, weights)
    if way.gate is not None:
        encoder = model.rgb_encoder
        widths = [encoder.state_channels(index)[0] for index in range(encoder.num_stages)]
        model.gates = nn.ModuleList(way.gate(channels, min_width=8, rectify=encoder.rectified) for channels in widths)
        model.fusion = "gate"
    return model.to(memory_format=torch.channels_last)


def parameter_groups(model: SAGate, way: Way, rate: float) -> list[dict[str, Any]]:
    """Return groups of AdamW: encoders at ``rate``, gates at a multiple of it, the rest at four times ``rate``."""
    gates = list(model.gates.parameters())
    encoders = list({id(p): p for _, encoder in model.encoder_streams() for p in encoder.parameters()}.values())
    taken = {id(parameter) for parameter in (*gates, *encoders)}
    rest = [parameter for parameter in model.parameters() if id(parameter) not in taken]
    rated = ((encoders, rate), (gates, rate * way.rate), (rest, 4 * rate))
    return [{"params": members, "lr": own, "base": own} for members, own in rated if members]


def train(data: tuple[Frames, Frames], plan: tuple[str, int, int], options: argparse.Namespace) -> dict[str, Any]:
    """Train one way and return its facts: curve of the held-out mIoU, mean loss, shares of the gates.

    data: frames to train on and those that are held out.  plan: way, steps and seed.
    """
    (frames, held_out), (name, steps, seed) = data, plan
    way = WAYS[name]
    model = build(way, seed, options.weights)
    optimizer = torch.optim.AdamW(parameter_groups(model, way, options.rate), weight_decay=0.01, fused=True)
    generator = torch.Generator().manual_seed(1000 + seed)
    progress = _Progress(options.out / "unfinished.pt", [name, steps, seed, options.rate])
    curve, losses = progress.restore(model, optimizer, generator)
    for step in range(len(losses) + 1, steps + 1):
        factor = min(1.0, step / 30) * (1 - (step - 1) / steps) ** 0.9
        for group in optimizer.param_groups:
            group["lr"] = group["base"] * factor
        torch.manual_seed(1_000_000 * seed + step)  # of dropout, alike for all ways
        losses.append(train_step(model, optimizer, make_batch(frames, generator)))
        if step % max(1, steps // MEASURED_AT) == 0:
            curve.append((step, measure(model, held_out)))
            print(f"{name}, {steps} steps, seed {seed}: {step} {curve[-1][1]:.2f}", flush=True)
        if step % KEPT_EVERY == 0:
            progress.keep(model, optimizer, generator, curve, losses)
    return {
        "way": name,
        "steps": steps,
        "seed": seed,
        "curve": curve,
        "miou": curve[-1][1],
        "loss": float(np.mean(losses[-max(1, steps // 10) :])),
        "shares": shares(model, held_out) if way.gate else [],
    }


def train_step(model: SAGate, optimizer: torch.optim.Optimizer, batch: tuple[Tensor, Tensor, Tensor]) -> float:
    """Do one step; return its loss."""
    rgb, hha, label = batch
    model.train()
    output = model({"rgb": rgb, "hha": hha})
    loss = functional.cross_entropy(output.logits, label, ignore_index=VOID)
    (auxiliary,) = output.aux
    loss = loss + 0.2 * functional.cross_entropy(auxiliary.value, label, ignore_index=VOID)
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    optimizer.step()
    return loss.item()


class _Progress:
    """The state of the run that was stopped in the middle, so that it goes on as if it had not been."""

    def __init__(self, file: Path, plan: list[Any]) -> None:
        self.file, self.plan = file, plan

    def restore(
        self, model: SAGate, optimizer: torch.optim.Optimizer, generator: torch.Generator
    ) -> tuple[list[tuple[int, float]], list[float]]:
        """Put the kept state, if it is of this run, in its place; return the curve and the losses so far."""
        kept = torch.load(self.file, weights_only=True) if self.file.is_file() else {"plan": None}
        if kept["plan"] != self.plan:
            return [], []
        model.load_state_dict(kept["model"])
        optimizer.load_state_dict(kept["optimizer"])
        generator.set_state(kept["generator"])
        return [(step, miou) for step, miou in kept["curve"]], kept["losses"]

    def keep(
        self,
        model: SAGate,
        optimizer: torch.optim.Optimizer,
        generator: torch.Generator,
        curve: list[tuple[int, float]],
        losses: list[float],
    ) -> None:
        """Write the state, in one piece."""
        state = {
            "plan": self.plan,
            "model": model.state_dict(),
            "optimizer": optimizer.state_dict(),
            "generator": generator.get_state(),
            "curve": curve,
            "losses": losses,
        }
        with atomic_path(self.file) as temporary:
            torch.save(state, temporary)


@torch.inference_mode()
def measure(model: SAGate, frames: Frames) -> float:
    """Return the mIoU in percent of whole frames."""
    model.eval()
    metrics = SegmentationMetrics(CLASSES)
    for at in range(0, len(frames.rgb), 16):
        rgb, hha = (values[at : at + 16].float() / 127.5 - 1 for values in (frames.rgb, frames.hha))
        rgb, hha = (functional.pad(values, (0, 0, 0, 8), mode="replicate") for values in (rgb, hha))
        prediction = model({"rgb": rgb, "hha": hha}).logits[:, :, : SIZE[0]].argmax(1)
        metrics.update(prediction, frames.label[at : at + 16])
    return 100 * metrics.compute().mean_iou


@torch.inference_mode()
def shares(model: SAGate, frames: Frames) -> list[tuple[float, float]]:
    """Return for every gate the share that RGB has in what is fused: its mean and its deviation over all pixels."""
    seen: list[list[Tensor]] = [[] for _ in model.gates]
    scores: dict[nn.Module, Tensor] = {}

    def keep(module: nn.Module, _: Any, output: Tensor) -> None:
        scores[module] = output

    hooks = [
        layer.register_forward_hook(keep) for gate in model.gates for layer in (gate.score_rgb, gate.score_geometry)
    ]
    model.eval()
    for at in range(0, len(frames.rgb), 16):
        rgb, hha = (values[at : at + 16, :, :96].float() / 127.5 - 1 for values in (frames.rgb, frames.hha))
        model({"rgb": rgb, "hha": hha})
        for gate, values in zip(model.gates, seen, strict=True):
            values.append(torch.sigmoid(scores[gate.score_rgb] - scores[gate.score_geometry]).flatten())
    for hook in hooks:
        hook.remove()
    joined = [torch.cat(values) for values in seen]
    return [(round(float(share.mean()), 4), round(float(share.std()), 4)) for share in joined]


def run(options: argparse.Namespace) -> None:
    """Run what is planned and not done yet, until so much of the processor was used."""
    torch.set_num_threads(options.threads)
    options.out.mkdir(parents=True, exist_ok=True)
    frames = read_frames(options.data, options.out / "frames.npz")
    index = torch.arange(len(frames.rgb))
    held = (index // 8) % 8 == 3
    training, held_out = frames.subset(index[~held]), frames.subset(index[held])
    print(f"{len(training.rgb)} training frames, {len(held_out.rgb)} held out", flush=True)
    file = options.out / "runs.jsonl"
    done = {(one["way"], one["steps"], one["seed"]) for one in read_runs(file)}
    for name, length, seed in PLAN:
        steps = round(length * options.lengths)
        if (name, steps, seed) in done:
            continue
        if time.process_time() > 60 * options.minutes:
            print(f"{options.minutes:g} minutes are over", flush=True)
            return
        facts = train((training, held_out), (name, steps, seed), options)
        with file.open("a") as lines:
            lines.write(json.dumps(facts) + "\n")


def read_runs(file: Path) -> list[dict[str, Any]]:
    """Return the finished runs."""
    return [json.loads(line) for line in file.read_text().splitlines()] if file.is_file() else []


def plot(options: argparse.Namespace) -> None:
    """Draw the scores of every run and print them as a table."""
    from matplotlib.figure import Figure  # noqa: PLC0415 - whoever only trains does not need it

    runs = read_runs(options.out / "runs.jsonl")
    longest = max(one["steps"] for one in runs)
    ways_at = {
        steps: len({one["way"] for one in runs if one["steps"] == steps}) for one in runs for steps in [one["steps"]]
    }
    common = max(ways_at, key=lambda steps: (ways_at[steps], steps))  # the length that most ways have been run with
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(1, 1.25))
    names = [name for name in WAYS if any(one["way"] == name for one in runs)]
    colors = {name: f"C{number}" for number, name in enumerate(WAYS)}
    for one in runs:
        label = f"{one['way']}, {longest} steps" if one["steps"] == longest and one["seed"] == 0 else None
        style = "-" if one["steps"] == longest else ":"
        left.plot(*zip(*one["curve"], strict=True), style, color=colors[one["way"]], marker="o", ms=3, label=label)
    left.set(xlabel="step", ylabel="held-out mIoU %")
    left.legend(fontsize=6, loc="lower right")
    for row, name in enumerate(reversed(names)):
        finals = [one["miou"] for one in runs if one["way"] == name and one["steps"] == common]
        if not finals:
            continue
        right.plot(finals, [row] * len(finals), "o", color=colors[name])
        right.plot([np.mean(finals)] * 2, [row - 0.25, row + 0.25], color=colors[name])
    right.set_yticks(range(len(names)), list(reversed(names)), fontsize=8)
    right.set(xlabel=f"mIoU % after {common} steps, a point a seed", ylim=(-0.6, len(names) - 0.4))
    right.grid(axis="x", alpha=0.3)
    figure.savefig(options.picture, dpi=110)
    print("| way | steps | mIoU % by seed | training loss | share of RGB after each stage |\n|---|---|---|---|---|")
    for name in names:
        for steps in sorted({one["steps"] for one in runs}):
            own = sorted((o for o in runs if (o["way"], o["steps"]) == (name, steps)), key=lambda one: one["seed"])
            if own:
                cells = (
                    ", ".join(f"{one['miou']:.2f}" for one in own),
                    ", ".join(f"{one['loss']:.3f}" for one in own),
                    ", ".join(f"{mean:.2f}±{deviation:.2f}" for mean, deviation in own[0]["shares"]) or "-",
                )
                print(f"| {name} | {steps} | {' | '.join(cells)} |")


def main() -> None:
    """Read the command line and run one command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    runner, drawer = commands.add_parser("run"), commands.add_parser("plot")
    for command in (runner, drawer):
        command.add_argument("--out", type=Path, required=True)
    runner.add_argument("--data", required=True)
    runner.add_argument("--weights", required=True, metavar="FILE", help="ImageNet weights of tf_efficientnet_lite0")
    runner.add_argument("--minutes", type=float, default=45, help="of the processor; no run begins later")
    runner.add_argument("--lengths", type=float, default=1.0, help="factor of the numbers of steps")
    runner.add_argument("--rate", type=float, default=4e-4, help="learning rate of the encoders")
    runner.add_argument("--threads", type=int, default=1)
    drawer.add_argument("--picture", type=Path, required=True)
    options = parser.parse_args()
    (run if options.command == "run" else plot)(options)


if __name__ == "__main__":
    main()
