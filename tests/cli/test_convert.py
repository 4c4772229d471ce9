"""Converting published checkpoints of models that are built with options."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from rgbdseg.cli.main import main
from rgbdseg.errors import UsageError
from rgbdseg.files import WriteError
from rgbdseg.models._registry import create_model
from rgbdseg.weights.checkpoint import load_bundle, read_stored_model
from rgbdseg.weights.published import load_published, save_published, to_published
from rgbdseg.weights.source import BUILT_IN
from tests.models.feed import feed


def test_options_of_the_model_are_used_and_stored(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.manual_seed(0)
    model = create_model("acfnet_resnet18", 19, compat="unofficial", channels=16).eval()
    published, target = tmp_path / "acfnet.pth", tmp_path / "acfnet.safetensors"
    torch.save(to_published(model), published)
    command = ["convert", "acfnet_resnet18", str(published), str(target), "--label-set", "cityscapes19"]
    assert main(command) == 1  # the network of the paper has other parts
    assert "does not fit ACFNet with 19 classes" in capsys.readouterr().err
    assert main([*command, "--option", "channels", "16", "--option", "compat", "unoficial"]) == 1
    assert "did you mean 'unofficial'?" in capsys.readouterr().err
    assert main([*command, "--option", "compat", "{"]) == 1
    assert "--option compat { is not YAML" in capsys.readouterr().err
    assert not target.exists()
    assert main([*command, "--option", "channels", "16", "--option", "compat", "unofficial"]) == 0
    bundle = load_bundle(target)
    assert bundle.facts.model_options == {"channels": 16, "compat": "unofficial"}
    rgb = torch.randn(1, 3, 48, 64)
    with torch.no_grad():
        torch.testing.assert_close(feed(bundle.model.eval(), rgb).logits, feed(model, rgb).logits, atol=1e-5, rtol=1e-5)


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, torch.Tensor]]:
    """A folder, and weights of a network of 3 classes in the published layout."""
    torch.manual_seed(0)
    model = create_model("acfnet_resnet18", 3, compat="unofficial", channels=16)
    return tmp_path_factory.mktemp("published"), dict(to_published(model))


def convert(source: Path, target: Path, *arguments: str) -> int:
    options = ["--option", "channels", "16", "--option", "compat", "unofficial", "--force"]
    return main(["convert", "acfnet_resnet18", str(source), str(target), *options, *arguments])


def test_weights_as_training_code_stores_them(published: tuple[Path, dict[str, torch.Tensor]]) -> None:
    _, weights = published
    model = create_model("acfnet_resnet18", 3, compat="unofficial", channels=16)
    wrapped = (
        {f"model.{name}": value for name, value in weights.items()},
        {"state_dict": {f"model._orig_mod.{name}": value for name, value in weights.items()}},
        {f"_orig_mod.{name}": value for name, value in weights.items()},
        {"model_state_dict": weights, "optimizer": {}},
        {"state_dict_ema": {f"module.{name}": value for name, value in weights.items()}},
    )
    for content in wrapped:
        with torch.no_grad():
            for value in model.state_dict().values():
                value.zero_()
        load_published(model, content)
        again = to_published(model)
        assert again.keys() == weights.keys()
        assert all(torch.equal(again[name], value) for name, value in weights.items())


def test_own_class_names_and_numbers_of_numpy_beside_the_weights(
    published: tuple[Path, dict[str, torch.Tensor]],
) -> None:
    folder, weights = published
    (folder / "names.txt").write_text("# own\nfloor\nwall\nbox\n")
    torch.save({"model": weights, "best_miou": np.float64(0.5), "epoch": np.int64(3)}, folder / "a.pth")
    assert convert(folder / "a.pth", folder / "a.safetensors", "--label-set", str(folder / "names.txt")) == 0
    facts = read_stored_model(folder / "a.safetensors").facts
    assert (facts.label_set.name, facts.label_set.classes) == ("names", ("floor", "wall", "box"))


def test_the_remedy_for_other_classes_is_an_option(
    published: tuple[Path, dict[str, torch.Tensor]], capsys: pytest.CaptureFixture[str]
) -> None:
    folder, weights = published
    torch.save(weights, folder / "b.pth")
    assert convert(folder / "b.pth", folder / "b.safetensors") == 1
    error = capsys.readouterr().err
    assert "the checkpoint has 3 classes: give --label-set, a file with 3 names of classes" in error
    assert "num_classes" not in error
    assert convert(folder / "b.pth", folder / "b.safetensors", "--label-set", "nyu39") == 1
    assert "nyu39 does not exist; expected a file of class names, or one of" in capsys.readouterr().err


@pytest.mark.parametrize(("file", "key"), [("back.pth", ""), ("back.pth", "model"), ("back.safetensors", "")])
def test_the_published_file_comes_back(tmp_path: Path, file: str, key: str) -> None:
    torch.manual_seed(0)
    published, ours, back = tmp_path / "sagate.pth", tmp_path / "sagate.safetensors", tmp_path / file
    options = {"encoder": "test_resnet", "decoder_channels": 8}
    state = to_published(create_model("sagate", 40, **options))
    torch.save({"model": state}, published)
    chosen = [word for name, value in options.items() for word in ("--option", name, str(value))]
    assert main(["convert", "sagate", str(published), str(ours), *chosen]) == 0
    command = ["convert", "--to-published", str(ours), str(back), *(["--key", key] if key else [])]
    assert main(command) == 0
    content = load_file(back) if back.suffix == ".safetensors" else torch.load(back, weights_only=True)
    found = content[key] if key else content
    assert found.keys() == state.keys()
    assert all(torch.equal(found[name], value) for name, value in state.items())
    assert main(command) == 1  # it exists
    assert main([*command, "--force"]) == 0


def test_a_full_disk_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original = torch.save
    monkeypatch.setattr(torch, "save", lambda values, path: original(values, "/dev/full"))
    with pytest.raises(WriteError, match=r"cannot write .*a\.pth: the disk is full"):
        save_published(create_model("sagate_resnet18", 3), tmp_path / "a.pth")
    assert list(tmp_path.iterdir()) == []


def test_what_no_published_code_reads_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["convert", "--to-published", str(BUILT_IN), str(tmp_path / "x.pth")]) == 1
    assert "no published checkpoint layout is known for LiteFusion" in capsys.readouterr().err
    model = create_model("sagate", 2, encoder="test_resnet")
    with pytest.raises(UsageError, match=r"x\.bin with key='': expected a \.pth file"):
        save_published(model, tmp_path / "x.bin")
    with pytest.raises(UsageError, match=r"or \.safetensors without a key"):
        save_published(model, tmp_path / "x.safetensors", key="model")
    assert not list(tmp_path.iterdir())
