"""The LightHam decoder: a non-negative matrix factorization of the joined features as global context.

Geng, Guo, Chen, Li, Wei, Lin, Is Attention Better Than Matrix Decomposition?, ICLR 2021, arXiv 2109.04553
("Hamburger"); in the light form of Guo et al., SegNeXt, NeurIPS 2022, arXiv 2209.08575, with the settings of DFormer's
release.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from rgbdseg.errors import UsageError
from rgbdseg.nn.blocks import at_least_float32, without_autocast
from rgbdseg.nn.decoders._base import Decoder, DecoderEntry, FeatureInfo
from rgbdseg.nn.resize import resize_half_pixel

# B batch, C channels, H height, W width, P pixels = H * W, R bases

_EPSILON = 1e-6
_SEED = 0  # of the bases in evaluation


class MatrixFactorization(nn.Module):
    """Replaces a map X (C x P), not negative, by a product of bases (C x R) and coefficients (R x P) close to it.

    Multiplicative updates (Lee, Seung, 1999) from random bases, which keep both factors from being negative.  Gradients
    flow through all of them.

    Bases are drawn anew in every training step.  In evaluation they are always the same, so that an image has one
    prediction, whatever it is batched with; the released code draws new ones there, too.

    Args:
        channels: C.
        bases: R.
        train_steps: updates of coefficients and bases in training; one more update of the coefficients follows.
        eval_steps: the same in evaluation.
        redraw: False uses the bases of evaluation in training, too.
    """

    fixed_bases: Tensor | None
    """Bases (B or 1, C, R) to start from in place of drawn ones, with columns of length 1; None draws them."""

    def __init__(
        self, channels: int, bases: int = 64, train_steps: int = 6, eval_steps: int = 7, *, redraw: bool = True
    ) -> None:
        super().__init__()
        self.train_steps, self.eval_steps = train_steps, eval_steps
        self.redraw = redraw
        self.fixed_bases = None
        self.register_buffer("evaluation_bases", torch.empty(channels, bases), persistent=False)
        self.evaluation_bases: Tensor
        drawn = torch.rand(channels, bases, generator=torch.Generator().manual_seed(_SEED), device="cpu")
        self.evaluation_bases.copy_(functional.normalize(drawn, dim=0))

    def first_bases(self, x_BCP: Tensor) -> Tensor:
        """Return the bases (B, C, R) that the updates start from."""
        if self.fixed_bases is not None:
            return self.fixed_bases.to(x_BCP).expand(x_BCP.shape[0], -1, -1)
        fixed = self.evaluation_bases.to(x_BCP.dtype)
        if self.training and self.redraw:
            drawn = torch.rand(x_BCP.shape[0], *fixed.shape, dtype=x_BCP.dtype, device=x_BCP.device)
            return functional.normalize(drawn, dim=1)
        return fixed.expand(x_BCP.shape[0], -1, -1)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """Return the product (B, C, H, W), computed in float32 or better."""
        with without_autocast(x_BCHW):
            x = at_least_float32(x_BCHW).flatten(2)
            bases = self.first_bases(x)
            coefficients_BPR = torch.matmul(x.mT, bases).softmax(dim=-1)
            for _ in range(self.train_steps if self.training else self.eval_steps):
                coefficients_BPR = _updated(coefficients_BPR, x.mT, bases)
                bases = _updated(bases, x, coefficients_BPR)
            coefficients_BPR = _updated(coefficients_BPR, x.mT, bases)
            return torch.matmul(bases, coefficients_BPR.mT).view_as(x_BCHW)


def _updated(factor: Tensor, x: Tensor, other: Tensor) -> Tensor:
    """Return a ``factor`` that brings its product with ``other`` nearer to ``x``."""
    return factor * torch.matmul(x, other) / (torch.matmul(factor, torch.matmul(other.mT, other)) + _EPSILON)


@dataclasses.dataclass(frozen=True)
class LightHamOptions:
    """Options of the decoder.

    Args:
        width: channels after the factorization, that the classifier sees.
        factor_width: channels of the joined features and of the factorization.
        bases: number of bases.
        redraw_bases: draw new bases in every training step, as published.
        dropout: probability of a channel before the classifier to be dropped in training.
        norm_eps: of the batch norms; 1e-3 as DFormer sets it for training and evaluation.
    """

    width: int = 512
    factor_width: int = 512
    bases: int = 64
    redraw_bases: bool = True
    dropout: float = 0.1
    norm_eps: float = 1e-3

    def __post_init__(self) -> None:
        for name in ("width", "factor_width", "bases"):
            if getattr(self, name) < 1:
                raise UsageError(f"decoder option {name} is {getattr(self, name)}; expected at least 1")


class LightHamDecoder(Decoder):
    """All features but the first, joined at the size of the second, plus their factorization, then a classifier.

    Args:
        features: of the encoder, at least two.
        num_classes: number of classes.
        options: see `LightHamOptions`.

    Raises:
        UsageError: for a single feature.
    """

    align_corners = False

    def __init__(self, features: FeatureInfo, num_classes: int, options: LightHamOptions) -> None:
        super().__init__()
        if len(features.channels) < 2:
            raise UsageError("the decoder light_ham joins the features after the first one, but there is only one")
        inner = options.factor_width
        self.squeeze = nn.Conv2d(sum(features.channels[1:]), inner, 1, bias=False)
        self.squeeze_norm = nn.BatchNorm2d(inner, eps=options.norm_eps)
        self.enter = nn.Conv2d(inner, inner, 1)
        self.factorization = MatrixFactorization(inner, options.bases, redraw=options.redraw_bases)
        self.leave = nn.Conv2d(inner, inner, 1, bias=False)
        self.leave_norm = nn.BatchNorm2d(inner, eps=options.norm_eps)
        self.align = nn.Conv2d(inner, options.width, 1, bias=False)
        self.align_norm = nn.BatchNorm2d(options.width, eps=options.norm_eps)
        self.dropout = nn.Dropout2d(options.dropout)
        self.classifier = nn.Conv2d(options.width, num_classes, 1)

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        """Return logits (B, classes, h, w) at the size of the second feature."""
        size = (features[1].shape[-2], features[1].shape[-1])
        joined = torch.cat([features[1], *(resize_half_pixel(feature, size) for feature in features[2:])], dim=1)
        x = functional.relu(self.squeeze_norm(self.squeeze(joined)))
        context = self.factorization(functional.relu(self.enter(x)))
        x = functional.relu(x + self.leave_norm(self.leave(context)))
        x = functional.relu(self.align_norm(self.align(x)))
        logits: Tensor = self.classifier(self.dropout(x))
        return logits


RELEASED_PREFIXES = {
    "decoder.squeeze.": "decode_head.squeeze.conv.",
    "decoder.squeeze_norm.": "decode_head.squeeze.bn.",
    "decoder.enter.": "decode_head.hamburger.ham_in.conv.",
    "decoder.leave.": "decode_head.hamburger.ham_out.conv.",
    "decoder.leave_norm.": "decode_head.hamburger.ham_out.bn.",
    "decoder.align.": "decode_head.align.conv.",
    "decoder.align_norm.": "decode_head.align.bn.",
    "decoder.classifier.": "decode_head.conv_seg.",
}
"""From the names of a model with this decoder to those in DFormer's checkpoints."""

DECODERS: dict[str, DecoderEntry] = {"light_ham": DecoderEntry(LightHamDecoder, LightHamOptions)}
