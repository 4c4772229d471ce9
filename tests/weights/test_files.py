from __future__ import annotations

import collections
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from rgbdseg.errors import CheckpointError
from rgbdseg.weights.files import read_state_dict

WEIGHTS = {"conv.weight": torch.arange(6.0).reshape(2, 3), "conv.bias": torch.tensor([1.0, -2.0])}


class Surprise:
    """Unpickling this runs code."""

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return (print, ("code from the checkpoint ran",))


def assert_weights(state: dict[str, torch.Tensor]) -> None:
    assert sorted(state) == sorted(WEIGHTS)
    assert all(torch.equal(state[name], value) for name, value in WEIGHTS.items())


@pytest.mark.parametrize(
    "content",
    [
        WEIGHTS,
        {f"module.{k}": v for k, v in WEIGHTS.items()},
        {"model": WEIGHTS, "optimizer": {"state": {}, "param_groups": [{"lr": 0.02}]}, "epoch": 3, "iteration": 7},
        {"model_state_dict": WEIGHTS, "epoch": 3},
        {"state_dict_ema": WEIGHTS, "arch": "x"},
        {"state_dict": {f"_orig_mod.module.{k}": v for k, v in WEIGHTS.items()}, "state_dict_ema": {"other": 0}},
        {"state_dict": {"model": {f"module._orig_mod.{k}": v for k, v in WEIGHTS.items()}}},
        {"state_dict": collections.OrderedDict((f"module.{k}", v) for k, v in WEIGHTS.items()), "best": 51.4},
    ],
)
def test_layouts_of_torch_files(content: dict[str, object], tmp_path: Path) -> None:
    torch.save(content, tmp_path / "epoch-3.pth")
    assert_weights(read_state_dict(tmp_path / "epoch-3.pth"))
    assert_weights(read_state_dict(content))


def test_old_torch_format(tmp_path: Path) -> None:
    torch.save(WEIGHTS, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    assert_weights(read_state_dict(str(tmp_path / "old.pth")))


def test_safetensors(tmp_path: Path) -> None:
    save_file({f"module.{k}": v for k, v in WEIGHTS.items()}, tmp_path / "weights.safetensors")
    assert_weights(read_state_dict(tmp_path / "weights.safetensors"))


def test_a_prefix_that_not_all_entries_have_is_kept() -> None:
    state = {"module.weight": WEIGHTS["conv.bias"], "bias": WEIGHTS["conv.bias"]}
    assert sorted(read_state_dict(state)) == ["bias", "module.weight"]


@pytest.mark.parametrize("new_format", [True, False])
def test_code_in_a_checkpoint_does_not_run(
    new_format: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "evil.pth"
    torch.save({"model": WEIGHTS, "extra": Surprise()}, path, _use_new_zipfile_serialization=new_format)
    with pytest.raises(CheckpointError, match=r"holds Python objects besides tensors.*so it was refused") as caught:
        read_state_dict(path)
    assert "\n" not in str(caught.value)
    assert "code from the checkpoint ran" not in capsys.readouterr().out


@pytest.mark.parametrize("new_format", [True, False])
@pytest.mark.parametrize("share", [0.0, 0.3, 0.9])
def test_truncated_torch_file(new_format: bool, share: float, tmp_path: Path) -> None:
    whole, cut = tmp_path / "whole.pth", tmp_path / "cut.pth"
    torch.save({"model": {"weight": torch.randn(100, 100)}}, whole, _use_new_zipfile_serialization=new_format)
    content = whole.read_bytes()
    cut.write_bytes(content[: int(len(content) * share)])
    with pytest.raises(CheckpointError, match=r"cut\.pth") as caught:
        read_state_dict(cut)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("share", [0.0, 0.01, 0.9])
def test_truncated_safetensors(share: float, tmp_path: Path) -> None:
    path = tmp_path / "cut.safetensors"
    save_file({"weight": torch.randn(100, 100)}, path)
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])
    with pytest.raises(CheckpointError, match=r"as safetensors: .*; the file may be truncated"):
        read_state_dict(path)


def test_paths_that_are_no_files(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"nothing\.pth does not exist; expected a file"):
        read_state_dict(tmp_path / "nothing.pth")
    with pytest.raises(CheckpointError, match="is a folder; expected a file"):
        read_state_dict(tmp_path)


@pytest.mark.parametrize("content", [b"<html>404 not found</html>", b"PK\x03\x04 no zip after all", b"\x80\x02}q\x00."])
def test_other_files(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "download.pth"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"download\.pth") as caught:
        read_state_dict(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (torch.zeros(3), "holds a Tensor; expected a mapping"),
        ({}, "found nothing"),
        ({"epoch": 3, "lr": 0.1}, "is not a checkpoint of weights: .*; found epoch, lr"),
        (
            {"weight": torch.zeros(3), "epoch": 3},
            "expected only tensors, directly or under model, state_dict, model_state_dict, .* or ema; found epoch",
        ),
        ({"model": {}}, "found nothing"),
    ],
)
def test_files_without_weights(content: object, message: str, tmp_path: Path) -> None:
    torch.save(content, tmp_path / "other.pth")
    with pytest.raises(CheckpointError, match=message):
        read_state_dict(tmp_path / "other.pth")
