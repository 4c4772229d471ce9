"""ResNets and their relatives (ResNeXt, SE-ResNet, Wide ResNet ...) of timm as staged encoders.

He et al., Deep Residual Learning for Image Recognition, CVPR 2016.  ``resnet50s``, ``resnet101s`` and ``resnet152s``
have the stem of three 3x3 convolutions with 128 output channels that segmentation code often calls "v1c".
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import timm
from torch import Tensor, nn

from rgbdseg.encoders.base import StagedEncoder
from rgbdseg.errors import UsageError

OUTPUT_STRIDES = (8, 16, 32)


class ResNetEncoder(StagedEncoder[Tensor]):
    """A timm ResNet without its classifier; submodules keep timm's names, so that published weights fit.

    name: timm model of the module ``resnet``.  in_chans: channels of the input.
    output_stride: 8, 16 or 32.  Below 32 the strides of the last stages are replaced by dilation as in timm: the first
    block of a stage keeps the dilation of the stage before.
    dilations: dilation of the 3x3 convolutions of each block of the last stage, overriding the above; the last one
    holds for any further blocks.  None: as ``output_stride`` has it.
    Raises UsageError for values outside these ranges.
    """

    num_stages = 4

    def __init__(
        self,
        name: str,
        in_chans: int = 3,
        output_stride: int = 32,
        dilations: Sequence[int] | None = None,
    ) -> None:
        super().__init__()
        if output_stride not in OUTPUT_STRIDES:
            raise UsageError(f"output stride {output_stride} of encoder '{name}' is not one of {OUTPUT_STRIDES}")
        if dilations is not None and output_stride == 32:
            raise UsageError("dilations of the last stage need an output stride of 8 or 16, got 32")
        net: Any = timm.create_model(
            name, pretrained=False, in_chans=in_chans, output_stride=output_stride, num_classes=0, global_pool=""
        )
        self.name = name
        self.in_chans = in_chans
        self.input_conv = net.pretrained_cfg["first_conv"]
        self.classifier = net.pretrained_cfg["classifier"]
        self.channels = tuple(info["num_chs"] for info in net.feature_info[1:])
        self.reductions = tuple(info["reduction"] for info in net.feature_info[1:])
        self.conv1, self.bn1, self.act1, self.maxpool = net.conv1, net.bn1, net.act1, net.maxpool
        self.layer1, self.layer2, self.layer3, self.layer4 = net.layer1, net.layer2, net.layer3, net.layer4
        if dilations is not None:
            _set_block_dilations(self.layer4, dilations)

    def stem(self, image: Tensor) -> Tensor:
        """Return the pooled stem feature at 1/4 of the image (B, in_chans, H, W)."""
        x: Tensor = self.maxpool(self.act1(self.bn1(self.conv1(image))))
        return x

    def stage(self, index: int, state: Tensor) -> Tensor:
        """Run residual stage ``index`` (0 .. 3)."""
        x: Tensor = self.get_submodule(f"layer{index + 1}")(state)
        return x

    def stage_name(self, index: int) -> str:
        """Return ``layer1`` to ``layer4``."""
        return f"layer{index + 1}"

    def share_projections(self, other: StagedEncoder[Tensor]) -> None:
        """Use the projections (convolution and normalisation) in the first block of every stage of ``other``."""
        assert other.name == self.name
        for index in range(self.num_stages):
            block = f"layer{index + 1}.0"
            self.get_submodule(block).downsample = other.get_submodule(block).downsample

    def forward(self, image: Tensor) -> list[Tensor]:
        """Return the four stage features of an image (B, in_chans, H, W), finest first."""
        features: list[Tensor] = []
        x = self.stem(image)
        for index in range(self.num_stages):
            x = self.stage(index, x)
            features.append(x)
        return features


def _set_block_dilations(stage: nn.Module, dilations: Sequence[int]) -> None:
    if not dilations or min(dilations) < 1:
        raise UsageError(f"dilations {tuple(dilations)} of the last stage must be one or more positive integers")
    for index, block in enumerate(stage.children()):
        dilation = dilations[min(index, len(dilations) - 1)]
        for name, module in block.named_modules():
            if isinstance(module, nn.Conv2d) and module.kernel_size == (3, 3) and not name.startswith("downsample"):
                module.dilation = (dilation, dilation)
                module.padding = (dilation, dilation)
