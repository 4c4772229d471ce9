"""What encoders over timm's networks have in common."""

from __future__ import annotations

import dataclasses
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any, ClassVar

import timm
import timm.models
from torch import Tensor, nn

from rgbdseg.encoders._base import StagedEncoder, State
from rgbdseg.errors import UsageError

OUTPUT_STRIDES = (8, 16, 32)


@dataclasses.dataclass(frozen=True)
class NoOptions:
    """Of families that have none."""


@dataclasses.dataclass(frozen=True)
class DilatedOptions:
    """Options of convolutional families that can be dilated.

    Args:
        output_stride: 8, 16 or 32: below 32 the strides of the last stages are replaced by dilation as in timm.
        drop_path_rate: in training, the chance of the last block to be left out for an image; it rises linearly from 0
            at the first block.
    """

    output_stride: int = 32
    drop_path_rate: float = 0.0


class TimmEncoder(StagedEncoder):
    """Base of encoders whose timm network is a stem and then stages, each a module, with one feature map in between.

    Submodules keep timm's names, so that published weights fit.  Subclasses say which modules they are, and run those
    of the stem unless it is one module called ``stem``; what they change in timm's modules is in `adapt`.

    Args:
        name: timm model.
        in_chans: channels of the input.
        options: of the family.

    Raises:
        UsageError: for option values that the family does not allow.
    """

    num_stages = 4
    classifier = "head"
    stem_modules: ClassVar[tuple[str, ...]] = ("stem",)
    """The modules of the stem."""
    stage_modules: ClassVar[tuple[str, ...]] = ("stages.0", "stages.1", "stages.2", "stages.3")
    """The module of each stage."""

    def __init__(self, name: str, in_chans: int, options: Any) -> None:
        super().__init__()
        check_output_stride(name, options)
        net: Any = timm.create_model(
            name, pretrained=False, in_chans=in_chans, num_classes=0, **self.network_options(options)
        )
        self.name = name
        self.in_chans = in_chans
        self.input_conv = net.pretrained_cfg["first_conv"]
        self.channels = tuple(info["num_chs"] for info in net.feature_info[-self.num_stages :])
        self.reductions = tuple(info["reduction"] for info in net.feature_info[-self.num_stages :])
        for module in dict.fromkeys((*self.stem_modules, *(path.partition(".")[0] for path in self.stage_modules))):
            self.add_module(module, net.get_submodule(module))
        round_sizes_up(self)
        self.adapt(options)

    def adapt(self, options: Any) -> None:
        """Change the modules that were taken from timm, for families that need it."""

    def network_options(self, options: Any) -> dict[str, Any]:
        """Return further arguments for the timm network."""
        return dataclasses.asdict(options)

    def stage(self, index: int, state: State) -> State:
        """Run stage ``index`` (0 .. 3)."""
        (x,) = state
        return (self.get_submodule(self.stage_modules[index])(x),)

    def stage_name(self, index: int) -> str:
        """Return the name of the submodule that is stage ``index``."""
        return self.stage_modules[index]


class SequentialStem(nn.Sequential):
    """A stem of timm, a sequence of layers, as the stem of an encoder.

    Args:
        layers: timm's module; its layers keep their names.
    """

    def __init__(self, layers: nn.Sequential) -> None:
        super().__init__(OrderedDict(layers.named_children()))

    def forward(self, image: Tensor) -> State:
        """Return one map for an image (B, C, H, W)."""
        return (super().forward(image),)


def use_facts(encoder: StagedEncoder, name: str) -> None:
    """Note which weights of timm belong to ``encoder``, and mean and deviation of the images that they were made for.

    Args:
        name: of the timm model, with the tag of weights or without.
    """
    encoder.pretrained_name = name if timm.models.is_model_pretrained(name) else encoder.name
    facts = timm.models.get_pretrained_cfg(encoder.pretrained_name)
    if facts is not None:
        encoder.mean, encoder.std = _per_channel(facts.mean), _per_channel(facts.std)


def check_output_stride(name: str, options: Any) -> None:
    """Raise UsageError for an output stride that timm cannot build."""
    stride = getattr(options, "output_stride", 32)
    if stride not in OUTPUT_STRIDES:
        raise UsageError(f"output stride {stride} of encoder '{name}' is not one of {OUTPUT_STRIDES}")


def round_sizes_up(network: nn.Module) -> None:
    """Let pooling without overlap keep a last incomplete window, so that it halves sizes as convolutions do."""
    for module in network.modules():
        if isinstance(module, nn.AvgPool2d | nn.MaxPool2d) and module.kernel_size == module.stride:
            module.ceil_mode = True


def _per_channel(values: Sequence[float]) -> tuple[float, float, float]:
    red, green, blue = values
    return red, green, blue
