"""MobileNets of versions 3 and 4 of timm as staged encoders.

Howard et al., Searching for MobileNetV3, ICCV 2019, arXiv 1905.02244; Qin et al., MobileNetV4, ECCV 2024,
arXiv 2404.10518.  The timm module also holds FBNetV3 and LCNet.
"""

from __future__ import annotations

from typing import Any

import timm
from torch import Tensor

from rgbdseg.encoders._base import EncoderEntry, State
from rgbdseg.encoders._timm import DilatedOptions, round_sizes_up
from rgbdseg.encoders.efficientnet import EfficientNetEncoder


class MobileNetV3Encoder(EfficientNetEncoder):
    """A timm MobileNetV3 or V4 up to its last block; see `EfficientNetEncoder`, whose blocks they share.

    Its models are those of timm's module ``mobilenetv3``.
    """

    dropped = ("conv_head", "norm_head")

    def _build(self, name: str, in_chans: int, options: dict[str, Any]) -> tuple[Any, list[dict[str, Any]]]:
        # Only the form of the network that returns features can be dilated.
        net: Any = timm.create_model(name, pretrained=False, in_chans=in_chans, features_only=True, **options)
        self.act1 = net.act1
        round_sizes_up(net)
        return net, net.feature_info.get_dicts()

    def stem(self, image: Tensor) -> State:
        """Return the feature at 1/2 of the image (B, in_chans, H, W)."""
        return self._run(0, self._ends[0], self.act1(self.bn1(self.conv_stem(image))))


TIMM_MODULES: dict[str, EncoderEntry] = {
    "mobilenetv3": EncoderEntry(MobileNetV3Encoder, DilatedOptions, weights="timm")
}
