"""Three ways in which depth can guide a network that was trained on color alone.

Each starts with no effect, so that the network is its RGB twin at first, and works with frozen, narrowly updated and
trained encoders alike.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from rgbdseg.errors import UsageError
from rgbdseg.nn.conv_norm import conv_norm_relu
from rgbdseg.nn.resize import resize_half_pixel

# B batch, C channels, H W size of the image, h w size of a map or patch grid, N tokens, A attention heads
# R channels of a prompt, L its length

Grid = tuple[int, int]
Branch = Callable[[Tensor, Tensor], Tensor]


class Place(NamedTuple):
    """Where a network is guided.

    Args:
        channels: of its map.
        reduction: the image's size divided by that of the map.
    """

    channels: int
    reduction: int


class DepthGuide(nn.Module):
    """What guides may do.  This one, the RGB twin, does nothing.

    What `start` returns is handed through the stages as ``memory``, a tuple of tensors.
    """

    def start(self, depth_BCHW: Tensor, grid: Grid) -> tuple[Tensor, ...]:
        """Return what is computed once per image; ``grid``: size of the first map."""
        return ()

    def before_stage(
        self, index: int, map_BChw: Tensor, memory: tuple[Tensor, ...]
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Return the map that stage ``index`` starts from, and the memory from there on."""
        return map_BChw, memory

    def attention_bias(self, block: int, memory: tuple[Tensor, ...], tokens_before: int) -> Tensor | None:
        """Return what is added to the logits of attention (B, A, N, N); ``tokens_before``: those that are no patch."""
        return None

    def attention_branch(self, block: int) -> Branch | None:
        """Return what is computed beside the attention of a block from its normalized tokens and its queries."""
        return None


