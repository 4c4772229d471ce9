"""ResNets and their relatives (ResNeXt, SE-ResNet, Wide ResNet ...) of timm as staged encoders.

He et al., Deep Residual Learning for Image Recognition, CVPR 2016.  ``resnet50s``, ``resnet101s`` and ``resnet152s``
have the stem of three 3x3 convolutions with 128 output channels that segmentation code often calls "v1c".
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from rgbdseg.encoders._base import EncoderEntry, StagedEncoder, State
from rgbdseg.encoders._timm import TimmEncoder
from rgbdseg.errors import UsageError


@dataclasses.dataclass(frozen=True)
class ResNetOptions:
    """Options of a ResNet.

    Args:
        output_stride: 8, 16 or 32.  Below 32 the strides of the last stages are replaced by dilation as in timm: the
            first block of a stage keeps the dilation of the stage before.
        dilations: dilation of the 3x3 convolutions of each block of the last stage, overriding the above; the last one
            holds for any further blocks.  None: as ``output_stride`` has it.
        drop_path_rate: in training, the chance of the last block to be left out for an image; it rises linearly from 0
            at the first block.
        drop_block_rate: in training, the share of squares of the last stages' maps that is set to 0.
    """

    output_stride: int = 32
    dilations: Sequence[int] | None = None
    drop_path_rate: float = 0.0
    drop_block_rate: float = 0.0


class ResNetEncoder(TimmEncoder):
    """A timm ResNet without its classifier; see `TimmEncoder`.

    Its models are those of timm's module ``resnet``.
    """

    rectified = True
    classifier = "fc"
    stem_modules = ("conv1", "bn1", "act1", "maxpool")
    stage_modules = ("layer1", "layer2", "layer3", "layer4")
    conv_norm_pairs = (("conv1", "bn1"),)

    def network_options(self, options: ResNetOptions) -> dict[str, Any]:
        """Return what timm knows of the options."""
        return {name: value for name, value in dataclasses.asdict(options).items() if name != "dilations"}

    def adapt(self, options: ResNetOptions) -> None:
        """Set the dilations of the last stage's blocks."""
        if options.dilations is None:
            return
        if options.output_stride == 32:
            raise UsageError("dilations of the last stage need an output stride of 8 or 16, got 32")
        set_block_dilations(self.get_submodule("layer4"), options.dilations)

    def stem(self, image: Tensor) -> State:
        """Return the pooled stem feature at 1/4 of the image (B, in_chans, H, W)."""
        x = image
        for module in self.stem_modules:
            x = self.get_submodule(module)(x)
        return (x,)

    def share_projections(self, other: StagedEncoder) -> None:
        """Use the projections (convolution and normalization) in the first block of every stage of ``other``."""
        self.require_same(other)
        for index in range(self.num_stages):
            block = f"layer{index + 1}.0"
            self.get_submodule(block).downsample = other.get_submodule(block).downsample


def set_block_dilations(stage: nn.Module, dilations: Sequence[int]) -> None:
    """Give the 3x3 convolutions of each block of ``stage`` its dilation, in place; the last one holds for the rest."""
    if not dilations or min(dilations) < 1:
        raise UsageError(f"dilations {tuple(dilations)} of the last stage must be one or more positive integers")
    for index, block in enumerate(stage.children()):
        dilation = dilations[min(index, len(dilations) - 1)]
        for name, module in block.named_modules():
            if isinstance(module, nn.Conv2d) and module.kernel_size == (3, 3) and not name.startswith("downsample"):
                module.dilation = (dilation, dilation)
                module.padding = (dilation, dilation)


TIMM_MODULES: dict[str, EncoderEntry] = {"resnet": EncoderEntry(ResNetEncoder, ResNetOptions, weights="timm")}
