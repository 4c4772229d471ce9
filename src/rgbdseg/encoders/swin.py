"""Swin Transformers of timm, both versions, as staged encoders.

Liu et al., Swin Transformer: Hierarchical Vision Transformer using Shifted Windows, ICCV 2021, arXiv 2103.14030;
Swin Transformer V2, CVPR 2022, arXiv 2111.09883.
"""

from __future__ import annotations

import dataclasses
from typing import Any, Literal

from torch import Tensor

from rgbdseg.encoders._base import EncoderEntry, State
from rgbdseg.encoders._timm import TimmEncoder
from rgbdseg.encoders._windows import run_padded_blocks
from rgbdseg.errors import UsageError


@dataclasses.dataclass(frozen=True)
class SwinOptions:
    """Options of a Swin Transformer; rates are of training.

    Args:
        drop_path_rate: chance of the last block to be left out for an image; it rises linearly from 0 at the first.
        attn_drop_rate: dropout of attention weights.
        proj_drop_rate: dropout after the linear layers of a block.
        padding: when a map is filled up to whole windows, at its lower right: ``after_shift`` as in timm, or
            ``before_shift`` as in the release for dense prediction, where the shift moves the added zeros, too; only of
            the first version.  Both are the same where windows divide the map.
    """

    drop_path_rate: float = 0.1
    attn_drop_rate: float = 0.0
    proj_drop_rate: float = 0.0
    padding: Literal["after_shift", "before_shift"] = "after_shift"


class SwinEncoder(TimmEncoder):
    """A timm Swin Transformer without its classifier and the normalization before it; see `TimmEncoder`.

    Its models are those of timm's modules ``swin_transformer`` and ``swin_transformer_v2``.  The windows are those of
    the image size in the name; any other image size is padded to whole windows.  Every second block shifts its windows:
    the classification networks leave that out where one window covers the whole map, which it no longer does in larger
    images.  The output of a stage is not normalized.
    """

    stem_modules = ("patch_embed",)
    stage_modules = ("layers.0", "layers.1", "layers.2", "layers.3")
    dropped = ("norm",)

    def adapt(self, options: SwinOptions) -> None:
        """Take images of any size, and shift the windows of every second block."""
        self.padding = options.padding
        if self.padding == "before_shift" and self.name.startswith("swinv2"):
            raise UsageError(f"encoder '{self.name}' cannot pad before the shift; expected padding='after_shift'")
        patches: Any = self.get_submodule("patch_embed")
        patches.dynamic_img_pad = True
        for index in range(self.num_stages):
            blocks: Any = self.get_submodule(f"{self.stage_modules[index]}.blocks")
            for block in blocks[1::2]:
                block.shift_size = tuple(side // 2 for side in block.window_size)

    def network_options(self, options: SwinOptions) -> dict[str, Any]:
        """Let attention masks follow the image size."""
        rates = {key: value for key, value in super().network_options(options).items() if key != "padding"}
        return {**rates, "strict_img_size": False}

    def stem(self, image: Tensor) -> State:
        """Return the patch embedding at 1/4 of the image (B, in_chans, H, W)."""
        x_BHWC: Tensor = self.get_submodule("patch_embed")(image)
        return (x_BHWC.permute(0, 3, 1, 2),)

    def stage(self, index: int, state: State) -> State:
        """Run stage ``index`` (0 .. 3)."""
        x_BHWC = state[0].permute(0, 2, 3, 1)
        layer: Any = self.get_submodule(self.stage_modules[index])
        if self.padding == "before_shift":
            x_BHWC = run_padded_blocks(layer.blocks, layer.downsample(x_BHWC))
        else:
            x_BHWC = layer(x_BHWC)
        return (x_BHWC.permute(0, 3, 1, 2),)


TIMM_MODULES: dict[str, EncoderEntry] = {
    "swin_transformer": EncoderEntry(SwinEncoder, SwinOptions, weights="timm"),
    "swin_transformer_v2": EncoderEntry(SwinEncoder, SwinOptions, weights="timm"),
}
