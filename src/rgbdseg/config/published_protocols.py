"""How published numbers were computed, by name: what ``rgbdseg evaluate --protocol NAME`` takes.

Of every rule it is stated whether pictures are resized by a size or by a factor, as the released code does it: on sides
that are whole numbers at every scale, as those of 480x640 at 0.75 and 1.25, both are the same.
"""

from __future__ import annotations

import dataclasses

from rgbdseg.config.protocol import EvaluationProtocol

_THREE_SCALES = (0.75, 1.0, 1.25)
_FIVE_SCALES = (0.5, 0.75, 1.0, 1.25, 1.5)

# The released evaluators of SA-Gate, Malleable 2.5D, CMX and Sigma give OpenCV factors, for geometry as for color, and
# bring score maps back by size.
_SAGATE = EvaluationProtocol(
    mode="sliding", crop_size=(480, 480), scales=_THREE_SCALES, flip=True, combination="sagate", resize_by="factor"
)
_CMX = dataclasses.replace(_SAGATE, crop_size=(480, 640))
# Networks that are fed by torch's interpolation are given sizes.
_DFORMER = EvaluationProtocol(
    mode="whole",
    scales=_FIVE_SCALES,
    flip=True,
    resize="input",
    side_rounding="up",
    side_multiple=32,
    absent_iou="zero",
)

PUBLISHED_PROTOCOLS: dict[str, EvaluationProtocol] = {
    "sagate-nyuv2": _SAGATE,
    "malleable-nyuv2": dataclasses.replace(_SAGATE, combination="malleable"),
    "cmx": _CMX,
    "cmx-released": dataclasses.replace(_CMX, windows="cmx_released"),
    "sigma": _CMX,
    "sigma-released": dataclasses.replace(_CMX, windows="cmx_released"),
    "cmnext": dataclasses.replace(_DFORMER, scales=(*_FIVE_SCALES, 1.75)),
    "dplnet": dataclasses.replace(_DFORMER, side_rounding="down", absent_iou="left_out"),
    "hdbformer": _DFORMER,
    "dformer": _DFORMER,
    "dformer-sliding": dataclasses.replace(_DFORMER, mode="sliding", crop_size=(480, 640)),
    "asymformer": EvaluationProtocol(
        mode="whole",
        scales=(1.0, 1.2, 1.4),
        combination="logits",
        resize="input_centered",
        side_multiple=32,
        absent_iou="zero",
    ),
}
"""Rules of several scales, each as the number of its paper; ``-released`` names a rule with the defect of its code."""
