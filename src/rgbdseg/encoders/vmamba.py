"""VMamba, state space encoders whose blocks scan a map in four directions, in their first published version.

Liu, Tian, Zhao, Yu, Xie, Wang, Ye, Liu, VMamba: Visual State Space Model, NeurIPS 2024, arXiv 2401.10166.
Published code and weights: github.com/MzeroMiko/VMamba (MIT), version 0: files ``vssmtiny_dp01_ckpt_epoch_292.pth``,
``vssmsmall_dp03_ckpt_epoch_238.pth`` and ``vssmbase_dp06_ckpt_epoch_241.pth``.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from rgbdseg.encoders._base import EncoderEntry, StagedEncoder, State
from rgbdseg.encoders._released import known_weights
from rgbdseg.errors import UsageError
from rgbdseg.nn.blocks import DropPath
from rgbdseg.nn.channel_norm import ChannelLayerNorm
from rgbdseg.nn.state_space import SCAN_2D_NAMES, SelectiveScan2d

# B batch, C channels, H height, W width

STATES = 16
PATCH = 4


class PatchMerging(nn.Module):
    """Joins 2x2 pixels, a layer norm, and a linear layer to twice the channels; odd sizes get a row or column of 0."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(4 * channels)
        self.reduce = nn.Linear(4 * channels, 2 * channels, bias=False)

    def forward(self, x_BHWC: Tensor) -> Tensor:
        """Return (B, ceil(H / 2), ceil(W / 2), 2 C)."""
        x = functional.pad(x_BHWC, (0, 0, 0, 1, 0, 1))  # for even sizes never seen
        rows, columns = (
            2 * torch.arange((length + 1) // 2, device=x.device) for length in (x_BHWC.shape[1], x_BHWC.shape[2])
        )
        squares = [x.index_select(1, rows + row).index_select(2, columns + c) for c in (0, 1) for row in (0, 1)]
        joined = torch.cat(squares, dim=-1)
        reduced: Tensor = self.reduce(self.norm(joined))
        return reduced


class VMambaBlock(nn.Module):
    """x plus the scans of its layer norm, on maps with channels last."""

    def __init__(self, channels: int, states: int, drop_path: float) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(channels)
        self.scan = SelectiveScan2d(channels, states)
        self.drop_path = DropPath(drop_path)

    def forward(self, x_BHWC: Tensor) -> Tensor:
        """Return (B, H, W, C)."""
        return x_BHWC + self.drop_path(self.scan(self.norm(x_BHWC)))


@dataclasses.dataclass(frozen=True)
class VMambaOptions:
    """Options of a VMamba.

    Args:
        drop_path_rate: in training, the chance of the last block to be left out for an image; it rises linearly from 0
            at the first block.
        whole_patches: append zeros to images whose sides are no multiples of 4; otherwise their last rows and columns
            are not seen, as released.
    """

    drop_path_rate: float = 0.1
    whole_patches: bool = True

    def __post_init__(self) -> None:
        if not 0 <= self.drop_path_rate < 1:
            raise UsageError(f"drop_path_rate is {self.drop_path_rate}; expected 0 to below 1")


class VMamba(StagedEncoder):
    """A VMamba without its classifier; the features are the maps after each stage, each with a layer norm of its own.

    Published weights do not have these norms: they keep their values.

    Args:
        name: in the registry, such as ``vmamba_tiny``.
        channels: C of the first stage; every further stage has twice as many.
        depths: blocks of each stage.
        in_chans: channels of the image.
        options: see `VMambaOptions`.
    """

    num_stages = 4
    reductions = (4, 8, 16, 32)
    input_conv = "patches"
    classifier = "classifier"

    def __init__(self, name: str, channels: int, depths: Sequence[int], in_chans: int, options: VMambaOptions) -> None:
        super().__init__()
        self.name = name
        self.in_chans = in_chans
        self.whole_patches = options.whole_patches
        self.channels = tuple(channels * 2**index for index in range(self.num_stages))
        self.patches = nn.Conv2d(in_chans, channels, PATCH, PATCH)
        self.patch_norm = ChannelLayerNorm(channels, eps=1e-5)
        rates = iter(torch.linspace(0, options.drop_path_rate, sum(depths), device="cpu").tolist())
        self.merging = nn.ModuleList(PatchMerging(width) for width in self.channels[:-1])
        self.stages = nn.ModuleList(
            nn.ModuleList(VMambaBlock(width, STATES, next(rates)) for _ in range(depth))
            for width, depth in zip(self.channels, depths, strict=True)
        )
        self.output_norms = nn.ModuleList(ChannelLayerNorm(width, eps=1e-5) for width in self.channels)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)

    def stem(self, image: Tensor) -> State:
        """Return the patch embedding at 1/4 of the image (B, in_chans, H, W)."""
        if self.whole_patches:
            image = functional.pad(image, (0, PATCH - 1, 0, PATCH - 1))  # what is too much is no whole patch
        return (self.patch_norm(self.patches(image)),)

    def stage(self, index: int, state: State) -> State:
        """Run stage ``index`` (0 .. 3)."""
        (x,) = state
        x = x.permute(0, 2, 3, 1)
        if index:
            x = self.merging[index - 1](x)
        blocks: Any = self.stages[index]
        for block in blocks:
            x = block(x)
        return (x.permute(0, 3, 1, 2),)

    def collect(self, states: Sequence[State]) -> list[Tensor]:
        """Return the normalized maps."""
        return [norm(state[0]) for norm, state in zip(self.output_norms, states, strict=True)]

    def stage_name(self, index: int) -> str:
        """Return the name of the blocks of stage ``index``."""
        return f"stages.{index}"

    def rename_weights(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return published weights by our names, older ones with ``ln_1`` and ``self_attention`` included."""
        current = {current_name(name): value for name, value in state.items()}
        renamed = known_weights(self, current, released_name)
        own_norms = {name: value for name, value in self.state_dict().items() if name.startswith("output_norms.")}
        return {**own_norms, **renamed}


_OLDER_NAMES = (
    (r"^patch_embed\.proj\.", "patch_embed.0."),
    (r"^patch_embed\.norm\.", "patch_embed.2."),
    (r"^(layers\.\d+\.blocks\.\d+)\.ln_1\.", r"\1.norm."),
    (r"^(layers\.\d+\.blocks\.\d+)\.self_attention\.", r"\1.op."),
)


def current_name(name: str) -> str:
    """Return the later name in published weights of an entry that had another one in the first files."""
    for pattern, replacement in _OLDER_NAMES:
        name = re.sub(pattern, replacement, name)
    return name


def released_name(name: str) -> str:
    """Return the name in published weights of an entry of a `VMamba`."""
    kind, _, rest = name.partition(".")
    if kind in ("patches", "patch_norm"):
        return f"patch_embed.{0 if kind == 'patches' else 2}.{rest}"
    index, _, part = rest.partition(".")
    if kind == "output_norms":
        return f"outnorm{index}.{part}"
    if kind == "merging":
        return f"layers.{index}.downsample.{part.replace('reduce.', 'reduction.')}"
    block, _, part = part.partition(".")
    if not part.startswith("norm."):
        part = f"op.{scan_2d_name(part.removeprefix('scan.'))}"
    return f"layers.{index}.blocks.{block}.{part}"


def scan_2d_name(name: str) -> str:
    """Return the published name of an entry of a `SelectiveScan2d`."""
    ours = next(prefix for prefix in SCAN_2D_NAMES if name.startswith(prefix))
    return SCAN_2D_NAMES[ours] + name.removeprefix(ours)


SHAPES: dict[str, tuple[int, tuple[int, ...]]] = {
    "vmamba_nano": (24, (1, 1, 2, 1)),
    "vmamba_tiny": (96, (2, 2, 9, 2)),
    "vmamba_small": (96, (2, 2, 27, 2)),
    "vmamba_base": (128, (2, 2, 27, 2)),
}
"""Channels of the first stage and depths; ``vmamba_nano`` is ours, small enough for CPUs."""


def build_vmamba(name: str, in_chans: int, options: VMambaOptions) -> VMamba:
    """Build one of `SHAPES` with random weights."""
    return VMamba(name, *SHAPES[name], in_chans, options)


_PAGE = "https://github.com/MzeroMiko/VMamba (MIT)"

ENCODERS: dict[str, EncoderEntry] = {
    "vmamba_nano": EncoderEntry(build_vmamba, VMambaOptions),
    "vmamba_tiny": EncoderEntry(build_vmamba, VMambaOptions, weights=f"{_PAGE}, vssmtiny_dp01_ckpt_epoch_292.pth"),
    "vmamba_small": EncoderEntry(build_vmamba, VMambaOptions, weights=f"{_PAGE}, vssmsmall_dp03_ckpt_epoch_238.pth"),
    "vmamba_base": EncoderEntry(build_vmamba, VMambaOptions, weights=f"{_PAGE}, vssmbase_dp06_ckpt_epoch_241.pth"),
}
