"""``rgbdseg train RECIPE --model.name OTHER``: options of the recipe that belong to its own model are left out."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import rgbdseg
from rgbdseg.cli.config_args import parse_train_config
from rgbdseg.errors import UsageError
from rgbdseg.recipes import get_recipe


def parse(recipe: str, *arguments: str) -> dict[str, Any]:
    config = parse_train_config("train", get_recipe(recipe), arguments)
    with torch.device("meta"):
        rgbdseg.create_model(config.model.name, 5, **config.model.options)
    return config.model.options


@pytest.mark.parametrize(
    ("recipe", "model", "kept", "left_out"),
    [
        # Another family has nothing to do with them, even where it has an option of that name.
        ("cmx-mit-b2-nyuv2", "sagate_resnet18", {}, "decoder_options"),
        ("cmx-mit-b2-nyuv2", "litefusion_lite2", {}, "decoder_options"),
        ("sigma-tiny-nyuv2", "dformer_nano", {}, "train_all"),
        # Another size of the family is trained in the same way ...
        ("cmx-mit-b2-nyuv2", "cmx_mit_b0", {"decoder_options": {"norm_eps": 1e-3}}, ""),
        ("sigma-tiny-nyuv2", "sigma_nano", {"train_all": False}, ""),
        # ... but for what makes it that size.
        ("dinodepth-lite0-half", "dinodepth_vit_pico", {"depth": "inject"}, "encoder, decoder_options"),
    ],
)
def test_options_of_the_recipes_model(
    recipe: str, model: str, kept: dict[str, Any], left_out: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert parse(recipe, "--model.name", model) == kept
    said = capsys.readouterr().out
    if left_out:
        assert f"{model} instead of {get_recipe(recipe).model.name}, without its options {left_out}\n" in said
    else:
        assert said == ""


def test_queries_on_a_small_transformer(capsys: pytest.CaptureFixture[str]) -> None:
    options = parse("eomt-nyuv2", "--model.name", "dinodepth_vit_pico")
    assert options == get_recipe("eomt-nyuv2").model.options
    assert capsys.readouterr().out == ""


def test_options_that_are_given_count_for_the_new_model() -> None:
    given = ("--model.name", "dformer_nano", "--model.options.train_all", "false")
    assert parse("sigma-tiny-nyuv2", *given) == {"train_all": False}
    whole = ("--model.name", "sagate_resnet18", "--model.options", "{decoder_options: {classifier_bias: true}}")
    with pytest.raises(UsageError, match="classifier_bias"):
        parse("cmx-mit-b2-nyuv2", *whole)
    assert parse("cmx-mit-b2-nyuv2", "--model.options.modality", "thermal") == {
        "decoder_options": {"norm_eps": 1e-3},
        "modality": "thermal",
    }


def test_stored_values_and_unknown_names() -> None:
    stored = get_recipe("cmx-mit-b2-nyuv2").to_dict()
    assert parse_train_config("train", stored, ["--model.name", "sagate_resnet18"]).model.options == {}
    with pytest.raises(UsageError, match="did you mean 'sagate_resnet18'"):
        parse_train_config("train", stored, ["--model.name", "sagate_resnet81"])


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--loader.keep_gib", "abc"], "--loader.keep_gib is 'abc'; expected a number or null"),
        (["--loader.workers=1.5"], "--loader.workers is '1.5'; expected an integer"),
        (["--hardware.compile", "maybe"], "--hardware.compile is 'maybe'; expected true or false"),
        (["--hardware.accelerator", "tpu"], "--hardware.accelerator is 'tpu'; expected one of: auto, cpu, gpu"),
        (
            ["--augmentation.crop_size", "480"],
            r"--augmentation.crop_size is '480'; expected a list \(an integer each\)",
        ),
        (["--augmentation.scales", "[a]"], r"--augmentation.scales is 'a'; expected a list \(a number each\)"),
        (["--model.options", "3"], "--model.options is '3'; expected a mapping"),
    ],
)
def test_a_value_of_another_kind(arguments: list[str], said: str) -> None:
    with pytest.raises(UsageError, match=f"^{said}$"):
        parse_train_config("train", get_recipe("demo"), arguments)
