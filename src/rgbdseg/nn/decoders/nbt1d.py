"""The decoder of ESANet and EMSANet: a pyramid of averages, factorized blocks, learned doublings."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from rgbdseg.errors import UsageError
from rgbdseg.nn.blocks import at_least_float32, check_pooled_batch
from rgbdseg.nn.conv_norm import conv_norm_relu
from rgbdseg.nn.decoders._base import Decoder, DecoderEntry, FeatureInfo
from rgbdseg.nn.factorized import FactorizedBlock, FactorizedBlockOptions, LearnedUpsampling
from rgbdseg.nn.resize import cut_to

# B batch, C channels, H W size of the image, h w size of the last feature, at 1/32 of it


@dataclasses.dataclass(frozen=True)
class NBt1DDecoderOptions:
    """Build of the decoder.

    Args:
        widths: channels of the three steps at 1/32, 1/16 and 1/8.
        blocks: factorized blocks of each step.
        block: options of these blocks.
        bins: rows and columns of each grid of averages.
        context_resize: how averages are brought back to the size of the map.
        context_reference: (rows, columns) of the last feature that the bins are meant for; a map twice as large gets
            twice as many.  None: the same bins for all sizes.
        zero_blocks: start with the last normalization of each block at 0, so that it passes its input on.
        side_heads: whether there are class scores at 1/8, 1/16 and 1/32 in training, for models that ask for them.
    """

    widths: tuple[int, int, int] = (512, 256, 128)
    blocks: int = 3
    block: FactorizedBlockOptions = FactorizedBlockOptions()
    bins: tuple[int, ...] = (1, 5)
    context_resize: Literal["nearest", "bilinear"] = "nearest"
    context_reference: tuple[int, int] | None = None
    zero_blocks: bool = False
    side_heads: bool = False


class NBt1DOutput(NamedTuple):
    """What the decoder gives.

    Args:
        logits: (B, classes, H, W).
        side: in training class scores at 1/8, 1/16 and 1/32 of the image, else empty.
    """

    logits: Tensor
    side: tuple[Tensor, ...]


class PyramidContext(nn.Module):
    """Averages over the cells of several grids beside the map itself, joined by a 1x1 convolution.

    Args:
        in_channels: of the map; each grid gets an equal share of it.
        out_channels: of the result.
        options: ``bins``, ``context_resize`` and ``context_reference`` are used.
    """

    def __init__(self, in_channels: int, out_channels: int, options: NBt1DDecoderOptions) -> None:
        super().__init__()
        self.options = options
        share = in_channels // len(options.bins)
        self.branches = nn.ModuleList(conv_norm_relu(in_channels, share, 1) for _ in options.bins)
        self.join = conv_norm_relu(in_channels + share * len(options.bins), out_channels, 1)

    def forward(self, x_BChw: Tensor) -> Tensor:
        """Return (B, out_channels, h, w); raises UsageError for a single image in training."""
        size = (x_BChw.shape[-2], x_BChw.shape[-1])
        rows, columns = self._multipliers(size)
        maps = [x_BChw]
        for bins, branch in zip(self.options.bins, self.branches, strict=True):
            if bins * rows * columns == 1:
                check_pooled_batch(branch.get_submodule("1"), x_BChw)
            pooled = branch(functional.adaptive_avg_pool2d(x_BChw, (bins * rows, bins * columns)))
            aligned = None if self.options.context_resize == "nearest" else False
            maps.append(functional.interpolate(pooled, size, mode=self.options.context_resize, align_corners=aligned))
        joined: Tensor = self.join(torch.cat(maps, dim=1))
        return joined

    def _multipliers(self, size: tuple[int, int]) -> tuple[int, int]:
        reference = self.options.context_reference
        if reference is None:
            return 1, 1
        # The published rule has no cells at all for maps below half the reference.
        rows, columns = (max(1, int(length / base + 0.5)) for length, base in zip(size, reference, strict=True))
        return rows, columns


class DecoderStep(nn.Module):
    """A 3x3 convolution, factorized blocks and a learned doubling; class scores of its own from before the doubling.

    Args:
        in_channels: of the map that comes in.
        channels: of the result, and of the feature that is added to it.
        num_classes: number of classes.
        options: ``blocks``, ``block`` and ``side_heads`` are used.
    """

    def __init__(self, in_channels: int, channels: int, num_classes: int, options: NBt1DDecoderOptions) -> None:
        super().__init__()
        self.conv = conv_norm_relu(in_channels, channels)
        self.blocks = nn.Sequential(
            *(FactorizedBlock(channels, channels, options=options.block) for _ in range(options.blocks))
        )
        self.upsample = LearnedUpsampling(channels)
        self.side = nn.Conv2d(channels, num_classes, 1) if options.side_heads else None

    def forward(self, x: Tensor, skip: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return the map of twice the size plus ``skip``, and in training the class scores of the undoubled map."""
        x = self.blocks(self.conv(x))
        scores = self.side(x) if self.side is not None and self.training else None
        doubled, size = self.upsample(x), (skip.shape[-2], skip.shape[-1])
        return (doubled if doubled.shape[-2:] == size else cut_to(doubled, size)) + skip, scores


