"""LiteFusion: a color encoder at half resolution and a geometry encoder at a quarter, made for CPUs.  Ours.

RGB is averaged to half and HHA to a quarter of its size before anything is computed, so that a frame of 480x640 costs
as much as one of 240x320.  The geometry encoder, which therefore is twice as coarse as the color encoder, is added to
it at 1/8 and 1/16 of its input by 1x1 convolutions that start at zero; an additive pyramid decoder reads both.

With ``attention_blocks``, transformer blocks see the whole frame at 1/32 of the encoder's input, where a frame of
480x640 has 80 cells: many weights for little time.

Geometry is optional in every pixel: where HHA has no reading (0 in all channels, ``missing_fill=0``) the geometry
encoder sees zeros and a fourth channel that says so.  A frame without any depth is a frame of such pixels.

Deliberate choices: the last stage of the geometry encoder is dilated instead of strided, since there would be 4x5
cells left; blocks of the decoder are depthwise separable with 5x5 windows (MobileNetV2's blocks without expansion).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from rgbdseg.encoders import create_encoder
from rgbdseg.errors import UsageError
from rgbdseg.input_spec import InputSpec, hha_stream, rgb_stream
from rgbdseg.models._base import AuxiliaryOutput, SegmentationModel, SegmentationOutput, check_widths
from rgbdseg.models._card import MethodCard
from rgbdseg.models._registry import Variant
from rgbdseg.nn.blocks import DropPath, is_recorded
from rgbdseg.nn.resize import resize_half_pixel, resize_logits
from rgbdseg.nn.tokens import merge_heads, split_heads, to_map, to_tokens

# B batch, C channels, H height, W width

_HALF = (0.5, 0.5, 0.5)
_POOLED_CELLS = (1, 2, 4)
_ATTENTION_WIDTH, _HEADS, _KEY_WIDTH = 256, 8, 16

_CARD = MethodCard(
    method="LiteFusion",
    year=2026,
    paper="none: this library's own",
    input="RGB + HHA, either with holes, or RGB alone",
    code="this library",
    results=(),
    exact="nothing to compare with",
    ours="everything but the encoders",
)


class ConvNorm(nn.Sequential):
    """Convolution without bias and batch normalization; a ReLU after them unless ``activation`` is False.

    Args:
        in_channels: of the map.
        out_channels: of the result, which has the size of the map.
        kernel_size: side of the kernel, odd.
        groups: of the convolution; they divide both numbers of channels.
        activation: whether there is a ReLU.
    """

    def __init__(
        self, in_channels: int, out_channels: int, kernel_size: int = 1, groups: int = 1, activation: bool = True
    ) -> None:
        layers: list[nn.Module] = [
            nn.Conv2d(in_channels, out_channels, kernel_size, padding=kernel_size // 2, groups=groups, bias=False),
            nn.BatchNorm2d(out_channels, momentum=0.05),
        ]
        super().__init__(*layers, *([nn.ReLU(inplace=True)] if activation else []))


class Refine(nn.Module):
    """Residual block: a depthwise 5x5 convolution and a 1x1 convolution, (B, C, H, W) to the same."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.spatial = ConvNorm(channels, channels, 5, groups=channels)
        self.mix = ConvNorm(channels, channels, activation=False)

    def forward(self, x: Tensor) -> Tensor:
        """Return relu(x + block(x))."""
        return functional.relu(x + self.mix(self.spatial(x)))


class PooledContext(nn.Module):
    """Means over the whole map and over 2x2 and 4x4 parts of it, each through a 1x1 convolution, added to the map."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.levels = nn.ModuleList(nn.Conv2d(channels, channels, 1) for _ in _POOLED_CELLS)
        self.merge = ConvNorm(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        """Return (B, C, H, W) as ``x``."""
        total = x
        for cells, level in zip(_POOLED_CELLS, self.levels, strict=True):
            pooled = level(functional.adaptive_avg_pool2d(x, cells))
            total = total + (pooled if cells == 1 else resize_half_pixel(pooled, _size(x)))
        merged: Tensor = self.merge(total)
        return merged


class AttentionBlock(nn.Module):
    """Self-attention of all cells of a map and an MLP with a depthwise 3x3 convolution, (B, C, H, W) to the same.

    Both are added to their input.  Batch normalizations after every product, as in TopFormer (Zhang et al., CVPR 2022,
    section 3.1), cost nothing at inference, and the depthwise convolution says where a cell is, at any size.

    Args:
        channels: C.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.widths = (_HEADS * _KEY_WIDTH, _HEADS * _KEY_WIDTH, channels)
        self.query_key_value = ConvNorm(channels, sum(self.widths), activation=False)
        self.project = ConvNorm(channels, channels, activation=False)
        self.expand = ConvNorm(channels, 2 * channels, activation=False)
        self.spatial = ConvNorm(2 * channels, 2 * channels, 3, groups=2 * channels)
        self.reduce = ConvNorm(2 * channels, channels, activation=False)
        self.drop_path = DropPath()

    def forward(self, x: Tensor) -> Tensor:
        """Return x plus what was attended to, plus the MLP of it."""
        parts = self.query_key_value(x).split(self.widths, dim=1)
        query, key, value = (split_heads(to_tokens(part), _HEADS) for part in parts)
        attended = merge_heads(functional.scaled_dot_product_attention(query, key, value))
        x = x + self.drop_path(self.project(functional.relu(to_map(attended, _size(x)))))
        changed: Tensor = self.drop_path(self.reduce(self.spatial(self.expand(x))))
        return x + changed


