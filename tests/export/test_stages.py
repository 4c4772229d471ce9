from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np
import pytest
import torch
from timm.layers.conv2d_same import Conv2dSame

from rgbdseg import create_model, get_label_set
from rgbdseg.camera import PinholeCamera
from rgbdseg.config.protocol import EvaluationProtocol
from rgbdseg.config.published_protocols import PUBLISHED_PROTOCOLS
from rgbdseg.depth import MILLIMETERS, DepthUnit
from rgbdseg.errors import DataError, UsageError
from rgbdseg.export.export import Frames, with_variants
from rgbdseg.export.frames import room_frames
from rgbdseg.export.hha import encode_hha_in_graph, smallest_eigenvector
from rgbdseg.export.open_sizes import convolve_same, pool_adaptively, traceable_open_sizes
from rgbdseg.export.parity import graph_inputs, plain_frame
from rgbdseg.export.plan import GraphPlan
from rgbdseg.export.stages import WholeGraph, meters
from rgbdseg.export.views import bordered, views_per_frame
from rgbdseg.geometry.hha import INDOOR, OUTDOOR, HHAParameters, encode_hha
from rgbdseg.geometry.neighbors import nearest_neighbors
from rgbdseg.input_spec import InputSpec, Stream, hha_stream, metric_depth_stream, rgb_stream
from rgbdseg.models._base import SegmentationModel, SegmentationOutput
from rgbdseg.rooms.samples import render_room
from rgbdseg.sample import RGBDSample
from rgbdseg.segmenter import Segmenter
from tests.export.networks import ABC, Mixing

SIZE = (45, 60)


# --- HHA without decisions on values


@pytest.mark.parametrize("parameters", [INDOOR, OUTDOOR, dataclasses.replace(INDOOR, singular_windows="undefined")])
def test_hha_in_few_operators_is_the_same_but_for_rounding(parameters: HHAParameters) -> None:
    rooms = [render_room(seed, 0, (96, 128)) for seed in range(2)]
    ragged = rooms[0].depth_m.clone()  # type: ignore[union-attr]
    ragged[:, 20:60:7, ::3] = 0  # lines of readings between missing ones fix no plane
    ragged[:, 30:50, 40:90] = float("nan")
    ragged[:, 60, 60:70] = -1
    depths = [rooms[0].depth_m, rooms[1].raw_depth_m, ragged, torch.zeros_like(ragged)]
    depth_m = torch.stack([depth for depth in depths if depth is not None])
    camera = torch.tensor([rooms[0].camera.as_tuple()] * 4, dtype=torch.float64)  # type: ignore[union-attr]
    wanted = encode_hha(depth_m, camera, parameters=parameters).int()
    found = encode_hha_in_graph(depth_m, camera, parameters).int()
    assert (found - wanted).abs().max() <= 1
    assert (found != wanted).float().mean() < 1e-3
    # The test can tell: what is singular must be there, and HHA must not be flat.
    assert wanted.float().std() > 10


def test_smallest_eigenvector_also_where_two_eigenvalues_are_close() -> None:
    generator = torch.Generator().manual_seed(0)
    basis = torch.linalg.qr(torch.randn(200, 3, 3, dtype=torch.float64, generator=generator)).Q
    for values in ((-3.0, 1.0, 2.0), (-1.0, -1.0 + 1e-5, 4.0), (-2.0, 5.0, 5.0), (1e-9, 2e-9, 3e-9)):
        matrix = basis @ torch.diag(torch.tensor(values, dtype=torch.float64)) @ basis.mT
        side = basis[:, :, 0] + 0.5 * basis[:, :, 1]
        found = smallest_eigenvector(matrix, side)
        assert torch.all((found * basis[:, :, 0]).sum(1) > 1 - 1e-9), values


def test_without_any_evidence_gravity_stays() -> None:
    start = torch.tensor([[0.0, 0.6, 0.8]], dtype=torch.float64)
    evidence = -1e-30 * start[:, :, None] * start[:, None, :]
    torch.testing.assert_close(smallest_eigenvector(evidence, start), start)


# --- depth in its unit


@pytest.mark.parametrize("unit", [MILLIMETERS, DepthUnit(0.01), DepthUnit(0.02, 0.5), DepthUnit(0.001, 0.0, None)])
def test_whole_numbers_become_the_same_meters(unit: DepthUnit) -> None:
    stored = np.random.default_rng(0).integers(0, 65536, (2, 7, 9)).astype(np.uint16)
    stored[0, 0] = 0
    found = meters(torch.from_numpy(stored), unit)
    assert np.array_equal(found[:, 0].numpy(), unit.to_meters(stored))


