"""Plain vision transformers of timm as staged encoders: DINOv2, DINOv3 and their relatives.

Oquab et al., DINOv2: Learning Robust Visual Features without Supervision, TMLR 2024, arXiv 2304.07193; Darcet et al.,
Vision Transformers Need Registers, ICLR 2024, arXiv 2309.16588; Siméoni et al., DINOv3, 2025, arXiv 2508.10104.

All features have the size of the patch grid; a stage is a group of blocks.  DINOv2 is ``vit_*_patch14_dinov2``, with
learned positions that are resampled to the grid, DINOv3 ``vit_*_patch16_dinov3``, with rotary ones.  The weights of
DINOv3 have a license of their own.  ``vit_pico_*`` are ours: tiny networks of the same build, for CPUs.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Literal

import timm
import torch
from timm.layers.norm import LayerNorm
from timm.layers.patch_embed import resample_patch_embed
from timm.layers.pos_embed import resample_abs_pos_embed
from timm.layers.pos_embed_sincos import RotaryEmbeddingDinoV3
from timm.models.eva import Eva
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn
from torch.nn import functional

from rgbdseg.encoders._base import EncoderEntry, StagedEncoder, State
from rgbdseg.errors import UsageError
from rgbdseg.nn.low_rank import add_low_rank, is_low_rank, linear_weight, train_only_low_rank
from rgbdseg.options import check_choice

# B batch, C channels, P tokens before the patches (class, registers), N tokens, h w patch grid, A attention heads

Trainable = Literal["all", "frozen", "low_rank"]
"""``all`` parameters, none, or only narrow updates of the attention's linear layers (LoRA)."""
Grid = tuple[int, int]
"""Rows and columns of patches."""
AttentionBranch = Callable[[Tensor, Tensor], Tensor]
"""Called with the normalized tokens (B, N, C) and their queries (B, N, C), heads side by side; what it returns, (B, N,
C), is added to what attention returns."""
DEFAULT_LEVELS = 4


@dataclasses.dataclass(frozen=True)
class ViTOptions:
    """Options of a vision transformer.

    Args:
        levels: a feature is taken after so many blocks each, in ascending order; blocks after the last are left out.
            None: four features, after equal shares of the blocks.
        drop_path_rate: in training, the chance of the last block to be left out for an image; it rises linearly from 0
            at the first block.
        trainable: see `Trainable`.
        low_rank: rank of the narrow updates.
        low_rank_alpha: they are multiplied by low_rank_alpha / low_rank.
        patch_size: in pixels; None: as in the name.  Another one resamples the patch embedding of published weights.
        image_size: (height, width) that learned positions are stored for; other sizes resample them in every pass.
            None: as in timm.
    """

    levels: tuple[int, ...] | None = None
    drop_path_rate: float = 0.0
    trainable: Trainable = "all"
    low_rank: int = 8
    low_rank_alpha: float = 16.0
    patch_size: int | None = None
    image_size: tuple[int, int] | None = None


