"""What every model of the catalog must do.  Small variants are tested in full, large ones only where it is cheap."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import rgbdseg
from rgbdseg.encoders import StagedEncoder
from rgbdseg.models._base import SegmentationModel, SegmentationOutput
from rgbdseg.models.acfnet import ACFNet
from rgbdseg.models.acnet import ACNet
from rgbdseg.models.danet import DANet
from rgbdseg.models.deeplabv3plus import DeepLabV3Plus
from rgbdseg.models.gald import GALD
from rgbdseg.models.gnn3d import GNN3D
from rgbdseg.models.malleable import Malleable
from rgbdseg.models.padnet import PADNet
from rgbdseg.models.pap import PAP
from rgbdseg.models.rdfnet import RDFNet
from rgbdseg.models.sagate import SAGate
from rgbdseg.transforms.pack import padded_size

CLASSES = 5
SMALL = [
    ("sagate_resnet18", {}),
    ("sagate_resnet18", {"output_stride": 16, "share_projections": False}),
    ("sagate_resnet18", {"fusion": "sum", "geometry": "noise"}),
    ("sagate", {"encoder": "tf_efficientnet_lite0", "output_stride": 32, "decoder_channels": 32}),
    ("sagate", {"encoder": "hrnet_w18_small"}),
    ("deeplabv3plus_resnet18", {}),
    ("deeplabv3plus", {"encoder": "mobilenetv2_035", "modality": "stacked", "decoder_channels": 32}),
    ("deeplabv3plus_resnet18", {"modality": "geometry", "output_stride": 16}),
    ("deeplabv3plus_resnet18", {"depth_convolution": "malleable"}),
    ("acnet_resnet18", {}),
    ("rdfnet_resnet18", {}),
    ("rdfnet_resnet18", {"conventions": "torchvision", "resize": "bilinear"}),
    ("danet_resnet18", {}),
    ("gald_resnet18", {}),
    ("acfnet_resnet18", {}),
    ("acfnet_resnet18", {"compat": "unofficial"}),
    ("gnn3d_resnet18", {}),
    ("gnn3d_resnet18", {"channels": 32, "update": "lstm", "space": "xyz"}),
    ("gnn3d_resnet18", {"steps": 0}),
    ("padnet_resnet18", {}),
    ("padnet_resnet18", {"output_stride": 16, "gate": "source", "lift": "features"}),
    ("padnet_resnet18", {"distillation": "A", "tasks": ("normals", "contours")}),
    ("padnet_resnet18", {"phase": "initial"}),
    ("pap_resnet18", {"channels": 32}),
    ("pap_resnet18", {"channels": 32, "affinity": "exp_dist", "affinity_stride": 8, "output_stride": 32}),
    ("pap_resnet18", {"channels": 32, "affinity": "relu_norm", "affinity_outputs": True}),
]
LARGE = sorted(set(rgbdseg.list_models()) - {name for name, _ in SMALL})

small_models = pytest.mark.parametrize(("name", "options"), SMALL)


_built: dict[str, SegmentationModel] = {}


def build(name: str, options: dict[str, object]) -> SegmentationModel:
    """A fresh model; initialising one takes longer than copying it."""
    key = f"{name} {options}"
    if key not in _built:
        torch.manual_seed(1)
        _built[key] = rgbdseg.create_model(name, CLASSES, **options)
    return copy.deepcopy(_built[key])


def inputs(
    model: SegmentationModel, height: int = 64, width: int = 64, batch: int = 2
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """RGB, geometry and camera, in a size the model can take."""
    height, width = padded_size((height, width), model.input_spec.size_divisor)
    generator = torch.Generator().manual_seed(2)
    channels = model.input_spec.geometry_channels
    rgb = torch.randn(batch, 3, height, width, generator=generator)
    geometry = torch.randn(batch, channels, height, width, generator=generator) if channels else None
    if geometry is not None and model.input_spec.geometry == "metric_depth":
        geometry = 1 + geometry.abs()
    camera = torch.tensor([[0.8 * width, 0.8 * width, width / 2, height / 2]]).expand(batch, 4).contiguous()
    return rgb, geometry, camera if model.input_spec.needs_camera else None


def activate_all_branches(model: nn.Module) -> None:
    """Residual branches start at zero and a small bottleneck may happen to be: then nothing before has a gradient."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.constant_(module.weight, 0.7)
        elif isinstance(module, nn.Linear):
            nn.init.ones_(module.bias)
    for name, parameter in model.named_parameters():
        if name.endswith("gamma"):
            nn.init.constant_(parameter, 0.7)


