"""Initialization shared by decoders."""

from __future__ import annotations

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm


def init_head(module: nn.Module) -> None:
    """Initialize a decoder as segmentation code usually does.

    Weights of convolutions: Kaiming normal over the fan-in for ReLU (He et al. 2015, eq. 10).  Normalization: weight 1,
    bias 0.  Biases of convolutions keep PyTorch's default.
    """
    for child in module.modules():
        if isinstance(child, nn.Conv2d):
            nn.init.kaiming_normal_(child.weight, mode="fan_in", nonlinearity="relu")
        elif isinstance(child, _BatchNorm) and child.affine:
            nn.init.ones_(child.weight)
            nn.init.zeros_(child.bias)