class ViTEncoder(StagedEncoder):
    """A timm vision transformer without its classifier; submodules keep timm's names.

    The state is the patch tokens as a map (B, C, h, w) and, where there are any, the tokens before them (B, C, P, 1).
    Features are patch maps after the network's last normalization.  Images whose sides are no multiple of the patch
    size are padded with zeros at the bottom and at the right.

    Args:
        name: timm model of the modules ``vision_transformer`` or ``eva``.
        in_chans: channels of the image.
        options: see `ViTOptions`.

    Raises:
        UsageError: for option values that do not fit, and networks that are more than a row of blocks.
    """

    classifier = "head"
    input_conv = "patch_embed.proj"

    def __init__(self, name: str, in_chans: int, options: ViTOptions) -> None:
        super().__init__()
        check_choice("trainable", options.trainable, Trainable)
        net = _network(name, in_chans, options)
        self.name, self.in_chans = name, in_chans
        self.patch_size: int = net.patch_embed.patch_size[0]
        self.num_prefix_tokens: int = net.num_prefix_tokens
        self.positions_of_patches_only: bool = net.no_embed_class
        self.position_grid: Grid = net.patch_embed.grid_size
        self.levels = _levels(name, len(net.blocks), options.levels)
        self.num_stages = len(self.levels)
        self.channels = (int(net.embed_dim),) * self.num_stages
        self.reductions = (self.patch_size,) * self.num_stages
        self.patch_embed: Any = net.patch_embed
        self.cls_token: nn.Parameter | None
        self.reg_token: nn.Parameter | None
        self.pos_embed: nn.Parameter | None
        for part in ("cls_token", "reg_token", "pos_embed"):
            self.register_parameter(part, getattr(net, part, None))
        self.rope: Any = getattr(net, "rope", None)
        self.norm_name = "fc_norm" if isinstance(net.norm, nn.Identity) else "norm"
        self.norm_pre: nn.Module = net.norm_pre
        self.norm: nn.Module = getattr(net, self.norm_name)
        self.blocks: Any = net.blocks[: self.levels[-1]]
        left_out = (f"blocks.{i}" for i in range(self.levels[-1], len(net.blocks)))
        self.dropped = ("attn_pool", "fc_norm", *left_out)
        self._freeze(options)

    def _freeze(self, options: ViTOptions) -> None:
        if options.trainable == "frozen":
            self.requires_grad_(False)
        elif options.trainable == "low_rank":
            if options.low_rank < 1:
                raise UsageError(f"encoder option low_rank is {options.low_rank}; expected at least 1")
            for block in self.blocks:
                add_low_rank(
                    block.attn, ("qkv", "q_proj", "k_proj", "v_proj", "proj"), options.low_rank, options.low_rank_alpha
                )
                block.attn.qkv_bias_separate = True  # else timm's attention multiplies with the plain weight
            train_only_low_rank(self)

    @property
    def width(self) -> int:
        """Channels of a token."""
        return self.channels[0]

    @property
    def num_heads(self) -> int:
        """Attention heads of a block."""
        return int(self.blocks[0].attn.num_heads)

    def state_channels(self, index: int) -> tuple[int, ...]:
        """Return the channels of the patch map and of the tokens before it."""
        return (self.width,) * (2 if self.num_prefix_tokens else 1)

    def stem(self, image: Tensor) -> State:
        """Return the embedded patches of an image (B, in_chans, H, W), with positions."""
        return self.to_state(*self.embed(image))

    def stage(self, index: int, state: State) -> State:
        """Run the blocks of stage ``index``."""
        tokens, grid = self.to_tokens(state)
        for block in self.stage_blocks(index):
            tokens = self.run_block(block, tokens, grid)
        return self.to_state(tokens, grid)

    def stage_blocks(self, index: int) -> range:
        """Return the indices of the blocks of stage ``index``."""
        return range(0 if index == 0 else self.levels[index - 1], self.levels[index])

    def collect(self, states: list[State]) -> list[Tensor]:  # type: ignore[override]
        """Return the normalized patch maps (B, C, h, w)."""
        return [self.norm(state[0].permute(0, 2, 3, 1)).permute(0, 3, 1, 2) for state in states]

    def embed(self, image: Tensor) -> tuple[Tensor, Grid]:
        """Return the tokens (B, P + h * w, C) before the first block, the patches row by row, and the grid (h, w)."""
        height, width = image.shape[-2:]
        padded = functional.pad(image, (0, -width % self.patch_size, 0, -height % self.patch_size))
        patches = self.patch_embed.proj(padded)
        grid = (patches.shape[-2], patches.shape[-1])
        tokens = self.patch_embed.norm(patches.flatten(2).transpose(1, 2))
        before = [
            token.expand(tokens.shape[0], -1, -1) for token in (self.cls_token, self.reg_token) if token is not None
        ]
        if self.pos_embed is None:
            return self.norm_pre(torch.cat([*before, tokens], dim=1)), grid
        if self.positions_of_patches_only:
            return self.norm_pre(torch.cat([*before, tokens + self._positions(grid)], dim=1)), grid
        return self.norm_pre(torch.cat([*before, tokens], dim=1) + self._positions(grid)), grid

    def run_block(
        self,
        index: int,
        tokens_BNC: Tensor,
        grid: Grid,
        attention_mask: Tensor | None = None,
        branch: AttentionBranch | None = None,
    ) -> Tensor:
        """Run block ``index`` (counted from 0).

        Args:
            index: of the block.
            tokens_BNC: further tokens may stand before all others; they have no position (see `expect_tokens`).
            grid: of the patches, which come last.
            attention_mask: (B, 1 or A, N, N), what is added to the attention's logits, or bool: which keys (last
                dimension) a token may attend to.
            branch: see `AttentionBranch`.
        """
        block: Any = self.blocks[index]
        given: dict[str, Any] = {} if self.rope is None else {"rope": _rotation(self.rope, grid)}
        if branch is None:
            x: Tensor = block(tokens_BNC, attn_mask=attention_mask, **given)
            return x
        normed = block.norm1(tokens_BNC)
        attended = block.attn(normed, attn_mask=attention_mask, **given) + branch(normed, _queries(block.attn, normed))
        tokens_BNC = tokens_BNC + block.drop_path1(_scaled(block, 1, attended))
        return tokens_BNC + block.drop_path2(_scaled(block, 2, block.mlp(block.norm2(tokens_BNC))))

    def expect_tokens(self, count: int, first_block: int) -> None:
        """Prepare the blocks from ``first_block`` on for ``count`` more tokens before all others."""
        for block in self.blocks[first_block:]:
            if hasattr(block.attn, "num_prefix_tokens"):  # those that are not rotated
                block.attn.num_prefix_tokens = self.num_prefix_tokens + count

    def to_state(self, tokens_BNC: Tensor, grid: Grid) -> State:
        """Return tokens as maps."""
        maps = tokens_BNC.transpose(1, 2)
        before, patches = maps.split_with_sizes([self.num_prefix_tokens, maps.shape[2] - self.num_prefix_tokens], dim=2)
        patch_map = patches.unflatten(2, grid)
        return (patch_map, before.unsqueeze(3)) if self.num_prefix_tokens else (patch_map,)

    def to_tokens(self, state: State) -> tuple[Tensor, Grid]:
        """Return the tokens (B, N, C) of a state, and the grid."""
        patch_map, *before = state
        tokens = torch.cat([part.flatten(2) for part in (*before, patch_map)], dim=2).transpose(1, 2)
        return tokens, (patch_map.shape[-2], patch_map.shape[-1])

    def rename_weights(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return weights of timm, resampled to this grid and patch size, with fresh narrow updates where they are."""
        own = self.state_dict()
        renamed = {name: value for name, value in own.items() if is_low_rank(name)}
        renamed |= {
            f"norm{name.removeprefix(self.norm_name)}" if name.startswith(f"{self.norm_name}.") else name: value
            for name, value in state.items()
        }
        positions, kernel = renamed.get("pos_embed"), renamed.get("patch_embed.proj.weight")
        if positions is not None and self.pos_embed is not None and positions.shape[1] != self.pos_embed.shape[1]:
            prefix = 0 if self.positions_of_patches_only else self.num_prefix_tokens
            renamed["pos_embed"] = resample_abs_pos_embed(positions, self.position_grid, num_prefix_tokens=prefix)
        if kernel is not None and kernel.ndim == 4 and kernel.shape[-1] != self.patch_size:
            renamed["patch_embed.proj.weight"] = resample_patch_embed(kernel, [self.patch_size, self.patch_size])
        return renamed

    def _positions(self, grid: Grid) -> Tensor:
        """Return the learned positions of a grid (1, [P +] h * w, C)."""
        prefix = 0 if self.positions_of_patches_only else self.num_prefix_tokens
        positions: Tensor = resample_abs_pos_embed(self.pos_embed, grid, self.position_grid, num_prefix_tokens=prefix)
        return positions


def _rotation(rope: Any, grid: Grid) -> Tensor:
    """Return sine and cosine of the angles that every patch is rotated by (h * w, 2 * channels of a head)."""
    if not isinstance(rope, RotaryEmbeddingDinoV3) or rope.normalize_coords != "separate":
        rotation: Tensor = rope.get_embed(shape=grid)
        return rotation
    # What timm computes, too, but with the number of rows and columns as constants, which would tie an exported network
    # to the size of its example.
    periods: Any = rope.periods
    axes = [(torch.arange(n, device=periods.device, dtype=periods.dtype) + 0.5) / n * 2 - 1 for n in grid]
    coordinates = torch.stack(torch.meshgrid(axes, indexing="ij"), dim=-1).flatten(0, 1)
    angles = (2 * math.pi * coordinates[:, :, None] / periods).flatten(1)
    angles = torch.cat([angles, angles], dim=-1) if rope.rotate_half else angles.repeat_interleave(2, dim=-1)
    return torch.cat([angles.sin(), angles.cos()], dim=-1)


def _scaled(block: Any, branch: int, x: Tensor) -> Tensor:
    """Multiply by the layer scale of a branch: 1 for attention, 2 for the MLP."""
    if hasattr(block, f"ls{branch}"):
        scaled: Tensor = getattr(block, f"ls{branch}")(x)
        return scaled
    gamma = getattr(block, f"gamma_{branch}")
    return x if gamma is None else gamma * x


def _queries(attention: Any, normed_BNC: Tensor) -> Tensor:
    """Return the queries before any rotation (B, N, C), heads side by side."""
    if attention.qkv is None:
        queries: Tensor = attention.q_proj(normed_BNC)
        return queries
    channels = attention.qkv.out_features // 3
    bias = attention.qkv.bias
    if bias is None:
        bias = getattr(attention, "q_bias", None)
    return functional.linear(
        normed_BNC, linear_weight(attention.qkv)[:channels], None if bias is None else bias[:channels]
    )


def _levels(name: str, depth: int, levels: tuple[int, ...] | None) -> tuple[int, ...]:
    if levels is None:
        return tuple(round(depth * (i + 1) / DEFAULT_LEVELS) for i in range(DEFAULT_LEVELS))
    ascending = all(low < high for low, high in zip((0, *levels), levels, strict=False))
    if not levels or not ascending or levels[-1] > depth:
        raise UsageError(
            f"levels {tuple(levels)} of encoder '{name}' are numbers of blocks after which a feature is taken; "
            f"expected ascending ones from 1 to {depth}"
        )
    return tuple(levels)


_PICO: dict[str, Any] = {"embed_dim": 96, "depth": 6, "num_heads": 3, "patch_size": 16, "init_values": 1e-5}
_pico_dinov2 = partial(VisionTransformer, img_size=224, reg_tokens=4, no_embed_class=True, **_PICO)
_pico_dinov3 = partial(
    Eva,
    qkv_bias=False,
    num_reg_tokens=4,
    use_abs_pos_emb=False,
    use_rot_pos_emb=True,
    rope_type="dinov3",
    rope_temperature=100,
    rope_rotate_half=True,
    use_fc_norm=False,
    norm_layer=partial(LayerNorm, eps=1e-5),
    **_PICO,
)
_OURS: dict[str, Callable[..., nn.Module]] = {
    "vit_pico_patch16_dinov2": _pico_dinov2,
    "vit_pico_patch16_dinov3": _pico_dinov3,
}


def _network(name: str, in_chans: int, options: ViTOptions) -> Any:
    build = _OURS.get(name) or partial(timm.create_model, name, pretrained=False)
    changed = {"patch_size": options.patch_size, "img_size": options.image_size}
    net: Any = build(
        in_chans=in_chans,
        num_classes=0,
        dynamic_img_size=True,
        drop_path_rate=options.drop_path_rate,
        **{key: value for key, value in changed.items() if value is not None},
    )
    simple = isinstance(net, VisionTransformer | Eva) and hasattr(net.patch_embed, "proj")
    if not simple or getattr(net, "rope_mixed", False) or not hasattr(net.blocks[0], "attn"):
        raise UsageError(
            f"encoder '{name}' is not a plain row of transformer blocks; take one of DINOv2 or DINOv3, such as "
            "'vit_small_patch14_dinov2' or 'vit_small_patch16_dinov3'"
        )
    return net


TIMM_MODULES: dict[str, EncoderEntry] = {
    "vision_transformer": EncoderEntry(ViTEncoder, ViTOptions, weights="timm"),
    "eva": EncoderEntry(ViTEncoder, ViTOptions, weights="timm"),
}
ENCODERS: dict[str, EncoderEntry] = {
    "vit_pico_patch16_dinov2": EncoderEntry(ViTEncoder, ViTOptions),
    "vit_pico_patch16_dinov3": EncoderEntry(ViTEncoder, ViTOptions),
}
