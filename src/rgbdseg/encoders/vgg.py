"""VGG networks of timm as staged encoders.

Simonyan, Zisserman, Very Deep Convolutional Networks for Large-Scale Image Recognition, ICLR 2015, arXiv 1409.1556.
"""

from __future__ import annotations

from typing import Any

import timm
from torch import Tensor, nn

from rgbdseg.encoders._base import EncoderEntry, StagedEncoder, State
from rgbdseg.encoders._timm import NoOptions, round_sizes_up


class VGGEncoder(StagedEncoder):
    """The convolutions of a timm VGG; submodules keep timm's names, so that published weights fit.

    The stem ends with the first max-pooling and each of the four stages with the next one, so that the features are at
    1/4 to 1/32 of the image.  Pooling rounds sizes up, so that any image size will do.

    Args:
        name: timm model of the module ``vgg``.
        in_chans: channels of the input.
        options: there are none.
    """

    num_stages = 4
    reductions = (4, 8, 16, 32)
    classifier = "head"
    dropped = ("pre_logits",)
    rectified = True

    def __init__(self, name: str, in_chans: int, options: NoOptions) -> None:
        super().__init__()
        # The fully connected layers, most of the network, are made narrow since they are not kept.
        net: Any = timm.create_model(name, pretrained=False, in_chans=in_chans, num_classes=0, mlp_ratio=1 / 4096)
        self.name = name
        self.in_chans = in_chans
        self.input_conv = net.pretrained_cfg["first_conv"]
        self.channels = tuple(info["num_chs"] for info in net.feature_info[1:5])
        self.features = net.features
        round_sizes_up(self)
        ends = (place + 1 for place, layer in enumerate(net.features) if isinstance(layer, nn.MaxPool2d))
        self._bounds = (0, *ends)

    def stem(self, image: Tensor) -> State:
        """Return the first pooled feature, at 1/2 of the image (B, in_chans, H, W)."""
        return self._run(0, image)

    def stage(self, index: int, state: State) -> State:
        """Run the convolutions and the max-pooling of stage ``index`` (0 .. 3)."""
        return self._run(index + 1, *state)

    def _run(self, block: int, x: Tensor) -> State:
        for position in range(self._bounds[block], self._bounds[block + 1]):
            x = self.features[position](x)
        return (x,)


TIMM_MODULES: dict[str, EncoderEntry] = {"vgg": EncoderEntry(VGGEncoder, NoOptions, weights="timm")}
