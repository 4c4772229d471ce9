"""What every model of the registry must do: the small variant of each family in full, others where it is cheap."""

from __future__ import annotations

import copy
import importlib
import pkgutil
from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn

import rgbdseg
import rgbdseg.models
from rgbdseg.encoders import StagedEncoder
from rgbdseg.errors import UsageError
from rgbdseg.inference.form import for_inference
from rgbdseg.models._base import SegmentationModel, SegmentationOutput
from rgbdseg.models._registry import get_variant
from rgbdseg.nn.resize import postponed_resize
from rgbdseg.options import check_options, option_types
from rgbdseg.weights.building import without_first_values
from rgbdseg.weights.published import load_published, to_published

CLASSES = 5
Options = dict[str, Any]

NAMES = rgbdseg.list_models()
SMALL = [name for name in NAMES if get_variant(name).small]
LARGE = sorted(set(NAMES) - set(SMALL))
# Further options of a family that change what flows where.
FURTHER: dict[str, list[Options]] = {
    "sagate_resnet18": [
        {"output_stride": 16, "share_projections": False},
        {"fusion": "sum", "second_stream": "noise"},
        {"encoder": "tf_efficientnet_lite0", "decoder_channels": 32, "min_gate_width": 8},
        {"encoder": "hrnet_w18_small", "decoder_channels": None, "reduced_channels": None, "min_gate_width": 8},
    ],
    "deeplabv3plus_resnet18": [
        {"encoder": "mobilenetv2_035", "inputs": ("rgb", "hha"), "decoder_channels": 32},
        {"inputs": ("hha",), "output_stride": 16},
        {"depth_convolution": "malleable"},
    ],
    "rdfnet_resnet18": [{"conventions": "torchvision", "resize": "bilinear"}],
    "acfnet_resnet18": [{"compat": "unofficial"}],
    "gnn3d_resnet18": [{"channels": 32, "update": "lstm", "space": "xyz"}, {"steps": 0}],
    "padnet_resnet18": [
        {"output_stride": 16, "gate": "source", "lift": "features"},
        {"distillation": "A", "tasks": ("normals", "contours")},
        {"phase": "initial"},
    ],
    "esanet_r10_nbt1d": [{"context": "appm-1-2-4-8", "training_size": (64, 64), "second_stream": "noise"}],
    "dinodepth_vit_pico": [
        {"encoder": "vit_pico_patch16_dinov2", "depth": "geometry_prior"},
        {"depth": "prompts", "second_stream": "hha"},
        {"encoder": "tf_efficientnet_lite0"},
    ],
    "pap_resnet18": [
        {"channels": 32, "affinity": "exp_dist", "affinity_stride": 8, "output_stride": 32},
        {"channels": 32, "affinity": "relu_norm", "affinity_outputs": True},
    ],
}
ALL = [(name, options) for name in SMALL for options in ({}, *FURTHER.get(name, []))]
# What is slow is tried with the smallest networks only.
TINY = [
    *((name, dict(get_variant(name).tiny)) for name in SMALL),
    ("deeplabv3plus_resnet18", {**get_variant("deeplabv3plus_resnet18").tiny, "inputs": ("rgb", "hha")}),
    ("pap_resnet18", {**get_variant("pap_resnet18").tiny, "affinity_outputs": True}),
]


class Case(NamedTuple):
    """A model under test: tests change copies of it, which are cheaper than new ones."""

    name: str
    options: Options
    prototype: SegmentationModel

    def model(self) -> SegmentationModel:
        return copy.deepcopy(self.prototype)


def build(request: pytest.FixtureRequest) -> Case:
    name, options = request.param
    torch.manual_seed(1)
    return Case(name, options, rgbdseg.create_model(name, CLASSES, **options))


# Of the scope of the module: pytest then runs all tests of one model before it builds the next.
@pytest.fixture(scope="module", params=ALL, ids=str)
def small(request: pytest.FixtureRequest) -> Case:
    return build(request)


@pytest.fixture(scope="module", params=TINY, ids=str)
def tiny(request: pytest.FixtureRequest) -> Case:
    return build(request)


