from __future__ import annotations

import dataclasses
import json
import subprocess
import sys

import numpy as np
import numpy.typing as npt
import pytest

from rgbdseg.config.protocol import EvaluationProtocol
from rgbdseg.config.published_protocols import PUBLISHED_PROTOCOLS
from rgbdseg.errors import DataError, UsageError


def test_description_names_everything_that_changes_the_number() -> None:
    base = EvaluationProtocol("sliding", (480, 432), 0.5, (0.75, 1.0, 1.25), flip=True, combination="sagate")
    text = base.describe()
    for part in ("sliding", "480x432", "0.5", "0.75 1 1.25", "flip", "sagate"):
        assert part in text
    assert "\n" not in text
    changes = [
        {"mode": "whole"},
        {"crop_size": (432, 432)},
        {"stride_rate": 2 / 3},
        {"scales": (1.0,)},
        {"flip": False},
        {"combination": "softmax"},
        {"combination": "malleable"},
        {"area": "nyu-crop"},
        {"area": "nyu-eigen"},
        {"margin": 7},
        {"margin": 7, "area": "nyu-eigen"},
        {"resize_by": "factor"},
        {"side_multiple": 32},
        {"side_multiple": 32, "side_rounding": "up"},
        {"side_rounding": "down"},
        {"windows": "cmx_released"},
        {"absent_iou": "zero"},
        {"resize": "input", "combination": "softmax"},
        {"resize": "input_centered", "combination": "softmax"},
        {"combination": "logits"},
    ]
    texts = {dataclasses.replace(base, **change).describe() for change in changes}
    assert len(texts | {text}) == len(changes) + 1
    slugs = {dataclasses.replace(base, **change).slug() for change in changes}
    assert len(slugs | {base.slug()}) == len(changes) + 1
    assert base.slug() == "sagate-window480x432-stride0.5-scales0.75_1_1.25-flip"


def test_window_batch_changes_no_number_and_is_not_named() -> None:
    assert EvaluationProtocol(window_batch=1).describe() == EvaluationProtocol(window_batch=8).describe()


def test_to_dict_goes_through_json_and_back() -> None:
    protocol = EvaluationProtocol("sliding", (480, 480), 0.5, (0.75, 1.0), True, "malleable", 2)
    values = json.loads(json.dumps(protocol.to_dict()))
    assert EvaluationProtocol(**{k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}) == protocol


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mode": "slidng"}, "unknown evaluation mode 'slidng'; did you mean 'sliding'?"),
        ({"combination": "softmx"}, "unknown combination 'softmx'; did you mean 'softmax'?"),
        ({"mode": "sliding"}, "sliding evaluation has no crop_size; give the window as (height, width)"),
        ({"crop_size": (480,)}, "crop_size is (480,); expected (height, width) in pixels"),
        ({"crop_size": (0, 480)}, "crop_size is (0, 480); expected (height, width) in pixels"),
        ({"stride_rate": 0.0}, "stride_rate is 0.0; expected a number above 0 and at most 1"),
        ({"stride_rate": 1.5}, "stride_rate is 1.5; expected a number above 0 and at most 1"),
        ({"scales": ()}, "scales are (); expected one or more positive numbers"),
        ({"scales": (1.0, 0.0)}, "scales are (1.0, 0.0); expected one or more positive numbers"),
        ({"scales": (float("nan"),)}, "scales are (nan,); expected one or more positive numbers"),
        ({"window_batch": 0}, "window_batch is 0; expected at least 1"),
        ({"margin": -1}, "margin is -1; expected 0 or more pixels"),
        ({"area": "nyu-corp"}, "unknown evaluation area 'nyu-corp'; did you mean 'nyu-crop'?"),
        ({"side_multiple": 0}, "side_multiple is 0; expected at least 1"),
        ({"resize_by": "faktor"}, "unknown resize_by 'faktor'; did you mean 'factor'?"),
        (
            {"resize": "input", "combination": "sagate"},
            "combination 'sagate' is given with resize 'input', where logits are resized before they are combined; use "
            "softmax or logits, or resize 'picture'",
        ),
        (
            {"resize": "input", "resize_by": "factor"},
            "resize_by 'factor' is given with resize 'input'; it needs resize 'picture'",
        ),
        (
            {"windows": "cmx_released"},
            "windows 'cmx_released' need mode 'sliding', resize 'picture' and combination 'sagate'; got 'whole', "
            "'picture' and 'softmax'",
        ),
    ],
)
def test_bad_values_are_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(UsageError) as error:
        EvaluationProtocol(**options)  # type: ignore[arg-type]
    assert str(error.value) == message


