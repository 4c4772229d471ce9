from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import yaml

from rgbdseg.cli.config_args import config_parser, parse_config
from rgbdseg.config.train import AugmentationConfig, TrainConfig, check_config
from rgbdseg.errors import UsageError


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"crop_size": (0, 480)}, "augmentation.crop_size is 0; expected a positive number"),
        ({"scales": ()}, "augmentation.scales is 0; expected a positive number"),
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
        ({"hsv_value_shift": 256.0}, "augmentation.hsv_value_shift is 256.0; expected 0 to 255 grey levels"),
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
        check_config(TrainConfig(augmentation=AugmentationConfig(**options)))
    assert str(error.value) == message


def test_augmentation_that_can_be_is_not() -> None:
    check_config(TrainConfig())
    augmentation = AugmentationConfig(
        scale_range=(1.0, 1.0), crop_position="class", margin=7, rotation_degrees=5.0, hsv_value_shift=255.0
    )
    check_config(TrainConfig(augmentation=augmentation))
    on_device = dataclasses.replace(augmentation, rotation_degrees=0.0, on_device=True)
    check_config(TrainConfig(augmentation=on_device))


def test_options_of_augmentation_go_through_a_file_and_the_command_line() -> None:
    config = TrainConfig(augmentation=AugmentationConfig(scale_range=(1.0, 1.4), crop_position="class", margin=7))
    stored = yaml.safe_load(yaml.safe_dump(config.to_dict()))
    parser = config_parser("train", stored)
    assert parse_config(parser, []) == config
    changed = parse_config(parser, ["--augmentation.scale_range", "[0.7,1.3]", "--augmentation.margin", "0"])
    expected = dataclasses.replace(config.augmentation, scale_range=(0.7, 1.3), margin=0)
    assert changed.augmentation == expected
    assert parse_config(parser, ["--augmentation.scale_range", "null"]).augmentation.scale_range is None


def test_files_from_before_an_option_leave_it_off() -> None:
    stored = TrainConfig().to_dict()
    known = ["crop_size", "scales", "flip_probability", "brightness", "contrast", "saturation", "hue", "on_device"]
    stored["augmentation"] = {name: stored["augmentation"][name] for name in known}
    for protocol in ("validation", "evaluation"):
        del stored[protocol]["margin"]
    assert parse_config(config_parser("train", stored), []) == TrainConfig()
