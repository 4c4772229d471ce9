"""Mix Transformers (MiT), the encoders of SegFormer: overlapping patches, attention with reduced keys and values.

Xie et al., SegFormer: Simple and Efficient Design for Semantic Segmentation with Transformers, NeurIPS 2021,
arXiv 2105.15203.  Published code and weights: github.com/NVlabs/SegFormer (NVIDIA source code license,
non-commercial).  Submodules have the names of that release, so that its weights fit; `segformer_names` reads the
layout of the transformers library, too.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from rgbdseg.encoders._base import EncoderEntry, StagedEncoder, State
from rgbdseg.errors import UsageError
from rgbdseg.nn.blocks import DropPath
from rgbdseg.nn.tokens import merge_heads, split_heads, to_map, to_tokens

# B batch, C channels, H height, W width, N tokens = H * W, M tokens of keys and values, h heads, c channels per head

HEADS = (1, 2, 5, 8)
REDUCTION_RATIOS = (8, 4, 2, 1)
MLP_RATIO = 4

Beside = Callable[[Tensor], Tensor]
"""Called with the queries (B, N, C) of a block's attention; returns what is added to the attention's output."""


class OverlapPatchEmbedding(nn.Module):
    """A strided convolution whose patches overlap, and a layer norm: (B, in_channels, H, W) to tokens at 1/stride.

    Args:
        in_channels: of the map or image.
        channels: C of the tokens.
        patch_size: side of the kernel, odd.
        stride: sizes that it does not divide are rounded up.
        eps: of the layer norm.
    """

    def __init__(self, in_channels: int, channels: int, patch_size: int, stride: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.proj = nn.Conv2d(in_channels, channels, patch_size, stride, padding=patch_size // 2)
        self.norm = nn.LayerNorm(channels, eps=eps)

    def forward(self, x_BCHW: Tensor) -> tuple[Tensor, tuple[int, int]]:
        """Return the tokens (B, N, C) and the (height, width) of their map."""
        x_BCHW = self.proj(x_BCHW)
        return self.norm(to_tokens(x_BCHW)), (x_BCHW.shape[-2], x_BCHW.shape[-1])


class ReducedAttention(nn.Module):
    """Multi-head self-attention whose keys and values come from a map that is ``ratio`` times smaller.

    Where the ratio does not divide the map, its last rows and columns give no keys and values.

    Args:
        channels: C.
        heads: number of heads.
        ratio: kernel and stride of the reduction; 1 for none.
        eps: of the layer norm after the reduction.
    """

    def __init__(self, channels: int, heads: int, ratio: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.heads = heads
        self.ratio = ratio
        self.q = nn.Linear(channels, channels)
        self.kv = nn.Linear(channels, 2 * channels)
        self.proj = nn.Linear(channels, channels)
        if ratio > 1:
            self.sr = nn.Conv2d(channels, channels, ratio, ratio)
            self.norm = nn.LayerNorm(channels, eps=eps)

    def forward(self, x_BNC: Tensor, size: tuple[int, int], beside: Beside | None = None) -> Tensor:
        """Return the attention's output (B, N, C) for tokens of a map of ``size``, with that of ``beside`` added."""
        queries_BNC = self.q(x_BNC)
        reduced_BMC = self.norm(to_tokens(self.sr(to_map(x_BNC, size)))) if self.ratio > 1 else x_BNC
        keys_BMC, values_BMC = self.kv(reduced_BMC).chunk(2, dim=-1)
        query, key, value = (split_heads(t, self.heads) for t in (queries_BNC, keys_BMC, values_BMC))
        output: Tensor = self.proj(merge_heads(functional.scaled_dot_product_attention(query, key, value)))
        return output if beside is None else output + beside(queries_BNC)


