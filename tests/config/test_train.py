from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import pytest
import yaml

from rgbdseg.cli.config_args import config_parser, parse_config
from rgbdseg.config import checks
from rgbdseg.config.loss import LossConfig
from rgbdseg.config.train import (
    AugmentationConfig,
    HardwareConfig,
    LoaderConfig,
    ModelConfig,
    OptimizerConfig,
    ScheduleConfig,
    TrainConfig,
)
from rgbdseg.errors import UsageError


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"crop_size": (0, 480)}, "augmentation.crop_size is (0, 480); expected (height, width) in pixels"),
        ({"scales": ()}, "augmentation.scales is (); expected one or more positive numbers"),
        (
            {"scale_range": (1.4, 1.0)},
            "augmentation.scale_range is (1.4, 1.0); expected (lowest, highest), 0 < lowest <= highest <= 16",
        ),
        (
            {"scale_range": (0.0, 1.0)},
            "augmentation.scale_range is (0.0, 1.0); expected (lowest, highest), 0 < lowest <= highest <= 16",
        ),
        (
            {"scale_range": ()},
            "augmentation.scale_range is (); expected (lowest, highest), 0 < lowest <= highest <= 16",
        ),
        (
            {"scale_range": (1.0, 20.0)},
            "augmentation.scale_range is (1.0, 20.0); expected (lowest, highest), 0 < lowest <= highest <= 16",
        ),
        ({"crop_position": "clas"}, "unknown augmentation.crop_position 'clas'; did you mean 'class'?"),
        ({"margin": -1}, "augmentation.margin is -1; expected 0 or more"),
        ({"contrast": -0.1}, "augmentation.contrast is -0.1; expected 0 or more"),
        ({"hsv_hue_factor": -0.1}, "augmentation.hsv_hue_factor is -0.1; expected 0 or more"),
        ({"hsv_saturation_factor": -0.1}, "augmentation.hsv_saturation_factor is -0.1; expected 0 or more"),
        ({"hsv_value_shift": 256.0}, "augmentation.hsv_value_shift is 256.0; expected 0 to 255 gray levels"),
        ({"flip_probability": 1.5}, "augmentation.flip_probability is 1.5; expected 0 to 1"),
        ({"hue": 0.6}, "augmentation.hue is 0.6; expected 0 to 0.5 turns"),
        ({"rotation_degrees": -5.0}, "augmentation.rotation_degrees is -5.0; expected 0 to 180"),
        (
            {"rotation_degrees": 5.0, "on_device": True},
            "augmentation.rotation_degrees is 5.0 together with augmentation.on_device, where nothing is rotated; "
            "set augmentation.on_device to false, or rotation_degrees to 0",
        ),
    ],
)
def test_augmentation_that_cannot_be_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError) as error:
        AugmentationConfig(**options)
    assert str(error.value) == message


def test_augmentation_that_can_be_is_not() -> None:
    augmentation = AugmentationConfig(
        scale_range=(1.0, 1.0), crop_position="class", margin=7, rotation_degrees=5.0, hsv_value_shift=255.0
    )
    assert dataclasses.replace(augmentation, rotation_degrees=0.0, on_device=True).on_device


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: LoaderConfig(batch_size=0), "loader.batch_size is 0; expected a positive number"),
        (lambda: LoaderConfig(workers=-1), "loader.workers is -1; expected 0 or more"),
        (lambda: OptimizerConfig("adm"), "unknown optimizer.name 'adm'; did you mean 'adamw'?"),
        (lambda: OptimizerConfig(momentum=1.0), "optimizer.momentum is 1.0; expected 0 to below 1"),
        (lambda: OptimizerConfig(learning_rate=math.nan), "optimizer.learning_rate is nan; expected a positive number"),
        (lambda: ScheduleConfig(epochs=0), "schedule.epochs is 0; expected a positive number"),
        (lambda: ScheduleConfig(decay="stp"), "unknown schedule.decay 'stp'; did you mean 'step'?"),
        (lambda: HardwareConfig(accumulate=0), "hardware.accumulate is 0; expected a positive number"),
        (lambda: HardwareConfig(devices=0), "hardware.devices is 0; expected at least 1, or -1 for all"),
        (lambda: HardwareConfig(precision="bf16"), "unknown hardware.precision 'bf16'; did you mean 'bf16-mixed'?"),
        (lambda: TrainConfig(ema_decay=1.0), "ema_decay is 1.0; expected a number between 0 and 1, or null"),
        (lambda: TrainConfig(seed=-1), "seed is -1; expected 0 or more"),
        (
            lambda: ModelConfig(options={"num_classes": 3}),
            "model.options holds num_classes, which the dataset's label set decides; leave it out",
        ),
    ],
)
def test_a_configuration_that_cannot_be_does_not_exist(make: Callable[[], object], message: str) -> None:
    with pytest.raises(UsageError) as error:
        make()
    assert str(error.value) == message


def test_passes_are_one_where_they_are_left_open() -> None:
    assert HardwareConfig().passes == 1
    assert HardwareConfig(accumulate=3).passes == 3


def test_options_of_augmentation_go_through_a_file_and_the_command_line() -> None:
    config = TrainConfig(augmentation=AugmentationConfig(scale_range=(1.0, 1.4), crop_position="class", margin=7))
    stored = yaml.safe_load(yaml.safe_dump(config.to_dict()))
    parser = config_parser("train", stored)
    assert parse_config(parser, [], TrainConfig) == config
    options = ["--augmentation.scale_range", "[0.7,1.3]", "--augmentation.margin", "0"]
    changed = parse_config(parser, options, TrainConfig)
    expected = dataclasses.replace(config.augmentation, scale_range=(0.7, 1.3), margin=0)
    assert changed.augmentation == expected
    assert parse_config(parser, ["--augmentation.scale_range", "null"], TrainConfig).augmentation.scale_range is None


def test_files_from_before_an_option_leave_it_off() -> None:
    stored = TrainConfig().to_dict()
    known = ["crop_size", "scales", "flip_probability", "brightness", "contrast", "saturation", "hue", "on_device"]
    stored["augmentation"] = {name: stored["augmentation"][name] for name in known}
    for protocol in ("validation", "evaluation"):
        del stored[protocol]["margin"]
    assert parse_config(config_parser("train", stored), [], TrainConfig) == TrainConfig()


def test_types_of_fields_are_looked_up_once(monkeypatch: pytest.MonkeyPatch) -> None:
    LoaderConfig(), LossConfig(), HardwareConfig()
    monkeypatch.setattr(checks, "get_type_hints", lambda kind: pytest.fail(f"{kind} again"))
    for config in (LoaderConfig(), LossConfig(), HardwareConfig()):
        checks.check_literals(config, "")
    with pytest.raises(UsageError, match=r"hardware\.precision"):
        HardwareConfig(precision="bf17-mixed")  # type: ignore[arg-type]
