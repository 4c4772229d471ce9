"""Swin Transformers of timm, both versions, as staged encoders.

Liu et al., Swin Transformer: Hierarchical Vision Transformer using Shifted Windows, ICCV 2021, arXiv 2103.14030;
Swin Transformer V2, CVPR 2022, arXiv 2111.09883.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from rgbdseg.encoders._timm import TimmEncoder


class SwinEncoder(TimmEncoder):
    """A timm Swin Transformer without its classifier and the normalisation before it; see `TimmEncoder`.

    name: timm model of the module ``swin_transformer`` or ``swin_transformer_v2``.  The windows are those of the image
    size in the name; any other image size is padded to whole windows.  Every second block shifts its windows: the
    classification networks leave that out where one window covers the whole map, which it no longer does in larger
    images.  The output of a stage is not normalised.
    """

    stem_modules = ("patch_embed",)
    stage_modules = ("layers.0", "layers.1", "layers.2", "layers.3")
    dropped = ("norm",)

    def adapt(self, dilations: Sequence[int] | None) -> None:
        """Take images of any size, and shift the windows of every second block."""
        patches: Any = self.get_submodule("patch_embed")
        patches.dynamic_img_pad = True
        for index in range(self.num_stages):
            blocks: Any = self.get_submodule(f"{self.stage_modules[index]}.blocks")
            for block in blocks[1::2]:
                block.shift_size = tuple(side // 2 for side in block.window_size)

    def network_options(self, output_stride: int) -> dict[str, Any]:
        """Let attention masks follow the image size."""
        return {"strict_img_size": False}

    def stem(self, image: Tensor) -> Tensor:
        """Return the patch embedding at 1/4 of the image (B, in_chans, H, W)."""
        return _channels_first(self.get_submodule("patch_embed")(image))

    def stage(self, index: int, state: Tensor) -> Tensor:
        """Run stage ``index`` (0 .. 3)."""
        return _channels_first(super().stage(index, state.permute(0, 2, 3, 1)))


def _channels_first(x_BHWC: Tensor) -> Tensor:
    return x_BHWC.permute(0, 3, 1, 2)
