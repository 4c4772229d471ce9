"""One network that answers whether depth helps a strong RGB encoder: the same head, with depth added in several ways.

Encoder: a plain transformer that learned without labels, DINOv2 (Oquab et al., arXiv 2304.07193) or DINOv3 (Siméoni et
al., arXiv 2508.10104), trained, frozen or with narrow updates; or, for depth that is injected, any staged encoder.
Heads: a light convolutional pyramid (``dpt`` and all other decoders), or EoMT: queries that run through the encoder's
last blocks and become masks with classes (Kerssies et al., CVPR 2025, arXiv 2503.19108; github.com/tue-mps/eomt, MIT).
Depth: none; injected by a small encoder of its own; the geometry prior of DFormerv2 (CVPR 2025, arXiv 2504.04701) on
attention; the prompts of DPLNet (IROS 2024, arXiv 2312.00360).  All of them leave the RGB network unchanged at first.

Exact: the head, the attention masks and the class scores of EoMT, for plain transformers of timm.  In evaluation masks
are not used, as in the published networks, whose masks have been annealed away.
Ours: everything with depth; DFormerv2 and DPLNet have networks of their own, where their parts are exact.  Logits are
the logarithms of EoMT's scores, so that softmax gives these back as shares; windows are averaged as published where an
evaluation adds exponentials (``combination="sagate"``).  Sizes that are no multiple of the patch size are padded.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from rgbdseg.encoders import StagedEncoder, create_encoder
from rgbdseg.encoders._probe import stem_channels, stem_reduction
from rgbdseg.encoders.dino import Grid, ViTEncoder
from rgbdseg.errors import UsageError
from rgbdseg.input_spec import InputSpec, Stream, rgb_stream
from rgbdseg.models._base import AuxiliaryOutput, SegmentationModel, SegmentationOutput, check_widths
from rgbdseg.models._card import MethodCard, PublishedResult
from rgbdseg.models._depth_input import DepthStatistics, MissingDepth, SecondStream, depth_stream
from rgbdseg.models._layout import Layout, replace_prefix
from rgbdseg.models._registry import Variant
from rgbdseg.nn.decoders import Decoder, create_decoder
from rgbdseg.nn.decoders.eomt import EoMTHead, QueryPrediction, as_logit_bias
from rgbdseg.nn.depth_guides import DepthGuide, DepthInjection, DepthPrompts, GeometryPrior, Place
from rgbdseg.nn.init import init_head
from rgbdseg.options import check_choice

# B batch, C channels, N tokens, H height, W width

Depth = Literal["none", "inject", "geometry_prior", "prompts"]
"""How depth guides the encoder; ``none`` is the RGB twin."""
QUERY_BLOCKS = {12: 3, 24: 4, 40: 5}
"""Blocks that EoMT's queries run through, by the number of blocks of the encoder, as published."""

_CARD = MethodCard(
    method="DINO with depth",
    year=2025,
    paper="ours; encoders arXiv 2304.07193 and 2508.10104, queries CVPR 2025, arXiv 2503.19108",
    input="RGB + depth",
    code="queries: github.com/tue-mps/eomt (MIT), with trained weights for RGB; DINOv3 weights have their own license",
    results=(
        PublishedResult("ADE20K, 150", "dinodepth_vitl16_dinov2_eomt", 58.4, "RGB; windows of 512x512, averaged"),
        PublishedResult("ADE20K, 150", "dinodepth_vitl16_dinov3_eomt", 59.5, "RGB; windows of 512x512, averaged"),
        PublishedResult(
            "Cityscapes validation, 19", "dinodepth_vitl16_dinov2_eomt", 84.2, "RGB; windows of 1024x1024, averaged"
        ),
    ),
    exact="EoMT's queries, masks, scores and annealing on timm's transformers",
    ours="everything with depth, the convolutional head, narrow updates, sizes beside multiples of the patch",
)

_PREFIXES = {
    "encoder.": "encoder.backbone.",
    "decoder.queries.": "q.",
    "decoder.class_head.": "class_head.",
    "decoder.mask_head.": "mask_head.",
    "decoder.upscale.": "upscale.",
    "decoder.mask_shares": "attn_mask_probs",
}
_UPSCALE = {"0": "conv1", "2": "conv2", "3": "norm"}


def _published_name(name: str) -> str:
    name = replace_prefix(name, _PREFIXES)
    return re.sub(r"^(upscale\.\d+\.)(\d)", lambda found: found[1] + _UPSCALE[found[2]], name)


