from __future__ import annotations

import pytest
import torch

from rgbdseg import device
from rgbdseg.config.train import HardwareConfig
from rgbdseg.device import chosen_precision, place_model
from rgbdseg.engine.hardware import device_type, with_choices

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
    assert with_choices(HardwareConfig(accelerator="cpu", precision="auto")).precision == expected
    assert chosen_precision("32-true", CPU) == "32-true"


def test_processor_flags_are_read() -> None:
    assert device._processor_flags.__wrapped__() >= set()


def test_the_order_in_memory_is_that_of_the_device_whatever_it_was() -> None:
    conv = torch.nn.Conv2d(3, 8, 3)
    assert place_model(conv, CPU).weight.is_contiguous(memory_format=torch.channels_last)
    elsewhere = torch.device("meta")  # stands for a GPU
    in_half = place_model(conv, elsewhere, torch.bfloat16)
    assert in_half.weight.is_contiguous(memory_format=torch.channels_last)
    assert place_model(conv, elsewhere).weight.is_contiguous()


@pytest.mark.parametrize("gpus", [False, True])
def test_the_type_of_the_devices_of_a_run(gpus: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpus)
    assert device_type(HardwareConfig()) == ("cuda" if gpus else "cpu")
    assert device_type(HardwareConfig(accelerator="cpu")) == "cpu"
