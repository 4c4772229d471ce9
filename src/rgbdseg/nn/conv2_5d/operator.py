"""2.5D convolutions: several kernels along depth, among which the pixels of a window are shared by their depth.

`Conv2_5d`: Xing, Wang, Chen, Zeng, 2.5D Convolution for RGB-D Semantic Segmentation, ICIP 2019.
`MalleableConv2_5d`: Xing, Wang, Zeng, Malleable 2.5D Convolution, ECCV 2020, arXiv 2007.09365.
Published code of both: github.com/charlesCXK/RGBD_Semantic_Segmentation_PyTorch (MIT).  Parameter names and numbers are
the published ones; the bias, with which the published classes stop, works here.

Deviations from the published code: depth that is negative, infinite or NaN counts as no reading.
"""

from __future__ import annotations

import math
from typing import get_args

import torch
from torch import Tensor, nn
from torch.nn import functional

from rgbdseg.errors import UsageError, unknown_name
from rgbdseg.nn.conv2_5d.masks import Compat, clean_depth, slab_masks, soft_masks
from rgbdseg.nn.conv2_5d.product import masked_product
from rgbdseg.nn.conv2_5d.tiles import Window

# B batch, C channels, H W input size, h w output size

ASSIGNMENT_PARAMETERS = ("depth_anchor", "temperature", "kernel_weight")
"""Parameters that say how pixels are shared over kernels; the published trainers do not decay them."""


