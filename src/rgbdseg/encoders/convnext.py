"""ConvNeXts of timm, both versions, as staged encoders.

Liu et al., A ConvNet for the 2020s, CVPR 2022, arXiv 2201.03545; Woo et al., ConvNeXt V2, CVPR 2023, arXiv 2301.00808.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.nn import functional

from rgbdseg.encoders._base import EncoderEntry, State
from rgbdseg.encoders._timm import DilatedOptions, SequentialStem, TimmEncoder


class ConvNeXtEncoder(TimmEncoder):
    """A timm ConvNeXt without its classifier and the normalization before it; see `TimmEncoder`.

    Its models are those of timm's module ``convnext``.  Convolutions with stride that do not overlap would leave out
    the last rows and columns of sizes that they do not divide: zeros are appended there, so that any image size will
    do.  The features are not normalized.
    """

    dropped = ("norm_pre",)

    def adapt(self, options: Any) -> None:
        """Let a stem without overlap cover all of the image."""
        stem: Any = self.get_submodule("stem")
        # Stems of overlapping convolutions have padding of their own.
        kind = _ExtendingStem if stem[0].kernel_size == stem[0].stride else SequentialStem
        self.add_module("stem", kind(stem))

    def stage(self, index: int, state: State) -> State:
        """Run stage ``index`` (0 .. 3)."""
        if index > 0 and self.reductions[index] > self.reductions[index - 1]:
            state = (_extend(state[0], 1),)
        return super().stage(index, state)


class _ExtendingStem(SequentialStem):
    """A stem without overlap, at 1/4 of the image."""

    def forward(self, image: Tensor) -> State:
        return super().forward(_extend(image, 3))


def _extend(x_BCHW: Tensor, amount: int) -> Tensor:
    """Append rows and columns of zeros.

    One less than the stride lets a convolution cover all of its input; it leaves out again what is too much.  Sizes
    computed with a remainder would say the same, but take minutes to export with dynamic sizes.
    """
    return functional.pad(x_BCHW, (0, amount, 0, amount))


TIMM_MODULES: dict[str, EncoderEntry] = {"convnext": EncoderEntry(ConvNeXtEncoder, DilatedOptions, weights="timm")}
