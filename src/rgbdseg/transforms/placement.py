"""Where a part of a frame lies in an input of the network: computed once, applied to rasters, labels and the camera."""

from __future__ import annotations

import dataclasses

from torch import Tensor
from torch.nn import functional

from rgbdseg.camera import PinholeCamera


@dataclasses.dataclass(frozen=True, slots=True)
class Placement:
    """A window of a frame and the place that it takes in an input.

    Args:
        top: first row of the frame that is shown.
        left: first column of the frame that is shown.
        size: (height, width) that is shown.
        border_top: rows of the input above it.
        border_left: columns of the input to the left of it.
        input_size: (height, width) of the input; what the window does not cover is border.
    """

    top: int
    left: int
    size: tuple[int, int]
    border_top: int
    border_left: int
    input_size: tuple[int, int]

    @classmethod
    def centered(cls, size: tuple[int, int], input_size: tuple[int, int], top: int = 0, left: int = 0) -> Placement:
        """Center a window in an input; an odd pixel of border goes below and to the right.

        A side that is as long as the input's or longer has no border, and the input grows with it.

        Args:
            size: (height, width) of the window.
            input_size: least (height, width) of the input.
            top: first row of the frame that is shown.
            left: first column of the frame that is shown.
        """
        rows, columns = max(0, input_size[0] - size[0]), max(0, input_size[1] - size[1])
        return cls(top, left, size, rows // 2, columns // 2, (size[0] + rows, size[1] + columns))

    @property
    def has_border(self) -> bool:
        """Whether any part of the input is border."""
        return self.size != self.input_size

    @property
    def inside(self) -> tuple[slice, slice]:
        """Rows and columns of the input that show the frame."""
        return (
            slice(self.border_top, self.border_top + self.size[0]),
            slice(self.border_left, self.border_left + self.size[1]),
        )

    @property
    def shown(self) -> tuple[slice, slice]:
        """Rows and columns of the frame that the input shows."""
        return slice(self.top, self.top + self.size[0]), slice(self.left, self.left + self.size[1])

    def take(self, raster: Tensor) -> Tensor:
        """Return the part (..., h, w) of a frame's raster (..., H, W) that is shown."""
        return raster[..., *self.shown]

    def surround(self, part: Tensor, fill: float) -> Tensor:
        """Return a part (..., h, w) with its border, at the size of the input."""
        if not self.has_border:
            return part
        right = self.input_size[1] - self.size[1] - self.border_left
        bottom = self.input_size[0] - self.size[0] - self.border_top
        return functional.pad(part, (self.border_left, right, self.border_top, bottom), value=fill)

    def clear_border(self, image: Tensor) -> None:
        """Set what an input (..., H, W) has around the part that is shown to 0; the rest is left as it is."""
        rows, columns = self.inside
        for border in (
            image[..., : rows.start, :],
            image[..., rows.stop :, :],
            image[..., rows, : columns.start],
            image[..., rows, columns.stop :],
        ):
            if border.numel():
                border.zero_()

    def uncover(self, output: Tensor) -> Tensor:
        """Return what an output (..., H, W) at the size of the input says of the part that was shown."""
        return output[..., *self.inside]

    def camera(self, camera: PinholeCamera) -> PinholeCamera:
        """Return the camera of the input from that of the frame."""
        return camera.cropped(self.top - self.border_top, self.left - self.border_left)