class LiteFusion(SegmentationModel):
    """Two encoders of different resolution and an additive pyramid decoder.

    Args:
        num_classes: number of classes.
        encoder: staged encoder with four features at 1/4 to 1/32, for RGB.
        depth_encoder: the same for HHA; it has a fourth input channel, 1 where there is a reading.
        channels: width of the decoder at 1/8 of its input and coarser.
        fine_channels: width at 1/4, where the classes are decided.
        reduce: RGB is averaged over squares of that many pixels and HHA over twice as many: 2 or 1.5 for frames of
            480x640, 1 for frames that are small already.
        attention_blocks: number of transformer blocks at 1/32 of the encoder's input.
        encoder_options: further options of the encoder, such as ``drop_path_rate``.
        depth_encoder_options: the same for the depth encoder.

    Raises:
        UsageError: for widths that are not positive, a negative number of blocks, a reduction that is no multiple of a
            half and encoders with other features.
    """

    card = _CARD
    backbone_prefixes = ("encoder.", "depth_encoder.")

    def __init__(
        self,
        num_classes: int,
        *,
        encoder: str = "tf_efficientnet_lite2",
        depth_encoder: str = "tf_efficientnet_lite0",
        channels: int = 128,
        fine_channels: int = 64,
        reduce: float = 2,
        attention_blocks: int = 0,
        encoder_options: Mapping[str, Any] | None = None,
        depth_encoder_options: Mapping[str, Any] | None = None,
    ) -> None:
        check_widths(channels=channels, fine_channels=fine_channels)
        if not (1 <= reduce <= 16 and float(2 * reduce).is_integer()):
            raise UsageError(f"reduce is {reduce}; expected a multiple of 0.5 from 1 to 16")
        if attention_blocks < 0:
            raise UsageError(f"attention_blocks is {attention_blocks}; expected 0 or more")
        streams = (rgb_stream(_HALF, _HALF), dataclasses.replace(hha_stream(_HALF, _HALF), optional=True))
        super().__init__(num_classes, InputSpec(streams))
        self.reduce = reduce
        self.encoder = create_encoder(encoder, **(encoder_options or {}))
        self.depth_encoder = create_encoder(depth_encoder, 4, **{"output_stride": 16, **(depth_encoder_options or {})})
        _check_features(encoder, self.encoder.reductions, (4, 8, 16, 32))
        _check_features(depth_encoder, self.depth_encoder.reductions, (4, 8, 16, 16))
        color, depth = self.encoder.channels, self.depth_encoder.channels
        widths = (fine_channels, channels, channels, channels)
        self.exchange = nn.ModuleList(nn.Conv2d(depth[i], color[i + 1], 1) for i in range(2))
        self.lateral = nn.ModuleList(ConvNorm(c, w, activation=False) for c, w in zip(color, widths, strict=True))
        self.depth_lateral = nn.ModuleList(
            ConvNorm(c, channels, activation=False) for c in (depth[0], depth[1], depth[2] + depth[3])
        )
        self.context = PooledContext(channels)
        self.attention = _attention(color[3] + depth[2] + depth[3], channels, attention_blocks)
        self.refine = nn.ModuleList(Refine(width) for width in widths)
        self.narrow = ConvNorm(channels, fine_channels, activation=False)
        self.drop = nn.Dropout2d(0.1)
        self.classifier = nn.Conv2d(fine_channels, num_classes, 1)
        self.auxiliary = nn.Conv2d(channels, num_classes, 1)
        for parameter in self.exchange.parameters():
            nn.init.zeros_(parameter)

    def encoder_streams(self) -> Iterator[tuple[str, nn.Module]]:
        """Yield both encoders."""
        yield "rgb", self.encoder
        yield "hha", self.depth_encoder

    def forward(self, images: Mapping[str, Tensor], camera: Tensor | None = None) -> SegmentationOutput:
        """Return logits (B, classes, H, W), in training also ``aux`` of the same size.

        Args:
            images: ``rgb`` and ``hha``, (B, 3, H, W) each, normalized; no reading is -1 in all channels of HHA.
            camera: not used.

        Raises:
            UsageError: for an image that is absent or does not fit, and for a single image in training.
        """
        rgb, hha = self.check_images(images)
        if self.training and rgb.shape[0] == 1:
            raise UsageError(
                "training on one image per pass is not possible; raise loader.batch_size or lower hardware.accumulate"
            )
        colors, depths = self._encode(self._average(rgb, self.reduce), self._geometry(hha))
        fine, coarse = self._decode(colors, depths)
        logits = resize_logits(self.classifier(self.drop(fine)), _size(rgb))
        if not self.training:
            return SegmentationOutput(logits)
        auxiliary = resize_logits(self.auxiliary(coarse), _size(rgb))
        return SegmentationOutput(logits, (AuxiliaryOutput("aux", "segmentation", auxiliary),))

    def _average(self, image: Tensor, side: float) -> Tensor:
        """Return means over squares of ``side`` pixels; those at the lower right may be cut off by the image."""
        if side == 1:
            return image
        if side == 1.5 and not is_recorded():  # a graph would be tied to the remainder of its size by three
            return _means_of_one_and_a_half(_means_of_one_and_a_half(image, 2), 3)
        if side != int(side):  # over halves of pixels
            image, side = functional.interpolate(image, scale_factor=2.0, mode="nearest"), 2 * side
        return functional.avg_pool2d(image, int(side), ceil_mode=True, count_include_pad=False)

    def _geometry(self, hha: Tensor) -> Tensor:
        """Return (B, 4, h, w): means over the readings of each square, and whether a quarter of it has any."""
        # The angle of a reading is never below 38 of 255; -1 is the 0 of no reading.
        known = (hha[:, 2:] > -1 + 1 / 255).to(hha.dtype)
        share = self._average(known, 2 * self.reduce)
        mean = self._average(hha * known, 2 * self.reduce) / share.clamp(min=1e-6)
        enough = (share >= 0.25).to(hha.dtype)
        return torch.cat((mean * enough, enough), dim=1)

    def _encode(self, rgb: Tensor, geometry: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        """Return the features of both encoders, the color encoder's with geometry added on the way."""
        depths = self.depth_encoder(geometry)
        state = self.encoder.stem(rgb)
        colors: list[Tensor] = []
        for index in range(4):
            state = self.encoder.stage(index, state)
            if index in (1, 2):
                state = (state[0] + self.exchange[index - 1](depths[index - 1]),)
            colors.append(state[0])
        return colors, depths

    def _decode(self, colors: list[Tensor], depths: list[Tensor]) -> tuple[Tensor, Tensor]:
        """Return the finest map of the pyramid and the one at 1/16 of the encoder's input."""
        geometry = (depths[0], depths[1], torch.cat((depths[2], depths[3]), dim=1))
        top = self.lateral[3](colors[3]) + self.depth_lateral[2](geometry[2])
        if self.attention is not None:
            top = top + self.attention(torch.cat((colors[3], geometry[2]), dim=1))
        maps = [self.refine[3](self.context(functional.relu(top)))]
        for index in (2, 1):
            level = self.lateral[index](colors[index]) + self.depth_lateral[index - 1](geometry[index - 1])
            level = level + resize_half_pixel(maps[-1], _size(level))
            maps.append(self.refine[index](functional.relu(level)))
        fine = self.lateral[0](colors[0])
        fine = fine + resize_half_pixel(self.narrow(maps[-1]), _size(fine))
        return self.refine[0](functional.relu(fine)), maps[1]


def _attention(in_channels: int, out_channels: int, blocks: int) -> nn.Sequential | None:
    if not blocks:
        return None
    width = _ATTENTION_WIDTH
    return nn.Sequential(
        ConvNorm(in_channels, width),
        *(AttentionBlock(width) for _ in range(blocks)),
        ConvNorm(width, out_channels, activation=False),
    )


def _means_of_one_and_a_half(image: Tensor, axis: int) -> Tensor:
    """Return means over pixels in pairs that share a third one, 2 of 3 along ``axis``; the last may cover less.

    The same as pooling the halves of pixels, in a fifth of its time or less.
    """
    length = image.shape[axis]
    if length % 3:  # a pixel that the edge cuts off counts as the last one, which leaves the mean what it is
        image = torch.cat((image, *[image.narrow(axis, length - 1, 1)] * (-length % 3)), dim=axis)
    first, shared, last = image.unflatten(axis, (-1, 3)).unbind(axis + 1)
    means = torch.stack((torch.lerp(first, shared, 1 / 3), torch.lerp(last, shared, 1 / 3)), dim=axis + 1)
    return means.flatten(axis, axis + 1).narrow(axis, 0, (2 * length + 2) // 3)


def _size(x: Tensor) -> tuple[int, int]:
    return x.shape[-2], x.shape[-1]


def _check_features(name: str, found: tuple[int, ...], expected: tuple[int, ...]) -> None:
    if tuple(found) != expected:
        raise UsageError(
            f"encoder '{name}' has features at 1/{', 1/'.join(map(str, found))} of its input; LiteFusion needs "
            f"1/{', 1/'.join(map(str, expected))}"
        )


VARIANTS = {
    "litefusion_lite2": Variant(LiteFusion, {}, note="without attention"),
    "litefusion_lite2_attention": Variant(
        LiteFusion, {"attention_blocks": 4}, note="the model that ships with the library, there with reduce=1.5"
    ),
    "litefusion_lite0": Variant(
        LiteFusion,
        {"encoder": "tf_efficientnet_lite0", "channels": 64, "fine_channels": 32},
        note="half of its cost",
        small=True,
    ),
}
