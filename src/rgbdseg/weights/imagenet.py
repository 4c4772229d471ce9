"""ImageNet weights for the encoders of a model."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path

import timm
import timm.models
import torch
from torch import Tensor

from rgbdseg.encoders import AnyEncoder, StagedEncoder
from rgbdseg.errors import CheckpointError
from rgbdseg.models._base import SegmentationModel
from rgbdseg.nn.conv2_5d.operator import DepthConv2d
from rgbdseg.weights.files import read_state_dict

SHOWN = 3  # names listed per kind of problem


@dataclasses.dataclass(frozen=True, slots=True)
class LoadedStream:
    """What one encoder took from a file of weights.

    stream: ``rgb``, ``geometry`` or ``stacked``.  tensors: number of entries loaded.  dropped: entries of the file that
    belong to the classifier or lie before it.  adapted_from: input channels of the file's first convolution where it
    had to be adapted, else None.
    """

    stream: str
    tensors: int
    dropped: tuple[str, ...]
    adapted_from: int | None


def load_encoder_weights(model: SegmentationModel, source: str | Path) -> tuple[LoadedStream, ...]:
    """Load ImageNet weights into every encoder stream of ``model``, all of them or none.

    source: ``"timm"`` downloads the weights of the encoder's timm model from the Hugging Face hub (a cached copy is
    used when there is one); ``"timm:NAME.TAG"`` names other weights of the same network.  Anything else is a local
    file, ``.safetensors`` or ``.pth``, with timm's names, which for ResNets are also torchvision's and those of the
    ``resnet101_v1c.pth`` that segmentation code shares.  The classifier's entries are dropped.  Old files without
    ``num_batches_tracked`` are accepted.
    A stream whose input has not three channels gets an adapted first convolution: for one channel the sum over the
    three (equal to showing the pretrained network a grey image) or, where the encoder says so, their mean; otherwise
    repeated copies scaled to the same total.
    A 2.5D convolution gets the weight of the plain one it replaced in every depth kernel.
    Raises CheckpointError when the file cannot be read, entries are missing, misshapen or unexpected, the model has no
    encoder, or the download fails.
    """
    streams = [(name, encoder) for name, encoder in model.encoder_streams() if isinstance(encoder, StagedEncoder)]
    if not streams:
        raise CheckpointError(f"models of family '{model.family}' have no encoder that takes ImageNet weights")
    states: dict[str, dict[str, Tensor]] = {}
    prepared = []
    for stream, encoder in streams:
        if encoder.name not in states:
            states[encoder.name] = _read(encoder, str(source))
        prepared.append(_prepare(stream, encoder, states[encoder.name], str(source)))
    for (_, encoder), (state, _) in zip(streams, prepared, strict=True):
        encoder.load_state_dict(state)
    return tuple(report for _, report in prepared)


def _read(encoder: AnyEncoder, source: str) -> dict[str, Tensor]:
    if source == "timm" or source.startswith("timm:"):
        name = source.partition(":")[2] or encoder.pretrained_name or encoder.name
        _check_statistics(encoder, name)
        return _download(name)
    return read_state_dict(source)


def _check_statistics(encoder: AnyEncoder, name: str) -> None:
    """Raise CheckpointError for weights that were trained with images normalised otherwise than the encoder's are."""
    facts = timm.models.get_pretrained_cfg(name) if timm.models.is_model_pretrained(name) else None
    if facts is not None and (tuple(facts.mean), tuple(facts.std)) != (encoder.mean, encoder.std):
        raise CheckpointError(
            f"the weights '{name}' were trained with mean {tuple(facts.mean)} and std {tuple(facts.std)}, but the "
            f"encoder '{encoder.name}' is shown images with mean {encoder.mean} and std {encoder.std}; build the model "
            f"with encoder='{name}' and load 'timm'"
        )


def _download(name: str) -> dict[str, Tensor]:
    if not timm.is_model(name) or not timm.models.is_model_pretrained(name):
        raise CheckpointError(f"timm has no ImageNet weights for '{name}'; give a local file instead")
    try:
        return dict(timm.create_model(name, pretrained=True).state_dict())
    except Exception as error:  # each transport raises errors of its own
        first_line = str(error).strip().split("\n")[0] or type(error).__name__
        raise CheckpointError(
            f"cannot download the ImageNet weights of '{name}': {first_line}; "
            "without a connection, give a local .safetensors or .pth file"
        ) from error


def _prepare(
    stream: str, encoder: AnyEncoder, published: Mapping[str, Tensor], source: str
) -> tuple[dict[str, Tensor], LoadedStream]:
    """Return the complete state dict for ``encoder`` and the report on it, or raise CheckpointError."""
    own = encoder.state_dict()
    prefixes = tuple(f"{prefix}." for prefix in (encoder.classifier, *encoder.dropped))
    dropped = tuple(name for name in published if name.startswith(prefixes))
    state = {name: value for name, value in published.items() if name not in dropped}
    for name, value in own.items():
        if name.endswith("num_batches_tracked"):
            state.setdefault(name, torch.zeros_like(value))  # files from before PyTorch 0.4.1 lack the counter
    for name, module in encoder.named_modules():
        if isinstance(module, DepthConv2d):
            module.expand_pretrained(state, name)
    adapted_from = _adapt_input(state, encoder)
    problems = [f"missing {name}" for name in own if name not in state]
    problems += [f"unexpected {name}" for name in state if name not in own]
    problems += [
        f"{name} {tuple(state[name].shape)} instead of {tuple(value.shape)}"
        for name, value in own.items()
        if name in state and state[name].shape != value.shape
    ]
    if problems:
        more = f", and {len(problems) - SHOWN} more" if len(problems) > SHOWN else ""
        raise CheckpointError(
            f"the weights from {source} do not fit the encoder '{encoder.name}': {', '.join(problems[:SHOWN])}{more}"
        )
    return state, LoadedStream(stream, len(own), dropped, adapted_from)


def _adapt_input(state: dict[str, Tensor], encoder: AnyEncoder) -> int | None:
    """Fit the first convolution in ``state`` to the encoder's input; return the channels it had if that changed it."""
    name = f"{encoder.input_conv}.weight"
    weight = state.get(name)
    if weight is None or weight.ndim != 4 or weight.shape[1] != 3 or encoder.in_chans == 3:
        return None
    copies = -(-encoder.in_chans // 3)
    if encoder.in_chans == 1:
        total = weight.sum(dim=1, keepdim=True)
        state[name] = total / 3 if encoder.one_channel_weight == "mean" else total
    else:
        state[name] = weight.repeat(1, copies, 1, 1)[:, : encoder.in_chans] * (3 / encoder.in_chans)
    return 3