Inputs = tuple[dict[str, Tensor], Tensor | None]


def inputs(model: SegmentationModel, height: int = 64, width: int = 64, batch: int = 2) -> Inputs:
    """Images by name, and a camera where the model asks for one, in a size the model can take."""
    spec = model.input_spec
    height, width = spec.padded_size((height, width))
    generator = torch.Generator().manual_seed(2)
    images: dict[str, Tensor] = {}
    for stream in spec.streams:
        image = torch.randn(batch, stream.channels, height, width, generator=generator)
        metric = stream.from_depth and stream.mean == (0.0,)
        images[stream.name] = 1 + image.abs() if metric else image
    camera = torch.tensor([[0.8 * width, 0.8 * width, width / 2, height / 2]]).expand(batch, 4).contiguous()
    return images, camera if spec.needs_camera else None


def activate_all_branches(model: nn.Module) -> None:
    """Or nothing before has a gradient: residual branches start at zero, or are left out by chance while training, and
    a small bottleneck may happen to be zero."""
    for module in model.modules():
        if hasattr(module, "drop_prob"):
            module.drop_prob = 0.0
        if isinstance(module, nn.BatchNorm2d):
            nn.init.constant_(module.weight, 0.7)
        elif isinstance(module, nn.Linear) and module.bias is not None:
            nn.init.ones_(module.bias)
    for name, parameter in model.named_parameters():
        if name.endswith("gamma"):
            nn.init.constant_(parameter, 0.7)
        elif parameter.ndim > 1 and not parameter.any():
            nn.init.normal_(parameter, std=0.1)


def total(output: SegmentationOutput) -> Tensor:
    """A loss in which no gradient cancels."""
    maps = [output.logits, *(auxiliary.value for auxiliary in output.aux)]
    generator = torch.Generator().manual_seed(4)
    return sum((m * torch.randn(m.shape, generator=generator)).mean() for m in maps)  # type: ignore[return-value]


@pytest.mark.parametrize(("height", "width"), [(32, 32), (33, 47), (61, 96)])
def test_logits_have_the_size_of_the_input(small: Case, height: int, width: int) -> None:
    model = small.model().eval()
    images, camera = inputs(model, height, width, batch=1)
    with torch.no_grad():
        output = model(images, camera)
    assert output.logits.shape == (1, CLASSES, *model.input_spec.padded_size((height, width)))
    assert output.logits.isfinite().all()


def test_scores_are_enlarged_last_or_not_at_all(small: Case) -> None:
    """Or classes that are decided before would be those of another map."""
    model = small.model().eval()
    images, camera = inputs(model, 61, 96, batch=1)
    with torch.no_grad():
        expected = model(images, camera).logits
        with postponed_resize() as asked:
            logits = model(images, camera).logits
    if not model.ends_enlarging:
        assert asked
        assert asked[-1].placeholder is not logits
    elif asked:
        assert [one.placeholder is logits for one in asked] == [True]
        assert torch.equal(asked[0].all_maps(), expected)
    else:
        assert torch.equal(logits, expected)


@pytest.mark.parametrize("name", LARGE)
def test_large_models_forward(name: str) -> None:
    with without_first_values():  # sizes are all that is asked
        model = rgbdseg.create_model(name, CLASSES).eval()
    with torch.no_grad():
        logits = model(*inputs(model, 33, 47, batch=1)).logits
    assert logits.shape == (1, CLASSES, *model.input_spec.padded_size((33, 47)))


def test_one_return_type(small: Case) -> None:
    model = small.model().eval()
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


def without_gradient(model: SegmentationModel) -> list[str]:
    model.zero_grad()
    total(model(*inputs(model))).backward()
    trained = {n: p.grad for n, p in model.named_parameters() if p.requires_grad}
    assert all(gradient.isfinite().all() for gradient in trained.values() if gradient is not None)
    return [n for n, gradient in trained.items() if gradient is None or gradient.abs().max() == 0]