def test_what_is_no_reading_becomes_zero() -> None:
    depth = torch.tensor([[[1.5, 0.0, -2.0, math.nan, math.inf, -math.inf]]])
    assert meters(depth, DepthUnit(1.0)).flatten().tolist() == [1.5, 0, 0, 0, 0, 0]


# --- all stages against the segmenter


def compared(model: SegmentationModel, protocol: EvaluationProtocol, sample: RGBDSample, **plan: Any) -> float:
    segmenter = Segmenter(model, ABC, protocol=protocol, device="cpu")
    graph_plan = GraphPlan(model.input_spec, protocol, **{"size": sample.size, "scores": True, **plan})
    plain = plain_frame(sample, graph_plan)
    wanted = segmenter.segment(plain)
    log_scores = segmenter.score(plain).log_scores
    inputs = graph_inputs([plain, plain], graph_plan)
    with torch.no_grad():
        outputs = WholeGraph(model, graph_plan).eval()(
            *(torch.from_numpy(inputs[one.name]) for one in graph_plan.inputs)
        )
    labels, confidence, scores, found = (one.numpy() for one in outputs)
    assert labels.dtype == np.uint8
    assert np.array_equal(labels[0], labels[1])
    assert (labels[0] == wanted.labels).mean() > 0.999
    np.testing.assert_allclose(scores.sum(1), 1, rtol=1e-5)
    np.testing.assert_allclose(scores[0].max(0), confidence[0])
    assert np.quantile(np.abs(confidence[0] - wanted.confidence), 0.999) < 1e-4
    assert len(np.unique(labels)) > 1
    return float(np.quantile(np.abs(found[0] - log_scores.numpy()), 0.999))


PROTOCOLS = {
    "whole": EvaluationProtocol(),
    "mirror": EvaluationProtocol(flip=True),
    "mirror, sagate": EvaluationProtocol(flip=True, combination="sagate"),
    "mirror, malleable": EvaluationProtocol(flip=True, combination="malleable"),
    "windows": EvaluationProtocol(mode="sliding", crop_size=(32, 32)),
    "windows, mirror, sagate": EvaluationProtocol(mode="sliding", crop_size=(32, 32), flip=True, combination="sagate"),
    "window higher than the frame": EvaluationProtocol(mode="sliding", crop_size=(48, 32), combination="sagate"),
    "window larger than the frame": EvaluationProtocol(mode="sliding", crop_size=(64, 80)),
    "smaller": EvaluationProtocol(scales=(0.5,)),
    "smaller, by factor": EvaluationProtocol(scales=(0.55,), resize_by="factor"),
    "sides of multiples": EvaluationProtocol(scales=(0.7,), side_multiple=16, side_rounding="up"),
    "larger, sagate": EvaluationProtocol(mode="sliding", crop_size=(32, 48), scales=(1.25,), combination="sagate"),
}


@pytest.mark.parametrize("protocol", PROTOCOLS.values(), ids=list(PROTOCOLS))
def test_a_graph_looks_as_the_segmenter_does(protocol: EvaluationProtocol) -> None:
    model = Mixing(InputSpec((rgb_stream(), hha_stream()), needs_camera=True, size_divisor=16))
    assert compared(model, protocol, render_room(0, 0, SIZE)) < 2e-3


@pytest.mark.parametrize(
    "streams",
    [
        (rgb_stream(channel_order="reversed"),),
        (rgb_stream(), metric_depth_stream()),
        (Stream("depth", "depth_m", (2.0,), (0.7,), 1.0, missing="mean"),),
        (Stream("depth", "depth_m", (2.0,), (0.7,), 1.0, missing=9.0),),
        (rgb_stream(), Stream("depth", "depth_m", stretch="image")),
        (rgb_stream(), Stream("depth", "depth_m", stretch="image", tone="greys_r")),
        (Stream("hha", "hha", (0.4, 0.5, 0.6), (0.2, 0.25, 0.3), channel_order="reversed"),),
        (Stream("sensor", "raw_depth_m", (2.0,), (0.7,), 1.0),),
    ],
)
def test_every_rule_of_a_stream_is_inside(streams: tuple[Stream, ...]) -> None:
    model = Mixing(InputSpec(streams, size_divisor=8))
    room = render_room(1, 0, SIZE)
    assert room.raw_depth_m is not None
    sample = room if streams[0].raster == "raw_depth_m" else room.replace(depth_m=room.raw_depth_m)
    assert compared(model, EvaluationProtocol(), sample) < 2e-3


