from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from rgbdseg.weights.source import BUILT_IN


def modules_after(code: str) -> set[str]:
    script = f"import sys\n{code}\nprint(' '.join(sys.modules))"
    return set(
        subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout.split()
    )


def test_a_network_is_built_without_the_compiler_or_lightning() -> None:
    loaded = modules_after("import rgbdseg, rgbdseg.segmenter\nrgbdseg.create_model('sagate_resnet18', num_classes=4)")
    assert {"timm", "torchvision"} <= loaded
    assert loaded.isdisjoint({"torch._dynamo", "torch._inductor", "lightning", "scipy"})


def test_the_compiler_is_the_real_one_once_it_is_asked_for() -> None:
    code = (
        "import rgbdseg, torch\nmodel = rgbdseg.create_model('sagate_resnet18', num_classes=4)\n"
        "torch.compile(lambda x: x + 1, backend='eager')(torch.ones(1))\n"
        "from torchvision.ops import roi_align\n"
        "roi_align(torch.ones(1, 1, 4, 4), torch.tensor([[0.0, 0, 0, 2, 2]]), 2)\n"
        "assert torch._dynamo.__file__"
    )
    assert "torch._dynamo.convert_frame" in modules_after(code)


def modules_of_command(*arguments: str) -> set[str]:
    """Return what a command has imported when it ends; it must end well."""
    silent = "import contextlib, io\nwith contextlib.redirect_stdout(io.StringIO()):\n"
    return modules_after(f"from rgbdseg.cli.main import main\n{silent}    assert main({list(arguments)!r}) == 0")


SLOW_TO_IMPORT = {"torch", "torchvision", "timm", "lightning", "scipy", "matplotlib", "pandas", "cv2", "jsonargparse"}


@pytest.mark.parametrize("command", [("models",), ("recipes",), ("info", str(BUILT_IN)), ("zoo",)], ids=lambda c: c[0])
def test_listings_import_neither_torch_nor_what_is_built_on_it(command: tuple[str, ...]) -> None:
    assert modules_of_command(*command).isdisjoint(SLOW_TO_IMPORT)


def test_prediction_imports_neither_the_compiler_nor_what_trains(tmp_path: Path) -> None:
    Image.new("RGB", (64, 48), (90, 80, 70)).save(tmp_path / "a.png")
    loaded = modules_of_command("predict", "--rgb", str(tmp_path / "a.png"), "--out", str(tmp_path / "out"))
    assert "torch" in loaded
    assert (tmp_path / "out" / "label" / "a.png").is_file()
    unwanted = {
        "lightning",
        "scipy",
        "torch._dynamo",
        "torch._inductor",
        "matplotlib",
        "pandas",
        "torchmetrics",
    }
    assert loaded.isdisjoint(unwanted)
