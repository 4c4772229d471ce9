from __future__ import annotations

import dataclasses

import pytest
import timm
import torch
from torch import Tensor, nn

import rgbdseg
from rgbdseg.errors import UsageError
from rgbdseg.models.gnn3d import GNN3D, Space
from rgbdseg.recipes import get_recipe
from rgbdseg.weights.imagenet import load_encoder_weights
from tests.models.feed import feed

# B batch, N nodes, K neighbors

WIDTH_PX, HEIGHT_PX = 256, 128
CAMERA = torch.tensor([[200.0, 200.0, 127.5, 63.5]])


def make(**options: object) -> GNN3D:
    torch.manual_seed(2)
    return GNN3D(3, "test_resnet", channels=8, hidden_channels=8, **options)  # type: ignore[arg-type]


def meta(name: str) -> GNN3D:
    with torch.device("meta"):
        model = rgbdseg.create_model(name, 40)
    assert isinstance(model, GNN3D)
    return model.eval()


def count(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


# The graph


def two_halves() -> Tensor:
    depth = torch.full((1, 1, HEIGHT_PX, WIDTH_PX), 1.0)
    depth[..., WIDTH_PX // 2 :] = 5.0
    return depth


def test_no_neighbor_lies_beyond_a_depth_edge() -> None:
    neighbors = make().find_neighbors(two_halves(), CAMERA)[0]
    columns = WIDTH_PX // 8
    is_left = torch.arange(HEIGHT_PX // 8 * columns) % columns < columns // 2
    assert torch.equal(is_left[neighbors], is_left[:, None].expand(-1, 64))


def test_no_message_crosses_a_depth_edge() -> None:
    model = make(steps=3)
    assert model.propagation is not None
    feature = torch.rand(1, 8, HEIGHT_PX // 8, WIDTH_PX // 8, requires_grad=True)
    left = WIDTH_PX // 16
    model.propagation(feature, model.find_neighbors(two_halves(), CAMERA))[..., :left].sum().backward()
    assert feature.grad is not None
    assert feature.grad[..., left:].abs().max() == 0
    assert feature.grad[..., :left].abs().max() > 0
    # On a wall without an edge it does.
    feature.grad = None
    model.propagation(feature, model.find_neighbors(torch.ones_like(two_halves()), CAMERA))[..., :left].sum().backward()
    assert feature.grad[..., left:].abs().max() > 0


@pytest.mark.parametrize("space", ["xyzxy", "xyz"])
def test_neighbors_on_a_wall_are_those_in_the_image(space: Space) -> None:
    neighbors = make(neighbors=9, space=space).find_neighbors(torch.full((2, 1, 64, 96), 2.0), CAMERA.expand(2, 4))
    node = 3 * 12 + 5
    block = {row * 12 + column for row in (2, 3, 4) for column in (4, 5, 6)}
    assert neighbors.shape == (2, 96, 9)
    assert neighbors[1, node, 0] == node
    assert set(neighbors[1, node].tolist()) == block


def test_neighbors_follow_distance_in_meters_not_in_the_image() -> None:
    """A strip at 4 m between two parts at 1 m: beyond a certain k the parts see each other before the strip."""
    depth = torch.full((1, 1, 8, 80), 1.0)
    depth[..., 32:48] = 4.0
    neighbors = make(neighbors=8).find_neighbors(depth, CAMERA)[0]
    # Nodes lie 4 cm apart at 1 m; the strip's are 3 m away.
    assert set(neighbors[3].tolist()) == {0, 1, 2, 3, 6, 7, 8, 9}


def test_nodes_without_depth_join_their_neighbors_in_the_image() -> None:
    depth = torch.full((1, 1, 64, 128), 3.0)
    depth[..., 64:] = 0
    node = 3 * 16 + 11
    block = {row * 16 + column for row in (2, 3, 4) for column in (10, 11, 12)}
    assert set(make(neighbors=9).find_neighbors(depth, CAMERA)[0, node].tolist()) == block
    # By meters alone they all coincide.
    lowest = [row * 16 + 8 + column for row in range(2) for column in range(8)][:8]
    by_meters = make(neighbors=9, space="xyz").find_neighbors(depth, CAMERA)[0, node].tolist()
    assert by_meters == [node, *lowest]


def test_the_principal_point_moves_all_points_alike() -> None:
    depth = 1 + torch.rand(1, 1, 64, 96, generator=torch.Generator().manual_seed(1)).round(decimals=1)
    model = make(neighbors=9, space="xyz")
    first = model.find_neighbors(depth, torch.tensor([[100.0, 100, 48, 32]]))
    # Each is sheared by its own depth, so neighbors change with the camera ...
    assert not torch.equal(first, model.find_neighbors(depth, torch.tensor([[100.0, 100, 400, 32]])))
    # ... but not when depth is the same everywhere.
    flat = torch.ones_like(depth)
    near = model.find_neighbors(flat, torch.tensor([[64.0, 64, 48, 32]]))
    assert torch.equal(near, model.find_neighbors(flat, torch.tensor([[64.0, 64, 176, 32]])))


# The network


def test_without_steps_it_is_the_image_network() -> None:
    """With the classifier blind for the states, three steps change nothing."""
    with_graph, alone = make(steps=3).eval(), make(steps=0).eval()
    assert alone.input_spec.names == ("rgb",)
    assert not alone.input_spec.needs_camera
    state = {k: v for k, v in with_graph.state_dict().items() if not k.startswith("propagation.")}
    channels = 8
    state["classifier.0.weight"] = state["classifier.0.weight"][:, :channels]
    alone.load_state_dict(state)
    with torch.no_grad():
        with_graph.classifier[0].weight[:, channels:] = 0
        rgb, depth = torch.randn(1, 3, 64, 96), torch.rand(1, 1, 64, 96) + 1
        expected = feed(alone, rgb).logits
        torch.testing.assert_close(feed(with_graph, rgb, depth, CAMERA).logits, expected)
        with_graph.classifier[0].weight[:, channels:] = 1
        assert not torch.allclose(feed(with_graph, rgb, depth, CAMERA).logits, expected)


@pytest.mark.parametrize("name", ["gnn3d_resnet101", "gnn3d_vgg16"])
def test_sizes_of_a_frame(name: str) -> None:
    model = meta(name)
    rgb, depth = torch.empty(1, 3, 480, 640, device="meta"), torch.empty(1, 1, 480, 640, device="meta")
    camera = torch.empty(1, 4, device="meta")
    feature = model.unary(model.encoder(rgb)[-1])
    assert feature.shape == (1, 256, 60, 80)
    assert model.find_neighbors(depth, camera).shape == (1, 4800, 64)
    assert model.classifier[0].in_channels == 512
    assert feed(model, rgb, depth, camera).logits.shape == (1, 40, 480, 640)


def test_parameters() -> None:
    vgg = meta("gnn3d_vgg16")
    assert vgg.propagation is not None
    assert count(vgg.propagation) == 197_120
    assert count(vgg.encoder) == 14_714_688  # the convolutions of VGG-16
    fc6, fc7, reduction = 512 * 9 * 1024 + 1024, 1024 * 1024 + 1024, 1024 * 256 + 256
    assert count(vgg.unary) == fc6 + fc7 + reduction
    assert count(vgg.classifier) == 512 * 256 + 256 + 256 * 40 + 40
    assert count(vgg) == 21_085_032


def test_vgg_is_that_of_large_fov() -> None:
    model = meta("gnn3d_vgg16")
    convolutions = [m for m in model.encoder.modules() if isinstance(m, nn.Conv2d)]
    assert [m.dilation[0] for m in convolutions] == 10 * [1] + 3 * [2]
    pools = [m for m in model.encoder.modules() if isinstance(m, nn.MaxPool2d)]
    assert [(m.kernel_size, m.stride, m.padding) for m in pools] == [(3, s, 1) for s in (2, 2, 2, 1, 1)]
    assert [m.dilation[0] for m in model.unary if isinstance(m, nn.Conv2d)] == [12, 1, 1]
    # The published input: 8 n + 1 pixels have n + 1 nodes.
    assert model.encoder(torch.empty(1, 3, 481, 641, device="meta"))[-1].shape == (1, 512, 61, 81)


def test_resnet_is_dilated_to_an_eighth() -> None:
    encoder = meta("gnn3d_resnet101").encoder
    assert {
        m.dilation for m in encoder.layer3[1:].modules() if isinstance(m, nn.Conv2d) and m.kernel_size == (3, 3)
    } == {(2, 2)}
    assert {
        m.dilation for m in encoder.layer4[1:].modules() if isinstance(m, nn.Conv2d) and m.kernel_size == (3, 3)
    } == {(4, 4)}


def test_imagenet_weights_of_a_vgg(tmp_path: object) -> None:
    published = timm.create_model("vgg11", num_classes=2)
    path = f"{tmp_path}/vgg11.pth"
    torch.save(published.state_dict(), path)
    model = GNN3D(3, "vgg11", channels=8, hidden_channels=8)
    (report,) = load_encoder_weights(model, path)
    assert any(name.startswith("pre_logits.") for name in report.dropped)
    assert torch.equal(model.encoder.state_dict()["features.0.weight"], published.state_dict()["features.0.weight"])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"steps": -1}, "steps is -1 and neighbors 64; expected at least 0 steps and at least 1 neighbor"),
        ({"neighbors": 0}, "steps is 3 and neighbors 0"),
        ({"space": "xy"}, "unknown space 'xy'"),
        ({"update": "gru"}, "unknown graph update 'gru'"),
    ],
)
def test_bad_options(options: dict[str, object], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        make(**options)


def test_missing_inputs_are_named() -> None:
    model = make().eval()
    rgb, depth = torch.zeros(1, 3, 32, 32), torch.ones(1, 1, 32, 32)
    with pytest.raises(UsageError, match=r"needs images\['depth'\]: expected a tensor \(B, 1, H, W\); got rgb"):
        feed(model, rgb)
    with pytest.raises(UsageError, match="needs a camera besides the images"):
        feed(model, rgb, depth)


# The recipe


def test_recipes_differ_in_the_network_only() -> None:
    base = get_recipe("gnn3d-nyuv2")
    assert base.schedule.iterations == 30_000
    for name in ("gnn3d-nyuv2-vgg16", "gnn3d-nyuv2-unary"):
        recipe = get_recipe(name)
        assert dataclasses.replace(recipe, recipe=base.recipe, model=base.model) == base


def test_windows_are_half_a_window_apart() -> None:
    from rgbdseg.inference import window_positions  # noqa: PLC0415

    protocol = get_recipe("gnn3d-nyuv2").evaluation
    assert protocol.crop_size is not None
    # 1.5 times a frame: strides of 240 and 320, the last window aligned to the end.
    expected = [(top, left) for top in (0, 239) for left in (0, 319)]
    assert window_positions((720, 960), protocol.crop_size, protocol.stride_rate) == expected
    tops = {top for top, _ in window_positions((1200, 1600), protocol.crop_size, protocol.stride_rate)}
    assert tops == {0, 240, 480, 719}
