"""DPLNet: a frozen RGB segmentation transformer learns to read depth through prompts.

Paper: Dong, Feng, Yang, Huang, Liu, Fan, Efficient Multimodal Semantic Segmentation via Dual-Prompt Learning,
IROS 2024, arXiv 2312.00360.
Published code: github.com/ShaohuaDong2021/DPLNet (no license; its encoder and the frozen weights, SegFormer-B5 trained
on ADE20K, carry NVIDIA's non-commercial license).

`dplnet_mit_b5` is the released network.  Its published weights have 41 channels, of which the first one is for pixels
without a label: build it with ``num_classes=41``, or with 40 and ``unlabeled_channel=True`` for logits of the others.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional

from rgbdseg.encoders import create_encoder
from rgbdseg.encoders.mit import MixTransformer, OverlapPatchEmbedding, init_segformer
from rgbdseg.errors import UsageError
from rgbdseg.input_spec import InputSpec, rgb_stream
from rgbdseg.models._base import SegmentationModel, SegmentationOutput, check_widths
from rgbdseg.models._card import MethodCard, PublishedResult
from rgbdseg.models._layout import Layout, replace_prefix
from rgbdseg.models._modalities import depth_picture
from rgbdseg.models._registry import Variant
from rgbdseg.nn.decoders.mlp import MLPDecoder, MLPDecoderOptions
from rgbdseg.nn.resize import cut_to
from rgbdseg.nn.tokens import merge_heads, split_heads, to_map

# B batch, C channels, H height, W width, N tokens = H * W, P prompts

PROMPTS = 30
PROMPT_CHANNELS = 32
REDUCTION = 32
"""Channels of the encoder divided by channels of the prompt attention."""

_CARD = MethodCard(
    method="DPLNet",
    year=2024,
    paper="IROS 2024, arXiv 2312.00360",
    input="RGB + depth as a gray picture",
    code="github.com/ShaohuaDong2021/DPLNet (no license; starts from SegFormer-B5 trained on ADE20K, NVIDIA source "
    "code license, non-commercial)",
    results=(
        PublishedResult("NYU Depth V2, 40", "dplnet_mit_b5", 58.3, "single scale, best epoch on the test set"),
        PublishedResult("NYU Depth V2, 40", "dplnet_mit_b5", 59.3, "5 scales, flip, best epoch on the test set"),
        PublishedResult("SUN RGB-D, 37", "dplnet_mit_b5", 52.1, "single scale"),
        PublishedResult("SUN RGB-D, 37", "dplnet_mit_b5", 52.8, "5 scales, flip"),
    ),
    exact="network, initialization, frozen parts and drop path of the released code; published numbers ignore labeled "
    "pixels that are predicted as unlabeled",
    ours="MiT-B0 with a decoder of 128, logits without the unlabeled channel, depth stretched to a picture frame by "
    "frame",
)


class PromptGenerator(nn.Module):
    """The prompt of a stage: what depth and RGB say together, p = L(L_depth e + L_rgb t), through a quarter of C."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.reduce_depth = nn.Linear(channels, channels // 4)
        self.reduce_rgb = nn.Linear(channels, channels // 4)
        self.restore = nn.Linear(channels // 4, channels)

    def forward(self, depth_BNC: Tensor, rgb_BNC: Tensor) -> Tensor:
        """Return the prompt (B, N, C)."""
        prompt: Tensor = self.restore(self.reduce_depth(depth_BNC) + self.reduce_rgb(rgb_BNC))
        return prompt


class PromptAttention(nn.Module):
    """Attention of a block's queries to learned prompts, in C / 32 channels, beside the block's own attention.

    The products are scaled as those of the block's heads are, though the heads here have 1/32 of the channels.

    Args:
        channels: C.
        heads: of the block.
        eps: of the layer norm of the prompts.
    """

    def __init__(self, channels: int, heads: int, eps: float = 1e-6) -> None:
        super().__init__()
        self.heads = heads
        self.scale = (channels / heads) ** -0.5
        self.norm = nn.LayerNorm(PROMPT_CHANNELS, eps=eps)
        self.lift = nn.Linear(PROMPT_CHANNELS, 2 * channels)
        self.query = nn.Linear(channels, channels // REDUCTION)
        self.key = nn.Linear(channels, channels // REDUCTION)
        self.value = nn.Linear(channels, channels // REDUCTION)
        self.project = nn.Linear(channels // REDUCTION, channels)

    def forward(self, queries_BNC: Tensor, prompts_1PC: Tensor) -> Tensor:
        """Return what is added to the output of the block's attention (B, N, C).

        Args:
            queries_BNC: the block's own queries.
            prompts_1PC: the learned prompts, which all blocks share.
        """
        key, value = self.lift(self.norm(prompts_1PC)).chunk(2, dim=-1)
        query, key, value = (
            split_heads(part, self.heads) for part in (self.query(queries_BNC), self.key(key), self.value(value))
        )
        key, value = (part.expand(query.shape[0], -1, -1, -1) for part in (key, value))
        read = functional.scaled_dot_product_attention(query, key, value, scale=self.scale)
        added: Tensor = self.project(merge_heads(read))
        return added


class PromptedStage(nn.Module):
    """All that is learned within one stage of the frozen encoder.

    Args:
        in_channels: of the map or image of depth that the stage reads.
        channels: C of the stage.
        heads: of its blocks.
        depth: number of its blocks.
        first: whether it reads an image.
    """

    def __init__(self, in_channels: int, channels: int, heads: int, depth: int, *, first: bool) -> None:
        super().__init__()
        self.embed = OverlapPatchEmbedding(in_channels, channels, *((7, 4) if first else (3, 2)))
        self.generate = PromptGenerator(channels)
        self.attentions = nn.ModuleList(PromptAttention(channels, heads) for _ in range(depth))

    def beside(self, prompts_1PC: Tensor) -> list[Callable[[Tensor], Tensor]]:
        """Return for each block what it adds to its attention, a function of its queries."""
        return [partial(attention, prompts_1PC=prompts_1PC) for attention in self.attentions]


class DPLNet(SegmentationModel):
    """A frozen Mix Transformer with prompts from depth before every stage and learned ones in every block.

    Args:
        num_classes: number of classes.
        encoder: ``mit_b0`` to ``mit_b5``.
        decoder_channels: width of the all-MLP decoder.
        decoder_outputs: of the decoder, from which a last 1x1 convolution makes the classes.
        drop_path_rate: of the last block, though it is frozen.
        unlabeled_channel: the network also has a first channel for pixels without a label, as the published weights
            have; it is left out of the logits.
        freeze_encoder: whether only prompts and decoder learn, as published.

    Raises:
        UsageError: for other encoders.
    """

    card = _CARD
    ends_enlarging = False
    backbone_prefixes = ("encoder.", "stages.", "prompts")

    def __init__(
        self,
        num_classes: int,
        encoder: str = "mit_b5",
        *,
        decoder_channels: int = 768,
        decoder_outputs: int = 150,
        drop_path_rate: float = 0.1,
        unlabeled_channel: bool = False,
        freeze_encoder: bool = True,
    ) -> None:
        check_widths(decoder_channels=decoder_channels, decoder_outputs=decoder_outputs)
        built = create_encoder(encoder, drop_path_rate=drop_path_rate) if encoder.startswith("mit_") else None
        if not isinstance(built, MixTransformer):
            raise UsageError(
                f"DPLNet adds prompts to the blocks of a Mix Transformer, mit_b0 to mit_b5, not '{encoder}'"
            )
        super().__init__(num_classes, InputSpec((rgb_stream(built.mean, built.std), depth_picture(0.449, 0.226))))
        self.encoder = built
        self.encoder.requires_grad_(not freeze_encoder)
        self.stages = nn.ModuleList(
            PromptedStage(
                built.channels[index - 1] if index else 3,
                channels,
                built.blocks(index)[0].attn.heads,
                built.depths[index],
                first=index == 0,
            )
            for index, channels in enumerate(built.channels)
        )
        head = MLPDecoderOptions(channels=decoder_channels, dropout=0.5)
        self.decoder = MLPDecoder(built.feature_info, decoder_outputs, head)
        nn.init.kaiming_normal_(self.decoder.mix.weight, mode="fan_out", nonlinearity="relu")
        self.unlabeled_channel = unlabeled_channel
        self.classifier = nn.Conv2d(decoder_outputs, num_classes + unlabeled_channel, 1)
        for stage in self.stages:
            assert isinstance(stage, PromptedStage)
            init_segformer(stage.embed)
            init_segformer(stage.attentions)
        self.prompts = nn.Parameter(torch.randn(1, PROMPTS, PROMPT_CHANNELS))

    def encoder_streams(self) -> Iterator[tuple[str, nn.Module]]:
        """Yield the frozen encoder, which takes the weights of a SegFormer."""
        yield "rgb", self.encoder

    def encode(self, images: Mapping[str, Tensor]) -> list[Tensor]:
        """Return the features (B, C_i, H_i, W_i), finest first."""
        rgb, depth = self.check_images(images)
        features = []
        for index, stage in enumerate(self.stages):
            assert isinstance(stage, PromptedStage)
            tokens, size = self.encoder.embed(index, rgb)
            prompt = stage.generate(stage.embed(depth)[0], tokens)
            tokens = tokens + prompt
            for block, beside in zip(self.encoder.blocks(index), stage.beside(self.prompts), strict=True):
                tokens = block(tokens, size, beside)
            rgb, depth = to_map(self.encoder.norm(index, tokens), size), to_map(prompt, size)
            features.append(rgb)
        return features

    def forward(self, images: Mapping[str, Tensor], camera: Tensor | None = None) -> SegmentationOutput:
        """Return logits (B, classes, H, W); see `SegmentationModel.forward`."""
        # Published is the enlarged map of the decoder, then the classifier: a 1x1 convolution commutes with resizing.
        logits = self.classifier(self.decoder(self.encode(images)))
        if self.unlabeled_channel:
            logits = logits[:, 1:]
        logits = self.decoder.upsample(logits, (4 * logits.shape[-2], 4 * logits.shape[-1]))
        image = images["rgb"]
        return SegmentationOutput(cut_to(logits, (image.shape[-2], image.shape[-1])))


_ATTENTION_NAMES = {
    "norm.": "norm_prompt.",
    "lift.": "attn.kv_prompt.",
    "query.": "attn.q_prompt.",
    "key.": "attn.k_prompt.",
    "value.": "attn.v_prompt.",
    "project.": "attn.proj_prompt.",
}


def released_name(name: str) -> str:
    """Return the name in the released checkpoints of an entry of our state dict."""
    if name == "prompts":
        return "learnable_prompt"
    if name.startswith("decoder.embeddings."):
        _, _, index, leaf = name.split(".")
        return f"head.linear_c{int(index) + 1}.proj.{leaf}"
    if not name.startswith("stages."):
        names = {
            "encoder.": "rgb.",
            "decoder.mix.": "head.linear_fuse.conv.",
            "decoder.norm.": "head.linear_fuse.bn.",
            "decoder.classifier.": "head.linear_pred.",
            "classifier.": "conv1.",
        }
        return replace_prefix(name, names)
    _, index, part = name.split(".", 2)
    stage = int(index) + 1
    if part.startswith("attentions."):
        _, block, leaf = part.split(".", 2)
        return f"rgb.block{stage}.{block}.{replace_prefix(leaf, _ATTENTION_NAMES)}"
    names = {
        "embed.": f"patch_embed{stage}.",
        "generate.reduce_depth.": f"ada{stage}.conv0_0.",
        "generate.reduce_rgb.": f"ada{stage}.conv0_1.",
        "generate.restore.": f"ada{stage}.conv.",
    }
    return replace_prefix(part, names)


DPLNet.layout = Layout(released_name, unused=(r"rgb\.head\.",))

VARIANTS = {
    "dplnet": Variant(DPLNet, note="on any Mix Transformer"),
    "dplnet_mit_b0": Variant(
        DPLNet,
        {"encoder": "mit_b0", "decoder_channels": 128, "decoder_outputs": 64},
        note="a small one for CPUs",
        small=True,
        tiny={"decoder_channels": 16, "decoder_outputs": 16, "drop_path_rate": 0.0},
    ),
    "dplnet_mit_b5": Variant(
        DPLNet,
        {"encoder": "mit_b5"},
        note="as released: 88,589,279 parameters with 41 classes, of which 7,146,271 learn",
    ),
}
