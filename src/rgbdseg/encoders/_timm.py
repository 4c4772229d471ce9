"""What encoders over timm's networks have in common."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import timm
from torch import Tensor, nn

from rgbdseg.encoders._base import AnyEncoder, StagedEncoder
from rgbdseg.errors import UsageError


class TimmEncoder(StagedEncoder[Tensor]):
    """Base of encoders whose timm network is a stem and then stages, each a module, with one feature map in between.

    Submodules keep timm's names, so that published weights fit.  Subclasses say which modules they are, and run those
    of the stem unless it is one module called ``stem``; what they change in timm's modules is in `adapt`.

    name: timm model.  in_chans: channels of the input.
    output_stride: one of ``output_strides``; below 32 strides are replaced by dilation as in timm.
    dilations: dilations of the blocks of the last stage for families with ``multi_grid``.
    Raises UsageError for values that the family does not allow.
    """

    num_stages = 4
    classifier = "head"
    stem_modules: ClassVar[tuple[str, ...]] = ("stem",)
    """The modules of the stem."""
    stage_modules: ClassVar[tuple[str, ...]] = ("stages.0", "stages.1", "stages.2", "stages.3")
    """The module of each stage."""

    def __init__(
        self,
        name: str,
        in_chans: int = 3,
        output_stride: int = 32,
        dilations: Sequence[int] | None = None,
    ) -> None:
        super().__init__()
        check_options(self, name, output_stride, dilations)
        net: Any = timm.create_model(
            name, pretrained=False, in_chans=in_chans, num_classes=0, **self.network_options(output_stride)
        )
        self.name = name
        self.in_chans = in_chans
        self.input_conv = net.pretrained_cfg["first_conv"]
        self.channels = tuple(info["num_chs"] for info in net.feature_info[-self.num_stages :])
        self.reductions = tuple(info["reduction"] for info in net.feature_info[-self.num_stages :])
        for module in dict.fromkeys((*self.stem_modules, *(path.partition(".")[0] for path in self.stage_modules))):
            self.add_module(module, net.get_submodule(module))
        round_sizes_up(self)
        self.adapt(dilations)

    def adapt(self, dilations: Sequence[int] | None) -> None:
        """Change the modules that were taken from timm, for families that need it; ``dilations``: as given."""

    def network_options(self, output_stride: int) -> dict[str, Any]:
        """Return further arguments for the timm network."""
        return {"output_stride": output_stride} if len(self.output_strides) > 1 else {}

    def stage(self, index: int, state: Tensor) -> Tensor:
        """Run stage ``index`` (0 .. 3)."""
        x: Tensor = self.get_submodule(self.stage_modules[index])(state)
        return x

    def stage_name(self, index: int) -> str:
        """Return the name of the submodule that is stage ``index``."""
        return self.stage_modules[index]


def check_options(encoder: AnyEncoder, name: str, output_stride: int, dilations: Sequence[int] | None) -> None:
    """Raise UsageError for an output stride or dilations that the family of ``encoder`` does not allow."""
    if output_stride not in encoder.output_strides:
        allowed = f"one of {encoder.output_strides}" if len(encoder.output_strides) > 1 else encoder.output_strides[0]
        raise UsageError(f"output stride {output_stride} of encoder '{name}' is not {allowed}")
    if dilations is not None and not encoder.multi_grid:
        raise UsageError(f"encoder '{name}' has no dilations to set, got {tuple(dilations)}")
    if dilations is not None and output_stride == 32:
        raise UsageError("dilations of the last stage need an output stride of 8 or 16, got 32")


def round_sizes_up(network: nn.Module) -> None:
    """Let pooling without overlap keep a last incomplete window, so that it halves sizes as convolutions do."""
    for module in network.modules():
        if isinstance(module, nn.AvgPool2d | nn.MaxPool2d) and module.kernel_size == module.stride:
            module.ceil_mode = True