class DepthwiseConv(nn.Module):
    """A 3x3 convolution within each channel, on tokens."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.dwconv = nn.Conv2d(channels, channels, 3, padding=1, groups=channels)

    def forward(self, x_BNC: Tensor, size: tuple[int, int]) -> Tensor:
        """Return tokens (B, N, C) of a map of ``size``."""
        return to_tokens(self.dwconv(to_map(x_BNC, size)))


class MixFeedForward(nn.Module):
    """Linear, depthwise 3x3 convolution, GELU, linear; the convolution tells tokens where they are."""

    def __init__(self, channels: int, hidden_channels: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(channels, hidden_channels)
        self.dwconv = DepthwiseConv(hidden_channels)
        self.fc2 = nn.Linear(hidden_channels, channels)

    def forward(self, x_BNC: Tensor, size: tuple[int, int]) -> Tensor:
        """Return tokens (B, N, C) of a map of ``size``."""
        mixed: Tensor = self.fc2(functional.gelu(self.dwconv(self.fc1(x_BNC), size)))
        return mixed


class MiTBlock(nn.Module):
    """x := x + attention(norm1 x), then x := x + mix_ffn(norm2 x); in training each sum may leave out its new part.

    Args:
        channels: C.
        heads: number of heads, which divides C.
        ratio: kernel and stride of the reduction of keys and values; 1 for none.
        options: ``norm_eps`` and ``embedding_norm_eps`` are used.
        drop_path: chance to leave out a new part for an image, from 0 to below 1.
    """

    def __init__(self, channels: int, heads: int, ratio: int, options: MiTOptions, drop_path: float) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(channels, eps=options.norm_eps)
        self.attn = ReducedAttention(channels, heads, ratio, options.embedding_norm_eps)
        self.drop_path = DropPath(drop_path)
        self.norm2 = nn.LayerNorm(channels, eps=options.norm_eps)
        self.mlp = MixFeedForward(channels, MLP_RATIO * channels)

    def forward(self, x_BNC: Tensor, size: tuple[int, int], beside: Beside | None = None) -> Tensor:
        """Return tokens (B, N, C) of a map of ``size``; ``beside``: see `ReducedAttention`."""
        x_BNC = x_BNC + self.drop_path(self.attn(self.norm1(x_BNC), size, beside))
        return x_BNC + self.drop_path(self.mlp(self.norm2(x_BNC), size))


@dataclasses.dataclass(frozen=True)
class MiTOptions:
    """Options of a Mix Transformer.

    Args:
        drop_path_rate: in training, the chance of the last block to be left out for an image; it rises linearly from 0
            at the first block.  SegFormer's ImageNet and segmentation runs have 0.1.
        norm_eps: of the layer norms of blocks and after stages.
        embedding_norm_eps: of the layer norms in patch embeddings and in the reduction of keys and values.
    """

    drop_path_rate: float = 0.1
    norm_eps: float = 1e-6
    embedding_norm_eps: float = 1e-5

    def __post_init__(self) -> None:
        if not 0 <= self.drop_path_rate < 1:
            raise UsageError(f"drop_path_rate is {self.drop_path_rate}; expected 0 to below 1")


class MixTransformer(StagedEncoder):
    """A Mix Transformer without its classifier; the state after a stage is its normalized map.

    Args:
        name: in the registry, such as ``mit_b2``.
        channels: C of each stage.
        depths: blocks of each stage.
        in_chans: channels of the image.
        options: see `MiTOptions`.
    """

    num_stages = 4
    reductions = (4, 8, 16, 32)
    input_conv = "patch_embed1.proj"
    classifier = "head"
    dropped = ("decode_head",)

    def __init__(
        self, name: str, channels: Sequence[int], depths: Sequence[int], in_chans: int, options: MiTOptions
    ) -> None:
        super().__init__()
        self.name = name
        self.in_chans = in_chans
        self.channels = tuple(channels)
        self.depths = tuple(depths)
        self.drop_path_rate = options.drop_path_rate
        rates = torch.linspace(0, options.drop_path_rate, sum(depths), device="cpu").tolist()
        eps = options.embedding_norm_eps
        for index, (width, depth) in enumerate(zip(channels, depths, strict=True)):
            embedding = (
                OverlapPatchEmbedding(channels[index - 1], width, 3, 2, eps)
                if index
                else OverlapPatchEmbedding(in_chans, width, 7, 4, eps)
            )
            first = sum(depths[:index])
            blocks = nn.ModuleList(
                MiTBlock(width, HEADS[index], REDUCTION_RATIOS[index], options, rate)
                for rate in rates[first : first + depth]
            )
            self.add_module(f"patch_embed{index + 1}", embedding)
            self.add_module(f"block{index + 1}", blocks)
            self.add_module(f"norm{index + 1}", nn.LayerNorm(width, eps=options.norm_eps))
        init_segformer(self)

    def embed(self, index: int, x_BCHW: Tensor) -> tuple[Tensor, tuple[int, int]]:
        """Return the tokens (B, N, C) that stage ``index`` begins with, and the (height, width) of their map.

        Args:
            x_BCHW: the image for stage 0, the normalized map of the stage before for others.
        """
        tokens, size = self.get_submodule(f"patch_embed{index + 1}")(x_BCHW)
        return tokens, size

    def blocks(self, index: int) -> tuple[MiTBlock, ...]:
        """Return the blocks of stage ``index``."""
        blocks: Any = self.get_submodule(f"block{index + 1}")
        return tuple(blocks)

    def norm(self, index: int, x_BNC: Tensor) -> Tensor:
        """Return the tokens after the last block of stage ``index``, normalized."""
        normalized: Tensor = self.get_submodule(f"norm{index + 1}")(x_BNC)
        return normalized

    def stem(self, image: Tensor) -> State:
        """Return the first patch embedding, at 1/4 of the image (B, in_chans, H, W)."""
        return (to_map(*self.embed(0, image)),)

    def stage(self, index: int, state: State) -> State:
        """Run stage ``index`` (0 .. 3) and return its normalized map."""
        (x_BCHW,) = state
        size = (x_BCHW.shape[-2], x_BCHW.shape[-1])
        tokens, size = self.embed(index, x_BCHW) if index else (to_tokens(x_BCHW), size)
        for block in self.blocks(index):
            tokens = block(tokens, size)
        return (to_map(self.norm(index, tokens), size),)

    def stage_name(self, index: int) -> str:
        """Return the name of the blocks of stage ``index``."""
        return f"block{index + 1}"

    def set_drop_path(self, rates: Sequence[float]) -> None:
        """Set the chance of every block, in order, to be left out in training."""
        blocks = [block for index in range(self.num_stages) for block in self.blocks(index)]
        for block, rate in zip(blocks, rates, strict=True):
            block.drop_path.drop_prob = rate

    def rename_weights(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return weights of any layout that `segformer_names` knows, by the names of this encoder."""
        return segformer_names(state)


