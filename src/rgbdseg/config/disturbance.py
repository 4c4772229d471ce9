"""Faults of depth sensors by name and strength: what training adds to depth, and evaluation on request.

The one place where these are stated; `rgbdseg.transforms.disturb` computes them.  Free of torch.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping

from rgbdseg.errors import UsageError, unknown_name


@dataclasses.dataclass(frozen=True, slots=True)
class DepthDisturbance:
    """How bad sensors are taken to be in training.

    Args:
        probability: of each kind of fault in each image.
        scale_deviation: standard deviation of an image's scale error, cut off at three times that.
        noise_strength: largest factor of the axial noise, see `rgbdseg.transforms.disturb.add_axial_noise`.
        coarsest_disparity: largest step of the inverse depth, in 1/m.
        coarsest_blur: the fewest readings are one in so many squared, in pixels of an image whose longer side has 320.
        widest_edge: in such pixels on either side of a jump.
        largest_hole_share: of the image.
        nearest_m: the shortest distance that is read is drawn from this range.
        farthest_m: the longest, from this one.
        drop_probability: of a frame without any reading.

    Raises:
        UsageError: for values that mean nothing.
    """

    probability: float = 0.5
    scale_deviation: float = 0.03
    noise_strength: float = 2.0
    coarsest_disparity: float = 0.006
    coarsest_blur: int = 8
    widest_edge: int = 4
    largest_hole_share: float = 0.4
    nearest_m: tuple[float, float] = (0.2, 0.8)
    farthest_m: tuple[float, float] = (3.0, 10.0)
    drop_probability: float = 0.12

    def __post_init__(self) -> None:
        for name in ("probability", "largest_hole_share", "drop_probability"):
            if not 0 <= getattr(self, name) <= 1:
                raise UsageError(f"depth disturbance {name} is {getattr(self, name)!r}; expected 0..1")
        for name in ("scale_deviation", "noise_strength", "coarsest_disparity"):
            if not getattr(self, name) >= 0:
                raise UsageError(f"depth disturbance {name} is {getattr(self, name)!r}; expected 0 or more")
        for name in ("coarsest_blur", "widest_edge"):
            if getattr(self, name) < 1:
                raise UsageError(f"depth disturbance {name} is {getattr(self, name)!r}; expected 1 or more pixels")
        if self.scale_deviation >= 1 / 3:
            raise UsageError(f"depth disturbance scale_deviation is {self.scale_deviation}; expected less than 1/3")
        for name in ("nearest_m", "farthest_m"):
            low, high = getattr(self, name)
            if not 0 <= low <= high:
                raise UsageError(f"depth disturbance {name} is {(low, high)}; expected a range of meters, lower first")


DEFAULT_DISTURBANCE = DepthDisturbance()
"""Kinect v1 and v2, RealSense and telephones: all of their faults, some of them at once."""


@dataclasses.dataclass(frozen=True, slots=True)
class Fault:
    """One kind of fault as evaluation adds it, to every frame at the same strength.

    Args:
        strength: where none is given: the strongest that `DEFAULT_DISTURBANCE` has in training.
        lowest: smallest strength that means something.
        highest: largest one.
        meaning: of the strength, as it is told beside a score.
    """

    strength: float
    lowest: float
    highest: float
    meaning: str


_D = DEFAULT_DISTURBANCE
USUAL_SIDE = 320
_PIXELS = f"pixels of an image whose longer side has {USUAL_SIDE}"

FAULTS: Mapping[str, Fault] = {
    "scale": Fault(_D.scale_deviation, 0, 0.33, "standard deviation of each frame's scale error"),
    "blur": Fault(_D.coarsest_blur, 1, 64, f"one reading in a square of so many {_PIXELS}, interpolated"),
    "noise": Fault(_D.noise_strength, 0, 100, "times the axial noise of Kinect v1, which grows with squared distance"),
    "quantization": Fault(_D.coarsest_disparity, 1e-5, 1, "1/m, step of the inverse depth"),
    "range": Fault(_D.farthest_m[0], 0.1, 100, "m, farthest reading"),
    "edges": Fault(_D.widest_edge, 1, 64, f"{_PIXELS} without readings on either side of a jump of more than 6 %"),
    "holes": Fault(_D.largest_hole_share, 0, 1, "share of the image in frayed holes"),
    "mixed": Fault(_D.probability, 0, 1, "probability of each of the other faults, at strengths drawn up to the usual"),
}
"""In the order in which several are added: that of a sensor, which measures before it drops readings."""


@dataclasses.dataclass(frozen=True)
class InputFaults:
    """What is wrong with the frames of an evaluation.

    Args:
        faults: strength of each of `FAULTS` that is added to depth.
        seed: of everything that is drawn; what a frame gets follows from it, the fault and the frame's name alone.
        without: streams that are left out.

    Raises:
        UsageError: for unknown faults and strengths that mean nothing.
    """

    faults: Mapping[str, float] = dataclasses.field(default_factory=dict)
    seed: int = 0
    without: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for name, strength in self.faults.items():
            if name not in FAULTS:
                raise unknown_name("disturbance", name, FAULTS)
            fault = FAULTS[name]
            if not fault.lowest <= strength <= fault.highest:
                raise UsageError(
                    f"disturbance {name}={strength:g}; expected {fault.lowest:g} to {fault.highest:g}: {fault.meaning}"
                )
        if self.seed < 0:
            raise UsageError(f"the seed of disturbances is {self.seed}; expected 0 or more")
        ordered = {name: float(self.faults[name]) for name in FAULTS if name in self.faults}
        object.__setattr__(self, "faults", ordered)
        object.__setattr__(self, "without", tuple(dict.fromkeys(self.without)))

    def __bool__(self) -> bool:
        return bool(self.faults or self.without)

    def describe(self) -> list[str]:
        """Return a line for each fault and each stream that is left out."""
        lines = [f"without {name}" for name in self.without]
        return [*lines, *(f"{name} {strength:g}: {FAULTS[name].meaning}" for name, strength in self.faults.items())]

    def slug(self) -> str:
        """Return a short name for files, different for faults that give different numbers; empty without any."""
        parts = [f"without-{name}" for name in self.without]
        parts += [f"{name}{strength:g}" for name, strength in self.faults.items()]
        return "-".join([*parts, *([f"seed{self.seed}"] if self.faults and self.seed else [])])

    def to_dict(self) -> dict[str, object]:
        """Return plain values, ready for JSON."""
        return {"disturbances": dict(self.faults), "seed": self.seed, "without": list(self.without)}


def parse_faults(texts: Iterable[str]) -> dict[str, float]:
    """Read faults as they are typed, ``holes`` or ``holes=0.2``.

    Raises:
        UsageError: for an unknown name, one that is given twice, and what is no number.
    """
    found: dict[str, float] = {}
    for text in texts:
        name, given, value = text.partition("=")
        if name not in FAULTS:
            raise unknown_name("disturbance", name, FAULTS)
        if name in found:
            raise UsageError(f"disturbance {name} is given twice; expected each once")
        try:
            found[name] = float(value) if given else FAULTS[name].strength
        except ValueError:
            raise UsageError(f"disturbance {text}: expected a number after '=': {FAULTS[name].meaning}") from None
    return found
