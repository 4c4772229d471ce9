"""EoMT: queries that join the tokens of a plain transformer, each to become a mask and a class.

Kerssies et al., Your ViT is Secretly an Image Segmentation Model, CVPR 2025, arXiv 2503.19108.  Published code:
github.com/tue-mps/eomt (MIT).  Not a decoder of `rgbdseg.nn.decoders`: the queries run through the encoder's last
blocks, so the model that owns both runs them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from timm.layers.norm import LayerNorm2d
from torch import Tensor, nn

from rgbdseg.errors import UsageError
from rgbdseg.nn.blocks import at_least_float32
from rgbdseg.nn.resize import cut_to, resize_half_pixel

# B batch, C channels of a token, Q queries, P tokens between queries and patches, N tokens, K classes
# h w patch grid, m n size of a mask, H W size of the image

ANNEALING_POWER = 0.9
Grid = tuple[int, int]


class QueryPrediction(NamedTuple):
    """What queries predict.

    Args:
        mask_logits: (B, Q, m, n).
        class_logits: (B, Q, K + 1), the last one of "no object".
    """

    mask_logits: Tensor
    class_logits: Tensor


class UpscaleBlock(nn.Sequential):
    """Transposed convolution to twice the size, GELU, depth-wise 3x3 convolution, normalization over channels."""

    def __init__(self, channels: int) -> None:
        super().__init__(
            nn.ConvTranspose2d(channels, channels, 2, stride=2),
            nn.GELU(),
            nn.Conv2d(channels, channels, 3, padding=1, groups=channels, bias=False),
            LayerNorm2d(channels),
        )


class EoMTHead(nn.Module):
    """The queries and what is predicted from them.

    Args:
        channels: of a token.
        patch_size: of the encoder, in pixels; masks have cells of a quarter of it and less: 1/4 of the image for 16.
        num_classes: number of classes.
        queries: Q.
        blocks: how many of the encoder's last blocks the queries run through.
    """

    def __init__(self, channels: int, patch_size: int, num_classes: int, queries: int, blocks: int) -> None:
        super().__init__()
        self.blocks = blocks
        self.patch_size = patch_size
        self.queries = nn.Embedding(queries, channels)
        self.class_head = nn.Linear(channels, num_classes + 1)
        self.mask_head = nn.Sequential(
            nn.Linear(channels, channels),
            nn.GELU(),
            nn.Linear(channels, channels),
            nn.GELU(),
            nn.Linear(channels, channels),
        )
        doublings = max(1, int(math.log2(patch_size)) - 2)
        self.upscale = nn.Sequential(*(UpscaleBlock(channels) for _ in range(doublings)))
        self.mask_shares: Tensor
        self.register_buffer("mask_shares", torch.ones(blocks))

    def join(self, tokens_BNC: Tensor) -> Tensor:
        """Return the tokens with the queries before them."""
        queries = self.queries.weight.expand(tokens_BNC.shape[0], -1, -1)
        return torch.cat([queries.to(tokens_BNC.dtype), tokens_BNC], dim=1)

    def forward(self, normed_BNC: Tensor, grid: Grid) -> QueryPrediction:
        """Return what normalized tokens, queries first and the patches of ``grid`` last, predict."""
        queries = normed_BNC[:, : self.queries.num_embeddings]
        patches = normed_BNC[:, normed_BNC.shape[1] - grid[0] * grid[1] :]
        pixels = self.upscale(patches.transpose(1, 2).unflatten(2, grid))
        masks = torch.einsum("bqc,bcmn->bqmn", self.mask_head(queries), pixels)
        return QueryPrediction(masks, self.class_head(queries))

    def allowed_patches(self, mask_logits: Tensor, grid: Grid) -> Tensor:
        """Return which patches each query may attend to (B, Q, h * w): those where its mask logit is above 0."""
        return resize_half_pixel(mask_logits, grid).flatten(2) > 0

    def attention_mask(self, mask_logits: Tensor, grid: Grid, tokens: int, block: int) -> Tensor:
        """Return which tokens each token may attend to, bool (B, 1, N, N).

        Queries are confined to the patches of their mask; they see all queries and what stands before the patches, and
        all other tokens see everything.  A mask is kept with the probability ``mask_shares[block]``, drawn for each
        query and image.

        Args:
            mask_logits: of the prediction just before the block.
            grid: of the patches.
            tokens: N.
            block: counted from the first one with queries.
        """
        batch, queries = mask_logits.shape[:2]
        dropped = torch.rand(batch, queries, 1, device=mask_logits.device) >= self.mask_shares[block]
        patches = self.allowed_patches(mask_logits, grid) | dropped
        before = patches.new_ones(batch, queries, tokens - patches.shape[2])
        others = patches.new_ones(batch, tokens - queries, tokens)
        return torch.cat([torch.cat([before, patches], dim=2), others], dim=1).unsqueeze(1)

    def class_scores(self, prediction: QueryPrediction, size: tuple[int, int]) -> Tensor:
        """Return the logarithm of sum(sigmoid(mask) * probability of the class) over the queries (B, K, H, W).

        In training it is taken at the size of the masks and enlarged, for it is only looked at: the queries have losses
        of their own.  The grid of patches may reach beyond the image at the bottom and at the right.
        """
        masks, classes = at_least_float32(prediction.mask_logits), at_least_float32(prediction.class_logits)
        classes = classes.softmax(dim=-1)[..., :-1]
        whole = tuple(side // 2 ** len(self.upscale) * self.patch_size for side in masks.shape[-2:])
        if not self.training:
            masks = resize_half_pixel(masks, (whole[0], whole[1]))
        scores = torch.einsum("bqmn,bqk->bkmn", masks.sigmoid(), classes)
        scores = scores.clamp(min=torch.finfo(scores.dtype).tiny).log()
        if self.training:
            scores = resize_half_pixel(scores, (whole[0], whole[1]))
        return cut_to(scores, size)

    @torch.no_grad()
    def anneal(self, step: int, intervals: Sequence[tuple[int, int]]) -> None:
        """Set the share of masks that is kept in each block after ``step`` optimizer steps.

        Args:
            intervals: for each block with queries the steps from and to which its share falls from 1 to 0.

        Raises:
            UsageError: for another number of intervals.
        """
        if len(intervals) != self.blocks:
            raise UsageError(f"{len(intervals)} intervals to anneal masks in; expected {self.blocks}, one per block")
        shares = [mask_share(step, start, end) for start, end in intervals]
        self.mask_shares.copy_(torch.tensor(shares, dtype=self.mask_shares.dtype))


def mask_share(step: int, start: int, end: int) -> float:
    """Return 1 before ``start``, 0 from ``end`` on, and (1 - progress) ** 0.9 between."""
    if step < start:
        return 1.0
    if step >= end:
        return 0.0
    return (1 - (step - start) / (end - start)) ** ANNEALING_POWER


def as_logit_bias(allowed: Tensor, bias: Tensor) -> Tensor:
    """Return ``bias`` on attention logits with minus infinity where a token may not be attended to."""
    return torch.where(allowed, bias, float("-inf"))
