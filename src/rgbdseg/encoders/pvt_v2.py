"""Pyramid Vision Transformers, version 2, of timm as staged encoders.

Wang et al., PVT v2: Improved Baselines with Pyramid Vision Transformer, Computational Visual Media 2022,
arXiv 2106.13797.
"""

from __future__ import annotations

import dataclasses

from torch import Tensor

from rgbdseg.encoders._base import EncoderEntry, State
from rgbdseg.encoders._timm import TimmEncoder


@dataclasses.dataclass(frozen=True)
class PVTv2Options:
    """Options of a PVT v2, all of training.

    Args:
        drop_path_rate: chance of the last block to be left out for an image; it rises linearly from 0 at the first.
        attn_drop_rate: dropout of attention weights.
        proj_drop_rate: dropout after the linear layers of a block.
    """

    drop_path_rate: float = 0.0
    attn_drop_rate: float = 0.0
    proj_drop_rate: float = 0.0


class PVTv2Encoder(TimmEncoder):
    """A timm PVT v2 without its classifier; see `TimmEncoder`.

    Its models are those of timm's module ``pvt_v2``.  Any image of 32 by 32 pixels or more will do.
    """

    stem_modules = ("patch_embed",)

    def stem(self, image: Tensor) -> State:
        """Return the patch embedding at 1/4 of the image (B, in_chans, H, W)."""
        x: Tensor = self.get_submodule("patch_embed")(image)
        return (x.permute(0, 3, 1, 2),)

    def stage(self, index: int, state: State) -> State:
        """Run stage ``index`` (0 .. 3)."""
        # The stages after the first begin with a convolution; the first one takes the channels last.
        return super().stage(index, state if index else (state[0].permute(0, 2, 3, 1),))


TIMM_MODULES: dict[str, EncoderEntry] = {"pvt_v2": EncoderEntry(PVTv2Encoder, PVTv2Options, weights="timm")}
