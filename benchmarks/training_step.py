"""One training step in every way that `HardwareConfig` offers, beside the plain one: float32, contiguous, eager.

    python benchmarks/training_step.py [--model sagate_resnet50] [--crop 480] [--batch 8] [--device cpu] [--rounds 5]
                                       [--ways float32 bf16 channels_last bf16_channels_last] [--compile]

A step is that of `rgbdseg train`: augmented images in, losses, gradients, the optimizer; a made batch that is on the
device already, so that loading counts for nothing.  All ways take turns in one run, each with weights of its own.
--compile adds the fastest way compiled, in which the first round takes a minute or more.
"""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Callable

import torch

from peak import peak_growth_mib
from rgbdseg.config.train import HardwareConfig, ModelConfig, OptimizerConfig, TrainConfig
from rgbdseg.engine.hardware import make_fabric
from rgbdseg.engine.step import make_state, training_step
from rgbdseg.freed_memory import freed_memory_kept
from rgbdseg.models._registry import create_model
from rgbdseg.sample import RGBDBatch
from turns import machine, seconds_in_turns, table

CLASSES = 40
WAYS: dict[str, dict[str, object]] = {
    "float32": {},
    "channels_last": {"channels_last": True},
    "bf16": {"precision": "bf16-mixed"},
    "bf16_channels_last": {"precision": "bf16-mixed", "channels_last": True},
    "compiled": {"precision": "bf16-mixed", "channels_last": True, "compile": True},
}


def made_batch(config: TrainConfig, size: int, count: int, device: str) -> RGBDBatch:
    """Return random images and labels for the streams of the model."""
    generator = torch.Generator().manual_seed(0)
    spec = create_model(config.model.name, CLASSES, **config.model.options).input_spec
    images = {s.name: torch.randn(count, s.channels, size, size, generator=generator) for s in spec.streams}
    label = torch.randint(CLASSES, (count, size, size), generator=generator)
    camera = torch.tensor([[0.8 * size, 0.8 * size, size / 2, size / 2]]).repeat(count, 1)
    return RGBDBatch(images, camera=camera, label=label, sample_ids=tuple(map(str, range(count)))).to(device)


def make_step(config: TrainConfig, batch: RGBDBatch) -> tuple[Callable[[], None], list[torch.Tensor]]:
    """Return what takes a step, and the list that its losses go to."""
    fabric = make_fabric(config.hardware)
    torch.manual_seed(0)
    model = create_model(config.model.name, CLASSES, **config.model.options)
    if config.hardware.channels_last:
        model.to(memory_format=torch.channels_last)
    state, losses = make_state(model, config, fabric), []

    def step() -> None:
        losses.append(training_step(state, [batch], config)["loss"].detach())

    return step, losses


def peak_mib(step: Callable[[], None], device: str) -> float | None:
    """Return what a step takes at its peak besides what all ways hold, on a GPU."""
    step()  # picks algorithms, with scratch memory of their own
    if device == "cpu":
        return None
    return peak_growth_mib(step, device)


@freed_memory_kept()
def main() -> None:
    parser = argparse.ArgumentParser(description="Time training steps in all ways of HardwareConfig.")
    parser.add_argument("--model", default="sagate_resnet50")
    parser.add_argument("--crop", type=int, default=480)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=[name for name in WAYS if name != "compiled"])
    parser.add_argument("--compile", action="store_true", help="add the way 'compiled'")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    accelerator = "cpu" if options.device == "cpu" else "gpu"
    base = TrainConfig(
        model=ModelConfig(options.model),
        optimizer=OptimizerConfig(name="sgd", learning_rate=1e-3),
        hardware=HardwareConfig(accelerator=accelerator, accumulate=1),
    )
    batch = made_batch(base, options.crop, options.batch, options.device)
    print(machine(options.device, options.threads))
    print(f"{options.model}, {options.batch} crops of {options.crop}x{options.crop}", flush=True)
    steps, losses = {}, {}
    for name in [*options.ways, *(["compiled"] if options.compile else [])]:
        config = dataclasses.replace(base, hardware=dataclasses.replace(base.hardware, **WAYS[name]))
        steps[name], losses[name] = make_step(config, batch)
        memory = peak_mib(steps[name], options.device)
        shown = "" if memory is None else f"; {memory:.0f} MiB at the peak of a step"
        print(f"{name}: first loss {float(losses[name][0]):.4f}{shown}", flush=True)
    print(table(seconds_in_turns(steps, options.rounds, options.device, options.threads), per=options.batch))
    print("milliseconds per image; ratios: those of the first line over those of the line")


if __name__ == "__main__":
    main()
