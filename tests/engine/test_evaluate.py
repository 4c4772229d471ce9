"""What evaluation moves from the device, and when."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from rgbdseg import freed_memory
from rgbdseg.config.protocol import EvaluationProtocol
from rgbdseg.engine import evaluate as evaluation
from rgbdseg.engine.evaluate import evaluate
from tests.engine.test_area import CPU, OneFrame, bundle, frame


@pytest.mark.parametrize("saved", [False, True])
def test_predictions_leave_the_device_only_to_be_written(
    saved: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    moved: list[torch.Size] = []
    cpu = torch.Tensor.cpu

    def seen(tensor: torch.Tensor, *arguments: Any, **options: Any) -> torch.Tensor:
        moved.append(tensor.shape)
        return cpu(tensor, *arguments, **options)

    monkeypatch.setattr(torch.Tensor, "cpu", seen)
    one = frame(24, 32)
    dataset: Any = OneFrame([one])
    save = tmp_path / "out" if saved else None
    scores = evaluate(bundle(), dataset, EvaluationProtocol(), hardware=CPU, workers=0, save=save).scores
    assert scores.images == 1
    assert moved.count(torch.Size(one.size)) == int(saved)
    assert (tmp_path / "out" / "label" / "7.png").exists() is saved


def test_freed_memory_is_kept_from_frame_to_frame(monkeypatch: pytest.MonkeyPatch) -> None:
    kept: list[bool] = []

    def segment(*given: Any, **options: Any) -> Any:
        kept.append(bool(freed_memory._entered))
        return original(*given, **options)

    original = evaluation.segment
    monkeypatch.setattr(evaluation, "segment", segment)
    monkeypatch.setattr(freed_memory, "_glibc", lambda: SimpleNamespace(mallopt=min, malloc_trim=abs))
    dataset: Any = OneFrame([frame(24, 32)])
    evaluate(bundle(), dataset, EvaluationProtocol(), hardware=CPU, workers=0)
    assert kept == [True]
    assert not freed_memory._entered
