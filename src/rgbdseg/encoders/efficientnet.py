"""EfficientNets and their relatives of timm as staged encoders: inverted residual blocks in stages.

Tan, Le, EfficientNet: Rethinking Model Scaling for Convolutional Neural Networks, ICML 2019, arXiv 1905.11946;
EfficientNetV2, ICML 2021, arXiv 2104.00298; Sandler et al., MobileNetV2, CVPR 2018, arXiv 1801.04381.  The timm module
also holds MnasNet, MixNet, FBNet-C, TinyNet and EdgeTPU variants.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import timm
from torch import Tensor

from rgbdseg.encoders._base import EncoderEntry, StagedEncoder, State
from rgbdseg.encoders._timm import DilatedOptions, check_output_stride
from rgbdseg.errors import UsageError


class EfficientNetEncoder(StagedEncoder):
    """A timm EfficientNet up to its last block; submodules keep timm's names, so that published weights fit.

    The blocks at half resolution belong to the stem.  Each of the four stages holds the blocks of one resolution; its
    output is the linear projection of the last one and so has negative values, too.

    Args:
        name: timm model of the module ``efficientnet``.
        in_chans: channels of the input.
        options: see `DilatedOptions`.

    Raises:
        UsageError: for another output stride.
    """

    num_stages = 4
    dropped = ("conv_head", "bn2")
    conv_norm_pairs = (("conv_stem", "bn1"),)

    def __init__(self, name: str, in_chans: int, options: DilatedOptions) -> None:
        super().__init__()
        check_output_stride(name, options)
        net, infos = self._build(name, in_chans, dataclasses.asdict(options))
        # The first feature of timm is the one at half resolution.
        features = infos[1:]
        if len(features) != self.num_stages:
            raise UsageError(f"encoder '{name}' has {len(features)} stages from 1/4 of the image on; expected 4")
        self.name = name
        self.in_chans = in_chans
        self.input_conv = net.pretrained_cfg["first_conv"]
        self.classifier = net.pretrained_cfg["classifier"]
        self.channels = tuple(info["num_chs"] for info in features)
        self.reductions = tuple(info["reduction"] for info in features)
        self.conv_stem, self.bn1, self.blocks = net.conv_stem, net.bn1, net.blocks
        self._ends = tuple(info["stage"] for info in infos)

    def _build(self, name: str, in_chans: int, options: dict[str, Any]) -> tuple[Any, list[dict[str, Any]]]:
        """Return the timm network and what it says about its features."""
        net: Any = timm.create_model(
            name, pretrained=False, in_chans=in_chans, num_classes=0, global_pool="", **options
        )
        return net, net.feature_info

    def stem(self, image: Tensor) -> State:
        """Return the feature at 1/2 of the image (B, in_chans, H, W)."""
        return self._run(0, self._ends[0], self.bn1(self.conv_stem(image)))

    def stage(self, index: int, state: State) -> State:
        """Run the blocks of stage ``index`` (0 .. 3)."""
        return self._run(self._ends[index], self._ends[index + 1], *state)

    def _run(self, first: int, last: int, x: Tensor) -> State:
        for position in range(first, last):
            x = self.blocks[position](x)
        return (x,)


TIMM_MODULES: dict[str, EncoderEntry] = {
    "efficientnet": EncoderEntry(EfficientNetEncoder, DilatedOptions, weights="timm"),
}
