"""One encoder for two streams: shared weights, norms of each stream's own, and a fusion of pixels in every block.

The streams are stacked along the batch: the first half of the rows is the first stream, the second half the second.
Whatever the encoder does with single images then needs no change, and every product is one for both streams.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from rgbdseg.encoders._base import StagedEncoder, State
from rgbdseg.encoders.mit import MixTransformer
from rgbdseg.encoders.swin import SwinEncoder
from rgbdseg.errors import UsageError
from rgbdseg.nn.blocks import halves

# B batch of each stream, C channels, H height, W width

STREAMS = 2

MakeFusion = Callable[[int], nn.Module]
"""Called with the channels C of a block; the module is called with (2B, ..., C) and returns as much."""


class StreamNorms(nn.ModuleList):
    """A layer norm for each stream.

    Args:
        channels: C.
        eps: added to the variance.
    """

    def __init__(self, channels: int, eps: float) -> None:
        super().__init__(nn.LayerNorm(channels, eps=eps) for _ in range(STREAMS))

    def forward(self, x: Tensor) -> Tensor:
        """Return (2B, ..., C), each half normalized by its stream's own norm."""
        return torch.cat([norm(half) for norm, half in zip(self, halves(x), strict=True)])


class FusedBefore(nn.Module):
    """A module of the encoder with a fusion of the streams in front of it.

    Args:
        fusion: made by `MakeFusion`.
        module: what was there.
    """

    def __init__(self, fusion: nn.Module, module: nn.Module) -> None:
        super().__init__()
        self.fusion = fusion
        self.module = module

    def forward(self, x: Tensor) -> Tensor:
        """Return what ``module`` makes of the fused (2B, ..., C)."""
        fused: Tensor = self.module(self.fusion(x))
        return fused


class PairedEncoder(StagedEncoder):
    """A Mix or Swin Transformer whose weights two streams share.

    In a Mix Transformer the fusion comes after the product of attention and values and before the output projection,
    and all norms are doubled.  In a Swin Transformer it comes after the output projection, on the map put together from
    the windows; the norm of the patch embedding is doubled, that of blocks and of patch merging is shared, and doubled
    norms are added to the features (not to what the next stage gets).

    Args:
        encoder: is changed and kept as ``shared``.
        make_fusion: called for every block.
        norm_eps: of the doubled norms.

    Raises:
        UsageError: for an encoder of another family.
    """

    def __init__(self, encoder: StagedEncoder, make_fusion: MakeFusion, norm_eps: float = 1e-6) -> None:
        super().__init__()
        for fact in ("name", "in_chans", "channels", "reductions", "size_divisor", "num_stages", "classifier"):
            setattr(self, fact, getattr(encoder, fact))
        for fact in ("pretrained_name", "weights", "mean", "std", "one_channel_weight", "dropped"):
            setattr(self, fact, getattr(encoder, fact))
        self.input_conv = f"shared.{encoder.input_conv}"
        self.output_norms = nn.ModuleList()
        if isinstance(encoder, MixTransformer):
            _pair_mix_transformer(encoder, make_fusion, norm_eps)
        elif isinstance(encoder, SwinEncoder):
            _pair_swin(encoder, make_fusion, norm_eps)
            self.output_norms.extend(StreamNorms(channels, norm_eps) for channels in encoder.channels)
            # As released: its names find no counterpart in the published weights.
            self.dropped = (*self.dropped, "patch_embed.norm")
        else:
            raise UsageError(
                f"encoder '{encoder.name}' has no blocks in which two streams can be fused; expected a Mix Transformer "
                "such as mit_b2 or a Swin Transformer such as swin_tiny_patch4_window7_224"
            )
        self.shared = encoder

    def stem(self, image: Tensor) -> State:
        """Return the state before the first stage for both streams' images (2B, in_chans, H, W)."""
        return self.shared.stem(image)

    def stage(self, index: int, state: State) -> State:
        """Run stage ``index`` on both streams."""
        return self.shared.stage(index, state)

    def collect(self, states: Sequence[State]) -> list[Tensor]:
        """Return the features (2B, C_i, H_i, W_i), finest first."""
        features = self.shared.collect(states)
        if not self.output_norms:
            return features
        return [
            norms(feature.movedim(1, -1)).movedim(-1, 1)
            for norms, feature in zip(self.output_norms, features, strict=True)
        ]

    def rename_weights(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return published weights of the single encoder by the names of this one.

        Doubled norms both get the weights of the one.  Fusions, and norms that the single encoder does not have, get
        what they hold now.
        """
        state = self.shared.rename_weights(state)
        own = self.state_dict()
        sources = {name: self._single_name(name) for name in own}
        renamed = {name: value for name, value in state.items() if name not in set(sources.values())}
        for name, source in sources.items():
            if source is None:
                renamed[name] = own[name]
            elif source in state:
                renamed[name] = state[source]
        return renamed

    def _single_name(self, name: str) -> str | None:
        """Return what an entry of the state dict is called in the single encoder; None for what that does not have."""
        if not name.startswith("shared.") or ".fusion." in name:
            return None
        name = name.removeprefix("shared.").replace(".module.", ".")
        name = re.sub(r"(norm\d?)\.\d\.(\w+)$", r"\1.\2", name)
        return None if name.startswith(tuple(f"{prefix}." for prefix in self.dropped)) else name


def _pair_mix_transformer(encoder: MixTransformer, make_fusion: MakeFusion, norm_eps: float) -> None:
    for index, channels in enumerate(encoder.channels):
        for block in encoder.blocks(index):
            attention: Any = block.attn
            attention.proj = FusedBefore(make_fusion(channels), attention.proj)
    for path, norm in [(p, m) for p, m in encoder.named_modules() if isinstance(m, nn.LayerNorm)]:
        encoder.set_submodule(path, StreamNorms(norm.normalized_shape[0], norm_eps))


def _pair_swin(encoder: SwinEncoder, make_fusion: MakeFusion, norm_eps: float) -> None:
    for index, channels in enumerate(encoder.channels):
        blocks: Any = encoder.get_submodule(f"{encoder.stage_name(index)}.blocks")
        for block in blocks:
            # What comes in here is the attention's output, projected and put together from the windows.
            block.drop_path1 = FusedBefore(make_fusion(channels), block.drop_path1)
    encoder.set_submodule("patch_embed.norm", StreamNorms(encoder.channels[0], norm_eps))