def total(output: SegmentationOutput) -> Tensor:
    """A loss in which no gradient cancels."""
    maps = [output.logits, *(auxiliary.value for auxiliary in output.aux)]
    generator = torch.Generator().manual_seed(4)
    return sum((m * torch.randn(m.shape, generator=generator)).mean() for m in maps)  # type: ignore[return-value]


@small_models
@pytest.mark.parametrize(("height", "width"), [(32, 32), (33, 47), (61, 96)])
def test_logits_have_the_size_of_the_input(name: str, options: dict[str, object], height: int, width: int) -> None:
    model = build(name, options).eval()
    rgb, geometry, camera = inputs(model, height, width, batch=1)
    output = model(rgb, geometry, camera)
    assert output.logits.shape == (1, CLASSES, *rgb.shape[-2:])
    assert output.logits.isfinite().all()


@pytest.mark.parametrize("name", LARGE)
def test_large_models_forward(name: str) -> None:
    with torch.device("meta"):  # shapes are all that is asked
        model = rgbdseg.create_model(name, CLASSES).eval()
    rgb, *others = (a if a is None else a.to("meta") for a in inputs(model, 33, 47, batch=1))
    with torch.no_grad():
        assert model(rgb, *others).logits.shape == (1, CLASSES, *rgb.shape[-2:])


@small_models
def test_one_return_type(name: str, options: dict[str, object]) -> None:
    model = build(name, options).eval()
    assert model(*inputs(model)).aux == ()
    output = model.train()(*inputs(model))
    assert isinstance(output, SegmentationOutput)
    names = [a.name for a in output.aux]
    assert len(set(names)) == len(names)
    channels = {"segmentation": CLASSES, "depth": 1, "normals": 3, "contours": 1}
    # All that the model announces is there, and nothing else.
    assert {a.task for a in output.aux} | {"segmentation"} == {"segmentation", *model.auxiliary_tasks}
    for auxiliary in output.aux:
        if auxiliary.task.startswith("affinity_"):
            cells = auxiliary.value.shape[-2] * auxiliary.value.shape[-1]
            assert auxiliary.value.shape[:2] == (len(output.logits), cells)
            assert (auxiliary.value >= 0).all()
            torch.testing.assert_close(auxiliary.value.sum((-2, -1)), torch.ones(len(output.logits), cells))
        else:
            assert auxiliary.value.shape[:2] == (len(output.logits), channels[auxiliary.task])


@small_models
def test_gradient_reaches_every_parameter(name: str, options: dict[str, object]) -> None:
    model = build(name, options).train()
    activate_all_branches(model)
    total(model(*inputs(model))).backward()
    without = [n for n, p in model.named_parameters() if p.grad is None or p.grad.abs().max() == 0]
    assert without == []
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)


@small_models
def test_every_input_counts(name: str, options: dict[str, object]) -> None:
    model = build(name, options).eval()
    activate_all_branches(model)
    rgb, geometry, camera = inputs(model)
    logits = model(rgb, geometry, camera).logits
    assert torch.equal(logits, model(rgb, geometry, camera).logits)
    if geometry is not None:
        assert not torch.equal(logits, model(rgb, geometry.flip(1).flip(2), camera).logits)
    if camera is not None:
        assert not torch.equal(logits, model(rgb, geometry, 2 * camera).logits)
    uses_rgb = options.get("modality") != "geometry"
    assert torch.equal(logits, model(rgb.flip(1), geometry, camera).logits) is not uses_rgb


@small_models
def test_state_dict_round_trip(name: str, options: dict[str, object], tmp_path: Path) -> None:
    model = build(name, options)
    activate_all_branches(model)
    torch.save(model.state_dict(), tmp_path / "weights.pth")
    other = rgbdseg.create_model(name, CLASSES, **options)
    other.load_state_dict(torch.load(tmp_path / "weights.pth", weights_only=True))
    arguments = inputs(model)
    assert torch.equal(model.eval()(*arguments).logits, other.eval()(*arguments).logits)


@small_models
def test_facts(name: str, options: dict[str, object]) -> None:
    model = build(name, options)
    assert model.family == name.partition("_")[0]
    assert model.num_classes == CLASSES
    names = [n for n, _ in model.named_parameters()]
    backbone = [n for n in names if n.startswith(model.backbone_prefixes)]
    assert 0 < len(backbone) < len(names)
    for stream, encoder in model.encoder_streams():
        assert stream in ("rgb", "geometry", "stacked", "merge")
        assert isinstance(encoder, StagedEncoder)
        held = {id(p) for n, p in model.named_parameters() if n in backbone}
        assert all(id(p) in held for p in encoder.parameters())
    assert not [n for n in backbone if "decoder" in n or "auxiliary" in n]