def init_segformer(module: nn.Module, *, per_group: bool = True) -> None:
    """Initialize as SegFormer does.

    Weights of linear layers: normal of standard deviation 0.02.  Weights of convolutions: normal with variance
    2 / fan-out.  Biases: 0.

    Args:
        module: whose layers are initialized.
        per_group: the fan-out of a convolution is counted within a group; CMNeXt counts that of all groups.
    """
    for child in module.modules():
        if isinstance(child, nn.Linear):
            nn.init.trunc_normal_(child.weight, std=0.02)
        elif isinstance(child, nn.Conv2d):
            fan_out = math.prod(child.kernel_size) * child.out_channels // (child.groups if per_group else 1)
            nn.init.normal_(child.weight, std=math.sqrt(2 / fan_out))
        else:
            continue
        if child.bias is not None:
            nn.init.zeros_(child.bias)


_TRANSFORMERS_NAMES: tuple[tuple[str, Callable[[re.Match[str]], str]], ...] = (
    (r"^segformer\.encoder\.", lambda m: ""),
    (r"^patch_embeddings\.(\d)\.", lambda m: f"patch_embed{int(m[1]) + 1}."),
    (r"^block\.(\d)\.", lambda m: f"block{int(m[1]) + 1}."),
    (r"^layer_norm\.(\d)\.", lambda m: f"norm{int(m[1]) + 1}."),
    (r"\.layer_norm_(\d)\.", lambda m: f".norm{m[1]}."),
    (r"\.layer_norm\.", lambda m: ".norm."),
    (r"\.attention\.self\.query\.", lambda m: ".attn.q."),
    (r"\.attention\.output\.dense\.", lambda m: ".attn.proj."),
    (r"\.attention\.self\.", lambda m: ".attn."),
    (r"\.dense([12])\.", lambda m: f".fc{m[1]}."),
    (r"^classifier\.", lambda m: "head."),
)


