"""Two encoders, of which the second is added to the first after the stem and after every stage."""

from __future__ import annotations

from torch import Tensor, nn

from rgbdseg.encoders._base import StagedEncoder
from rgbdseg.encoders._probe import stem_channels
from rgbdseg.errors import UsageError
from rgbdseg.nn.squeeze_excite import SqueezeExciteSum

# B batch, C channels, H height, W width


class FusedEncoders(nn.Module):
    """An RGB encoder that goes on with the fused map, and a depth encoder that goes on with its own.

    Args:
        rgb: encoder of one map per state.
        depth: the same for the second stream, with features of the same channels and sizes.

    Raises:
        UsageError: for encoders whose features differ.
    """

    def __init__(self, rgb: StagedEncoder, depth: StagedEncoder) -> None:
        super().__init__()
        if rgb.feature_info != depth.feature_info:
            raise UsageError(f"encoders '{rgb.name}' and '{depth.name}' have features of different channels or sizes")
        self.rgb, self.depth = rgb, depth
        self.fusions = nn.ModuleList(SqueezeExciteSum(channels) for channels in (*stem_channels(rgb), *rgb.channels))

    def forward(self, rgb: Tensor, depth: Tensor) -> list[Tensor]:
        """Return the fused maps after the stem and after each stage, finest first: (B, C_i, H_i, W_i)."""
        rgb_state, depth_state = self.rgb.stem(rgb), self.depth.stem(depth)
        fused: list[Tensor] = [self.fusions[0](*rgb_state, *depth_state)]
        for index in range(self.rgb.num_stages):
            rgb_state = self.rgb.stage(index, (fused[-1],))
            depth_state = self.depth.stage(index, depth_state)
            fused.append(self.fusions[index + 1](*rgb_state, *depth_state))
        return fused
