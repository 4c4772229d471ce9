"""The door for users: from a file, a folder or a name to a model that labels frames."""

from __future__ import annotations

from pathlib import Path

import torch

from rgbdseg.config.protocol import EvaluationProtocol
from rgbdseg.errors import UsageError
from rgbdseg.segmenter import Segmenter
from rgbdseg.weights.checkpoint import load_bundle
from rgbdseg.weights.source import resolve_source


def load(
    source: str | Path | None = None,
    *,
    protocol: EvaluationProtocol | None = None,
    device: str | torch.device = "auto",
    precision: str = "32-true",
) -> Segmenter:
    """Load a trained model, ready to label frames.

    The model is in the form for inference: its state is not that of the checkpoint, which
    `rgbdseg.weights.checkpoint.load_bundle` reads.

    Args:
        source: a run folder, a checkpoint (.ckpt), a .safetensors file that `rgbdseg convert` wrote, an .onnx file that
            `rgbdseg export` wrote or a name of the zoo, see `rgbdseg.weights.source.resolve_source`; None: the model
            that comes with this package.
        protocol: how an image is looked at; by default as its recipe evaluates.  An exported graph has its own inside.
        device: ``auto`` takes a GPU where there is one.
        precision: ``32-true``, or ``bf16-mixed`` or ``16-mixed`` for a faster network, or ``auto``, which takes bf16
            where the device has instructions for it; an exported graph has its own.

    Returns:
        Segmenter: called with frames, it labels them.

    Raises:
        CheckpointError: when there is no model at ``source``, or it cannot be read or downloaded.
        UsageError: for an unknown device or precision, and a protocol or precision for an exported graph.
    """
    file = resolve_source(source)
    if file.suffix == ".onnx":
        # Only here, so that nobody waits for it, or needs ONNX Runtime, who has no such file.
        from rgbdseg.export.onnx_segmenter import load_onnx  # noqa: PLC0415

        if protocol is not None or precision not in ("32-true", "auto"):
            raise UsageError(f"{file} holds how an image is looked at, and in which precision; leave both out")
        return load_onnx(file, device=device)
    bundle = load_bundle(file)
    return Segmenter.from_bundle(bundle, protocol=protocol, device=device, precision=precision)
