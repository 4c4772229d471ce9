"""Pyramid Vision Transformers, version 2, of timm as staged encoders.

Wang et al., PVT v2: Improved Baselines with Pyramid Vision Transformer, Computational Visual Media 2022,
arXiv 2106.13797.
"""

from __future__ import annotations

from torch import Tensor

from rgbdseg.encoders._timm import TimmEncoder


class PVTv2Encoder(TimmEncoder):
    """A timm PVT v2 without its classifier; see `TimmEncoder`.

    name: timm model of the module ``pvt_v2``.  Any image of 32 by 32 pixels or more will do.
    """

    stem_modules = ("patch_embed",)

    def stem(self, image: Tensor) -> Tensor:
        """Return the patch embedding at 1/4 of the image (B, in_chans, H, W)."""
        x: Tensor = self.get_submodule("patch_embed")(image)
        return x.permute(0, 3, 1, 2)

    def stage(self, index: int, state: Tensor) -> Tensor:
        """Run stage ``index`` (0 .. 3)."""
        # The stages after the first begin with a convolution; the first one takes the channels last.
        return super().stage(index, state if index else state.permute(0, 2, 3, 1))
