from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path

import pytest

from rgbdseg.cli.main import main
from rgbdseg.config.train import TrainConfig
from rgbdseg.datasets import DATASETS
from rgbdseg.errors import UsageError
from rgbdseg.recipes import RECIPES, describe_recipes, get_recipe, register_recipe
from rgbdseg.recipes.demo import demo
from tests.synthetic import write_tree


def my_recipe() -> TrainConfig:
    """Mine, and nobody else's.

    With further words.
    """
    small = demo()
    return dataclasses.replace(
        small,
        model=dataclasses.replace(small.model, name="deeplabv3plus_resnet18"),
        loader=dataclasses.replace(small.loader, batch_size=2),
        augmentation=dataclasses.replace(small.augmentation, crop_size=(32, 32)),
        schedule=dataclasses.replace(small.schedule, epochs=1, iterations_per_epoch=1, warmup_epochs=0),
    )


NOT_A_RECIPE = 3


@pytest.mark.parametrize("name", sorted(RECIPES))
def test_every_recipe_knows_its_name_and_says_what_it_is(name: str) -> None:
    config = get_recipe(name)
    assert config.recipe == name
    assert describe_recipes([name])[name].endswith((".", ":"))
    json.dumps(config.to_dict())


FAMILIES = ("asymformer", "cmnext", "cmx", "dformer", "dformerv2", "diffpixelformer", "dplnet", "emsanet", "esanet")
FAMILIES += ("geminifusion", "hdbformer", "sigma")
BENCHMARKS = "|".join(name for name in DATASETS if name != "rooms")
SUBSETS = "-rgb|-depth|-event|-lidar|-depth-event|-depth-lidar"


@pytest.mark.parametrize("family", FAMILIES)
def test_recipes_are_called_after_variant_and_dataset(family: str) -> None:
    names = [name for name in RECIPES if name.split("-")[0] == family]
    assert f"{family}-" in " ".join(names)
    for name in names:
        variant = get_recipe(name).model.name.replace("_", "-")
        assert re.fullmatch(rf"{variant}-({BENCHMARKS})({SUBSETS})?", name), name


def test_a_recipe_of_another_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(RECIPES, "_registered", {})
    register_recipe("mine", my_recipe)
    assert get_recipe("mine") == dataclasses.replace(my_recipe(), recipe="mine")
    assert describe_recipes(["mine"])["mine"] == "Mine, and nobody else's."
    with pytest.raises(UsageError, match="a recipe named 'demo' exists already"):
        register_recipe("demo", my_recipe)


def test_any_function_that_returns_a_config_is_a_recipe() -> None:
    name = "tests.recipes.test_registry:my_recipe"
    assert get_recipe(name) == dataclasses.replace(my_recipe(), recipe=name)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("dmo", "unknown recipe 'dmo'; did you mean 'demo'?"),
        ("tests.nowhere:x", "there is no module 'tests.nowhere' to take 'tests.nowhere:x' from"),
        ("tests.recipes.test_registry:x", "module 'tests.recipes.test_registry' has no 'x'"),
        ("tests.recipes.test_registry:NOT_A_RECIPE", "gives a int; expected a function that returns a TrainConfig"),
    ],
)
def test_what_is_no_recipe_is_refused(name: str, message: str) -> None:
    with pytest.raises(UsageError) as error:
        get_recipe(name)
    assert message in str(error.value)


def test_train_takes_a_function_of_a_module_beside_the_users_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    tree = write_tree(tmp_path / "tree", count=3, size=(40, 48))
    text = "from tests.recipes.test_registry import my_recipe\n\ndef beside():\n    return my_recipe()\n"
    (tmp_path / "recipes_of_mine.py").write_text(text)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2]))
    assert main(["train", "recipes_of_mine:beside", "--data", str(tree)]) == 0, capsys.readouterr().err
    assert (tmp_path / "runs" / "beside" / "checkpoints" / "last.ckpt").is_file()