@pytest.mark.parametrize(
    ("area", "first", "last"), [("nyu-crop", (39, 40), (470, 600)), ("nyu-eigen", (45, 41), (470, 600))]
)
def test_counted_area(area: str, first: tuple[int, int], last: tuple[int, int]) -> None:
    protocol = EvaluationProtocol(area=area)
    pixels = np.argwhere(counted_mask(protocol))
    assert tuple(pixels[0]) == first
    assert tuple(pixels[-1]) == last
    assert len(pixels) == (last[0] - first[0] + 1) * (last[1] - first[1] + 1)
    assert f"only rows {first[0]} to {last[0]}, columns {first[1]} to {last[1]} are counted" in protocol.describe()
    assert protocol.slug() == f"softmax-whole-{area}"


def test_a_margin_is_not_counted_and_an_area_lies_inside_it() -> None:
    interior = counted_mask(EvaluationProtocol(margin=7))
    assert interior[7:473, 7:633].all()
    assert interior.sum() == 466 * 626
    both = counted_mask(EvaluationProtocol(margin=41, area="nyu-crop"))
    assert both[41:439, 41:599].all()
    assert both.sum() == 398 * 558
    wide = counted_mask(EvaluationProtocol(margin=7, area="nyu-crop"))
    assert np.array_equal(wide, counted_mask(EvaluationProtocol(area="nyu-crop")))
    text = EvaluationProtocol(margin=7).describe()
    assert text.endswith("without 7 pixels on each side, which are neither seen nor counted")
    assert EvaluationProtocol(margin=7, area="nyu-crop").slug() == "softmax-whole-margin7-nyu-crop"


def counted_mask(protocol: EvaluationProtocol) -> npt.NDArray[np.bool_]:
    mask = np.zeros((480, 640), dtype=bool)
    mask[protocol.counted(mask.shape, "7")] = True
    return mask


def test_everything_is_counted_unless_told_otherwise() -> None:
    assert counted_mask(EvaluationProtocol()).all()
    assert "counted" not in EvaluationProtocol().describe()
    assert EvaluationProtocol().counted((3, 4), "7") == (slice(0, 3), slice(0, 4))


def test_an_area_of_another_size_is_refused() -> None:
    with pytest.raises(DataError) as error:
        EvaluationProtocol(area="nyu-crop").counted((480, 641), "7")
    assert str(error.value) == (
        "sample '7' is 480x641, but the evaluation area 'nyu-crop' is that of images of 480x640; use the area 'full'"
    )


@pytest.mark.parametrize(
    ("rounding", "multiple", "expected"),
    [
        ("nearest", 1, [(240, 320), (50, 74), (600, 800)]),  # 50.5 and 74.5, as OpenCV rounds halves
        ("up", 32, [(256, 320), (64, 96), (608, 800)]),
        ("down", 32, [(224, 320), (32, 64), (576, 800)]),
        ("nearest", 32, [(256, 320), (64, 64), (608, 800)]),
    ],
)
def test_scaled_sides(rounding: str, multiple: int, expected: list[tuple[int, int]]) -> None:
    protocol = EvaluationProtocol(side_rounding=rounding, side_multiple=multiple)  # type: ignore[arg-type]
    images = [((480, 640), 0.5), ((101, 149), 0.5), ((480, 640), 1.25)]
    assert [protocol.scaled_size(*image) for image in images] == expected
    assert protocol.scaled_size((3, 3), 0.1) == (multiple, multiple)


def test_published_protocols_say_factor_or_size() -> None:
    by_factor = {name for name, one in PUBLISHED_PROTOCOLS.items() if one.resize_by == "factor"}
    assert by_factor == {"sagate-nyuv2", "malleable-nyuv2", "cmx", "cmx-released", "sigma", "sigma-released"}
    for name in ("cmx", "sigma"):
        right, released = PUBLISHED_PROTOCOLS[name], PUBLISHED_PROTOCOLS[f"{name}-released"]
        assert dataclasses.replace(right, windows="cmx_released") == released
    sizes = [PUBLISHED_PROTOCOLS["dformer"].scaled_size((480, 640), scale) for scale in (0.5, 0.75, 1, 1.25, 1.5)]
    assert sizes == [(256, 320), (384, 480), (480, 640), (608, 800), (736, 960)]
    assert PUBLISHED_PROTOCOLS["dplnet"].scaled_size((480, 640), 0.75) == (352, 480)
    assert PUBLISHED_PROTOCOLS["asymformer"].scaled_size((480, 640), 1.2) == (576, 768)


def test_torch_is_not_imported() -> None:
    code = "import sys, rgbdseg.config.published_protocols, rgbdseg.config.loss; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
