"""The complete, frozen description of a training run.

Plain dataclasses without torch, so that recipes and ``rgbdseg --help`` load in an instant.  Every field can be
overridden on the command line as ``--group.field value``; the resolved config is stored in the run folder and in
every checkpoint, and can be run again.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any, Literal, get_args

from rgbdseg.config.checks import (
    check_kinds,
    check_literals,
    check_not_negative,
    check_numbers,
    check_positive,
    check_ranges,
    check_size,
)
from rgbdseg.config.loss import LossConfig
from rgbdseg.config.optimization import OptimizerConfig, ScheduleConfig
from rgbdseg.config.protocol import EvaluationProtocol
from rgbdseg.errors import UsageError
from rgbdseg.options import check_choice

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

__all__ = [
    "AugmentationConfig",
    "HardwareConfig",
    "LoaderConfig",
    "LoggingConfig",
    "ModelConfig",
    "OptimizerConfig",
    "ScheduleConfig",
    "TrainConfig",
    "plain_values",
    "samples_per_pass",
]

CropPosition = Literal["anywhere", "class"]
Precision = Literal["auto", "32-true", "bf16-mixed", "16-mixed"]
PRECISIONS: tuple[Precision, ...] = get_args(Precision)
LARGEST_SCALE = 16
"""A typing error above it would fill the memory."""


@dataclasses.dataclass(frozen=True)
class AugmentationConfig:
    """What happens to a training sample before packing.

    Args:
        crop_size: (height, width) of the crop; smaller samples are padded when packed.
        crop_position: 'anywhere' draws all places inside the image with equal probability; 'class' draws one of the
            classes in the scaled image, then one of its pixels, and centers the crop there as far as the image reaches
            (images without labeled pixels: anywhere).
        margin: pixels cut off each side of a frame before anything else.
        rotation_degrees: the angle is drawn uniformly from [-x, x], 0 to 180; turned about the principal point, or the
            center of a frame without camera; 0 switches it off.  Not together with on_device.
        scales: one is drawn with equal probability; sides become int(side * scale).
        scale_range: (lowest, highest); the scale is drawn uniformly between them, in place of ``scales``.  null for
            ``scales``.
        flip_probability: chance of a horizontal mirror.
        brightness: the RGB factor is drawn uniformly from [1 - x, 1 + x]; 0 switches it off.
        contrast: as brightness; the factor of the difference to the mean gray level.
        saturation: as brightness; the factor of the difference to each pixel's own gray level.
        hue: the shift is drawn from [-x, x] turns, 0 to 0.5.
        color_probability: chance that colors are changed at all, by all of these four together.
        blur_probability: chance that RGB is blurred with a Gaussian of 3x3 pixels and a deviation of 0.8.
        hsv_hue_factor: in hue, saturation and value: the factor of the hue, as 0 to 1 turns counted from red, is drawn
            uniformly from [1 - x, 1 + x]; 0 switches it off.
        hsv_saturation_factor: as hsv_hue_factor, of the saturation.
        hsv_saturation_shift: what is added to the saturation is drawn uniformly from [-x, x] 255ths, 0 to 255.
        hsv_value_shift: what is added to the value is drawn uniformly from [-x, x] gray levels, 0 to 255.
        on_device: move whole batches where the model is, instead of single samples in the loader processes; the same
            values.
    """

    crop_size: tuple[int, int] = (480, 480)
    crop_position: CropPosition = "anywhere"
    margin: int = 0
    rotation_degrees: float = 0.0
    scales: tuple[float, ...] = (0.5, 0.75, 1.0, 1.25, 1.5, 1.75)
    scale_range: tuple[float, float] | None = None
    flip_probability: float = 0.5
    brightness: float = 0.0
    contrast: float = 0.0
    saturation: float = 0.0
    hue: float = 0.0
    color_probability: float = 1.0
    blur_probability: float = 0.0
    hsv_hue_factor: float = 0.0
    hsv_saturation_factor: float = 0.0
    hsv_saturation_shift: float = 0.0
    hsv_value_shift: float = 0.0
    on_device: bool = False

    def __post_init__(self) -> None:
        check_kinds(self, "augmentation.")
        check_literals(self, "augmentation.")
        check_size(self.crop_size, "augmentation.crop_size")
        check_numbers(self.scales, "augmentation.scales")
        ends = self.scale_range
        if ends is not None and not (len(ends) == 2 and 0 < ends[0] <= ends[1] <= LARGEST_SCALE):
            raise UsageError(
                f"augmentation.scale_range is {ends}; expected (lowest, highest), 0 < lowest <= highest <= "
                f"{LARGEST_SCALE}"
            )
        factors = ("brightness", "contrast", "saturation", "hsv_hue_factor", "hsv_saturation_factor", "margin")
        check_not_negative(self, "augmentation.", factors)
        check_ranges(
            self,
            "augmentation.",
            {
                "flip_probability": (0, 1, ""),
                "color_probability": (0, 1, ""),
                "blur_probability": (0, 1, ""),
                "hsv_saturation_shift": (0, 255, ""),
                "hue": (0, 0.5, "turns"),
                "hsv_value_shift": (0, 255, "gray levels"),
                "rotation_degrees": (0, 180, ""),
            },
        )
        if self.rotation_degrees and self.on_device:
            raise UsageError(
                f"augmentation.rotation_degrees is {self.rotation_degrees} together with augmentation.on_device, "
                "where nothing is rotated; set augmentation.on_device to false, or rotation_degrees to 0"
            )


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """Which network.

    Args:
        name: a name from `rgbdseg models`.
        options: keyword options of that model's builder.
        encoder_weights: ImageNet weights for every encoder stream: a .safetensors or .pth file, 'timm' to download
            them from the Hugging Face hub, a name from `rgbdseg zoo`, or null for random weights.
        start_from: run folder, checkpoint of this library (.ckpt, .safetensors) or name from `rgbdseg zoo` whose
            weights the run starts from: the whole backbone, and all else that fits; what predicts other classes starts
            anew.  Takes the place of encoder_weights.  Needed for the first step only, not to resume.
    """

    name: str = "sagate_resnet101"
    options: dict[str, Any] = dataclasses.field(default_factory=dict)
    encoder_weights: str | None = None
    start_from: str | None = None

    def __post_init__(self) -> None:
        check_kinds(self, "model.")
        if self.start_from is not None and self.encoder_weights:
            raise UsageError(
                f"model.start_from is {self.start_from} and model.encoder_weights {self.encoder_weights}, but the "
                "former holds the encoder's weights already; set one of them to null"
            )
        if "num_classes" in self.options:
            raise UsageError("model.options holds num_classes, which the dataset's label set decides; leave it out")


@dataclasses.dataclass(frozen=True)
class LoaderConfig:
    """How samples become batches.

    Args:
        batch_size: samples per optimizer step, over all devices and accumulated passes together.
        workers: loader processes per device; 0 loads in the training process.
        train_split: split of the dataset to train on.
        validation_split: split to validate on.
        validation_limit: validate on the first N frames only; null for all.
        hha_cache: folder where computed HHA images are kept; null computes them on the fly when the tree has none.
        keep_gib: memory in GiB, on each machine, for decoded training frames with their HHA, so that each is read once
            in a run; frames beyond it are read every time. Every device has an equal part, which its loader processes
            share. null takes a tenth of the memory that is free at the start; 0 keeps none.
    """

    batch_size: int = 16
    workers: int = 2
    train_split: str = "train"
    validation_split: str = "test"
    validation_limit: int | None = None
    hha_cache: str | None = None
    keep_gib: float | None = None

    def __post_init__(self) -> None:
        check_kinds(self, "loader.")
        check_positive(self, "loader.", ("batch_size", "validation_limit"))
        check_not_negative(self, "loader.", ("workers", "keep_gib"))


@dataclasses.dataclass(frozen=True)
class HardwareConfig:
    """Where and how it runs; none of it changes what is computed beyond rounding.

    Args:
        accelerator: auto, cpu or gpu.
        devices: number of devices, or -1 for all; one process each.
        nodes: number of machines.
        precision: 32-true, bf16-mixed, 16-mixed, or auto: bf16-mixed where the processor or the GPU has instructions of
            its own for it, 32-true elsewhere. Training on one CPU tries both for a few steps at the start and takes the
            faster. The choice is said, and stored with a run, which goes on with it.
        accumulate: passes per optimizer step; each takes batch_size / (devices * nodes * accumulate) samples, and
            batch statistics are taken over one pass. null takes one pass where it fits in memory and the fewest that
            fit otherwise, says so, and stores the number with the run.
        compile: compile the model with torch.compile.
        channels_last: keep activations in channels-last memory order. null tries both as precision auto does, and
            takes it on GPUs together with a mixed precision.
        sync_batch_norm: take batch statistics over all devices.
        deterministic: ask for deterministic algorithms (slower on GPUs).
        threads: CPU threads per process; null leaves the default.
        timeout_minutes: how long a process waits for the others of its run, at the start and later, before it says
            that one of them is missing.
    """

    accelerator: Literal["auto", "cpu", "gpu"] = "auto"
    devices: int = 1
    nodes: int = 1
    precision: Precision = "32-true"
    accumulate: int | None = None
    compile: bool = False
    channels_last: bool | None = False
    sync_batch_norm: bool = True
    deterministic: bool = False
    threads: int | None = None
    timeout_minutes: float = 10.0

    def __post_init__(self) -> None:
        check_kinds(self, "hardware.")
        check_literals(self, "hardware.")
        check_positive(self, "hardware.", ("nodes", "accumulate", "threads", "timeout_minutes"))
        if self.devices < 1 and self.devices != -1:
            raise UsageError(f"hardware.devices is {self.devices}; expected at least 1, or -1 for all")
        if self.devices == -1 and self.accelerator == "cpu":
            raise UsageError("hardware.devices is -1, all, which a CPU does not have; give a number of processes")

    @property
    def passes(self) -> int:
        """Passes per optimizer step; 1 where ``accumulate`` leaves the choice open."""
        return 1 if self.accumulate is None else self.accumulate


LoggerName = Literal["jsonl", "tensorboard_if_installed", "tensorboard", "csv", "wandb"]


@dataclasses.dataclass(frozen=True)
class LoggingConfig:
    """Where losses, rates and scores are written.

    Args:
        loggers: jsonl is log.jsonl of the run folder, and always written; tensorboard and csv are folders beside it,
            wandb is Weights & Biases.  One that is not installed is an error, but for tensorboard_if_installed.
        every_iterations: losses are logged once in so many optimizer steps, and after the first one.
    """

    loggers: tuple[LoggerName, ...] = ("jsonl", "tensorboard_if_installed")
    every_iterations: int = 10

    def __post_init__(self) -> None:
        check_kinds(self, "logging.")
        for name in self.loggers:
            check_choice("logging.loggers", name, LoggerName)
        check_positive(self, "logging.", ("every_iterations",))


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
    logging: LoggingConfig = LoggingConfig()

    def __post_init__(self) -> None:
        check_kinds(self, "")
        check_not_negative(self, "", ("seed",))
        if self.ema_decay is not None and not 0 < self.ema_decay < 1:
            raise UsageError(f"ema_decay is {self.ema_decay}; expected a number between 0 and 1, or null")
        if self.schedule.momentum_range is not None and self.optimizer.name != "sgd":
            raise UsageError(
                f"schedule.momentum_range is {self.schedule.momentum_range} with optimizer.name {self.optimizer.name}, "
                "which has no momentum to cycle; set momentum_range to null, or optimizer.name to sgd"
            )

    def to_dict(self) -> dict[str, Any]:
        """Return plain nested values, ready for YAML or a checkpoint."""
        return plain_values(self)


def samples_per_pass(config: TrainConfig, world_size: int) -> int:
    """Return how many samples one device takes per pass; raises UsageError when the batch does not divide."""
    parts = world_size * config.hardware.passes
    if config.loader.batch_size % parts:
        raise UsageError(
            f"loader.batch_size {config.loader.batch_size} is not divisible by {parts} "
            f"(= {world_size} devices * {config.hardware.passes} accumulated passes)"
        )
    return config.loader.batch_size // parts


def plain_values(config: DataclassInstance) -> dict[str, Any]:
    """Return a configuration as plain nested values: dictionaries, lists, numbers, texts."""
    plain = _plain(dataclasses.asdict(config))
    assert isinstance(plain, dict)
    return plain


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(v) for v in value]
    return value
