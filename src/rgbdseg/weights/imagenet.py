"""ImageNet weights for the encoders of a model."""

from __future__ import annotations

import dataclasses
import importlib
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from rgbdseg.encoders import StagedEncoder
from rgbdseg.errors import CheckpointError
from rgbdseg.models._base import SegmentationModel
from rgbdseg.nn.conv2_5d.operator import DepthConv2d
from rgbdseg.weights import zoo
from rgbdseg.weights.compare import compare_weights
from rgbdseg.weights.files import read_state_dict


@dataclasses.dataclass(frozen=True, slots=True)
class LoadedStream:
    """What one encoder took from a file of weights.

    Args:
        stream: what the encoder sees, see `SegmentationModel.encoder_streams`.
        tensors: number of entries loaded.
        dropped: entries of the file that belong to the classifier or lie before it.
        adapted_from: input channels of the file's first convolution where it had to be adapted, else None.
    """

    stream: str
    tensors: int
    dropped: tuple[str, ...]
    adapted_from: int | None


def load_encoder_weights(model: SegmentationModel, source: str | Path) -> tuple[LoadedStream, ...]:
    """Load ImageNet weights into every encoder stream of ``model``, all of them or none.

    The classifier's entries are dropped.  Old files without ``num_batches_tracked`` are accepted.  A stream whose input
    has not three channels gets an adapted first convolution: for one channel the sum over the three (equal to showing
    the pretrained network a gray image) or, where the encoder says so, their mean; otherwise repeated copies scaled to
    the same total.  A 2.5D convolution gets the weight of the plain one it replaced in every depth kernel.

    Args:
        model: with at least one encoder.
        source: ``"timm"`` downloads the weights of the encoder's timm model from the Hugging Face hub (a cached copy is
            used when there is one); ``"timm:NAME.TAG"`` names other weights of the same network; a name of the zoo
            (``rgbdseg zoo``) whose entry holds weights of an encoder is fetched.  Anything else is a local file,
            ``.safetensors`` or ``.pth``, in a layout that the encoder knows: for those of timm its names, which for
            ResNets are also torchvision's and those of the ``resnet101_v1c.pth`` that segmentation code shares.

    Raises:
        CheckpointError: when the file cannot be read, entries are missing, misshapen, unexpected or not finite, the
            model has no encoder, timm has no weights for it, or the download fails.
    """
    streams = [(name, encoder) for name, encoder in model.encoder_streams() if isinstance(encoder, StagedEncoder)]
    if not streams:
        raise CheckpointError(f"{type(model).__name__} has no encoder that takes ImageNet weights")
    states: dict[str, dict[str, Tensor]] = {}
    prepared = []
    for stream, encoder in streams:
        if encoder.name not in states:
            states[encoder.name] = encoder.rename_weights(_read(encoder, str(source)))
        prepared.append(_prepare(stream, encoder, states[encoder.name], str(source)))
    for (_, encoder), (state, _) in zip(streams, prepared, strict=True):
        encoder.load_state_dict(state)
    return tuple(report for _, report in prepared)


def _read(encoder: StagedEncoder, source: str) -> dict[str, Tensor]:
    if source != "timm" and not source.startswith("timm:"):
        in_zoo = not Path(source).exists() and source in zoo.zoo_entries()
        return read_state_dict(zoo.resolve_encoder(source) if in_zoo else source)
    if encoder.weights != "timm":
        where = f"fetch them from {encoder.weights} and give the file" if encoder.weights else "give a local file"
        raise CheckpointError(f"timm has no ImageNet weights for the encoder '{encoder.name}'; {where}")
    name = source.partition(":")[2] or encoder.pretrained_name or encoder.name
    _check_statistics(encoder, name)
    return _download(name)


def _check_statistics(encoder: StagedEncoder, name: str) -> None:
    """Raise CheckpointError for weights that were trained with images normalized otherwise than the encoder's are."""
    models = importlib.import_module("timm.models")
    facts = models.get_pretrained_cfg(name) if models.is_model_pretrained(name) else None
    if facts is not None and (tuple(facts.mean), tuple(facts.std)) != (encoder.mean, encoder.std):
        raise CheckpointError(
            f"the weights '{name}' were trained with mean {tuple(facts.mean)} and std {tuple(facts.std)}, but the "
            f"encoder '{encoder.name}' is shown images with mean {encoder.mean} and std {encoder.std}; build the model "
            f"with encoder='{name}' and load 'timm'"
        )


def _download(name: str) -> dict[str, Tensor]:
    timm = importlib.import_module("timm")
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
    stream: str, encoder: StagedEncoder, published: Mapping[str, Tensor], source: str
) -> tuple[dict[str, Tensor], LoadedStream]:
    """Return the complete state dict for ``encoder`` and the report on it, or raise CheckpointError."""
    own = encoder.state_dict(keep_vars=True)
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
    problems = compare_weights(own, state).problems()
    if problems:
        raise CheckpointError(
            f"the weights from {source} do not fit the encoder '{encoder.name}': {'; '.join(problems)}"
        )
    return state, LoadedStream(stream, len(own), dropped, adapted_from)


def _adapt_input(state: dict[str, Tensor], encoder: StagedEncoder) -> int | None:
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
