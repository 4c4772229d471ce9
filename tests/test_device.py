from __future__ import annotations

import pytest
import torch

from rgbdseg import device
from rgbdseg.config.train import HardwareConfig
from rgbdseg.device import chosen_precision
from rgbdseg.engine.hardware import with_chosen_precision

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ({"avx2", "avx512f", "avx512_bf16"}, "bf16-mixed"),
        ({"fp", "asimd", "bf16"}, "bf16-mixed"),
        ({"avx2", "avx512f", "avx512bw"}, "32-true"),
        (set(), "32-true"),
    ],
)
def test_auto_is_bfloat16_where_the_processor_has_it(
    flags: set[str], expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(device, "_processor_flags", lambda: frozenset(flags))
    assert chosen_precision("auto", CPU) == expected
    assert with_chosen_precision(HardwareConfig(accelerator="cpu", precision="auto")).precision == expected
    assert chosen_precision("32-true", CPU) == "32-true"


def test_processor_flags_are_read() -> None:
    assert device._processor_flags.__wrapped__() >= set()
