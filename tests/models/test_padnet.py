"""PAD-Net: the algebra of distillation, what depends on what, sizes and options."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.flop_counter import FlopCounterMode

import rgbdseg
from rgbdseg.config.loss import LossConfig
from rgbdseg.errors import UsageError
from rgbdseg.losses import segmentation_loss
from rgbdseg.models._base import SegmentationOutput, Task
from rgbdseg.models.padnet import MultiModalDistillation, PADNet
from rgbdseg.recipes import get_recipe
from tests.models.feed import feed

CLASSES = 5
TASKS: tuple[Task, ...] = ("segmentation", "depth", "normals", "contours")


def features(seed: int, channels: int = 6) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {task: torch.randn(2, channels, 7, 5, generator=generator) for task in TASKS}


def distillation(kind: Any, gate: Any = "target", target: Task = "depth", channels: int = 6) -> MultiModalDistillation:
    torch.manual_seed(0)
    return MultiModalDistillation(target, TASKS, channels, kind, gate)


def small(**options: Any) -> PADNet:
    torch.manual_seed(1)
    widths = {"branch_channels": 8, "small_branch_channels": 4, "channels": 8}
    return PADNet(CLASSES, "test_resnet", **{"output_stride": 8, **widths, **options})


def by_name(output: SegmentationOutput) -> dict[str, Tensor]:
    return {a.name: a.value for a in output.aux}


def messages(module: MultiModalDistillation, values: dict[str, Tensor]) -> Tensor:
    total = torch.zeros_like(values["depth"])
    for task in ("segmentation", "normals", "contours"):
        convolution = module.messages[task]
        assert isinstance(convolution, nn.Conv2d)
        total = total + functional.conv2d(values[task], convolution.weight, convolution.bias, padding=1)
    return total


def test_module_a_is_one_convolution_of_all_features() -> None:
    module, values = distillation("A"), features(0)
    assert module.join is not None
    joined = torch.cat([values[task] for task in TASKS], dim=1)
    expected = functional.conv2d(joined, module.join.weight, module.join.bias, padding=1)
    torch.testing.assert_close(module(values), expected)


def test_module_b_adds_the_messages_of_the_others() -> None:
    module, values = distillation("B"), features(1)
    assert "depth" not in module.messages
    torch.testing.assert_close(module(values), values["depth"] + messages(module, values))


@pytest.mark.parametrize(("bias", "share"), [(0.0, 0.5), (-50.0, 0.0), (50.0, 1.0)])
def test_the_gate_of_module_c_scales_the_messages(bias: float, share: float) -> None:
    module, values = distillation("C"), features(2)
    assert module.gate is not None
    assert module.gate.bias is not None
    nn.init.zeros_(module.gate.weight)
    nn.init.constant_(module.gate.bias, bias)
    expected = values["depth"] + share * messages(module, values)
    torch.testing.assert_close(module(values), expected)


def test_the_paper_s_gate_depends_on_the_target_alone_and_the_other_on_the_source() -> None:
    values = features(3)
    moved = {**values, "normals": values["normals"] + 1}
    paper = distillation("C")
    assert paper.gate is not None
    gates: list[Tensor] = []
    paper.gate.register_forward_hook(lambda module, inputs, output: gates.append(output))
    assert not torch.equal(paper(values), paper(moved))  # the message has changed
    assert torch.equal(gates[0], gates[1])
    source = distillation("C", "source")
    expected = values["depth"].clone()
    for task in ("segmentation", "normals", "contours"):
        conv, gate = source.messages[task], source.source_gates[task]
        assert isinstance(conv, nn.Conv2d)
        assert isinstance(gate, nn.Conv2d)
        assert conv.bias is None
        assert gate.bias is None
        opened = torch.sigmoid(functional.conv2d(values[task], gate.weight, padding=1))
        expected += opened * functional.conv2d(values[task], conv.weight, padding=1)
    torch.testing.assert_close(source(values), expected)


def test_parameters_of_distillation() -> None:
    def count(kind: Any, gate: Any = "target") -> int:
        both = [distillation(kind, gate, task, channels=256) for task in ("segmentation", "depth")]
        return sum(p.numel() for module in both for p in module.parameters())

    assert count("C") == 4_720_640
    assert count("B") == 2 * 3 * (9 * 256 * 256 + 256)
    assert count("A") == 2 * (9 * 4 * 256 * 256 + 256)
    assert count("C", "source") == 2 * 3 * 2 * 9 * 256 * 256


@pytest.mark.parametrize(("height", "width"), [(480, 640), (33, 47)])
def test_sizes_of_the_full_network(height: int, width: int) -> None:
    model = rgbdseg.create_model("padnet_resnet50", 40).to("meta").train()
    assert sum(p.numel() for p in model.parameters()) == 55_949_398
    rgb = torch.empty(2, 3, height, width, device="meta")
    shapes: dict[str, tuple[int, ...]] = {}
    model.aggregate.register_forward_hook(lambda m, i, o: shapes.update(shared=tuple(o.shape)))
    for task, branch in model.branches.items():
        branch.register_forward_hook(lambda m, i, o, task=task: shapes.update({task: tuple(o.shape)}))
    output = feed(model, rgb)
    eighth, quarter = (-(-height // 8), -(-width // 8)), (-(-height // 4), -(-width // 4))
    assert shapes["shared"] == (2, 512, *eighth)
    for task, channels in (("segmentation", 512), ("depth", 512), ("normals", 256), ("contours", 256)):
        assert shapes[task] == (2, channels, 2 * eighth[0], 2 * eighth[1])
    assert output.logits.shape == (2, 40, height, width)
    assert {name: tuple(value.shape[1:]) for name, value in by_name(output).items()} == {
        "initial_segmentation": (40, *quarter),
        "initial_depth": (1, *quarter),
        "initial_normals": (3, *quarter),
        "initial_contours": (1, *quarter),
        "depth": (1, height, width),
    }


@pytest.mark.parametrize(("tasks", "expected"), [((), 1), (("contours", "depth"), 4), (("normals",), 2)])
def test_tasks_can_be_left_out(tasks: tuple[Task, ...], expected: int) -> None:
    model = small(tasks=tasks).train()
    assert set(model.auxiliary_tasks) == set(tasks)
    output = feed(model, torch.randn(2, 3, 32, 32))
    names = {f"initial_{task}" for task in ("segmentation", *tasks)} | ({"depth"} & set(tasks))
    assert set(by_name(output)) == names
    assert len(names) == expected
    sum(value.square().mean() for value in (output.logits, *by_name(output).values())).backward()  # type: ignore[union-attr]
    assert all(p.grad is not None for p in model.parameters())


@pytest.mark.parametrize("lift", ["scores", "features"])
def test_segmentation_teaches_the_depth_branch(lift: Any) -> None:
    model = small(lift=lift).train()
    output = feed(model, torch.randn(2, 3, 32, 32))
    label = torch.randint(CLASSES, (2, 32, 32))
    segmentation_loss(SegmentationOutput(output.logits), label, LossConfig()).total.backward()
    for parameter in model.branches["depth"].parameters():
        assert parameter.grad is not None
        assert parameter.grad.abs().max() > 0
    through_the_prediction = model.heads["depth"].weight.grad
    assert (through_the_prediction is not None) == (lift == "scores")


def test_scores_are_a_bottleneck_of_the_width_of_the_prediction() -> None:
    """What is lifted from depth scores varies in one direction per pixel, from features in as many as there are."""
    model = small().eval()
    feature = torch.randn(1, 8, 3, 3, dtype=torch.float64)
    head, lift = model.heads["depth"].double(), model.lifts["depth"].double()
    jacobian = torch.autograd.functional.jacobian(lambda x: lift[:2](head(x))[0, :, 1, 1], feature)
    assert torch.linalg.matrix_rank(jacobian[:, 0, :, 1, 1]) == 1
    wide = small(lift="features").eval().lifts["depth"].double()
    jacobian = torch.autograd.functional.jacobian(lambda x: wide[:2](x)[0, :, 1, 1], feature)
    assert torch.linalg.matrix_rank(jacobian[:, 0, :, 1, 1]) == 8


def test_padding_for_odd_sizes_stays_outside() -> None:
    """Pixels keep their place: an image and the same image with a wider border agree far from the border."""
    model = small().eval()
    rgb = torch.randn(1, 3, 96, 96, generator=torch.Generator().manual_seed(5))
    whole = feed(model, rgb).logits
    part = feed(model, rgb[..., :91, :93]).logits
    assert part.shape[-2:] == (91, 93)
    scale = float(whole[..., :16, :16].detach().std())
    torch.testing.assert_close(part[..., :16, :16], whole[..., :16, :16], atol=0.2 * scale, rtol=0)


def test_depth_is_no_input() -> None:
    model = small().eval()
    rgb = torch.randn(1, 3, 32, 32)
    assert model.input_spec.names == ("rgb",)
    depth = {"rgb": rgb, "depth": torch.randn(1, 1, 32, 32)}
    assert torch.equal(feed(model, rgb).logits, model(depth, torch.ones(1, 4)).logits)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tasks": ("depth", "edges")}, "unknown PAD-Net task 'edges'"),
        ({"distillation": "D"}, "unknown PAD-Net distillation 'D'; expected one of: A, B, C"),
        ({"gate": "sources"}, "unknown PAD-Net gate 'sources'; did you mean 'source'"),
        ({"lift": "score"}, "unknown PAD-Net lift 'score'; did you mean 'scores'"),
        ({"phase": "first"}, "unknown PAD-Net phase 'first'"),
        ({"channels": 6}, "model option channels is 6; expected a multiple of 4"),
        ({"branch_channels": 0}, "model option branch_channels is 0"),
    ],
)
def test_bad_options_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        small(**options)


@pytest.mark.parametrize("name", ["padnet-nyuv2", "padnet-cityscapes"])
def test_recipes_name_every_output(name: str) -> None:
    config = get_recipe(name)
    weights = config.loss.auxiliary_weights
    assert set(weights) == set(by_name(feed(small().train(), torch.randn(2, 3, 32, 32))))
    assert {key for key, weight in weights.items() if weight == 0.8} == {"initial_normals", "initial_contours"}
    assert set(weights.values()) == {0.8, 1.0}


@pytest.mark.parametrize("lift", ["scores", "features"])
def test_the_initial_phase_is_the_front_end_of_the_whole_network(lift: str) -> None:
    initial, whole = small(phase="initial", lift=lift).train(), small(lift=lift).train()
    assert {n.partition(".")[0] for n, _ in initial.named_parameters()} == {
        "encoder", "reduce", "aggregate", "branches", "heads",
    }  # fmt: skip
    whole.load_state_dict(initial.state_dict(), strict=False)
    rgb = torch.randn(2, 3, 61, 47, generator=torch.Generator().manual_seed(3))
    output, values = feed(initial, rgb), by_name(feed(whole, rgb))
    assert [a.name for a in output.aux] == ["initial_depth", "initial_normals", "initial_contours"]
    for auxiliary in output.aux:
        torch.testing.assert_close(auxiliary.value, values[auxiliary.name])
    enlarged = functional.interpolate(values["initial_segmentation"], (61, 47), mode="bilinear", align_corners=False)
    torch.testing.assert_close(output.logits, enlarged)


def test_the_initial_phase_saves_a_third_of_the_operations() -> None:
    models = [rgbdseg.create_model("padnet_resnet50", 40, phase=phase).to("meta") for phase in ("initial", "whole")]
    operations = []
    for model in models:
        with FlopCounterMode(display=False) as counter:
            feed(model.train(), torch.empty(2, 3, 480, 480, device="meta"))
        operations.append(counter.get_total_flops())
    assert 0.60 < operations[0] / operations[1] < 0.67
