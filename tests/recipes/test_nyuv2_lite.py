from __future__ import annotations

import dataclasses

import torch

from rgbdseg.models._registry import create_model
from rgbdseg.recipes import RECIPES, get_recipe

FAMILY = [name for name in RECIPES if name.startswith("nyuv2-lite0-half")]


def test_controls_differ_in_the_model_only() -> None:
    base = get_recipe("nyuv2-lite0-half")
    assert len(FAMILY) == 6
    for name in FAMILY:
        config = get_recipe(name)
        assert config.recipe == name
        assert dataclasses.replace(config, recipe=base.recipe, model=base.model) == base
        widths = {k: v for k, v in config.model.options.items() if k in base.model.options}
        assert widths == base.model.options


def test_what_each_control_sees() -> None:
    seen = {}
    for name in FAMILY:
        config = get_recipe(name)
        with torch.device("meta"):
            model = create_model(config.model.name, 40, **config.model.options)
        streams = [stream for stream, _ in model.encoder_streams()]
        seen[name.removeprefix("nyuv2-lite0-half")] = (streams, list(model.input_spec.rasters))
        assert {stream.mean for stream in model.input_spec.streams} == {(0.5, 0.5, 0.5)}
    assert seen == {
        "": (["rgb", "hha"], ["rgb", "hha"]),
        "-sum": (["rgb", "hha"], ["rgb", "hha"]),
        "-noise": (["rgb", "noise"], ["rgb", "noise"]),
        "-stacked": (["rgb+hha"], ["rgb", "hha"]),
        "-rgb": (["rgb"], ["rgb"]),
        "-hha": (["hha"], ["hha"]),
    }


def test_frames_are_scored_at_half_resolution_against_the_full_labels() -> None:
    config = get_recipe("nyuv2-lite0-half")
    assert config.evaluation.scales == config.validation.scales == (0.5,)
    assert config.schedule.iterations == 2000
