"""The parts of an exported graph as modules: depth to HHA, frames to what the network eats, the network, its answer.

They are traced one by one and then joined, so that sizes can stay free in each, the network alone can be computed in
fewer bits, and what passes from one to the next can be compared.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from rgbdseg.depth import DepthUnit
from rgbdseg.export.answer import AnswerStage
from rgbdseg.export.hha import encode_hha_in_graph
from rgbdseg.export.plan import GraphPlan
from rgbdseg.export.views import bordered, factor, network_size, window_placements
from rgbdseg.geometry.hha import HHAParameters
from rgbdseg.input_spec import Stream
from rgbdseg.models._base import SegmentationModel
from rgbdseg.sample import RASTERS
from rgbdseg.transforms.pack import normalize
from rgbdseg.transforms.spatial import resize_raster

# N frames, V views of all frames (window by window, all frames of each; mirror images after all others), C classes


class HHAStage(nn.Module):
    """From depth (N, H, W) and camera (N, 4) to HHA, uint8 (N, 3, H, W)."""

    def __init__(self, unit: DepthUnit, parameters: HHAParameters) -> None:
        super().__init__()
        self.unit = unit
        self.encoding = parameters

    def forward(self, depth: Tensor, camera: Tensor) -> Tensor:
        """Return the encoding."""
        return encode_hha_in_graph(meters(depth, self.unit), camera, self.encoding)


class InputStage(nn.Module):
    """From the inputs of the graph, and HHA where the network looks at it, to what the network eats, for all views."""

    def __init__(self, plan: GraphPlan) -> None:
        super().__init__()
        self.plan = plan

    @property
    def input_names(self) -> tuple[str, ...]:
        """Arguments of `forward`, in order."""
        return (*(one.name for one in self.plan.inputs), *(("hha",) if self.plan.needs_hha else ()))

    @property
    def output_names(self) -> tuple[str, ...]:
        """What `forward` returns, in order."""
        names = [f"network_{name}" for name in self.plan.spec.names]
        return (*names, *(("network_camera",) if self.plan.spec.needs_camera else ()))

    def forward(self, *given: Tensor) -> tuple[Tensor, ...]:
        """Return the network's images (V, C, h, w), stream by stream, and its camera (V, 4) if it needs one."""
        plan = self.plan
        inputs = dict(zip(self.input_names, given, strict=True))
        rasters = self._rasters(inputs)
        images = [self._views(stream, rasters[stream.raster]) for stream in plan.spec.streams]
        if plan.spec.needs_camera:
            images.append(self._cameras(inputs["camera"], inputs["rgb"].shape[1:3]))
        return tuple(images)

    def _rasters(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        rasters: dict[str, Tensor] = {}
        for name in self.plan.spec.rasters:
            if name == "depth_m":
                rasters[name] = meters(inputs["depth"], self.plan.depth_unit)
            else:
                rasters[name] = inputs[name] if name == "hha" else inputs[name].permute(0, 3, 1, 2)
        return rasters

    def _views(self, stream: Stream, raster: Tensor) -> Tensor:
        ranges = _reading_ranges(raster) if stream.stretch == "image" else None
        size = network_size(self.plan)
        if size is None:
            image = _pad_to_multiple(normalize(raster, stream, ranges), self.plan.spec.size_divisor)
            return torch.cat((image, image.flip(-1))) if self.plan.protocol.flip else image
        rule = RASTERS[stream.raster]
        resized = resize_raster(raster, size, rule.interpolation, factor(self.plan))
        raster = bordered(self.plan).surround(resized, rule.fill)
        placements = window_placements(self.plan)
        views = [place.surround(normalize(place.take(raster), stream, ranges), 0) for place in placements]
        if self.plan.protocol.flip:
            views += [view.flip(-1) for view in views]
        return torch.cat(views)

    def _cameras(self, camera: Tensor, size: Sequence[int]) -> Tensor:
        """Move the camera with the pixels, in float64 as `PinholeCamera` does."""
        fx, fy, cx, cy = camera.to(torch.float64).unbind(1)
        small = network_size(self.plan)
        if small is None:
            top, left = (((-side) % self.plan.spec.size_divisor) // 2 for side in size)
            width = size[1] + (-size[1]) % self.plan.spec.size_divisor
            views = [(fx, fy, cx + left, cy + top, width)]
        else:
            assert self.plan.size is not None
            by_factor = factor(self.plan)
            scale_y, scale_x = (
                (by_factor, by_factor)
                if by_factor is not None
                else (small[0] / self.plan.size[0], small[1] / self.plan.size[1])
            )
            fx, fy = fx * scale_x, fy * scale_y
            border = bordered(self.plan)
            cx = (cx + 0.5) * scale_x - 0.5 + border.border_left
            cy = (cy + 0.5) * scale_y - 0.5 + border.border_top
            views = [
                (
                    fx,
                    fy,
                    cx - (place.left - place.border_left),
                    cy - (place.top - place.border_top),
                    place.input_size[1],
                )
                for place in window_placements(self.plan)
            ]
        rows = [torch.stack(view[:4], dim=1) for view in views]
        if self.plan.protocol.flip:
            rows += [torch.stack((f, g, w - 1 - c, d), dim=1) for f, g, c, d, w in views]
        return torch.cat(rows).to(torch.float32)


class NetworkStage(nn.Module):
    """The network: from its images, and camera if it needs one, to float32 logits (V, C, h, w)."""

    def __init__(self, model: SegmentationModel, names: Sequence[str], needs_camera: bool) -> None:
        super().__init__()
        self.model = model
        self.names = tuple(names)
        self.needs_camera = needs_camera

    def forward(self, *given: Tensor) -> Tensor:
        """Return the logits."""
        images = dict(zip(self.names, given, strict=False))
        return self.model(images, given[-1] if self.needs_camera else None).logits.float()


class TappedStage(nn.Module):
    """The network with what its larger parts return, in the order in which they are done.

    Args:
        stage: the network.
        parts: names of modules of its model.
    """

    def __init__(self, stage: NetworkStage, parts: Sequence[str]) -> None:
        super().__init__()
        self.stage = stage
        self.parts = tuple(parts)

    def forward(self, *given: Tensor) -> tuple[Tensor, ...]:
        """Return the logits and then what each part returns."""
        found: dict[str, Tensor] = {}
        hooks = [self.stage.model.get_submodule(name).register_forward_hook(_keep(found, name)) for name in self.parts]
        try:
            logits = self.stage(*given)
        finally:
            for hook in hooks:
                hook.remove()
        return (logits, *(found[name] for name in self.parts))


class WholeGraph(nn.Module):
    """All stages in one module: from the inputs of the graph to its outputs."""

    def __init__(self, model: SegmentationModel, plan: GraphPlan) -> None:
        super().__init__()
        self.plan = plan
        self.hha = HHAStage(plan.depth_unit, plan.hha) if plan.needs_hha else None
        self.inputs = InputStage(plan)
        self.network = NetworkStage(model, plan.spec.names, plan.spec.needs_camera)
        self.answer = AnswerStage(plan)

    def forward(self, *given: Tensor) -> tuple[Tensor, ...]:
        """Return the outputs in the order of the plan, and the log scores as the last."""
        named = dict(zip((one.name for one in self.plan.inputs), given, strict=True))
        hha = () if self.hha is None else (self.hha(named["depth"], named["camera"]),)
        answer = dict(
            zip(self.answer.output_names, self.answer(self.network(*self.inputs(*given, *hha)), given[0]), strict=True)
        )
        return (*(answer[name] for name in self.plan.outputs), answer["log_scores"])


def parts_of(model: SegmentationModel, call: Callable[[], object], depth: int = 3) -> list[str]:
    """Return the modules down to ``depth`` that return one tensor, once, in the order in which they do."""
    calls: dict[str, int] = {}
    hooks = []
    for name, module in model.named_modules():
        if name and name.count(".") < depth:
            hooks.append(module.register_forward_hook(_count(calls, name)))
    try:
        with torch.no_grad():
            call()
    finally:
        for hook in hooks:
            hook.remove()
    return [name for name, count in calls.items() if count == 1]


def meters(depth: Tensor, unit: DepthUnit) -> Tensor:
    """Return depth (N, H, W) in its unit as float32 meters (N, 1, H, W), 0 = no reading, as `DepthUnit.to_meters`."""
    if unit == DepthUnit(1.0) and depth.dtype == torch.float32:
        values = depth
    else:
        values = ((depth.to(torch.float64) + unit.offset_units) * unit.meters_per_unit).to(torch.float32)
    valid = (values > 0) & (values < math.inf)
    for missing in unit.missing_values:
        valid = valid & (depth.to(torch.float32) != missing)
    if unit.largest_m is not None:
        valid = valid & (values <= unit.largest_m)
    return torch.where(valid, values, 0.0)[:, None]


def _reading_ranges(raster: Tensor) -> Tensor:
    """Return the smallest and the largest reading of each frame (N, 2), 0 without any."""
    values = raster.float().flatten(1)
    readings = values > 0
    lowest = torch.where(readings, values, math.inf).amin(1)
    return torch.stack((torch.where(lowest < math.inf, lowest, 0.0), torch.where(readings, values, 0.0).amax(1)), dim=1)


def _pad_to_multiple(image: Tensor, divisor: int) -> Tensor:
    if divisor == 1:
        return image
    rows, columns = (-image.shape[-2]) % divisor, (-image.shape[-1]) % divisor
    return functional.pad(image, (columns // 2, columns - columns // 2, rows // 2, rows - rows // 2))


def _keep(found: dict[str, Tensor], name: str) -> Callable[..., None]:
    def hook(module: nn.Module, arguments: object, output: Tensor) -> None:
        found[name] = output.clone()  # before a later part changes it in place

    return hook


def _count(calls: dict[str, int], name: str) -> Callable[..., None]:
    def hook(module: nn.Module, arguments: object, output: object) -> None:
        if isinstance(output, Tensor) and output.is_floating_point():
            calls[name] = calls.get(name, 0) + 1

    return hook
