from __future__ import annotations

import subprocess
import sys


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
