"""The complete, frozen description of a training run.

Plain dataclasses without torch, so that recipes and ``rgbdseg --help`` load in an instant.  Every field can be
overridden on the command line as ``--group.field value``; the resolved config is stored in the run folder and in
every checkpoint, and can be run again.
"""

from __future__ import annotations

import dataclasses
from typing import Any, Literal

from rgbdseg.errors import UsageError
from rgbdseg.loss_config import LossConfig
from rgbdseg.protocol import EvaluationProtocol


@dataclasses.dataclass(frozen=True)
class AugmentationConfig:
    """What happens to a training sample before packing.

    Args:
        crop_size: (height, width) cut at a random place; smaller samples are padded when packed.
        scales: one is drawn with equal probability; sides become int(side * scale).
        flip_probability: chance of a horizontal mirror.
        brightness: the RGB factor is drawn uniformly from [1 - x, 1 + x]; 0 switches it off.
        contrast: as brightness.
        saturation: as brightness.
        hue: the shift is drawn from [-x, x] turns, 0 to 0.5.
        on_device: move whole batches where the model is, instead of single samples in the loader processes; the same
            values.
    """

    crop_size: tuple[int, int] = (480, 480)
    scales: tuple[float, ...] = (0.5, 0.75, 1.0, 1.25, 1.5, 1.75)
    flip_probability: float = 0.5
    brightness: float = 0.0
    contrast: float = 0.0
    saturation: float = 0.0
    hue: float = 0.0
    on_device: bool = False


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """Which network.

    Args:
        name: a name from `rgbdseg models`.
        options: keyword options of that model's builder.
        encoder_weights: ImageNet weights for every encoder stream: a .safetensors or .pth file, 'timm' to download
            them from the Hugging Face hub, or null for random weights.
    """

    name: str = "sagate_resnet101"
    options: dict[str, Any] = dataclasses.field(default_factory=dict)
    encoder_weights: str | None = None


@dataclasses.dataclass(frozen=True)
class LoaderConfig:
    """How samples become batches.

    Args:
        batch_size: samples per optimiser step, over all devices and accumulated passes together.
        workers: loader processes per device; 0 loads in the training process.
        train_split: split of the dataset to train on.
        validation_split: split to validate on.
        validation_limit: validate on the first N frames only; null for all.
        hha_cache: folder where computed HHA images are kept; null computes them on the fly when the tree has none.
    """

    batch_size: int = 16
    workers: int = 2
    train_split: str = "train"
    validation_split: str = "test"
    validation_limit: int | None = None
    hha_cache: str | None = None


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
    """The optimiser and its parameter groups.

    Args:
        name: sgd or adamw.
        learning_rate: base rate of the schedule.
        momentum: of SGD.
        weight_decay: see weight_decay_on.
        head_learning_rate_factor: multiplies the rate of everything outside the backbone.
        weight_decay_on: 'weights' of convolutions and linear layers only, so that biases and normalisation have none,
            or 'all' parameters.
        gradient_clip_norm: gradients are scaled down to this norm over all parameters; null leaves them.
    """

    name: Literal["sgd", "adamw"] = "sgd"
    learning_rate: float = 0.02
    momentum: float = 0.9
    weight_decay: float = 5e-4
    head_learning_rate_factor: float = 1.0
    weight_decay_on: Literal["weights", "all"] = "weights"
    gradient_clip_norm: float | None = None


@dataclasses.dataclass(frozen=True)
class ScheduleConfig:
    """How long, and how the learning rate moves.

    Args:
        epochs: an epoch is a fixed number of optimiser steps, not a pass over the data.
        iterations_per_epoch: optimiser steps per epoch.
        warmup_epochs: the rate rises linearly from 0 to the base rate; then the decay is evaluated at the absolute
            iteration, so the polynomial continues a little below the base rate.
        power: of the polynomial (1 - iteration / total) ** power.
        validate_every_epochs: 0 switches validation off; the last epoch is always validated otherwise.
        checkpoint_every_epochs: a numbered checkpoint is kept that often; the newest state is always in last.ckpt.
        checkpoint_from_epoch: first epoch that leaves a numbered checkpoint.
        checkpoint_every_minutes: last.ckpt is also written inside an epoch when the newest one is older than this.
        decay: 'polynomial', or 'step': the rate is multiplied by step_factor after every step_epochs epochs.
        step_epochs: see decay.
        step_factor: see decay.
    """

    epochs: int = 400
    iterations_per_epoch: int = 98
    warmup_epochs: int = 10
    power: float = 0.9
    validate_every_epochs: int = 10
    checkpoint_every_epochs: int = 10
    checkpoint_from_epoch: int = 0
    checkpoint_every_minutes: float = 10.0
    decay: Literal["polynomial", "step"] = "polynomial"
    step_epochs: int = 100
    step_factor: float = 0.1

    @property
    def iterations(self) -> int:
        """Optimiser steps of the whole run."""
        return self.epochs * self.iterations_per_epoch