def test_open_sizes_pad_as_the_segmenter_does() -> None:
    model = Mixing(InputSpec((rgb_stream(), hha_stream()), needs_camera=True, size_divisor=16))
    assert compared(model, EvaluationProtocol(flip=True), render_room(0, 0, (45, 52)), size=None) < 2e-3


def test_depth_of_whole_numbers() -> None:
    model = Mixing(InputSpec((rgb_stream(), metric_depth_stream())))
    room = render_room(0, 0, SIZE)
    assert compared(model, EvaluationProtocol(), room, depth_unit=MILLIMETERS, whole_numbers=True) < 1e-5
    plan = GraphPlan(model.input_spec, depth_unit=MILLIMETERS, whole_numbers=True)
    assert graph_inputs([room], plan)["depth"].dtype == np.uint16


def test_a_real_family_with_all_stages() -> None:
    torch.manual_seed(0)
    model = create_model("sagate_resnet18", 3, encoder="test_resnet", decoder_channels=16, auxiliary_channels=16)
    assert compared(model.eval(), EvaluationProtocol(), render_room(0, 0, SIZE)) < 2e-3


def test_neighbors_in_a_program_are_the_same_also_at_equal_distances() -> None:
    grid = torch.cartesian_prod(torch.arange(6.0), torch.arange(5.0), torch.arange(2.0))
    missing = torch.zeros(20, 3)  # points without depth lie on each other
    tiny = torch.randn(20, 3, generator=torch.Generator().manual_seed(0)) * 1e-20
    points = torch.cat((grid, missing, tiny))[None]

    class Search(torch.nn.Module):
        def forward(self, points: torch.Tensor) -> torch.Tensor:
            return nearest_neighbors(points, 9)

    program = torch.export.export(Search(), (points,)).module()
    assert torch.equal(program(points), nearest_neighbors(points, 9))


@pytest.mark.parametrize("size", [(9, 8), (8, 9), (16, 16), (7, 7)])
@pytest.mark.parametrize("stride", [1, 2, (2, 1)])
@pytest.mark.parametrize("kernel", [1, 3, 5])
def test_same_padding_written_for_graphs(kernel: int, stride: int, size: tuple[int, int]) -> None:
    convolution = Conv2dSame(4, 6, kernel, stride, groups=2)
    image = torch.randn(2, 4, *size)
    torch.testing.assert_close(convolve_same(convolution, image), convolution(image))


def test_same_padding_is_traced_with_open_sizes_and_put_back() -> None:
    model = torch.nn.Sequential(*(Conv2dSame(2, 2, kernel, 2) for kernel in (3, 5, 3))).eval()
    image = torch.randn(1, 2, 40, 48)
    free = {2: torch.export.Dim.AUTO, 3: torch.export.Dim.AUTO}
    with traceable_open_sizes(model):
        program = torch.export.export(model, (image,), dynamic_shapes=(free,), strict=False).module()
    for size in ((40, 48), (37, 51), (16, 33)):
        other = torch.randn(1, 2, *size)
        torch.testing.assert_close(program(other), model(other))
    assert "forward" not in vars(model[0])


@pytest.mark.parametrize("cells", [1, 2, 4, (3, 5), (2, None)])
def test_means_over_cells_written_for_graphs(cells: Any) -> None:
    for size in ((8, 8), (7, 11), (3, 4), (20, 15)):
        image = torch.randn(2, 3, *size)
        torch.testing.assert_close(
            pool_adaptively(image, cells), torch.nn.functional.adaptive_avg_pool2d(image, cells), rtol=1e-5, atol=1e-6
        )


def test_color_alone_where_depth_is_optional() -> None:
    spec = InputSpec((rgb_stream(), dataclasses.replace(hha_stream(), optional=True)))
    hha = dataclasses.replace(INDOOR, missing_fill=0)
    model = Mixing(spec)
    plan = GraphPlan(spec, hha=hha, size=SIZE)
    assert [one.optional for one in plan.inputs] == [False, True, True]
    room = render_room(0, 0, SIZE)
    alone = dataclasses.replace(room.replace(depth_m=None, raw_depth_m=None), camera=None)
    wanted = Segmenter(model, ABC, hha=hha, device="cpu").segment(alone)
    inputs = graph_inputs([plain_frame(alone, plan)], plan)
    assert not inputs["depth"].any()
    with torch.no_grad():
        labels = WholeGraph(model, plan).eval()(*(torch.from_numpy(inputs[one.name]) for one in plan.inputs))[0]
    assert np.array_equal(labels[0].numpy(), wanted.labels)
    # A zero of depth means something else to the network where HHA of missing readings is not 0.
    other = GraphPlan(spec, hha=INDOOR, size=SIZE)
    assert not any(one.optional for one in other.inputs)
    with pytest.raises(DataError, match="has no depth"):
        plain_frame(alone, other)
    assert len(with_variants(Frames([room]), plan)) == 2
    assert len(with_variants(Frames([room]), other)) == 1


