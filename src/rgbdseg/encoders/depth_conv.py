"""2.5D convolutions in any staged convolutional encoder: one per stage, in place of a plain 3x3 convolution."""

from __future__ import annotations

from typing import Literal

from torch import nn

from rgbdseg.encoders._base import StagedEncoder
from rgbdseg.errors import UsageError, unknown_name
from rgbdseg.nn.conv2_5d.masks import Compat
from rgbdseg.nn.conv2_5d.operator import Conv2_5d, DepthConv2d, DepthGuide, MalleableConv2_5d

DepthConvolution = Literal["malleable", "plain"]
_CLASSES: dict[str, type[DepthConv2d]] = {"malleable": MalleableConv2_5d, "plain": Conv2_5d}


def use_depth_convolutions(
    encoder: StagedEncoder,
    kind: DepthConvolution = "malleable",
    *,
    depth_kernels: int = 3,
    compat: Compat = "released",
) -> DepthGuide:
    """Replace the first 3x3 convolution of every stage of ``encoder``, in place, and return the guide of them all.

    The place is the published one: the first residual unit of each stage (Xing et al., ECCV 2020, section 4).  Every
    depth kernel starts as a copy of the weight it replaces.  The pixel size is the spacing of the stage's input with
    ``compat="paper"``, of its output as the published code has it; they differ in stages that halve the resolution.

    Args:
        encoder: with ordinary 3x3 convolutions.
        kind: ``malleable``, or ``plain`` for the operator before it.
        depth_kernels: kernels along depth, odd.
        compat: rules of the published code or of the paper.

    Raises:
        UsageError: for an unknown kind and an encoder without such convolutions.
    """
    if kind not in _CLASSES:
        raise unknown_name("2.5D convolution", kind, _CLASSES)
    guide = DepthGuide()
    for index in range(encoder.num_stages):
        name, plain = _first_3x3(encoder, index)
        output_spacing = encoder.reductions[index]
        input_spacing = encoder.reductions[index - 1] if index else output_spacing
        replacement = _CLASSES[kind](
            plain.in_channels,
            plain.out_channels,
            3,
            plain.stride[0],
            plain.dilation[0],
            plain.dilation[0],
            plain.bias is not None,
            pixel_size=output_spacing if compat == "released" else input_spacing,
            depth_kernels=depth_kernels,
            compat=compat,
            guide=guide,
        )
        replacement.copy_plain(plain)
        encoder.set_submodule(name, replacement)
    return guide


def _first_3x3(encoder: StagedEncoder, index: int) -> tuple[str, nn.Conv2d]:
    """Return the name within the encoder and the module of the first 3x3 convolution of a stage."""
    prefix = encoder.stage_name(index)
    for name, module in encoder.get_submodule(prefix).named_modules():
        if isinstance(module, nn.Conv2d) and module.kernel_size == (3, 3):
            usual = (module.dilation, (module.stride[0],) * 2, 1)
            if (module.padding, module.stride, module.groups) != usual:
                raise UsageError(
                    f"encoder '{encoder.name}' cannot take 2.5D convolutions: {prefix}.{name} is grouped or "
                    "unusually padded; use an encoder with ordinary 3x3 convolutions, such as resnet50"
                )
            return f"{prefix}.{name}", module
    raise UsageError(f"encoder '{encoder.name}' cannot take 2.5D convolutions: {prefix} has no 3x3 convolution")