class NBt1DDecoder(Decoder):
    """From features at 1/4, 1/8, 1/16 and 1/32 of the image to class scores of its size, rounded up.

    Args:
        features: of the encoder.
        num_classes: number of classes.
        options: see `NBt1DDecoderOptions`.

    Raises:
        UsageError: for features of other sizes.
    """

    def __init__(self, features: FeatureInfo, num_classes: int, options: NBt1DDecoderOptions) -> None:
        super().__init__()
        if features.reductions != (4, 8, 16, 32):
            raise UsageError(
                f"the encoder has features at 1/{', 1/'.join(map(str, features.reductions))} of the image; this "
                "decoder expects 1/4, 1/8, 1/16 and 1/32"
            )
        *finer, last = features.channels
        self.context = PyramidContext(last, options.widths[0], options)
        self.skips, self.steps = nn.ModuleList(), nn.ModuleList()  # coarsest first
        before = options.widths[0]
        for skip_channels, width in zip(reversed(finer), options.widths, strict=True):
            same = skip_channels == width
            self.skips.append(nn.Identity() if same else conv_norm_relu(skip_channels, width, 1))
            self.steps.append(DecoderStep(before, width, num_classes, options))
            before = width
        self.classifier = nn.Conv2d(before, num_classes, 3, padding=1)
        self.enlarge = nn.Sequential(LearnedUpsampling(num_classes), LearnedUpsampling(num_classes))
        if options.zero_blocks:
            for module in self.modules():
                if isinstance(module, FactorizedBlock):
                    nn.init.zeros_(module.norm2.weight)

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        """Return class scores (B, classes, H, W) of four features, finest first."""
        return self.decode(features).logits

    def decode(self, features: Sequence[Tensor]) -> NBt1DOutput:
        """Return what `forward` does, and in training the class scores of the side heads."""
        *finer, last = features
        x = self.context(last)
        # A step adds its skip after doubling: the first one that at 1/16.
        skips = [skip(feature) for skip, feature in zip(self.skips, reversed(finer), strict=True)]
        side: list[Tensor] = []
        for step, skip in zip(self.steps, skips, strict=True):
            x, scores = step(x, skip)
            if scores is not None:
                side.insert(0, scores)
        return NBt1DOutput(self.enlarge(self.classifier(x)), tuple(side))

    def upsample(self, logits_BNhw: Tensor, size: tuple[int, int]) -> Tensor:
        """Return the scores in float32 if they were in half, without the rows and columns beyond ``size``."""
        logits_BNhw = at_least_float32(logits_BNhw)
        return logits_BNhw if logits_BNhw.shape[-2:] == size else cut_to(logits_BNhw, size)


DECODERS: dict[str, DecoderEntry] = {"nbt1d": DecoderEntry(NBt1DDecoder, NBt1DDecoderOptions)}
