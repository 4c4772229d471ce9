"""DiffPixelFormer: GeminiFusion with differences of the streams in the attention of pixels, as the paper has it.

Paper: Gong, Lu, Gao, Zhao, Zhang, Rahardja, DiffPixelFormer: Differential Pixel-Aware Transformer for RGB-D Indoor
Scene Segmentation, arXiv 2511.13047.
Published code: github.com/gongyan1/DiffPixelFormer (MIT; its Mix Transformer is under NVIDIA's source code license,
non-commercial); no trained weights.

In the paper the key of a pixel is a mixture of its own vector with noise, with a function of the difference to the
other stream, and with a score of how the two are related.  In the released code, on which the published numbers and
checkpoints rest, each softmax of that attention runs over a single key: its weight is 1 whatever the key is.  What
remains is a linear map of the sum of both streams, `DifferentialPixelFusion`.  Queries, keys, the networks of
difference and relation, the noise of keys and the mixture's weights never reach an output or get a gradient; they are
kept as frozen parameters, so that checkpoints fit and counts agree, and no prediction passes through them.

`diffpixelformer_mit_b3` and `_mit_b5` are the released networks.  The published third size, with a Swin Transformer,
has the count of parameters of `geminifusion_swin_large_window12`, to which the released code adds nothing.
Everything else, and what is ours, is as in `rgbdseg.models.geminifusion`.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from rgbdseg.models._card import MethodCard, PublishedResult
from rgbdseg.models._paired import FUSION_KEYS, PairedModel, make_layout
from rgbdseg.models._registry import Variant
from rgbdseg.nn.blocks import halves
from rgbdseg.nn.pixel_fusion import PixelAttention, PixelFusion, PixelMLP, init_linear

# B batch of each stream, C channels; "..." are the pixels, as (N,) or (H, W)

CARD = MethodCard(
    method="DiffPixelFormer",
    year=2025,
    paper="arXiv 2511.13047",
    input="RGB + depth",
    code="github.com/gongyan1/DiffPixelFormer (MIT; Mix Transformer under NVIDIA's license); no trained weights",
    results=(
        PublishedResult("NYU Depth V2, 40", "diffpixelformer_mit_b3", 56.28, "single scale"),
        PublishedResult("NYU Depth V2, 40", "diffpixelformer_mit_b5", 58.71, "single scale"),
        PublishedResult("SUN RGB-D, 37", "diffpixelformer_mit_b3", 52.84, "single scale"),
        PublishedResult("SUN RGB-D, 37", "diffpixelformer_mit_b5", 53.69, "single scale"),
    ),
    exact="network and initialization of the released code, where the attention of pixels is a linear map",
    ours="other encoders and second streams; parameters that the released network never uses are frozen",
)


class SingleKeyAttention(PixelAttention):
    """An attention with one key, to which its whole weight of 1 goes: a linear map of the value."""

    def forward(self, value: Tensor) -> Tensor:  # type: ignore[override]
        """Return (B, ..., C)."""
        weight, bias = self.in_proj_weight.chunk(3)[2], self.in_proj_bias.chunk(3)[2]
        attended: Tensor = self.out_proj(functional.linear(value, weight, bias))
        return attended


class DifferentialPixelFusion(PixelFusion):
    """The fusion of a pixel's vectors a and b as the released code computes it, with noise n of a's stream:

        a := a + output(value(a + n + b))

    and the same for b, with linear maps of its own.

    Args:
        channels: C.
        heads: of the attention that this once was; without effect.
    """

    attention = SingleKeyAttention

    def __init__(self, channels: int, heads: int = 8) -> None:
        super().__init__(channels, heads)
        self.differences = nn.ModuleList(PixelMLP(channels, channels) for _ in range(2))
        self.key_shares = nn.ParameterList(torch.full((2,), 0.5) for _ in range(2))
        init_linear(self.differences)
        for unused in (self.relation, self.differences, self.key_shares):
            unused.requires_grad_(False)
        self.key_noise.requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        """Return (2B, ..., C) of both streams, one after the other along the batch."""
        first, second = halves(x)
        both = first + second
        return torch.cat(
            [
                own + attention(both + noise)
                for own, attention, noise in zip((first, second), self.attentions, self.value_noise, strict=True)
            ]
        )


class DiffPixelFormer(PairedModel):
    """GeminiFusion's network with a `DifferentialPixelFusion` in every block; arguments as `PairedModel`."""

    card = CARD
    layout = make_layout(
        {
            **FUSION_KEYS,
            "differences.0.": "diff_0_to_1.",
            "differences.1.": "diff_1_to_0.",
            "key_shares.0": "scale_factor_0_to_1",
            "key_shares.1": "scale_factor_1_to_0",
        }
    )

    @staticmethod
    def make_fusion(channels: int, heads: int) -> nn.Module:
        """Return the fusion of a block of the encoder."""
        return DifferentialPixelFusion(channels, heads)


VARIANTS = {
    "diffpixelformer": Variant(DiffPixelFormer, note="on any Mix or Swin Transformer"),
    "diffpixelformer_mit_b0": Variant(
        DiffPixelFormer,
        {"encoder": "mit_b0", "drop_path_rate": 0.0},
        note="a small one for CPUs",
        small=True,
        tiny={"decoder_channels": 16},
    ),
    "diffpixelformer_mit_b1": Variant(
        DiffPixelFormer, {"encoder": "mit_b1"}, note="25,289,482 parameters with 40 classes; numbers not published"
    ),
    "diffpixelformer_mit_b3": Variant(
        DiffPixelFormer,
        {"encoder": "mit_b3"},
        note="85,413,210 parameters with 40 classes, of which 55,535,082 have an effect",
    ),
    "diffpixelformer_mit_b5": Variant(
        DiffPixelFormer, {"encoder": "mit_b5", "drop_path_rate": 0.35}, note="157,242,810 parameters with 40 classes"
    ),
}