EOMT_LAYOUT = Layout(
    _published_name,
    # The published network normalizes its input itself.
    unused=(r"(network\.)?encoder\.pixel_(mean|std)$", r"(criterion|metrics)\."),
    spelling=lambda published: published.removeprefix("network."),
)


class DinoDepth(SegmentationModel):
    """An RGB encoder, a guide that brings depth in, and a head.

    Args:
        num_classes: number of classes.
        encoder: name of a plain transformer; with depth ``none`` or ``inject`` and another decoder than ``eomt`` of any
            staged encoder.
        depth: see `Depth`.
        decoder: ``eomt``, or a name of `rgbdseg.nn.decoders.list_decoders`.
        second_stream: what depth is read from; ``noise`` is the control without geometry.
        depth_statistics: see `DepthStatistics`.
        missing_depth: see `MissingDepth`.
        inject_before: stages, counted from 0, before which depth is injected; None: all.
        depth_channels: of the small depth encoder, at half resolution.
        queries: number of EoMT's queries.
        query_blocks: blocks that they run through; None: as published, see ``QUERY_BLOCKS``, or 3.
        masked_attention: confine queries to their masks in training, and supervise the masks before each of these
            blocks, too.
        mask_annealing: for each of these blocks the optimizer steps from and to which its masks are given up; None
            keeps them.
        encoder_options: of the encoder, such as ``trainable`` or ``levels``.
        decoder_options: of the decoder, if it is not ``eomt``.

    Raises:
        UsageError: for values that do not fit.
    """

    card = _CARD
    backbone_prefixes = ("encoder.",)
    no_decay_names = ("cls_token", "reg_token", "pos_embed", "gamma", "gamma_1", "gamma_2", "prompt", "weights")

    def __init__(
        self,
        num_classes: int,
        encoder: str = "vit_small_patch16_dinov3",
        *,
        depth: Depth = "inject",
        decoder: str = "dpt",
        second_stream: SecondStream = "depth",
        depth_statistics: DepthStatistics = "nyuv2",
        missing_depth: MissingDepth = "mean",
        inject_before: Sequence[int] | None = None,
        depth_channels: int = 32,
        queries: int = 100,
        query_blocks: int | None = None,
        masked_attention: bool = True,
        mask_annealing: Sequence[tuple[int, int]] | None = None,
        encoder_options: Mapping[str, Any] | None = None,
        decoder_options: Mapping[str, Any] | None = None,
    ) -> None:
        check_choice("depth", depth, Depth)
        check_widths(depth_channels=depth_channels, queries=queries, query_blocks=query_blocks)
        built = create_encoder(encoder, **(encoder_options or {}))
        streams: tuple[Stream, ...] = (rgb_stream(built.mean, built.std),)
        if depth != "none":
            streams += (depth_stream(second_stream, depth_statistics, missing_depth),)
        super().__init__(num_classes, InputSpec(streams, size_divisor=built.size_divisor))
        self.encoder = built
        self.guide = _make_guide(depth, built, streams[-1].channels, inject_before, depth_channels)
        self.masked_attention = masked_attention
        self.mask_annealing = mask_annealing
        self.decoder: EoMTHead | Decoder
        if decoder == "eomt":
            self.decoder = _make_queries(built, num_classes, queries, query_blocks, decoder_options)
            self.after_optimizer_step(0)
            self.layout = EOMT_LAYOUT if depth == "none" else None
        else:
            self.decoder = create_decoder(decoder, built.feature_info, num_classes, **(decoder_options or {}))
            init_head(self.decoder)

    def forward(self, images: Mapping[str, Tensor], camera: Tensor | None = None) -> SegmentationOutput:
        """Return logits (B, classes, H, W); with ``eomt``, in training, also what the queries predict.

        These are pairs of ``masks`` (B, Q, m, n) and ``queries`` (B, Q, classes + 1), numbered from the first
        prediction on: ``masks0``, ``queries0``, ``masks1`` ...

        Args:
            images: ``rgb`` (B, 3, H, W) and, unless depth is ``none``, the second stream.
            camera: not used.

        Raises:
            UsageError: for an image that is absent or does not fit.
        """
        rgb, *second = self.check_images(images)
        depth = second[0] if second else rgb
        size = (rgb.shape[-2], rgb.shape[-1])
        if isinstance(self.decoder, EoMTHead):
            predictions = self.predict_queries(rgb, depth, masked=self.training and self.masked_attention)
            auxiliary = _auxiliary(predictions) if self.training else ()
            return SegmentationOutput(self.decoder.class_scores(predictions[-1], size), auxiliary)
        return SegmentationOutput(self.decoder.upsample(self.decoder(self.encode(rgb, depth)), size))

    def encode(self, rgb: Tensor, depth: Tensor) -> list[Tensor]:
        """Return the features that a decoder sees, finest first: (B, C_i, H_i, W_i)."""
        if isinstance(self.encoder, ViTEncoder):
            tokens, grid, _ = self._run_blocks(self.encoder, rgb, depth)
            return self.encoder.collect([self.encoder.to_state(stage, grid) for stage in tokens])
        state = self.encoder.stem(rgb)
        memory = self.guide.start(depth, (state[0].shape[-2], state[0].shape[-1]))
        states = []
        for index in range(self.encoder.num_stages):
            guided, memory = self.guide.before_stage(index, state[0], memory)
            state = self.encoder.stage(index, (guided, *state[1:]))
            states.append(state)
        return self.encoder.collect(states)

    def predict_queries(self, rgb: Tensor, depth: Tensor, *, masked: bool) -> list[QueryPrediction]:
        """Return the predictions of EoMT's queries: with masks before each block with queries, and after the last.

        Raises:
            UsageError: for a model without queries.
        """
        if not isinstance(self.decoder, EoMTHead) or not isinstance(self.encoder, ViTEncoder):
            raise UsageError("this model predicts without queries; build it with decoder='eomt'")
        tokens, grid, predictions = self._run_blocks(self.encoder, rgb, depth, self.decoder, masked)
        return [*predictions, self.decoder(self.encoder.norm(tokens[-1]), grid)]

    def after_optimizer_step(self, step: int) -> None:
        """Give up attention masks as ``mask_annealing`` says, after ``step`` steps of the optimizer."""
        if self.mask_annealing is not None and isinstance(self.decoder, EoMTHead):
            self.decoder.anneal(step, self.mask_annealing)

    def _run_blocks(
        self, encoder: ViTEncoder, rgb: Tensor, depth: Tensor, head: EoMTHead | None = None, masked: bool = False
    ) -> tuple[list[Tensor], Grid, list[QueryPrediction]]:
        """Return the tokens after each stage, the grid of patches, and what queries predicted before their blocks."""
        tokens, grid = encoder.embed(rgb)
        patches = grid[0] * grid[1]
        memory = self.guide.start(depth, grid)
        after_stages: list[Tensor] = []
        predictions: list[QueryPrediction] = []
        first_with_queries = len(encoder.blocks) - (head.blocks if head is not None else 0)
        for stage in range(encoder.num_stages):
            tokens, memory = self._before_stage(stage, tokens, grid, memory)
            for block in encoder.stage_blocks(stage):
                if head is not None and block == first_with_queries:
                    tokens = head.join(tokens)
                mask = self.guide.attention_bias(block, memory, tokens.shape[1] - patches)
                if head is not None and masked and block >= first_with_queries:
                    predictions.append(head(encoder.norm(tokens), grid))
                    allowed = head.attention_mask(
                        predictions[-1].mask_logits, grid, tokens.shape[1], block - first_with_queries
                    )
                    mask = allowed if mask is None else as_logit_bias(allowed, mask)
                tokens = encoder.run_block(block, tokens, grid, mask, self.guide.attention_branch(block))
            after_stages.append(tokens)
        return after_stages, grid, predictions

    def _before_stage(
        self, stage: int, tokens_BNC: Tensor, grid: Grid, memory: tuple[Tensor, ...]
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Let the guide change the patches, which are the last tokens."""
        before = tokens_BNC.shape[1] - grid[0] * grid[1]
        patch_map = tokens_BNC[:, before:].transpose(1, 2).unflatten(2, grid)
        guided, memory = self.guide.before_stage(stage, patch_map, memory)
        if guided is patch_map:
            return tokens_BNC, memory
        return torch.cat([tokens_BNC[:, :before], guided.flatten(2).transpose(1, 2)], dim=1), memory


def _make_guide(
    depth: Depth, encoder: StagedEncoder, in_chans: int, inject_before: Sequence[int] | None, width: int
) -> DepthGuide:
    if depth == "none":
        return DepthGuide()
    if depth == "inject":
        return DepthInjection(in_chans, _places(encoder, inject_before), width)
    vit = _plain_transformer(encoder, f"depth '{depth}'")
    if depth == "geometry_prior":
        return GeometryPrior(vit.num_heads, len(vit.blocks))
    return DepthPrompts(
        in_chans, vit.width, vit.patch_size, heads=vit.num_heads, stages=vit.num_stages, blocks=len(vit.blocks)
    )


def _places(encoder: StagedEncoder, inject_before: Sequence[int] | None) -> list[Place | None]:
    """Return the map before each stage, or None for stages before which nothing is injected."""
    widths = (stem_channels(encoder)[0], *(encoder.state_channels(i)[0] for i in range(encoder.num_stages - 1)))
    reductions = (stem_reduction(encoder), *encoder.reductions[:-1])
    chosen = range(encoder.num_stages) if inject_before is None else inject_before
    if not chosen or not all(0 <= index < encoder.num_stages for index in chosen):
        raise UsageError(
            f"inject_before is {list(chosen)}; expected one or more of the stages 0 to {encoder.num_stages - 1}"
        )
    places = zip(widths, reductions, strict=True)
    return [Place(*place) if index in chosen else None for index, place in enumerate(places)]


def _make_queries(
    encoder: StagedEncoder, num_classes: int, queries: int, blocks: int | None, options: Mapping[str, Any] | None
) -> EoMTHead:
    if options:
        raise UsageError(f"decoder_options are {dict(options)}, but 'eomt' has none")
    vit = _plain_transformer(encoder, "decoder 'eomt'")
    blocks = blocks or QUERY_BLOCKS.get(len(vit.blocks), 3)
    if blocks > len(vit.blocks):
        raise UsageError(f"query_blocks is {blocks}, but the encoder has {len(vit.blocks)} blocks")
    vit.expect_tokens(queries, len(vit.blocks) - blocks)
    return EoMTHead(vit.width, vit.patch_size, num_classes, queries, blocks)


def _plain_transformer(encoder: StagedEncoder, what: str) -> ViTEncoder:
    if not isinstance(encoder, ViTEncoder):
        raise UsageError(
            f"{what} needs a plain transformer, such as 'vit_small_patch16_dinov3'; got encoder '{encoder.name}'"
        )
    return encoder


def _auxiliary(predictions: Sequence[QueryPrediction]) -> tuple[AuxiliaryOutput, ...]:
    pairs = [
        (
            AuxiliaryOutput(f"masks{index}", "query_masks", prediction.mask_logits),
            AuxiliaryOutput(f"queries{index}", "query_classes", prediction.class_logits),
        )
        for index, prediction in enumerate(predictions)
    ]
    return tuple(output for pair in pairs for output in pair)


VARIANTS = {
    "dinodepth": Variant(DinoDepth, note="on any plain transformer; injected depth on any staged encoder"),
    "dinodepth_vits16_dinov3": Variant(
        DinoDepth, {"encoder": "vit_small_patch16_dinov3"}, note="DINOv3 small, convolutional head"
    ),
    "dinodepth_vitb16_dinov3": Variant(
        DinoDepth, {"encoder": "vit_base_patch16_dinov3"}, note="DINOv3 base, convolutional head"
    ),
    "dinodepth_vits14_dinov2": Variant(
        DinoDepth, {"encoder": "vit_small_patch14_reg4_dinov2"}, note="DINOv2 small with registers, convolutional head"
    ),
    "dinodepth_vitb14_dinov2": Variant(
        DinoDepth, {"encoder": "vit_base_patch14_reg4_dinov2"}, note="DINOv2 base with registers, convolutional head"
    ),
    "dinodepth_vits16_dinov3_eomt": Variant(
        DinoDepth, {"encoder": "vit_small_patch16_dinov3", "decoder": "eomt"}, note="DINOv3 small, queries"
    ),
    "dinodepth_vitb16_dinov3_eomt": Variant(
        DinoDepth, {"encoder": "vit_base_patch16_dinov3", "decoder": "eomt"}, note="DINOv3 base, queries"
    ),
    "dinodepth_vitl16_dinov3_eomt": Variant(
        DinoDepth,
        {"encoder": "vit_large_patch16_dinov3", "decoder": "eomt", "depth": "none"},
        note="DINOv3 large, queries, RGB only; published weights are differences to DINOv3 in names of their own",
    ),
    "dinodepth_vitl16_dinov2_eomt": Variant(
        DinoDepth,
        {
            "encoder": "vit_large_patch14_reg4_dinov2",
            "decoder": "eomt",
            "depth": "none",
            "encoder_options": {"patch_size": 16, "image_size": (512, 512)},
        },
        note="EoMT as published, RGB only",
    ),
    "dinodepth_vit_pico": Variant(
        DinoDepth,
        {"encoder": "vit_pico_patch16_dinov3", "depth_channels": 8, "decoder_options": {"channels": 32}},
        note="for CPUs: a tiny transformer without published weights",
        small=True,
        tiny={"depth_channels": 4, "decoder_options": {"channels": 8}, "encoder_options": {"levels": (1, 2, 3)}},
    ),
}
