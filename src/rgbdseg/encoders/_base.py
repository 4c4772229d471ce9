"""What every encoder offers: running as a whole, or stage by stage so that two streams can exchange in between."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

from torch import Tensor, nn

from rgbdseg.errors import UsageError
from rgbdseg.input_spec import IMAGENET_MEAN, IMAGENET_STD
from rgbdseg.nn.decoders._base import FeatureInfo

State = tuple[Tensor, ...]
"""What passes from stage to stage: feature maps (B, C, H, W).  One for most families; families that keep several
resolutions side by side have one for each, finest first."""


class StagedEncoder(nn.Module):
    """Base of all encoders.

    ``stage(i, state)`` must be called for i = 0 .. num_stages - 1 in order, starting from ``stem(image)``.  A caller
    may replace the state between two stages by another one of the same shape.
    """

    name: str
    """Name in the registry, without the tag of weights."""
    in_chans: int
    """Channels of the input image."""
    channels: tuple[int, ...]
    """Channels of each feature that `forward` returns, finest first."""
    reductions: tuple[int, ...]
    """Input size divided by feature size for each feature; sizes that do not divide are rounded up."""
    size_divisor: int = 1
    """Image height and width must be multiples of it."""
    num_stages: int
    """Number of calls to `stage`."""
    input_conv: str
    """Name of the convolution that reads the image: its weight is adapted when ``in_chans`` is not 3."""
    classifier: str
    """Prefix of the classifier in published weights of the whole network, which an encoder drops."""
    pretrained_name: str = ""
    """Name with the tag of weights, where one was given; `create_encoder` sets it."""
    mean: tuple[float, float, float] = IMAGENET_MEAN
    """Mean per channel, of RGB in 0 to 1, that the published weights were trained with."""
    std: tuple[float, float, float] = IMAGENET_STD
    """The standard deviations that go with ``mean``."""
    weights: str = ""
    """Where the published weights come from, see `EncoderEntry`; `create_encoder` sets it."""
    rectified: bool = False
    """Whether no feature is ever negative, since each stage ends with a ReLU."""
    one_channel_weight: Literal["sum", "mean"] = "sum"
    """How published weights of three input channels become those of one."""
    dropped: tuple[str, ...] = ()
    """Prefixes of what else of published weights an encoder drops: layers between its features and the classifier."""

    stem: Callable[[Tensor], State]
    """Returns the state before the first stage for an image (B, in_chans, H, W).

    A method, or the submodule where the published network has one of this name.
    """

    def stage(self, index: int, state: State) -> State:
        """Run stage ``index`` (counted from 0)."""
        raise NotImplementedError

    def collect(self, states: Sequence[State]) -> list[Tensor]:
        """Return the features that `forward` returns from the states after each of the stages, finest first.

        States that were exchanged or merged with those of another stream will do as well.  A state of one feature map
        is the feature; families whose states hold more say which of their maps are.
        """
        return [state[-1] for state in states]

    def state_channels(self, index: int) -> tuple[int, ...]:
        """Return the channels of every feature map in the state after stage ``index``, finest first.

        One number for families whose state is one feature map.
        """
        return (self.channels[index],)

    def stage_name(self, index: int) -> str:
        """Return the name of the submodule that holds stage ``index``; raises UsageError where there is no such one."""
        raise UsageError(f"the stages of encoder '{self.name}' are not submodules that could be changed")

    def share_projections(self, other: StagedEncoder) -> None:
        """Use the shortcut projections of ``other``, an encoder of the same name, from now on: its modules, not copies.

        Does nothing for families without such projections.

        Raises:
            UsageError: for an encoder of another name.
        """

    def require_same(self, other: StagedEncoder) -> None:
        """Raise UsageError for an encoder of another name, whose modules do not fit into this one."""
        if other.name != self.name:
            raise UsageError(
                f"encoder '{self.name}' is to share projections with '{other.name}'; expected one of the same name"
            )

    def rename_weights(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return published weights, of whatever layout they are shared in, by the names of this encoder.

        What belongs to no part of the encoder keeps a name that begins with ``classifier`` or one of ``dropped``.
        """
        return dict(state)

    @property
    def feature_info(self) -> FeatureInfo:
        """What a decoder must know of the features that `forward` returns."""
        return FeatureInfo(self.channels, self.reductions)

    def forward(self, image: Tensor) -> list[Tensor]:
        """Return all features of an image (B, in_chans, H, W), finest first: (B, channels[i], H_i, W_i)."""
        states: list[State] = []
        state = self.stem(image)
        for index in range(self.num_stages):
            state = self.stage(index, state)
            states.append(state)
        return self.collect(states)


@dataclasses.dataclass(frozen=True)
class EncoderEntry:
    """How one name of the registry is built.

    Args:
        build: called as ``build(name, in_chans, options)`` with an instance of ``options``.
        options: frozen dataclass of the family's own options, such as output stride or drop path, with defaults.
        weights: where its ImageNet weights come from: ``timm`` (its hub), or the page to fetch a file from by hand;
            empty where there are none.
    """

    build: Callable[[str, int, Any], StagedEncoder]
    options: type
    weights: str = ""
