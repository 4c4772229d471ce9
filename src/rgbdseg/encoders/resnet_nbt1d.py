"""ResNets that pool after the first exchange, so that two streams can be fused at half resolution, too.

``resnet18_nbt1d`` and ``resnet34_nbt1d`` are made of factorized blocks, as in ESANet (Seichter et al., ICRA 2021, arXiv
2011.06961) and EMSANet (IJCNN 2022, arXiv 2207.04526); ``resnet50_late_pool`` is timm's, with bottlenecks.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, ClassVar

import timm
from torch import Tensor, nn

from rgbdseg.encoders._base import EncoderEntry, StagedEncoder, State
from rgbdseg.encoders._timm import NoOptions
from rgbdseg.nn.factorized import FactorizedBlock, FactorizedBlockOptions

BLOCKS = {
    # width of the first stage, blocks of each stage
    "resnet34_nbt1d": (64, (3, 4, 6, 3)),
    "resnet18_nbt1d": (64, (2, 2, 2, 2)),
    "resnet10_nbt1d": (16, (1, 1, 1, 1)),
}
LATE_POOL = "_late_pool"
WEIGHTS_PAGE = "github.com/TUI-NICR/ESANet: r34_NBt1D.pth, by hand"


class LatePoolingResNet(StagedEncoder):
    """Base: the stem ends before the pooling, at half resolution; the first stage starts with it.

    Subclasses have the modules ``conv1``, a normalization, an activation, ``maxpool`` and ``layer1`` to ``layer4``.
    """

    num_stages = 4
    reductions = (4, 8, 16, 32)
    rectified = True
    input_conv = "conv1"
    classifier = "fc"
    stem_modules: ClassVar[tuple[str, ...]]
    """The modules of the stem."""

    def stem(self, image: Tensor) -> State:
        """Return the map at half resolution (B, C, H / 2, W / 2)."""
        x = image
        for name in self.stem_modules:
            x = self.get_submodule(name)(x)
        return (x,)

    def stage(self, index: int, state: State) -> State:
        """Run stage ``index`` (0 .. 3); the first one pools before its blocks."""
        (x,) = state
        if index == 0:
            x = self.get_submodule("maxpool")(x)
        return (self.get_submodule(self.stage_name(index))(x),)

    def stage_name(self, index: int) -> str:
        """Return the name of the submodule that holds the blocks of stage ``index``."""
        return f"layer{index + 1}"


class FactorizedResNet(LatePoolingResNet):
    """A ResNet of factorized blocks.

    Args:
        name: a key of ``BLOCKS``.
        in_chans: channels of the image.
        options: of all blocks.
    """

    stem_modules = ("conv1", "norm1", "relu")
    conv_norm_pairs = (("conv1", "norm1"),)

    def __init__(self, name: str, in_chans: int, options: FactorizedBlockOptions) -> None:
        super().__init__()
        self.name, self.in_chans = name, in_chans
        width, counts = BLOCKS[name]
        self.channels = (width, 2 * width, 4 * width, 8 * width)
        self.conv1 = nn.Conv2d(in_chans, width, 7, stride=2, padding=3, bias=False)
        self.norm1 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU()
        self.maxpool = nn.MaxPool2d(3, stride=2, padding=1)
        before = width
        for index, (channels, count) in enumerate(zip(self.channels, counts, strict=True)):
            stride = 1 if index == 0 else 2
            blocks = [FactorizedBlock(before, channels, stride, options)]
            blocks += [FactorizedBlock(channels, channels, 1, options) for _ in range(count - 1)]
            self.add_module(self.stage_name(index), nn.Sequential(*blocks))
            before = channels

    def rename_weights(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return weights of the classifiers that the authors of ESANet and EMSANet trained, by our names."""
        return {_our_name(name): value for name, value in state.items()}


def _our_name(published: str) -> str:
    """Return our name for one of ESANet's or EMSANet's, with or without what stands before the name of a layer."""
    name = re.sub(r"^(?:(?:_orig_mod|model|encoder|backbone)\.)+", "", published)
    name = re.sub(r"\.(?:conv3x1_([12])|conv([12])_1)\.", lambda found: f".vertical{found[1] or found[2]}.", name)
    name = re.sub(r"\.(?:conv1x3_([12])|conv([12])_2)\.", lambda found: f".horizontal{found[1] or found[2]}.", name)
    return re.sub(r"(^|\.)bn([12])\.", r"\1norm\2.", name)


class TimmLatePoolingResNet(LatePoolingResNet):
    """A ResNet of timm, whose names it keeps, so that its weights and torchvision's fit.

    Args:
        name: of timm's network, with ``_late_pool`` behind it.
        in_chans: channels of the image.
        options: none.
    """

    stem_modules = ("conv1", "bn1", "act1")
    conv_norm_pairs = (("conv1", "bn1"),)

    def __init__(self, name: str, in_chans: int, options: NoOptions) -> None:
        super().__init__()
        # By this name timm and its hub know the weights.
        self.name, self.in_chans = name.removesuffix(LATE_POOL), in_chans
        net: Any = timm.create_model(self.name, pretrained=False, in_chans=in_chans, num_classes=0)
        self.channels = tuple(info["num_chs"] for info in net.feature_info[-4:])
        for module in (*self.stem_modules, "maxpool", *(self.stage_name(i) for i in range(self.num_stages))):
            self.add_module(module, net.get_submodule(module))


_FACTORIZED = EncoderEntry(FactorizedResNet, FactorizedBlockOptions, WEIGHTS_PAGE)
_OF_TIMM = EncoderEntry(TimmLatePoolingResNet, NoOptions, weights="timm")

ENCODERS: dict[str, EncoderEntry] = {
    "resnet34_nbt1d": _FACTORIZED,
    "resnet18_nbt1d": _FACTORIZED,
    "resnet10_nbt1d": _FACTORIZED,
    "resnet18_late_pool": _OF_TIMM,
    "resnet34_late_pool": _OF_TIMM,
    "resnet50_late_pool": _OF_TIMM,
    "resnet101_late_pool": _OF_TIMM,
}