def test_gradient_reaches_every_parameter(small: Case) -> None:
    """But for shifts that batch statistics take off again, which have none at any size, up to rounding.

    Such is the last shift of an inverted residual block (EfficientNet, MobileNet): what follows, through the sum of the
    block's shortcut too, is a 1x1 convolution without activation and then batch normalization.
    """
    model = small.model().train()
    activate_all_branches(model)
    taken_off = without_gradient(model)
    if not taken_off:
        return
    assert model.card.method == "LiteFusion", taken_off
    assert all(name.endswith("bias") for name in taken_off), taken_off
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.eval()  # statistics that are held take nothing off
    assert set(taken_off) & set(without_gradient(model)) == set()


def test_every_input_counts(small: Case) -> None:
    model = small.model().eval()
    activate_all_branches(model)
    images, camera = inputs(model)
    logits = model(images, camera).logits
    assert torch.equal(logits, model(images, camera).logits)
    for stream, image in images.items():
        changed = {**images, stream: image.flip(1).flip(2)}
        assert not torch.equal(logits, model(changed, camera).logits), stream
    if camera is not None:
        assert not torch.equal(logits, model(images, 2 * camera).logits)


def test_inputs_are_found_by_name(small: Case) -> None:
    model = small.model().eval()
    images, camera = inputs(model)
    logits = model(images, camera).logits
    elsewhere = {"further": torch.zeros(1), **dict(reversed(images.items()))}
    assert torch.equal(model(elsewhere, camera).logits, logits)
    for stream in images:
        with pytest.raises(UsageError, match=rf"needs images\['{stream}'\]"):
            model({other: image for other, image in images.items() if other != stream}, camera)


def test_state_dict_round_trip(small: Case, tmp_path: Path) -> None:
    model = small.model()
    activate_all_branches(model)
    torch.save(model.state_dict(), tmp_path / "weights.pth")
    with without_first_values():
        other = rgbdseg.create_model(small.name, CLASSES, **small.options)
    other.load_state_dict(torch.load(tmp_path / "weights.pth", weights_only=True))
    arguments = inputs(model)
    with torch.no_grad():
        assert torch.equal(model.eval()(*arguments).logits, other.eval()(*arguments).logits)


def test_published_layout_round_trip(small: Case) -> None:
    if small.options:
        pytest.skip("one network of each family will do")
    model = small.model()
    if model.layout is None:
        with pytest.raises(rgbdseg.RGBDSegError, match="no published checkpoint layout is known for"):
            to_published(model)
        return
    activate_all_branches(model)
    published = to_published(model)
    torch.manual_seed(8)
    other = rgbdseg.create_model(small.name, CLASSES)
    load_published(other, {"state_dict": published})
    arguments = inputs(model)
    torch.testing.assert_close(other.eval()(*arguments).logits, model.eval()(*arguments).logits)


def test_facts(small: Case) -> None:
    model = small.model()
    assert model.num_classes == CLASSES
    names = [n for n, _ in model.named_parameters()]
    backbone = [n for n in names if n.startswith(model.backbone_prefixes)]
    assert 0 < len(backbone) < len(names)
    for stream, encoder in model.encoder_streams():
        seen = set(stream.split("+"))
        assert seen <= {*model.input_spec.names, "merge"}
        assert isinstance(encoder, StagedEncoder)
        held = {id(p) for n, p in model.named_parameters() if n in backbone}
        assert all(id(p) in held for p in encoder.parameters())
    assert not [n for n in backbone if "decoder" in n or "auxiliary" in n]


def test_half_precision_stays_finite(small: Case) -> None:
    # With the channels last, as training has it: without bf16 in the processor this takes a third of the time.
    model = small.model().train().to(memory_format=torch.channels_last)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = model(*inputs(model, 40, 48))
    assert output.logits.dtype == torch.float32  # ready for a loss
    total(output).backward()
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)


def test_channels_last_gives_the_same(small: Case) -> None:
    model = small.model().eval()
    images, camera = inputs(model)
    logits = model(images, camera).logits
    model = model.to(memory_format=torch.channels_last)
    moved = {stream: image.to(memory_format=torch.channels_last) for stream, image in images.items()}
    torch.testing.assert_close(model(moved, camera).logits, logits, rtol=1e-4, atol=1e-4)