class DepthInjection(DepthGuide):
    """A small convolutional encoder of depth, whose maps are added through projections that start at zero.

    The projections are those of Zhang, Rao, Agrawala, Adding Conditional Control to Text-to-Image Diffusion Models,
    ICCV 2023, arXiv 2302.05543.

    Args:
        in_chans: channels of the depth input.
        places: the map before each stage; None where nothing is added.
        width: channels at half resolution; they double with every halving, up to eight times as many.
    """

    def __init__(self, in_chans: int, places: Sequence[Place | None], width: int = 32) -> None:
        super().__init__()
        largest = max(place.reduction for place in places if place is not None)
        halvings = int(math.log2(largest))
        widths = [width * min(2**i, 8) for i in range(halvings)]
        self.halve = nn.ModuleList(
            _halving(before, after) for before, after in zip((in_chans, *widths), widths, strict=False)
        )
        self.levels = tuple(None if place is None else int(math.log2(place.reduction)) - 1 for place in places)
        self.refine, self.project = nn.ModuleDict(), nn.ModuleDict()
        for index, (place, level) in enumerate(zip(places, self.levels, strict=True)):
            if place is not None and level is not None:
                self.refine[str(index)] = conv_norm_relu(widths[level], widths[level])
                self.project[str(index)] = zero_conv(widths[level], place.channels)

    def start(self, depth_BCHW: Tensor, grid: Grid) -> tuple[Tensor, ...]:
        """Return the maps at 1/2, 1/4, ... of the image."""
        maps: list[Tensor] = []
        x = depth_BCHW
        for halve in self.halve:
            x = halve(x)
            maps.append(x)
        return tuple(maps)

    def before_stage(
        self, index: int, map_BChw: Tensor, memory: tuple[Tensor, ...]
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Add the projected depth to the map."""
        level = self.levels[index]
        if level is None:
            return map_BChw, memory
        size = (map_BChw.shape[-2], map_BChw.shape[-1])
        added = self.project[str(index)](self.refine[str(index)](memory[level]))
        if added.shape[-2:] != size:
            added = resize_half_pixel(added, size)
        return map_BChw + added, memory


class GeometryPrior(DepthGuide):
    """Attention that decays with the distance of patches, in the image and in depth.

    Yin, Cao, Cheng, Hou, DFormerv2, CVPR 2025, arXiv 2504.04701: to the logits of head n of A,
    decay_n (w_p D_p + w_z D_z) is added, with decay_n = ln(1 - 2^(-i - r n / A)), D_p = |dy| + |dx| in patches and
    D_z = |dz| in the unit of the input.  The weights w_p and w_z of every block are learned; they start at 0 here and
    at 1 there.  Tokens that are no patch neither decay nor are decayed.

    Args:
        heads: A.
        blocks: of the encoder.
        initial: i.
        spread: r.
    """

    def __init__(self, heads: int, blocks: int, initial: float = 2.0, spread: float = 4.0) -> None:
        super().__init__()
        share = torch.arange(heads) / heads
        self.decay: Tensor
        self.register_buffer("decay", torch.log1p(-(2 ** (-initial - spread * share))), persistent=False)
        self.weights = nn.Parameter(torch.zeros(blocks, 2))

    def start(self, depth_BCHW: Tensor, grid: Grid) -> tuple[Tensor, ...]:
        """Return D_p (N, N) and D_z (B, N, N) of the patches."""
        z = resize_half_pixel(depth_BCHW[:, :1], grid).flatten(1)
        rows, columns = (torch.arange(side, device=z.device, dtype=z.dtype) for side in grid)
        y, x = (axis.flatten() for axis in torch.meshgrid(rows, columns, indexing="ij"))
        return _differences(y) + _differences(x), _differences(z)

    def attention_bias(self, block: int, memory: tuple[Tensor, ...], tokens_before: int) -> Tensor | None:
        """Return the prior (B, A, N, N)."""
        in_image, in_depth = memory
        distance = self.weights[block, 0] * in_image + self.weights[block, 1] * in_depth
        bias = self.decay[:, None, None] * distance[:, None]
        return functional.pad(bias, (tokens_before, 0, tokens_before, 0))


class DepthPrompts(DepthGuide):
    """Prompts made of both modalities, and a learned prompt that every block attends to besides.

    Dong, Feng, Yang, Huang, Liu, Fan, DPLNet, IROS 2024, arXiv 2312.00360.  Before each stage the tokens t get a prompt
    p = U(D_e e + D_t t), where e is an embedding of the depth image, and later of the prompt before; in each block
    every token attends to a learned prompt of L vectors, with its ordinary query.  Ours: a plain transformer embeds
    patches once, so that the later embeddings are depth-wise 3x3 convolutions; U and the last layer of the adapters
    start at 0.

    Args:
        in_chans: channels of the depth input.
        channels: C of a token.
        patch_size: in pixels.
        heads: A.
        stages: number of stages.
        blocks: number of blocks.
        length: L.
        prompt_channels: R.

    Raises:
        UsageError: for heads that do not share C / R channels evenly.
    """

    def __init__(
        self,
        in_chans: int,
        channels: int,
        patch_size: int,
        *,
        heads: int,
        stages: int,
        blocks: int,
        length: int = 30,
        prompt_channels: int = 32,
    ) -> None:
        super().__init__()
        if channels % (prompt_channels * heads):
            raise UsageError(
                f"prompts take {channels} / {prompt_channels} channels of a token, which {heads} attention heads "
                "cannot share evenly; choose another encoder"
            )
        self.patch_size = patch_size
        self.embed = nn.ModuleList([nn.Conv2d(in_chans, channels, patch_size, stride=patch_size)])
        self.embed.extend(nn.Conv2d(channels, channels, 3, padding=1, groups=channels) for _ in range(stages - 1))
        self.norm = nn.ModuleList(nn.LayerNorm(channels) for _ in range(stages))
        self.from_depth = nn.ModuleList(nn.Linear(channels, channels // 4) for _ in range(stages))
        self.from_tokens = nn.ModuleList(nn.Linear(channels, channels // 4) for _ in range(stages))
        self.up = nn.ModuleList(zero_linear(channels // 4, channels) for _ in range(stages))
        self.prompt = nn.Parameter(torch.randn(1, length, prompt_channels) * 0.02)
        self.adapters = nn.ModuleList(PromptAdapter(channels, prompt_channels, heads) for _ in range(blocks))

    def start(self, depth_BCHW: Tensor, grid: Grid) -> tuple[Tensor, ...]:
        """Return the padded depth image, which the first stage embeds."""
        missing = [side * self.patch_size - have for side, have in zip(grid, depth_BCHW.shape[-2:], strict=True)]
        return (functional.pad(depth_BCHW, (0, missing[1], 0, missing[0])),)

    def before_stage(
        self, index: int, map_BChw: Tensor, memory: tuple[Tensor, ...]
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Return the map plus its prompt, and the prompt, which the next stage embeds."""
        (source,) = memory
        embedded = self.norm[index](self.embed[index](source).permute(0, 2, 3, 1))
        hidden = self.from_depth[index](embedded) + self.from_tokens[index](map_BChw.permute(0, 2, 3, 1))
        prompt = self.up[index](hidden).permute(0, 3, 1, 2)
        return map_BChw + prompt, (prompt,)

    def attention_branch(self, block: int) -> Branch | None:
        """Return the adapter of a block."""
        adapter = self.adapters[block]
        return lambda normed, queries: adapter(queries, self.prompt)


class PromptAdapter(nn.Module):
    """Every token attends to the vectors of a prompt, with few channels per head and the scale of ordinary heads."""

    def __init__(self, channels: int, prompt_channels: int, heads: int) -> None:
        super().__init__()
        narrow = channels // prompt_channels
        self.heads = heads
        self.scale = (channels // heads) ** -0.5
        self.norm = nn.LayerNorm(prompt_channels, eps=1e-6)
        self.key_value = nn.Linear(prompt_channels, 2 * channels)
        self.query, self.key, self.value = (nn.Linear(channels, narrow) for _ in range(3))
        self.out = zero_linear(narrow, channels)

    def forward(self, queries_BNC: Tensor, prompt_1LR: Tensor) -> Tensor:
        """Return what is added to the attention's output (B, N, C)."""
        key, value = self.key_value(self.norm(prompt_1LR)).chunk(2, dim=-1)
        query, key, value = (
            part.unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for part in (self.query(queries_BNC), self.key(key), self.value(value))
        )
        weights = (query @ key.transpose(-2, -1) * self.scale).softmax(dim=-1)
        added: Tensor = self.out((weights @ value).transpose(1, 2).flatten(2))
        return added


def zero_conv(in_channels: int, out_channels: int) -> nn.Conv2d:
    """Return a 1x1 convolution that gives 0 until it has learned."""
    layer = nn.Conv2d(in_channels, out_channels, 1)
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)  # type: ignore[arg-type]
    return layer


def zero_linear(in_features: int, out_features: int) -> nn.Linear:
    """Return a linear layer that gives 0 until it has learned."""
    layer = nn.Linear(in_features, out_features)
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer


def _halving(in_channels: int, channels: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(in_channels, channels, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(channels), nn.ReLU()
    )


def _differences(values: Tensor) -> Tensor:
    """Return |a - b| for all pairs in the last dimension (..., N, N)."""
    return (values[..., :, None] - values[..., None, :]).abs()
