"""How an image is looked at when it is evaluated or predicted; free of torch, so that recipes load in an instant."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any, Literal

from rgbdseg.config.checks import check_kinds
from rgbdseg.datasets import counted_areas
from rgbdseg.errors import CheckpointError, DataError, UsageError
from rgbdseg.options import check_choice

Mode = Literal["whole", "sliding"]
Combination = Literal["softmax", "sagate", "malleable", "logits"]
Resize = Literal["picture", "input", "input_centered"]
ResizeBy = Literal["size", "factor"]
SideRounding = Literal["nearest", "up", "down"]
Windows = Literal["grid", "cmx_released"]
AbsentIoU = Literal["left_out", "zero"]
FULL = "full"
"""The area of all pixels; others are parts of the images of one benchmark, see `rgbdseg.datasets`."""

_COMBINATION_TEXT = {
    "softmax": "softmax per view, averaged over views (softmax)",
    "sagate": "exp of summed flip logits, summed over windows and scales (sagate)",
    "malleable": "softmax of averaged flip logits, summed over windows and scales (malleable)",
    "logits": "logits, averaged over windows and summed over views (logits)",
}
_RESIZE_TEXT = {
    "picture": "",
    "input": "normalized inputs are resized with aligned corners, and so are logits, before they are combined",
    "input_centered": "normalized inputs are resized about pixel centers, logits with aligned corners",
}


@dataclasses.dataclass(frozen=True)
class EvaluationProtocol:
    """The views of one image and how their logits become one score map.

    ``softmax`` averages the class probabilities of all views: over the mirror image, over the windows that cover a
    pixel, and over scales.  ``sagate`` is the rule behind the published SA-Gate and CMX numbers: logits of the image
    and its mirror are added, exponentiated, and summed over windows and scales without dividing by the overlap.
    ``malleable`` is the rule of the published Malleable 2.5D numbers: logits of the image and its mirror are averaged,
    turned into probabilities, and summed without dividing by the overlap.  ``logits`` adds the logits themselves.

    Published rules are in `rgbdseg.config.published_protocols`.

    Args:
        mode: 'whole' runs the image in one piece, padded to what the model can take; 'sliding' runs windows of
            crop_size over it.
        crop_size: (height, width) of the sliding window; needed in 'sliding' mode only.
        stride_rate: step between windows as a fraction of the window, above 0 and at most 1; rounded up to pixels, and
            down where inputs are resized.
        scales: the image is resized by each of them, see side_rounding.
        flip: also look at the horizontal mirror image.
        combination: softmax, sagate, malleable or logits; see above.
        window_batch: at most that many views (windows and mirror images) go through the model at once; null takes what
            suits the device: 1 on a CPU, 4 on a GPU.
        area: which pixels are counted, while all are seen: 'full' for all, or a name that one of `rgbdseg.datasets`
            gives: 'nyu-crop' for rows 39 to 470 and columns 40 to 600 of NYU Depth V2, as in the published numbers of
            3DGNN; 'nyu-eigen' for rows 45 to 470 and columns 41 to 600, where depth predictions are compared.
        margin: pixels cut off each side of the image before it is looked at: neither seen nor counted.
        resize: what is resized.  'picture': the stored pictures, in whole gray levels, and afterwards the scores, about
            pixel centers.  'input': normalized inputs, bilinear with aligned corners, and the logits of every view back
            to the size of the image in the same way before they are combined; windows average logits, and an image
            that is smaller than the window on a side is enlarged to it.  'input_centered': normalized inputs about
            pixel centers, each by its raster's rule, and logits as with 'input'.
        resize_by: how positions follow when a scaled side is no whole number.  'size': pixels of the resized picture
            are source / target apart, so that borders meet.  'factor': 1 / scale apart, as OpenCV samples when it is
            given factors.  Scores come back by size in both.  For 'picture' only.
        side_rounding: sides become side * scale, 'nearest' rounds it to the nearest multiple of side_multiple; 'up' and
            'down' cut off the fraction of a pixel before that.
        side_multiple: see side_rounding.
        windows: 'grid', or 'cmx_released': the windows of the released evaluators of CMX and Sigma, which take rows for
            columns, so that most of an image larger than the window is never scored.
        absent_iou: what a class counts that occurs in neither truth nor prediction: 'left_out' of the mean, or 'zero'.

    Raises:
        UsageError: for values outside these ranges, and such as do not go together.
    """

    mode: Mode = "whole"
    crop_size: tuple[int, int] | None = None
    stride_rate: float = 2 / 3
    scales: tuple[float, ...] = (1.0,)
    flip: bool = False
    combination: Combination = "softmax"
    window_batch: int | None = None
    area: str = FULL
    margin: int = 0
    resize: Resize = "picture"
    resize_by: ResizeBy = "size"
    side_rounding: SideRounding = "nearest"
    side_multiple: int = 1
    windows: Windows = "grid"
    absent_iou: AbsentIoU = "left_out"

    def __post_init__(self) -> None:
        check_kinds(self, "evaluation.")
        check_choice("evaluation mode", self.mode, Mode)
        check_choice("combination", self.combination, Combination)
        check_choice("resize", self.resize, Resize)
        check_choice("resize_by", self.resize_by, ResizeBy)
        check_choice("side_rounding", self.side_rounding, SideRounding)
        check_choice("windows", self.windows, Windows)
        check_choice("absent_iou", self.absent_iou, AbsentIoU)
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
        if self.window_batch is not None and self.window_batch < 1:
            raise UsageError(f"window_batch is {self.window_batch}; expected at least 1")
        if self.margin < 0:
            raise UsageError(f"margin is {self.margin}; expected 0 or more pixels")
        if self.side_multiple < 1:
            raise UsageError(f"side_multiple is {self.side_multiple}; expected at least 1")
        self._check_together()

    def _check_together(self) -> None:
        """Raise UsageError for fields that do not go together."""
        if self.resize != "picture" and self.combination not in ("softmax", "logits"):
            raise UsageError(
                f"combination '{self.combination}' is given with resize '{self.resize}', where logits are resized "
                "before they are combined; use softmax or logits, or resize 'picture'"
            )
        if self.resize != "picture" and self.resize_by == "factor":
            raise UsageError(f"resize_by 'factor' is given with resize '{self.resize}'; it needs resize 'picture'")
        if self.windows != "grid" and (self.mode, self.resize, self.combination) != ("sliding", "picture", "sagate"):
            raise UsageError(
                f"windows '{self.windows}' need mode 'sliding', resize 'picture' and combination 'sagate'; got "
                f"'{self.mode}', '{self.resize}' and '{self.combination}'"
            )

    def scaled_size(self, size: tuple[int, int], scale: float) -> tuple[int, int]:
        """Return (height, width) of an image of ``size`` at a scale."""
        return self._scaled_side(size[0], scale), self._scaled_side(size[1], scale)

    def _scaled_side(self, side: int, scale: float) -> int:
        multiple = self.side_multiple
        if self.side_rounding == "nearest":
            count = round(side * scale / multiple)
        elif self.side_rounding == "up":
            count = -(-int(side * scale) // multiple)
        else:
            count = int(side * scale) // multiple
        return max(1, count) * multiple

    def counted(self, size: tuple[int, int], sample_id: str) -> tuple[slice, slice]:
        """Return the rows and columns that are counted of an image of ``size`` (height, width).

        Raises:
            DataError: when the area is that of images of another size.
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
        text = "; ".join([text, *self._released_traits()])
        if self.margin:
            text = f"{text}; without {self.margin} pixels on each side, which are neither seen nor counted"
        if self.area == FULL:
            return text
        area = counted_areas()[self.area]
        counted = f"rows {area.top} to {area.bottom - 1}, columns {area.left} to {area.right - 1}"
        return f"{text}; only {counted} are counted ({self.area})"

    def _released_traits(self) -> list[str]:
        """Return what a reader needs to know besides the usual, one text each."""
        traits = [_RESIZE_TEXT[self.resize]] if self.resize != "picture" else []
        if self.side_rounding != "nearest" or self.side_multiple != 1:
            traits.append(f"sides rounded {self.side_rounding} to multiples of {self.side_multiple}")
        if self.resize_by == "factor":
            traits.append("pictures resized by factor")
        if self.windows == "cmx_released":
            traits.append("windows with rows and columns exchanged, as CMX and Sigma were released")
        if self.absent_iou == "zero":
            traits.append("absent classes count 0 in the mean")
        return traits

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
        if self.resize != "picture":
            parts.append(self.resize.replace("_", ""))
        if self.resize_by == "factor" and any(scale != 1 for scale in self.scales):
            parts.append("factor")
        if self.side_rounding != "nearest" or self.side_multiple != 1:
            parts.append(f"{self.side_rounding}{self.side_multiple}")
        if self.windows != "grid":
            parts.append(self.windows.replace("_", ""))
        if self.absent_iou == "zero":
            parts.append("absent0")
        if self.margin:
            parts.append(f"margin{self.margin}")
        return "-".join([*parts, *([] if self.area == FULL else [self.area])])

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, ready for JSON."""
        return {
            name: list(value) if isinstance(value, tuple) else value for name, value in dataclasses.asdict(self).items()
        }


_FORMER_WINDOW_BATCH = 4
"""What checkpoints hold where nobody chose, from before it was chosen by device."""


def for_other_images(stored: EvaluationProtocol) -> EvaluationProtocol:
    """Return a recipe's protocol without what it cuts off its dataset and which pixels of it count."""
    return dataclasses.replace(stored, margin=0, area=FULL)


def stored_protocol(config: Mapping[str, Any] | None) -> EvaluationProtocol:
    """Return the evaluation protocol of a run's stored config, or the plain default when it has none.

    Raises:
        CheckpointError: when it is of another version.
    """
    values = (config or {}).get("evaluation")
    if not isinstance(values, dict):
        return EvaluationProtocol()
    fields: dict[str, Any] = {key: tuple(value) if isinstance(value, list) else value for key, value in values.items()}
    if fields.get("window_batch") == _FORMER_WINDOW_BATCH:
        del fields["window_batch"]
    try:
        return EvaluationProtocol(**fields)
    except TypeError as error:
        raise CheckpointError(f"the checkpoint's evaluation protocol is not understood: {error}") from None