@pytest.mark.slow
def test_export_with_dynamic_sizes(tiny: Case) -> None:
    model = tiny.model().eval()
    automatic = torch.export.Dim.AUTO
    images, camera = inputs(model, 96, 128)  # no map of a single row or column, which would be another program
    dynamic = (
        {stream: dict.fromkeys((0, 2, 3), automatic) for stream in images},
        None if camera is None else {0: automatic},
    )
    exported = torch.export.export(model, (images, camera), dynamic_shapes=dynamic).module()
    others = inputs(model, 97, 160, batch=3)
    torch.testing.assert_close(exported(*others).logits, model(*others).logits)


@pytest.mark.slow
def test_compile_without_graph_breaks(tiny: Case) -> None:
    model = tiny.model().train()
    for module in model.modules():  # nothing by chance
        if hasattr(module, "drop_prob"):
            module.drop_prob = 0.0
        if isinstance(module, nn.Dropout | nn.Dropout2d):
            module.p = 0.0
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


def test_distributed_wrapper_finds_every_parameter_used(tiny: Case, tmp_path: Path) -> None:
    model = tiny.model().train()
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path / 'meeting'}", rank=0, world_size=1)
    try:
        wrapped = nn.parallel.DistributedDataParallel(model)
        for _ in range(2):  # an unused parameter is reported in the second step
            total(wrapped(*inputs(model))).backward()
    finally:
        torch.distributed.destroy_process_group()


def test_each_family_has_one_small_variant() -> None:
    counted: Counter[str] = Counter()
    families = [info.name for info in pkgutil.iter_modules(rgbdseg.models.__path__) if not info.name.startswith("_")]
    for family in families:
        variants = importlib.import_module(f"rgbdseg.models.{family}").VARIANTS
        assert set(variants) <= set(NAMES)
        counted[family] = sum(variant.small for variant in variants.values())
    assert counted == Counter(families)


@pytest.mark.parametrize("name", NAMES)
def test_variants_have_options_that_their_class_takes(name: str) -> None:
    variant = get_variant(name)
    types = option_types(variant.model, without=("num_classes",))
    assert types is not None
    check_options("model", types, variant.options)
    check_options("model", types, variant.tiny)
    assert variant.note
    card = variant.model.card  # type: ignore[attr-defined]
    for text in (card.method, card.paper, card.input, card.code, card.exact, card.ours):
        assert text


def learn_statistics(model: nn.Module) -> None:
    """Give normalizations values that trained ones have; those of a new model change nothing."""
    generator = torch.Generator().manual_seed(5)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d) and module.running_mean is not None:
            size = module.running_mean.shape
            module.running_mean.copy_(0.2 * torch.randn(size, generator=generator))
            assert module.running_var is not None
            module.running_var.copy_(0.5 + torch.rand(size, generator=generator))
            for values in (module.weight, module.bias) if module.affine else ():
                values.data.copy_(0.5 + torch.rand(size, generator=generator))


@pytest.mark.parametrize("products", [False, True])
def test_the_form_for_inference_has_the_same_scores(
    tiny: Case, products: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rgbdseg.nn.winograd.LEAST_CHANNELS", 1)  # a tiny network has no wide convolution
    plain = tiny.model().double().eval()
    learn_statistics(plain)
    images, camera = inputs(plain)
    images = {name: image.double() for name, image in images.items()}
    camera = None if camera is None else camera.double()
    # With half precision asked for, products are not saved; the computation itself is in double precision in both.
    fast = for_inference(copy.deepcopy(plain), torch.device("cpu"), None if products else torch.bfloat16)
    with torch.inference_mode():
        torch.manual_seed(6)
        expected = plain(images, camera).logits
        torch.manual_seed(6)
        found = fast(images, camera).logits
    torch.testing.assert_close(found, expected, rtol=1e-7, atol=1e-9)