class DepthGuide:
    """The depth of the images that pass through an encoder, for the 2.5D convolutions inside it.

    Blocks of ordinary encoders hand one tensor from layer to layer.  A model shares one guide with the convolutions and
    runs its encoder through it; it holds nothing in between.
    """

    def __init__(self) -> None:
        self.depth: Tensor | None = None
        self.focal_px: Tensor | None = None

    def run(self, encoder: nn.Module, image: Tensor, depth_B1HW: Tensor, focal_px: Tensor) -> list[Tensor]:
        """Return what ``encoder`` returns for ``image``, while its 2.5D convolutions see this depth.

        Args:
            encoder: holds convolutions whose guide this is.
            image: (B, C, H, W).
            depth_B1HW: meters, 0 = no reading; as large as the image.
            focal_px: (B,), horizontal focal length in pixels of the depth map.
        """
        self.depth, self.focal_px = clean_depth(depth_B1HW), focal_px
        try:
            features: list[Tensor] = encoder(image)
            return features
        finally:
            self.depth = self.focal_px = None

    def at(self, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
        """Return the depth at ``size`` (height, width), by nearest pixels, and the focal length."""
        if self.depth is None or self.focal_px is None:
            raise UsageError("a 2.5D convolution needs depth and focal length: pass them, or run it inside its model")
        return functional.interpolate(self.depth, size=size, mode="nearest"), self.focal_px


class DepthConv2d(nn.Module):
    """Base of the 2.5D convolutions; arguments as `nn.Conv2d`, sides as one integer.

    Args:
        kernel_size: odd.
        depth_kernels: kernels along depth, odd.
        pixel_size: spacing of the feature map in pixels of the image that the focal length belongs to; with the
            dilation and the depth it gives the metric size of a cell.
        guide: where `forward` takes depth and focal length from when they are not passed.

    Raises:
        UsageError: for values outside these ranges.
    """

    def __init__(  # noqa: PLR0917 - as nn.Conv2d
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        stride: int = 1,
        padding: int = 0,
        dilation: int = 1,
        bias: bool = False,
        *,
        pixel_size: float = 1.0,
        depth_kernels: int = 3,
        compat: Compat = "released",
        guide: DepthGuide | None = None,
    ) -> None:
        super().__init__()
        _check(in_channels=in_channels, out_channels=out_channels, stride=stride, dilation=dilation)
        _check(odd=True, kernel_size=kernel_size, depth_kernels=depth_kernels)
        _check(least=0, padding=padding)
        if not 0 < pixel_size < math.inf:
            raise UsageError(f"pixel_size is {pixel_size}; expected a positive number")
        if compat not in get_args(Compat):
            raise unknown_name("compat", compat, get_args(Compat))
        self.in_channels, self.out_channels = in_channels, out_channels
        self.window = Window(kernel_size, stride, padding, dilation)
        self.pixel_size = float(pixel_size)
        self.depth_kernels = depth_kernels
        self.compat: Compat = compat
        self.guide = guide
        for index in range(depth_kernels):
            kernel = nn.Parameter(torch.empty(out_channels, in_channels, kernel_size, kernel_size))
            self.register_parameter(f"weight_{index}", kernel)
        self.bias = nn.Parameter(torch.empty(out_channels)) if bias else None
        self.reset_parameters()

    @property
    def weights(self) -> list[Tensor]:
        """The kernels (out_channels, in_channels, k, k), in their published order."""
        return [getattr(self, f"weight_{index}") for index in range(self.depth_kernels)]

    def reset_parameters(self) -> None:
        """Initialize as `nn.Conv2d` does, every kernel by itself."""
        for weight in self.weights:
            nn.init.kaiming_uniform_(weight, a=math.sqrt(5))
        if self.bias is not None:
            bound = 1 / math.sqrt(self.in_channels * self.window.kernel**2)
            nn.init.uniform_(self.bias, -bound, bound)

    @torch.no_grad()
    def copy_plain(self, plain: nn.Conv2d) -> None:
        """Give every kernel the weight of a plain convolution of the same shape, and take over its bias."""
        for weight in self.weights:
            weight.copy_(plain.weight)
        if self.bias is not None and plain.bias is not None:
            self.bias.copy_(plain.bias)

    def expand_pretrained(self, state: dict[str, Tensor], name: str) -> None:
        """Replace a plain convolution's entry ``NAME.weight`` by this module's.

        Every kernel gets the weight; what a plain convolution does not have keeps its value.

        Args:
            state: is changed.
            name: of this module.
        """
        weight = state.pop(f"{name}.weight", None)
        if weight is None:
            return
        for entry, value in self.state_dict().items():
            if entry != "bias":
                state[f"{name}.{entry}"] = weight.clone() if entry.startswith("weight_") else value

    def masks(self, depth_B1HW: Tensor, focal_px: Tensor) -> Tensor:
        """Return the share of every kernel (B, depth_kernels, k * k, h, w), in float32 or better."""
        raise NotImplementedError

    def forward(self, x: Tensor, depth: Tensor | None = None, focal_px: Tensor | None = None) -> Tensor:
        """Return (B, out_channels, h, w) for x (B, in_channels, H, W).

        depth (B, 1, H, W): on the grid of x, meters, 0 = no reading.  focal_px (B,): horizontal focal length in the
        pixels that pixel_size counts.  Without them, those of the guide.
        """
        if depth is None or focal_px is None:
            depth, focal_px = (self.guide or DepthGuide()).at((x.shape[-2], x.shape[-1]))
        else:
            depth = clean_depth(depth)
        masks = self.masks(depth, focal_px.to(depth.dtype))
        weights = self.weights
        device = x.device.type
        if device != "meta" and torch.is_autocast_enabled(device):
            dtype = torch.get_autocast_dtype(device)
            x, weights = x.to(dtype), [w.to(dtype) for w in weights]
        channels_last = x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous()
        y = masked_product(x, weights, masks, self.window)
        if self.bias is not None:
            y = y + self.bias.to(y.dtype).view(-1, 1, 1)
        return y.contiguous(memory_format=torch.channels_last) if channels_last else y

    def extra_repr(self) -> str:
        """Say what the module's arguments were."""
        window = self.window
        return (
            f"{self.in_channels}, {self.out_channels}, kernel_size={window.kernel}, stride={window.stride}, "
            f"padding={window.padding}, dilation={window.dilation}, pixel_size={self.pixel_size:g}, "
            f"depth_kernels={self.depth_kernels}, compat={self.compat}"
        )


class Conv2_5d(DepthConv2d):  # noqa: N801 - the published name
    """Plain 2.5D convolution: each kernel sees one slab of depth, of the thickness of one cell.

    weight_0 is the farthest slab (the reverse of `MalleableConv2_5d`).  What lies in no slab is ignored; a pixel
    without a reading belongs to the middle slab.  No parameters besides the kernels.
    """

    def masks(self, depth_B1HW: Tensor, focal_px: Tensor) -> Tensor:
        """Return 1 where a pixel lies in a kernel's slab, else 0: (B, depth_kernels, k * k, h, w)."""
        return slab_masks(
            depth_B1HW,
            focal_px,
            self.window,
            kernels=self.depth_kernels,
            pixel_size=self.pixel_size,
            compat=self.compat,
        )


class MalleableConv2_5d(DepthConv2d):  # noqa: N801 - the published name
    """Malleable 2.5D convolution: pixels are softly shared over kernels along depth, at learned depths.

    weight_0 is the nearest kernel.  depth_anchor (1, depth_kernels + 2, 1, 1): positions in cells, the outermost two
    without a kernel.  temperature (1): of the softmax.  kernel_weight (depth_kernels): their softmax, times their
    number, weights the kernels' responses.

    Args:
        fix_center: the middle anchor is 0 and not learned.
    """

    def __init__(  # noqa: PLR0917 - as nn.Conv2d
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        stride: int = 1,
        padding: int = 0,
        dilation: int = 1,
        bias: bool = False,
        *,
        pixel_size: float = 1.0,
        depth_kernels: int = 3,
        compat: Compat = "released",
        fix_center: bool = True,
        guide: DepthGuide | None = None,
    ) -> None:
        super().__init__(
            in_channels,
            out_channels,
            kernel_size,
            stride,
            padding,
            dilation,
            bias,
            pixel_size=pixel_size,
            depth_kernels=depth_kernels,
            compat=compat,
            guide=guide,
        )
        self.fix_center = fix_center
        reach = depth_kernels // 2 + 1
        self.depth_anchor = nn.Parameter(torch.arange(-reach, reach + 1, dtype=torch.float32).view(1, -1, 1, 1))
        self.temperature = nn.Parameter(torch.ones(1))
        self.kernel_weight = nn.Parameter(torch.zeros(depth_kernels))

    def masks(self, depth_B1HW: Tensor, focal_px: Tensor) -> Tensor:
        """Return the kernels' softmax shares times their weights: (B, depth_kernels, k * k, h, w)."""
        shares = soft_masks(
            depth_B1HW,
            focal_px,
            self.depth_anchor.flatten(),
            self.temperature,
            self.window,
            pixel_size=self.pixel_size,
            fix_center=self.fix_center,
            compat=self.compat,
        )
        balance = self.depth_kernels * self.kernel_weight.to(shares.dtype).softmax(dim=0)
        return shares * balance.view(-1, 1, 1, 1)


def _check(least: int = 1, odd: bool = False, **values: int) -> None:
    for option, value in values.items():
        if not isinstance(value, int) or value < least or (odd and value % 2 == 0):
            raise UsageError(
                f"{option} is {value!r}; expected {'an odd integer' if odd else 'an integer'} of at least {least}"
            )
