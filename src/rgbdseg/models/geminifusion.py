"""GeminiFusion: two streams through one transformer, fused pixel by pixel in every block.

Paper: Jia, Guo, Han, Wu, Zhang, Xu, Chen, GeminiFusion: Efficient Pixel-wise Multimodal Fusion for Vision Transformer,
ICML 2024, arXiv 2406.01210.
Published code and weights: github.com/JiaDingCN/GeminiFusion (MIT; its Mix Transformer is under NVIDIA's source code
license, non-commercial).

`geminifusion_mit_b3`, `_mit_b5` and the four Swin variants are the released networks.  What the paper does not say:

* with a Mix Transformer the fusion comes before the output projection of the attention, and all layer norms exist once
  for each stream; with a Swin Transformer it comes after the projection, and the norms of blocks are shared;
* windows of the Swin Transformer are neither reduced nor left unshifted on small maps, and maps are padded with zeros
  to whole windows, before the shift and without a mask;
* each stream has its own class scores, by the same decoder; the result is their mean with the weights softmax(alpha),
  which no loss and no optimizer ever changes, so that they stay 1/2;
* the batch norm of the decoder keeps its statistics while training, which a network starts with as mean 0 and
  variance 1: `freeze_batch_norm`.

The geometry image is divided by 255 and not normalized further.  On NYU Depth V2 the authors take the depth images of
their predecessor TokenFusion, which by its settings hold 1/5000 m per unit: what the network sees is about 20 times the
depth in meters.  On SUN RGB-D they take pictures of 8 bits.

Ours, published nowhere: all other encoders, and HHA, noise and pictures of other sensors as the second stream.
"""

from __future__ import annotations

from torch import nn

from rgbdseg.models._card import MethodCard, PublishedResult
from rgbdseg.models._paired import FUSION_KEYS, PairedModel, make_layout
from rgbdseg.models._registry import Variant
from rgbdseg.nn.pixel_fusion import PixelFusion

CARD = MethodCard(
    method="GeminiFusion",
    year=2024,
    paper="ICML 2024, arXiv 2406.01210",
    input="RGB + depth",
    code="github.com/JiaDingCN/GeminiFusion (MIT; Mix Transformer under NVIDIA's license), with trained weights",
    results=(
        PublishedResult("NYU Depth V2, 40", "geminifusion_mit_b3", 56.8, "single scale in the released code"),
        PublishedResult("NYU Depth V2, 40", "geminifusion_mit_b5", 57.7, "single scale in the released code"),
        PublishedResult("NYU Depth V2, 40", "geminifusion_swin_tiny", 52.2, "single scale"),
        PublishedResult("NYU Depth V2, 40", "geminifusion_swin_small", 55.0, "single scale"),
        PublishedResult("NYU Depth V2, 40", "geminifusion_swin_large", 58.8, "single scale"),
        PublishedResult("NYU Depth V2, 40", "geminifusion_swin_large_window12", 60.2, "single scale"),
        PublishedResult(
            "NYU Depth V2, 40", "geminifusion_swin_large_window12", 60.9, "single scale, first trained on SUN RGB-D"
        ),
        PublishedResult("SUN RGB-D, 37", "geminifusion_mit_b3", 52.7),
        PublishedResult("SUN RGB-D, 37", "geminifusion_mit_b5", 53.3),
        PublishedResult("SUN RGB-D, 37", "geminifusion_swin_tiny", 50.2, "single scale"),
        PublishedResult("SUN RGB-D, 37", "geminifusion_swin_large_window12", 54.8, "single scale"),
    ),
    exact="networks and initialization of the released code, with the encoders of its trained weights",
    ours="other encoders and second streams; logits enlarged bilinearly, where the released evaluation takes a bicubic "
    "filter; the unit of the depth images is inferred from the settings of the project that they come from",
)


class GeminiFusion(PairedModel):
    """Two streams through one encoder with a `PixelFusion` in every block; arguments as `PairedModel`."""

    card = CARD
    layout = make_layout(FUSION_KEYS)

    @staticmethod
    def make_fusion(channels: int, heads: int) -> nn.Module:
        """Return the fusion of a block of the encoder."""
        return PixelFusion(channels, heads)


VARIANTS = {
    "geminifusion": Variant(GeminiFusion, note="on any Mix or Swin Transformer"),
    "geminifusion_mit_b0": Variant(
        GeminiFusion,
        {"encoder": "mit_b0", "drop_path_rate": 0.0},
        note="a small one for CPUs",
        small=True,
        tiny={"decoder_channels": 16},
    ),
    "geminifusion_mit_b3": Variant(GeminiFusion, {"encoder": "mit_b3"}, note="74,551,274 parameters with 40 classes"),
    "geminifusion_mit_b5": Variant(
        GeminiFusion, {"encoder": "mit_b5", "drop_path_rate": 0.35}, note="137,209,322 parameters with 40 classes"
    ),
    "geminifusion_swin_tiny": Variant(
        GeminiFusion,
        {"encoder": "swin_tiny_patch4_window7_224", "drop_path_rate": 0.2},
        note="51,950,180 parameters with 40 classes",
    ),
    "geminifusion_swin_small": Variant(
        GeminiFusion, {"encoder": "swin_small_patch4_window7_224"}, note="92,796,788 parameters with 40 classes"
    ),
    "geminifusion_swin_large": Variant(
        GeminiFusion, {"encoder": "swin_large_patch4_window7_224"}, note="369,012,926 parameters with 40 classes"
    ),
    "geminifusion_swin_large_window12": Variant(
        GeminiFusion,
        {"encoder": "swin_large_patch4_window12_384", "drop_path_rate": 0.2},
        note="369,215,966 parameters with 40 classes",
    ),
}