# --- what a graph cannot do


def test_plans_that_are_refused() -> None:
    spec = InputSpec((rgb_stream(),))
    with pytest.raises(UsageError, match="noise that is drawn for each frame's name"):
        GraphPlan(InputSpec((Stream("noise", "noise"),)))
    with pytest.raises(UsageError, match=r"scales \(0.5, 1.0\); a graph looks at a frame at one scale"):
        GraphPlan(spec, EvaluationProtocol(scales=(0.5, 1.0)))
    with pytest.raises(UsageError, match="windows and a scale other than 1 need the size"):
        GraphPlan(spec, EvaluationProtocol(mode="sliding", crop_size=(32, 32)))
    with pytest.raises(UsageError, match="margin, which belongs to a dataset"):
        GraphPlan(spec, EvaluationProtocol(margin=4))
    for released in ("cmx-released", "dformer", "asymformer"):
        protocol = dataclasses.replace(PUBLISHED_PROTOCOLS[released], scales=(1.0,))
        with pytest.raises(UsageError, match="a released evaluator's rule that no graph follows"):
            GraphPlan(spec, protocol, size=(480, 640))
    with pytest.raises(UsageError, match=r"expected .height, width. of 16 to 16384"):
        GraphPlan(spec, size=(8, 8))
    with pytest.raises(UsageError, match="for frames of any size, so their border is not known"):
        bordered(GraphPlan(spec))


def test_plans_travel_as_json_and_name_only_what_is_needed() -> None:
    plan = GraphPlan(
        InputSpec((rgb_stream(), hha_stream()), needs_camera=True, size_divisor=32),
        EvaluationProtocol(flip=True, mode="sliding", crop_size=(32, 32)),
        OUTDOOR,
        MILLIMETERS,
        whole_numbers=True,
        size=(64, 96),
    )
    assert GraphPlan.from_dict(plan.to_dict()) == plan
    assert [(one.name, one.dtype) for one in plan.inputs] == [
        ("rgb", "uint8"), ("depth", "uint16"), ("camera", "float64"),
    ]  # fmt: skip
    assert views_per_frame(plan) == 2 * 3 * 4
    assert [one.name for one in GraphPlan(InputSpec((rgb_stream(),))).inputs] == ["rgb"]


def test_frames_that_do_not_fit() -> None:
    plan = GraphPlan(InputSpec((rgb_stream(), hha_stream())), size=(32, 32))
    frames, _ = room_frames((32, 48), 2, plan.spec)
    with pytest.raises(DataError, match="is 32x48, but the graph was made for 32x32"):
        graph_inputs(frames, plan)
    open_plan = dataclasses.replace(plan, size=None)
    with pytest.raises(DataError, match="needs the camera"):
        graph_inputs([frames[0].replace(camera=None)], open_plan)
    with pytest.raises(DataError, match="has no depth"):
        plain_frame(frames[0].replace(depth_m=None), open_plan)
    moved = frames[0].replace(camera=PinholeCamera(1.5, 2.5, 3.5, 4.5))
    assert graph_inputs([moved], open_plan)["camera"].tolist() == [[1.5, 2.5, 3.5, 4.5]]


def test_a_network_that_says_its_input_shows_where_the_frame_lies() -> None:
    """The border is 0 after normalization, and is cut off again."""

    class Border(SegmentationModel):
        def forward(self, images: Any, camera: Any = None) -> SegmentationOutput:
            image = self.check_images(images)[0]
            zero = (image.abs().sum(1, keepdim=True) == 0).float()
            return SegmentationOutput(torch.cat((zero, 1 - zero, 0 * zero), 1))

    model = Border(3, InputSpec((rgb_stream(),), size_divisor=32))
    plan = GraphPlan(model.input_spec, size=(40, 50))
    rgb = torch.full((1, 40, 50, 3), 200, dtype=torch.uint8)
    labels = WholeGraph(model, plan)(rgb)[0]
    assert labels.shape == (1, 40, 50)
    assert torch.all(labels == 1)
    assert get_label_set("rooms") != ABC
