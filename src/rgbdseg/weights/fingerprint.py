"""Whether two models have the same weights, told by a short text."""

from __future__ import annotations

import hashlib

import torch
from torch import nn

_SAMPLED_VALUES = 4096


def weights_fingerprint(model: nn.Module) -> str:
    """Return a short text that differs between models with other weights, wherever their files lie.

    A sample of each tensor is looked at: training changes all of them.
    """
    digest = hashlib.blake2b(digest_size=8)
    for name, tensor in model.state_dict().items():
        if not isinstance(tensor, torch.Tensor):
            continue
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        values = tensor.detach().flatten()
        sampled = values[:: max(1, len(values) // _SAMPLED_VALUES)].cpu().contiguous()
        digest.update(sampled.view(torch.uint8).numpy().tobytes() if len(sampled) else b"")
    return digest.hexdigest()