@dataclasses.dataclass(frozen=True)
class HardwareConfig:
    """Where and how it runs; none of it changes what is computed beyond rounding.

    Args:
        accelerator: auto, cpu or gpu.
        devices: number of devices, or -1 for all; one process each.
        nodes: number of machines.
        precision: 32-true, bf16-mixed or 16-mixed.
        accumulate: passes per optimiser step; each takes batch_size / (devices * nodes * accumulate) samples, and
            batch statistics are taken over one pass. null takes one pass where it fits in memory and the fewest that
            fit otherwise, says so, and stores the number with the run.
        compile: compile the model with torch.compile.
        channels_last: keep activations in channels-last memory order.
        sync_batch_norm: take batch statistics over all devices.
        deterministic: ask for deterministic algorithms (slower on GPUs).
        threads: CPU threads per process; null leaves the default.
    """

    accelerator: Literal["auto", "cpu", "gpu"] = "auto"
    devices: int = 1
    nodes: int = 1
    precision: Literal["32-true", "bf16-mixed", "16-mixed"] = "32-true"
    accumulate: int | None = None
    compile: bool = False
    channels_last: bool = False
    sync_batch_norm: bool = True
    deterministic: bool = False
    threads: int | None = None


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """A complete run.

    Args:
        recipe: name of the recipe it came from.
        data: folder of the prepared dataset.
        seed: of weights, sampling, augmentation and dropout.
        ema_decay: keep an exponential moving average of the weights with this decay and evaluate it; null for none.
        validation: how the per-epoch validation looks at a frame (cheap).
        evaluation: the protocol of the published numbers, used by `rgbdseg evaluate` unless told otherwise.
    """

    recipe: str = ""
    data: str = ""
    seed: int = 0
    ema_decay: float | None = None
    model: ModelConfig = ModelConfig()
    loader: LoaderConfig = LoaderConfig()
    augmentation: AugmentationConfig = AugmentationConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    schedule: ScheduleConfig = ScheduleConfig()
    loss: LossConfig = LossConfig()
    validation: EvaluationProtocol = EvaluationProtocol()
    evaluation: EvaluationProtocol = EvaluationProtocol()
    hardware: HardwareConfig = HardwareConfig()

    def to_dict(self) -> dict[str, Any]:
        """Return plain nested values, ready for YAML or a checkpoint."""
        plain = _plain(dataclasses.asdict(self))
        assert isinstance(plain, dict)
        return plain


def check_config(config: TrainConfig) -> None:
    """Raise UsageError for values that cannot work together; the message names the key."""
    positive = {
        "loader.batch_size": config.loader.batch_size,
        "schedule.epochs": config.schedule.epochs,
        "schedule.iterations_per_epoch": config.schedule.iterations_per_epoch,
        "schedule.step_epochs": config.schedule.step_epochs,
        "schedule.step_factor": config.schedule.step_factor,
        "hardware.accumulate": passes(config),
        "hardware.nodes": config.hardware.nodes,
        "augmentation.crop_size": min(config.augmentation.crop_size),
        "augmentation.scales": min(config.augmentation.scales, default=0),
        "optimizer.learning_rate": config.optimizer.learning_rate,
        "optimizer.gradient_clip_norm": 1 if (norm := config.optimizer.gradient_clip_norm) is None else norm,
        "loss.loss_scale": config.loss.loss_scale,
        "loader.validation_limit": _set(config.loader.validation_limit),
        "hardware.threads": _set(config.hardware.threads),
    }
    for key, value in positive.items():
        if not value > 0:
            raise UsageError(f"{key} is {value}; expected a positive number")
    not_negative = {
        "loader.workers": config.loader.workers,
        "schedule.warmup_epochs": config.schedule.warmup_epochs,
        "schedule.validate_every_epochs": config.schedule.validate_every_epochs,
        "schedule.checkpoint_every_epochs": config.schedule.checkpoint_every_epochs,
        "optimizer.weight_decay": config.optimizer.weight_decay,
        "augmentation.brightness": config.augmentation.brightness,
        "augmentation.contrast": config.augmentation.contrast,
        "augmentation.saturation": config.augmentation.saturation,
        "seed": config.seed,
    }
    for key, value in not_negative.items():
        if value < 0:
            raise UsageError(f"{key} is {value}; expected 0 or more")
    check_devices(config.hardware)
    if "num_classes" in config.model.options:
        raise UsageError("model.options holds num_classes, which the dataset's label set decides; leave it out")
    if not 0 <= config.augmentation.flip_probability <= 1:
        raise UsageError(f"augmentation.flip_probability is {config.augmentation.flip_probability}; expected 0 to 1")
    if not 0 <= config.optimizer.momentum < 1:
        raise UsageError(f"optimizer.momentum is {config.optimizer.momentum}; expected 0 to below 1")
    if config.ema_decay is not None and not 0 < config.ema_decay < 1:
        raise UsageError(f"ema_decay is {config.ema_decay}; expected a number between 0 and 1, or null")
    if not 0 <= config.augmentation.hue <= 0.5:
        raise UsageError(f"augmentation.hue is {config.augmentation.hue}; expected 0 to 0.5 turns")


def check_devices(hardware: HardwareConfig) -> None:
    """Raise UsageError for a number of devices that cannot be."""
    if hardware.devices < 1 and hardware.devices != -1:
        raise UsageError(f"hardware.devices is {hardware.devices}; expected at least 1, or -1 for all")
    if hardware.devices == -1 and hardware.accelerator == "cpu":
        raise UsageError("hardware.devices is -1, all, which a CPU does not have; give a number of processes")


def passes(config: TrainConfig) -> int:
    """Return the passes per optimiser step; 1 where the config leaves the choice open."""
    return _set(config.hardware.accumulate)


def samples_per_pass(config: TrainConfig, world_size: int) -> int:
    """Return how many samples one device takes per pass; raises UsageError when the batch does not divide."""
    parts = world_size * passes(config)
    if config.loader.batch_size % parts:
        raise UsageError(
            f"loader.batch_size {config.loader.batch_size} is not divisible by {parts} "
            f"(= {world_size} devices * {passes(config)} accumulated passes)"
        )
    return config.loader.batch_size // parts


def _set(value: int | None) -> int:
    return 1 if value is None else value


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(v) for v in value]
    return value
