"""A checkpoint as version 0.1 wrote it, with numbers that follow from the names of its tensors."""

from __future__ import annotations

import json
import math
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from torch import Tensor

FIXTURE: dict[str, Any] = json.loads(
    (Path(__file__).parent / "fixtures" / "checkpoint_of_version_0_1.json").read_text(encoding="utf-8")
)


def write_run_of_version_0_1(root: Path) -> Path:
    """Write a run folder with the keys that Lightning and version 0.1 left in it, those of the optimizer apart."""
    state = {name: _values(name, *stored) for name, stored in FIXTURE["shapes"].items()}
    (root / "checkpoints").mkdir(parents=True)
    torch.save(
        {"epoch": 1, "global_step": 6, "state_dict": state, "rgbdseg": FIXTURE["facts"]},
        root / "checkpoints" / "last.ckpt",
    )
    (root / "config.yaml").write_text(yaml.safe_dump(FIXTURE["facts"]["config"]), encoding="utf-8")
    return root


def _values(name: str, dtype: str, shape: list[int]) -> Tensor:
    """Return numbers that keep a network's features at about the same size throughout."""
    if dtype == "int64":
        return torch.zeros(shape, dtype=torch.int64)
    if "downsample" in name:  # both encoders use the same modules
        name = name.replace("geometry_encoder", "rgb_encoder")
    generator = np.random.Generator(np.random.PCG64(zlib.crc32(name.encode())))
    values = torch.from_numpy(generator.standard_normal(math.prod(shape)).astype(np.float32)).reshape(shape)
    if name.endswith("running_var"):
        return 1 + 0.1 * values.abs()
    if len(shape) > 1:
        return values * (2.0 / math.prod(shape[1:])) ** 0.5
    return 1 + 0.1 * values if name.endswith("weight") else 0.1 * values
