"""What published networks change in a ResNet beyond output stride and multi-grid, in place."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from timm.layers.eca import EcaModule
from torch import Tensor, nn

from rgbdseg.encoders._base import StagedEncoder, State
from rgbdseg.encoders.resnet import ResNetEncoder, set_block_dilations
from rgbdseg.errors import UsageError


def dilate_stage(encoder: StagedEncoder, index: int, dilations: Sequence[int]) -> None:
    """Set the dilations of the blocks of stage ``index`` (counted from 0); the last one holds for any further blocks.

    timm's first block of a dilated stage keeps the dilation of the stage before; code that descends from CCNet gives
    all blocks of a stage the same.
    """
    set_block_dilations(_resnet(encoder).get_submodule(encoder.stage_name(index)), dilations)


def pool_with_ceiling(encoder: StagedEncoder) -> None:
    """Let the pooling of the stem keep a last half window: n even rows become n / 2 + 1."""
    pool = _resnet(encoder).maxpool
    if not isinstance(pool, nn.MaxPool2d):
        raise UsageError(f"encoder '{encoder.name}' has no max pooling in its stem; use one such as resnet101s")
    pool.ceil_mode = True


def add_channel_attention(encoder: StagedEncoder) -> None:
    """Put efficient channel attention over three neighbors (Wang et al., CVPR 2020) at the end of every block.

    The encoder then no longer takes published weights of the plain network.
    """
    for index in range(_resnet(encoder).num_stages):
        block: Any  # all blocks of timm's ResNets have a place for attention, here empty
        for block in encoder.get_submodule(encoder.stage_name(index)).children():
            block.se = EcaModule(kernel_size=3)


def follow_original(encoder: StagedEncoder) -> None:
    """Place strides and pooling as the original ResNets of Caffe have them.

    The stride of a stage of bottlenecks sits in the first 1x1 instead of the 3x3 convolution; the pooling of the stem
    has no padding and keeps a last incomplete window.  Weights keep their names and shapes.
    """
    _resnet(encoder).maxpool = nn.MaxPool2d(3, stride=2, ceil_mode=True)
    for index in range(1, encoder.num_stages):
        block: Any = encoder.get_submodule(f"{encoder.stage_name(index)}.0")
        if hasattr(block, "conv3"):
            block.conv1.stride, block.conv2.stride = block.conv2.stride, block.conv1.stride


def unpooled_stem(encoder: StagedEncoder, image: Tensor) -> Tensor:
    """Return the stem's feature at 1/2 of the image (B, in_chans, H, W), before its pooling."""
    x = image
    for name in ("conv1", "bn1", "act1"):
        x = _resnet(encoder).get_submodule(name)(x)
    return x


def pooled_stem(encoder: StagedEncoder, feature: Tensor) -> State:
    """Return the state before the first stage from what `unpooled_stem` gave, or from another feature of its shape."""
    return (_resnet(encoder).get_submodule("maxpool")(feature),)


def remove_stem(encoder: StagedEncoder) -> None:
    """Remove convolution and normalization of the stem, for a stream that starts from features of other streams.

    Its pooling stays.  Published weights of the stem are then left out.
    """
    del _resnet(encoder).conv1, encoder.bn1
    encoder.dropped = (*encoder.dropped, "conv1", "bn1")


def _resnet(encoder: StagedEncoder) -> ResNetEncoder:
    if not isinstance(encoder, ResNetEncoder):
        raise UsageError(f"encoder '{encoder.name}' is not a ResNet; use one such as resnet101s")
    return encoder
