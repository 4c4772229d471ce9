"""Converting published checkpoints of models that are built with options."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from rgbdseg.cli.main import main
from rgbdseg.models._registry import create_model
from rgbdseg.weights.checkpoint import load_bundle
from rgbdseg.weights.published import to_published
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
    assert "--option compat { is not understood" in capsys.readouterr().err
    assert not target.exists()
    assert main([*command, "--option", "channels", "16", "--option", "compat", "unofficial"]) == 0
    bundle = load_bundle(target)
    assert bundle.facts.model_options == {"channels": 16, "compat": "unofficial"}
    rgb = torch.randn(1, 3, 48, 64)
    with torch.no_grad():
        torch.testing.assert_close(feed(bundle.model.eval(), rgb).logits, feed(model, rgb).logits, atol=1e-5, rtol=1e-5)
