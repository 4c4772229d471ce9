"""Configurations of version 0.1, as its runs stored them."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import yaml

from rgbdseg.cli.config_args import config_parser, parse_config, read_config_file
from rgbdseg.config.train import ModelConfig, TrainConfig
from rgbdseg.engine.run_folder import RunFolder, check_resumable


def test_options_are_put_in_todays_words(tmp_path: Path) -> None:
    today = dataclasses.replace(
        TrainConfig(), model=ModelConfig("deeplabv3plus_resnet18", {"inputs": ["hha"], "encoder": "resnet18"})
    )
    earlier = today.to_dict()
    del earlier["logging"]
    earlier["model"]["options"] = {"modality": "geometry", "encoder": "resnet18"}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(earlier))
    stored = RunFolder(tmp_path).stored_config()
    config = parse_config(config_parser("train", stored), [], TrainConfig)
    assert config == today
    check_resumable(stored, config)
    assert read_config_file(tmp_path / "config.yaml") == stored
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(today.to_dict()))
    assert RunFolder(tmp_path).stored_config() == today.to_dict()