@small_models
def test_half_precision_stays_finite(name: str, options: dict[str, object]) -> None:
    model = build(name, options).train()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = model(*inputs(model))
    assert output.logits.dtype == torch.float32  # ready for a loss
    total(output).backward()
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)


@small_models
def test_channels_last_gives_the_same(name: str, options: dict[str, object]) -> None:
    model = build(name, options).eval()
    arguments = inputs(model)
    logits = model(*arguments).logits
    model = model.to(memory_format=torch.channels_last)
    moved = [a if a is None or a.ndim != 4 else a.to(memory_format=torch.channels_last) for a in arguments]
    torch.testing.assert_close(model(*moved).logits, logits, rtol=1e-4, atol=1e-4)


# What is slow is tried with the smallest encoder.
TINY: dict[str, Callable[[], SegmentationModel]] = {
    "sagate": lambda: SAGate(CLASSES, "test_resnet", decoder_channels=16, auxiliary_channels=16),
    "deeplabv3plus stacked": lambda: DeepLabV3Plus(
        CLASSES, "test_resnet", modality="stacked", decoder_channels=16, auxiliary_channels=16
    ),
    "deeplabv3plus": lambda: DeepLabV3Plus(CLASSES, "test_resnet", decoder_channels=16, auxiliary_channels=16),
    "malleable": lambda: Malleable(CLASSES, "test_resnet", decoder_channels=16),
    "acnet": lambda: ACNet(CLASSES, "test_resnet", decoder_channels=(24, 16, 12, 8, 8), decoder_blocks=(2, 1, 1, 1, 1)),
    "rdfnet": lambda: RDFNet(CLASSES, "test_resnet", width=8),
    "danet": lambda: DANet(CLASSES, "test_resnet", channels=16),
    "gald": lambda: GALD(CLASSES, "test_resnet", channels=16, auxiliary_channels=16),
    "acfnet": lambda: ACFNet(CLASSES, "test_resnet", channels=16, auxiliary_channels=16),
    "gnn3d": lambda: GNN3D(CLASSES, "test_resnet", channels=16, hidden_channels=16, neighbours=4),
    "padnet": lambda: PADNet(
        CLASSES, "test_resnet", branch_channels=16, small_branch_channels=8, channels=16, output_stride=16
    ),
    "pap": lambda: PAP(CLASSES, "test_resnet", channels=16, affinity_stride=8),
    "pap with affinities": lambda: PAP(CLASSES, "test_resnet", channels=16, affinity_outputs=True),
}
tiny_models = pytest.mark.parametrize("make", list(TINY.values()), ids=list(TINY))


@tiny_models
def test_export_with_dynamic_sizes(make: Callable[[], SegmentationModel]) -> None:
    model = make().eval()
    automatic = torch.export.Dim.AUTO
    arguments = tuple(a for a in inputs(model) if a is not None)
    dynamic = tuple({dim: automatic for dim in (0, 2, 3) if dim < a.ndim} for a in arguments)
    exported = torch.export.export(model, arguments, dynamic_shapes=dynamic).module()
    others = tuple(a for a in inputs(model, 97, 64, batch=3) if a is not None)
    torch.testing.assert_close(exported(*others).logits, model(*others).logits)


@tiny_models
def test_compile_without_graph_breaks(make: Callable[[], SegmentationModel]) -> None:
    model = make().train()
    for dropout in model.modules():
        if isinstance(dropout, nn.Dropout | nn.Dropout2d):
            dropout.p = 0.0
    reference = copy.deepcopy(model)
    torch._dynamo.reset()
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    arguments = inputs(model)
    output, expected = compiled(*arguments), reference(*arguments)
    torch.testing.assert_close(output.logits, expected.logits)
    for auxiliary, other in zip(output.aux, expected.aux, strict=True):
        torch.testing.assert_close(auxiliary.value, other.value, msg=auxiliary.name)
    for (key, value), other in zip(model.state_dict().items(), reference.state_dict().values(), strict=True):
        torch.testing.assert_close(value, other, msg=key)


@tiny_models
def test_distributed_wrapper_finds_every_parameter_used(make: Callable[[], SegmentationModel], tmp_path: Path) -> None:
    model = make().train()
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path / 'meeting'}", rank=0, world_size=1)
    try:
        wrapped = nn.parallel.DistributedDataParallel(model)
        for _ in range(2):  # an unused parameter is reported in the second step
            total(wrapped(*inputs(model))).backward()
    finally:
        torch.distributed.destroy_process_group()