def segformer_names(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return weights by the names of the SegFormer release's ImageNet files (``patch_embed1.proj.weight``, ...).

    Args:
        state: weights in that layout; in that of its segmentation files, where encoder names begin with ``backbone.``
            and the others with ``decode_head.``; or in that of the transformers library, such as ``nvidia/mit-b2`` on
            the Hugging Face hub, where names begin with ``segformer.encoder.`` and keys and values are two matrices.

    Returns:
        dict: what is no weight of the encoder is under ``head.`` or ``decode_head.``; names of another layout are
        left as they are.
    """
    if not any(name.startswith("segformer.encoder.") for name in state):
        return {name.removeprefix("backbone."): value for name, value in state.items()}
    renamed: dict[str, Tensor] = {}
    for name, value in state.items():
        for pattern, replacement in _TRANSFORMERS_NAMES:
            name = re.sub(pattern, replacement, name)  # noqa: PLW2901
        renamed[name] = value
    for name in [name for name in renamed if ".attn.key." in name and name.replace(".key.", ".value.") in renamed]:
        key, value = renamed.pop(name), renamed.pop(name.replace(".key.", ".value."))
        renamed[name.replace(".key.", ".kv.")] = torch.cat([key, value])
    return renamed


SHAPES: dict[str, tuple[tuple[int, ...], tuple[int, ...]]] = {
    "mit_b0": ((32, 64, 160, 256), (2, 2, 2, 2)),
    "mit_b1": ((64, 128, 320, 512), (2, 2, 2, 2)),
    "mit_b2": ((64, 128, 320, 512), (3, 4, 6, 3)),
    "mit_b3": ((64, 128, 320, 512), (3, 4, 18, 3)),
    "mit_b4": ((64, 128, 320, 512), (3, 8, 27, 3)),
    "mit_b5": ((64, 128, 320, 512), (3, 6, 40, 3)),
}
"""Channels and depths of each stage."""


def build_mit(name: str, in_chans: int, options: MiTOptions) -> MixTransformer:
    """Build one of `SHAPES` with random weights."""
    channels, depths = SHAPES[name]
    return MixTransformer(name, channels, depths, in_chans, options)


def _weights(name: str) -> str:
    return f"https://huggingface.co/nvidia/{name.replace('_', '-')} (NVIDIA source code license, non-commercial)"


ENCODERS: dict[str, EncoderEntry] = {
    "mit_b0": EncoderEntry(build_mit, MiTOptions, weights=_weights("mit_b0")),
    "mit_b1": EncoderEntry(build_mit, MiTOptions, weights=_weights("mit_b1")),
    "mit_b2": EncoderEntry(build_mit, MiTOptions, weights=_weights("mit_b2")),
    "mit_b3": EncoderEntry(build_mit, MiTOptions, weights=_weights("mit_b3")),
    "mit_b4": EncoderEntry(build_mit, MiTOptions, weights=_weights("mit_b4")),
    "mit_b5": EncoderEntry(build_mit, MiTOptions, weights=_weights("mit_b5")),
}
