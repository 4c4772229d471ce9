"""What an exported graph takes, does and gives: decided once, before anything is traced."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from rgbdseg.config.protocol import EvaluationProtocol
from rgbdseg.depth import METERS, DepthUnit
from rgbdseg.device import dtype_name
from rgbdseg.errors import UsageError
from rgbdseg.geometry.hha import INDOOR, HHAParameters
from rgbdseg.input_spec import InputSpec
from rgbdseg.sample import RASTERS

Size = tuple[int, int]
"""(height, width)."""

GRAPH_FORMAT = 1


@dataclasses.dataclass(frozen=True)
class GraphInput:
    """One input of the graph; the first axis is the frame.

    Args:
        name: of the input: rgb, depth, camera, or that of a further raster.
        kind: ``rgb``, ``depth``, ``camera`` or ``raster``.
        dtype: of NumPy, such as ``uint8``.
        channels: of the last axis; None where there is no such axis.
        optional: whether a frame without it will do.  Depth is then 0 everywhere, and the camera a usual one
            (`rgbdseg.segmenter.assumed_camera`): the graph itself takes all of its inputs.
    """

    name: str
    kind: str
    dtype: str
    channels: int | None
    optional: bool = False


@dataclasses.dataclass(frozen=True)
class GraphPlan:
    """What is put into the graph besides the network.

    Args:
        spec: what the network eats.
        protocol: how a frame is looked at: whole or in windows, with or without its mirror image, at one scale.
        hha: parameters of the HHA that is computed inside, where the network looks at HHA.
        depth_unit: what the numbers of ``depth`` mean.
        whole_numbers: depth is uint16 in this unit; otherwise float32.
        size: of the frames; None leaves it open.
        scores: the graph also returns the share of every class.
    """

    spec: InputSpec
    protocol: EvaluationProtocol = dataclasses.field(default_factory=EvaluationProtocol)
    hha: HHAParameters = INDOOR
    depth_unit: DepthUnit = METERS
    whole_numbers: bool = False
    size: Size | None = None
    scores: bool = False

    def __post_init__(self) -> None:
        if "noise" in self.spec.rasters:
            raise UsageError(
                "the model looks at noise that is drawn for each frame's name, which a graph does not know; such a "
                "control is not exported"
            )
        protocol = self.protocol
        if len(protocol.scales) > 1:
            raise UsageError(
                f"the protocol has scales {protocol.scales}; a graph looks at a frame at one scale; choose one"
            )
        if protocol.margin:
            raise UsageError("the protocol cuts off a margin, which belongs to a dataset; a graph sees whole frames")
        if protocol.resize != "picture" or protocol.windows != "grid" or protocol.combination == "logits":
            raise UsageError(
                f"the protocol has resize '{protocol.resize}', windows '{protocol.windows}' and combination "
                f"'{protocol.combination}', a released evaluator's rule that no graph follows; use resize 'picture', "
                "windows 'grid' and another combination"
            )
        if self.size is None and (protocol.scales != (1.0,) or protocol.mode == "sliding"):
            raise UsageError(
                "windows and a scale other than 1 need the size of the frames; give size=(height, width), or mode "
                "'whole' and scales (1.0,)"
            )
        if self.size is not None and not all(16 <= side <= 16384 for side in self.size):
            raise UsageError(f"size {self.size} is not usable; expected (height, width) of 16 to 16384 pixels")

    @property
    def needs_hha(self) -> bool:
        """Whether HHA is computed inside."""
        return "hha" in self.spec.rasters

    @property
    def needs_depth(self) -> bool:
        """Whether the graph takes depth."""
        return self.needs_hha or "depth_m" in self.spec.rasters

    @property
    def depth_optional(self) -> bool:
        """Whether depth that is 0 everywhere is to the network what no depth is."""
        streams = [stream for stream in self.spec.streams if stream.from_depth]
        return self.hha.missing_fill == 0 and all(stream.raster == "hha" and stream.optional for stream in streams)

    @property
    def inputs(self) -> tuple[GraphInput, ...]:
        """Inputs of the graph, in order: what the network has no use for is not among them, except for rgb."""
        depth_type = "uint16" if self.whole_numbers else "float32"
        found = [GraphInput("rgb", "rgb", "uint8", 3)]
        if self.needs_depth:
            found.append(GraphInput("depth", "depth", depth_type, None, self.depth_optional))
        if self.needs_hha or self.spec.needs_camera:
            optional = self.depth_optional and not self.spec.needs_camera
            found.append(GraphInput("camera", "camera", "float64", 4, optional))
        for name in self.spec.rasters:
            if name not in ("rgb", "depth_m", "hha"):
                rule = RASTERS[name]
                found.append(GraphInput(name, "raster", dtype_name(rule.dtype), rule.channels))
        return tuple(found)

    @property
    def outputs(self) -> tuple[str, ...]:
        """Outputs of the graph, in order."""
        return ("labels", "confidence", "scores") if self.scores else ("labels", "confidence")

    def example(self, frames: int, size: Size, seed: int = 0) -> dict[str, np.ndarray[Any, Any]]:
        """Return made-up inputs by name: a wall that is not parallel to the image, seen with noise."""
        random = np.random.default_rng(seed)
        height, width = size
        rows = np.linspace(1.0, 3.0, height)[:, None] + np.linspace(0, 0.5, width)
        made: dict[str, np.ndarray[Any, Any]] = {}
        for one in self.inputs:
            if one.kind == "camera":
                row = [0.9 * width, 0.9 * width, (width - 1) / 2, (height - 1) / 2]
                made[one.name] = np.tile(np.array(row, np.float64), (frames, 1))
            elif one.kind == "depth":
                meters = np.broadcast_to(rows, (frames, height, width)) * random.uniform(0.98, 1.02, (frames, 1, 1))
                stored = meters / self.depth_unit.meters_per_unit - self.depth_unit.offset_units
                made[one.name] = np.ascontiguousarray(stored.astype(one.dtype))
            else:
                values = random.integers(0, 256, (frames, height, width, one.channels or 1))
                made[one.name] = values.astype(one.dtype)
        return made

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, ready for JSON."""
        return {
            "inputs": [dataclasses.asdict(one) for one in self.inputs],
            "outputs": list(self.outputs),
            "input_spec": self.spec.to_dict(),
            "protocol": self.protocol.to_dict(),
            "hha": self.hha.to_dict() if self.needs_hha else None,
            "depth_unit": self.depth_unit.to_dict(),
            "whole_numbers": self.whole_numbers,
            "size": None if self.size is None else list(self.size),
            "scores": self.scores,
        }

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> GraphPlan:
        """Rebuild from `to_dict`."""
        protocol: dict[str, Any] = {
            key: tuple(value) if isinstance(value, list) else value for key, value in values["protocol"].items()
        }
        return cls(
            spec=InputSpec.from_dict(values["input_spec"]),
            protocol=EvaluationProtocol(**protocol),
            hha=HHAParameters.from_dict(values["hha"]) if values["hha"] else INDOOR,
            depth_unit=DepthUnit(**values["depth_unit"]),
            whole_numbers=bool(values["whole_numbers"]),
            size=None if values["size"] is None else (values["size"][0], values["size"][1]),
            scores=bool(values["scores"]),
        )
