"""ConvNeXts of timm, both versions, as staged encoders.

Liu et al., A ConvNet for the 2020s, CVPR 2022, arXiv 2201.03545; Woo et al., ConvNeXt V2, CVPR 2023, arXiv 2301.00808.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn
from torch.nn import functional

from rgbdseg.encoders._timm import TimmEncoder


class ConvNeXtEncoder(TimmEncoder):
    """A timm ConvNeXt without its classifier and the normalisation before it; see `TimmEncoder`.

    name: timm model of the module ``convnext``.  output_stride: 8, 16 or 32.
    Convolutions with stride that do not overlap would leave out the last rows and columns of sizes that they do not
    divide: zeros are appended there, so that any image size will do.  The features are not normalised.
    """

    output_strides = (8, 16, 32)
    dropped = ("norm_pre",)

    def adapt(self, dilations: Sequence[int] | None) -> None:
        """Let a stem without overlap cover all of the image."""
        stem: Any = self.get_submodule("stem")
        if stem[0].kernel_size == stem[0].stride:  # stems of overlapping convolutions have padding of their own
            self.add_module("stem", _ExtendingStem(*stem))

    def stage(self, index: int, state: Tensor) -> Tensor:
        """Run stage ``index`` (0 .. 3)."""
        halves = index > 0 and self.reductions[index] > self.reductions[index - 1]
        return super().stage(index, _extend(state, 1) if halves else state)


class _ExtendingStem(nn.Sequential):
    """A stem without overlap, at 1/4 of the image."""

    def forward(self, image: Tensor) -> Tensor:
        x: Tensor = super().forward(_extend(image, 3))
        return x


def _extend(x_BCHW: Tensor, amount: int) -> Tensor:
    """Append rows and columns of zeros.

    One less than the stride lets a convolution cover all of its input; it leaves out again what is too much.  Sizes
    computed with a remainder would say the same, but take minutes to export with dynamic sizes.
    """
    return functional.pad(x_BCHW, (0, amount, 0, amount))
