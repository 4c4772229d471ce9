"""How an image is looked at when it is evaluated or predicted; free of torch, so that recipes load in an instant."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any, Literal

from rgbdseg.datasets import counted_areas
from rgbdseg.errors import CheckpointError, DataError, UsageError
from rgbdseg.options import check_choice

Mode = Literal["whole", "sliding"]
Combination = Literal["softmax", "sagate", "malleable"]
FULL = "full"
"""The area of all pixels; others are parts of the images of one benchmark, see `rgbdseg.datasets`."""

_COMBINATION_TEXT = {
    "softmax": "softmax per view, averaged over views (softmax)",
    "sagate": "exp of summed flip logits, summed over windows and scales (sagate)",
    "malleable": "softmax of averaged flip logits, summed over windows and scales (malleable)",
}


@dataclasses.dataclass(frozen=True)
class EvaluationProtocol:
    """The views of one image and how their logits become one score map.

    ``softmax`` averages the class probabilities of all views: over the mirror image, over the windows that cover a
    pixel, and over scales.  ``sagate`` is the rule behind the published SA-Gate and CMX numbers: logits of the image
    and its mirror are added, exponentiated, and summed over windows and scales without dividing by the overlap.
    ``malleable`` is the rule of the published Malleable 2.5D numbers: logits of the image and its mirror are averaged,
    turned into probabilities, and summed without dividing by the overlap.

    Args:
        mode: 'whole' runs the image in one piece, padded to what the model can take; 'sliding' runs windows of
            crop_size over it.
        crop_size: (height, width) of the sliding window; needed in 'sliding' mode only.
        stride_rate: step between windows as a fraction of the window, above 0 and at most 1; rounded up to pixels.
        scales: the image is resized by each of them; sides become round(side * scale).
        flip: also look at the horizontal mirror image.
        combination: softmax, sagate or malleable; see above.
        window_batch: at most that many views (windows and mirror images) go through the model at once.
        area: which pixels are counted, while all are seen: 'full' for all, or a name that one of `rgbdseg.datasets`
            gives: 'nyu-crop' for rows 39 to 470 and columns 40 to 600 of NYU Depth V2, as in the published numbers of
            3DGNN; 'nyu-eigen' for rows 45 to 470 and columns 41 to 600, where depth predictions are compared.
        margin: pixels cut off each side of the image before it is looked at: neither seen nor counted.
    """

    mode: Mode = "whole"
    crop_size: tuple[int, int] | None = None
    stride_rate: float = 2 / 3
    scales: tuple[float, ...] = (1.0,)
    flip: bool = False
    combination: Combination = "softmax"
    window_batch: int = 4
    area: str = FULL
    margin: int = 0

    def __post_init__(self) -> None:
        check_choice("evaluation mode", self.mode, Mode)
        check_choice("combination", self.combination, Combination)
        if self.area != FULL:
            check_choice("evaluation area", self.area, (FULL, *counted_areas()))
        if self.mode == "sliding" and self.crop_size is None:
            raise UsageError("sliding evaluation has no crop_size; give the window as (height, width)")
        if self.crop_size is not None and (len(self.crop_size) != 2 or min(self.crop_size) < 1):
            raise UsageError(f"crop_size is {self.crop_size}; expected (height, width) in pixels")
        if not 0 < self.stride_rate <= 1:
            raise UsageError(f"stride_rate is {self.stride_rate}; expected a number above 0 and at most 1")
        if not self.scales or not all(0 < scale < math.inf for scale in self.scales):
            raise UsageError(f"scales are {self.scales}; expected one or more positive numbers")
        if self.window_batch < 1:
            raise UsageError(f"window_batch is {self.window_batch}; expected at least 1")
        if self.margin < 0:
            raise UsageError(f"margin is {self.margin}; expected 0 or more pixels")

    def counted(self, size: tuple[int, int], sample_id: str) -> tuple[slice, slice]:
        """Return the rows and columns that are counted of an image of ``size`` (height, width).

        Raises DataError when the area is that of images of another size.
        """
        rows, columns = (slice(self.margin, length - self.margin) for length in size)
        if self.area == FULL:
            return rows, columns
        area = counted_areas()[self.area]
        if size != area.size:
            raise DataError(
                f"sample '{sample_id}' is {size[0]}x{size[1]}, but the evaluation area '{self.area}' is that of images "
                f"of {area.size[0]}x{area.size[1]}; use the area 'full'"
            )
        return (
            slice(max(area.top, rows.start), min(area.bottom, rows.stop)),
            slice(max(area.left, columns.start), min(area.right, columns.stop)),
        )

    def describe(self) -> str:
        """Return one line that names everything a reader needs to repeat the number."""
        if self.mode == "sliding":
            assert self.crop_size is not None
            view = f"sliding {self.crop_size[0]}x{self.crop_size[1]}, stride rate {self.stride_rate:.3g}"
        else:
            view = "whole image"
        scales = " ".join(f"{scale:g}" for scale in self.scales)
        flip = "flip" if self.flip else "no flip"
        text = f"{view}; scales {scales}; {flip}; {_COMBINATION_TEXT[self.combination]}"
        if self.margin:
            text = f"{text}; without {self.margin} pixels on each side, which are neither seen nor counted"
        if self.area == FULL:
            return text
        area = counted_areas()[self.area]
        counted = f"rows {area.top} to {area.bottom - 1}, columns {area.left} to {area.right - 1}"
        return f"{text}; only {counted} are counted ({self.area})"

    def slug(self) -> str:
        """Return a short name for files, different for protocols that give different numbers."""
        parts = [self.combination, "whole"]
        if self.mode == "sliding":
            assert self.crop_size is not None
            parts[1] = f"window{self.crop_size[0]}x{self.crop_size[1]}"
            if self.stride_rate != 2 / 3:
                parts.append(f"stride{self.stride_rate:.3g}")
        if self.scales != (1.0,):
            parts.append("scales" + "_".join(f"{scale:g}" for scale in self.scales))
        if self.flip:
            parts.append("flip")
        if self.margin:
            parts.append(f"margin{self.margin}")
        return "-".join([*parts, *([] if self.area == FULL else [self.area])])

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, ready for JSON."""
        return {
            name: list(value) if isinstance(value, tuple) else value for name, value in dataclasses.asdict(self).items()
        }


def stored_protocol(config: Mapping[str, Any] | None) -> EvaluationProtocol:
    """Return the evaluation protocol of a run's stored config, or the plain default when it has none.

    Raises:
        CheckpointError: when it is of another version.
    """
    values = (config or {}).get("evaluation")
    if not isinstance(values, dict):
        return EvaluationProtocol()
    fields: dict[str, Any] = {key: tuple(value) if isinstance(value, list) else value for key, value in values.items()}
    try:
        return EvaluationProtocol(**fields)
    except TypeError as error:
        raise CheckpointError(f"the checkpoint's evaluation protocol is not understood: {error}") from None
