"""HRNets of timm as staged encoders: several resolutions side by side, exchanged at the end of every module.

Wang et al., Deep High-Resolution Representation Learning for Visual Recognition, TPAMI 2020, arXiv 1908.07919.
Published code for segmentation: github.com/HRNet/HRNet-Semantic-Segmentation (MIT).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, Literal

import timm
from torch import Tensor, nn
from torch.nn import functional

from rgbdseg.encoders._base import EncoderEntry, StagedEncoder, State
from rgbdseg.nn.resize import resize_bilinear

Resize = Literal["aligned", "bilinear", "nearest"]


@dataclasses.dataclass(frozen=True)
class HRNetOptions:
    """Options of an HRNet.

    Args:
        resize: how coarse branches are brought to the size of finer ones: ``aligned`` (bilinear with the centers of
            corner pixels aligned) and ``bilinear`` are those of the two versions of the published segmentation code,
            ``nearest`` that of the classification networks.
    """

    resize: Resize = "aligned"


class HRNetEncoder(StagedEncoder):
    """A timm HRNet without its classifier; submodules keep timm's names, so that published weights fit.

    Stage 0 ends after ``layer1`` with one map; stages 1, 2 and 3 each add a branch of half the resolution, which makes
    two, three and four maps, finest first: branch b is (B, C_b, H / (4 * 2^b), W / (4 * 2^b)), rounded up.  The
    features are the four branches after the last stage, at 1/4 to 1/32.  Branches are resized to sizes that are given
    explicitly, so that any image size will do.

    Args:
        name: timm model of the module ``hrnet``.
        in_chans: channels of the input.
        options: see `HRNetOptions`.
    """

    num_stages = 4
    rectified = True
    reductions = (4, 8, 16, 32)
    dropped = ("incre_modules", "downsamp_modules", "final_layer")

    def __init__(self, name: str, in_chans: int, options: HRNetOptions) -> None:
        super().__init__()
        net: Any = timm.create_model(name, pretrained=False, in_chans=in_chans, num_classes=0, head="")
        self.name = name
        self.in_chans = in_chans
        self.resize: Resize = options.resize
        self.input_conv = net.pretrained_cfg["first_conv"]
        self.classifier = net.pretrained_cfg["classifier"]
        self.conv1, self.bn1, self.act1 = net.conv1, net.bn1, net.act1
        self.conv2, self.bn2, self.act2 = net.conv2, net.bn2, net.act2
        self.layer1 = net.layer1
        self.transition1, self.stage2 = net.transition1, net.stage2
        self.transition2, self.stage3 = net.transition2, net.stage3
        self.transition3, self.stage4 = net.transition3, net.stage4
        self._state_channels = (
            (net.transition1[0][0].in_channels,),
            *(tuple(stage[-1].num_in_chs) for stage in (net.stage2, net.stage3, net.stage4)),
        )
        self.channels = self._state_channels[-1]
        for stage in (net.stage2, net.stage3, net.stage4):
            for module in stage:
                _drop_upsampling(module)

    def stem(self, image: Tensor) -> State:
        """Return one map at 1/4 of the image (B, in_chans, H, W)."""
        x = self.act1(self.bn1(self.conv1(image)))
        return (self.act2(self.bn2(self.conv2(x))),)

    def stage(self, index: int, state: State) -> State:
        """Run stage ``index`` (0 .. 3): the state has 1, 1, 2 and 3 maps before it and 1, 2, 3 and 4 maps after it."""
        if index == 0:
            return (self.layer1(state[0]),)
        transition: Any = self.get_submodule(f"transition{index}")
        state = tuple(layer(state[min(branch, len(state) - 1)]) for branch, layer in enumerate(transition))
        for module in self.get_submodule(f"stage{index + 1}").children():
            state = self._run_module(module, state)
        return state

    def _run_module(self, module: Any, state: State) -> State:
        """Run the branches and sum up, for every branch, what all of them have to say."""
        maps = [branch(x) for branch, x in zip(module.branches, state, strict=True)]
        fused = []
        for target, (own, row) in enumerate(zip(maps, module.fuse_layers, strict=True)):
            size = (own.shape[-2], own.shape[-1])
            parts = [layer(x) for layer, x in zip(row, maps, strict=True)]
            parts[target + 1 :] = [self._enlarge(part, size) for part in parts[target + 1 :]]
            total = parts[0]
            for part in parts[1:]:
                total = total + part
            fused.append(module.fuse_act(total))
        return tuple(fused)

    def _enlarge(self, x_BCHW: Tensor, size: tuple[int, int]) -> Tensor:
        if self.resize == "nearest":
            return functional.interpolate(x_BCHW, size=size, mode="nearest")
        return resize_bilinear(x_BCHW, size, align_corners=self.resize == "aligned")

    def collect(self, states: Sequence[State]) -> list[Tensor]:
        """Return the four branches after the last stage."""
        return list(states[-1])

    def state_channels(self, index: int) -> tuple[int, ...]:
        """Return the channels of the 1, 2, 3 or 4 branches after stage ``index``."""
        return self._state_channels[index]

    def share_projections(self, other: StagedEncoder) -> None:
        """Use the projection in the first block of ``layer1`` of ``other``, the only one."""
        self.require_same(other)
        self.get_submodule("layer1.0").downsample = other.get_submodule("layer1.0").downsample


def _drop_upsampling(module: Any) -> None:
    """Remove the resizing by fixed factors from the exchange of a module; it has no weights and so no names."""
    for branch, row in enumerate(module.fuse_layers):
        for layer in row[branch + 1 :]:
            assert isinstance(layer[-1], nn.Upsample)
            layer[-1] = nn.Identity()


TIMM_MODULES: dict[str, EncoderEntry] = {"hrnet": EncoderEntry(HRNetEncoder, HRNetOptions, weights="timm")}
