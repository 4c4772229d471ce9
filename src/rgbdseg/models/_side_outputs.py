"""Families with two encoders whose fused features one decoder with side outputs reads: ESANet and its successor."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from torch import Tensor, nn

from rgbdseg.encoders._fused import FusedEncoders
from rgbdseg.models._base import AuxiliaryOutput, SegmentationModel, SegmentationOutput
from rgbdseg.nn.decoders.nbt1d import NBt1DDecoder

# B batch, H height, W width


class SideOutputModel(SegmentationModel):
    """What such families do with their ``encoders`` and their ``decoder``, which their ``__init__`` makes."""

    backbone_prefixes = ("encoders.",)
    encoders: FusedEncoders
    decoder: NBt1DDecoder

    def encoder_streams(self) -> Iterator[tuple[str, nn.Module]]:
        """Yield both encoders."""
        yield "rgb", self.encoders.rgb
        yield self.input_spec.names[1], self.encoders.depth

    def forward(self, images: Mapping[str, Tensor], camera: Tensor | None = None) -> SegmentationOutput:
        """Return logits (B, classes, H, W), in training also ``side8``, ``side16`` and ``side32`` at these strides.

        Args:
            images: ``rgb`` (B, 3, H, W) and the second stream, multiples of 32 high and wide.
            camera: not used.

        Raises:
            UsageError: for absent or misshapen images, and for a single image in training.
        """
        rgb, depth = self.check_images(images)
        logits, side = self.decoder.decode(self.encoders(rgb, depth)[1:])
        auxiliary = tuple(
            AuxiliaryOutput(f"side{stride}", "segmentation", scores)
            for stride, scores in zip((8, 16, 32), side, strict=False)
        )
        return SegmentationOutput(self.decoder.upsample(logits, (rgb.shape[-2], rgb.shape[-1])), auxiliary)
