from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Mapping
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

import rgbdseg
from rgbdseg.encoders import (
    EncoderEntry,
    StagedEncoder,
    State,
    create_encoder,
    encoder_option_names,
    list_encoders,
    register_encoder,
)
from rgbdseg.encoders._registry import ENCODERS
from rgbdseg.errors import CheckpointError, UsageError
from rgbdseg.input_spec import InputSpec, Stream, rgb_stream
from rgbdseg.models._base import SegmentationModel
from rgbdseg.models.sagate import SAGate
from rgbdseg.weights.imagenet import load_encoder_weights


@pytest.fixture(scope="module")
def imagenet() -> dict[str, Tensor]:
    """What a file of ImageNet weights holds, with values that are not those of a new network."""
    state = timm.create_model("test_resnet", num_classes=10).state_dict()
    return {k: torch.randn_like(v) if v.is_floating_point() else v + 5 for k, v in state.items()}


def make_sagate() -> SAGate:
    return SAGate(3, "test_resnet", decoder_channels=8, auxiliary_channels=8)


class OneChannel(SegmentationModel):
    """A model with an encoder of a given number of input channels."""

    def __init__(self, in_chans: int) -> None:
        super().__init__(2, InputSpec((Stream("depth", "depth_m", (2.0,), (1.0,), 1.0),)))
        self.encoder = create_encoder("test_resnet", in_chans=in_chans)

    def encoder_streams(self):  # type: ignore[no-untyped-def]
        yield "depth", self.encoder


@pytest.mark.parametrize("suffix", ["pth", "safetensors"])
def test_both_streams_get_the_weights(suffix: str, imagenet: dict[str, Tensor], tmp_path: Path) -> None:
    path = tmp_path / f"weights.{suffix}"
    if suffix == "pth":
        torch.save(imagenet, path)
    else:
        save_file(imagenet, path)
    model = make_sagate()
    reports = load_encoder_weights(model, path)
    assert [(r.stream, sorted(r.dropped), r.adapted_from) for r in reports] == [
        ("rgb", ["fc.bias", "fc.weight"], None),
        ("hha", ["fc.bias", "fc.weight"], None),
    ]
    for report, (_, encoder) in zip(reports, model.encoder_streams(), strict=True):
        state = encoder.state_dict()
        assert report.tensors == len(state) == len(imagenet) - 2
        assert all(torch.equal(value, imagenet[name]) for name, value in state.items())
    assert model.rgb_encoder.layer3[0].downsample is model.geometry_encoder.layer3[0].downsample


def test_layout_of_the_deep_stem_file() -> None:
    # As shared by segmentation code: torchvision's names, the stem as a sequence, no batch counters, 1000 classes.
    model = rgbdseg.create_model("deeplabv3plus_resnet50", 3)
    shapes = {name: value.shape for name, value in model.encoder.state_dict().items() if "num_batches" not in name}
    assert shapes["conv1.0.weight"] == (64, 3, 3, 3)
    assert shapes["conv1.6.weight"] == (128, 64, 3, 3)
    file = {name: torch.full(shape, 0.5) for name, shape in shapes.items()}
    file |= {"fc.weight": torch.zeros(1000, 2048), "fc.bias": torch.zeros(1000)}
    (report,) = load_encoder_weights_from_mapping(model, file)
    assert report.dropped == ("fc.weight", "fc.bias")
    assert all((p == 0.5).all() for p in model.encoder.parameters())


def load_encoder_weights_from_mapping(model: SegmentationModel, state: dict[str, Tensor]):  # type: ignore[no-untyped-def]
    with tempfile.TemporaryDirectory() as folder:
        torch.save(state, Path(folder) / "weights.pth")
        return load_encoder_weights(model, Path(folder) / "weights.pth")


@pytest.mark.parametrize("in_chans", [1, 4, 6])
def test_input_channels_are_adapted(in_chans: int, imagenet: dict[str, Tensor]) -> None:
    model = OneChannel(in_chans)
    (report,) = load_encoder_weights_from_mapping(model, imagenet)
    assert report.adapted_from == 3
    weight, published = model.encoder.get_submodule(model.encoder.input_conv).weight, imagenet["conv1.0.weight"]
    gray = torch.randn(1, 1, 16, 16)
    if in_chans != 4:  # repeated evenly: a gray image has the response it had
        expected = nn.functional.conv2d(gray.expand(-1, 3, -1, -1), published)
        value = nn.functional.conv2d(gray.expand(-1, in_chans, -1, -1), weight)
        torch.testing.assert_close(value, expected, rtol=1e-4, atol=1e-4)
    else:
        torch.testing.assert_close(weight, published[:, [0, 1, 2, 0]] * 0.75)


def spoil(state: dict[str, Tensor], how: str) -> dict[str, Tensor]:
    state = dict(state)
    if how == "missing":
        del state["layer1.0.bn1.running_var"]
    elif how == "not finite":
        state["layer1.0.bn1.bias"] = torch.full_like(state["layer1.0.bn1.bias"], torch.nan)
    elif how == "unexpected":
        state["layer5.weight"] = torch.zeros(1)
    else:
        state["layer2.0.conv1.weight"] = torch.zeros(2, 2)
    return state


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("missing", r"do not fit the encoder 'test_resnet': 1 missing \(layer1\.0\.bn1\.running_var\)$"),
        ("unexpected", r"1 unexpected \(layer5\.weight\)$"),
        ("not finite", r"1 with values that are not finite \(layer1\.0\.bn1\.bias\)$"),
        ("misshapen", r"1 misshapen \(layer2\.0\.conv1\.weight \(2, 2\) instead of \("),
    ],
)
def test_unfit_weights_change_nothing(how: str, message: str, imagenet: dict[str, Tensor]) -> None:
    model = make_sagate()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(CheckpointError, match=message):
        load_encoder_weights_from_mapping(model, spoil(imagenet, how))
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_weights_of_another_network(imagenet: dict[str, Tensor]) -> None:
    with pytest.raises(CheckpointError, match=r"do not fit the encoder 'resnet18': \d+ missing \(.*and \d+ more\); "):
        load_encoder_weights_from_mapping(rgbdseg.create_model("deeplabv3plus_resnet18", 2), imagenet)


def test_download_through_timm(imagenet: dict[str, Tensor], monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    class Downloaded(nn.Module):
        def state_dict(self, *_: object, **__: object) -> dict[str, Tensor]:
            return imagenet

    model = make_sagate()
    monkeypatch.setattr(timm, "create_model", lambda name, pretrained: asked.append((name, pretrained)) or Downloaded())
    load_encoder_weights(model, "timm")
    load_encoder_weights(model, "timm:test_resnet.r160_in1k")
    assert asked == [("test_resnet", True), ("test_resnet.r160_in1k", True)]  # once for both streams
    assert torch.equal(model.geometry_encoder.bn1.bias, imagenet["bn1.bias"])


def test_download_without_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    model = make_sagate()

    def offline(*_: object, **__: object) -> None:
        raise ConnectionError("could not reach huggingface.co\nmore about it")

    monkeypatch.setattr(timm, "create_model", offline)
    with pytest.raises(
        CheckpointError, match=r"of 'test_resnet': could not reach .*; without a connection, give a local"
    ) as e:
        load_encoder_weights(model, "timm")
    assert "\n" not in str(e.value)


def test_no_such_weights() -> None:
    model = make_sagate()
    with pytest.raises(
        CheckpointError, match=r"timm has no ImageNet weights for 'resnet26t.nobody'; give a local file"
    ):
        load_encoder_weights(model, "timm:resnet26t.nobody")
    with pytest.raises(CheckpointError, match=r"nowhere\.pth does not exist"):
        load_encoder_weights(model, "nowhere.pth")


def test_model_without_encoder() -> None:
    with pytest.raises(CheckpointError, match="SegmentationModel has no encoder that takes ImageNet weights"):
        load_encoder_weights(SegmentationModel(2, InputSpec((rgb_stream(),))), "timm")


def test_weights_for_images_of_another_normalization_are_refused() -> None:
    with torch.device("meta"):
        model = rgbdseg.create_model("deeplabv3plus", 3, encoder="tf_efficientnet_b0")
    with pytest.raises(
        CheckpointError, match=r"trained with mean \(0.5, 0.5, 0.5\).*encoder='tf_efficientnet_b0.ap_in1k'"
    ):
        load_encoder_weights(model, "timm:tf_efficientnet_b0.ap_in1k")


@dataclasses.dataclass(frozen=True)
class PlainOptions:
    width: int = 4


class PlainEncoder(StagedEncoder):
    """An encoder that timm does not know, whose published names begin with ``net.``."""

    num_stages, channels, reductions, input_conv, classifier = 1, (4,), (4,), "conv", "head"

    def __init__(self, name: str, in_chans: int, options: PlainOptions) -> None:
        super().__init__()
        self.name, self.in_chans, self.channels = name, in_chans, (options.width,)
        self.conv = nn.Conv2d(in_chans, options.width, 4, stride=4)

    def stem(self, image: Tensor) -> State:
        return (self.conv(image),)

    def stage(self, index: int, state: State) -> State:
        return state

    def rename_weights(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {name.removeprefix("net."): value for name, value in state.items()}


def test_encoder_outside_timm(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(ENCODERS, "_registered", {})
    register_encoder("plain", EncoderEntry(PlainEncoder, PlainOptions, weights="https://example.org/plain"))
    assert "plain" in list_encoders()
    assert encoder_option_names("plain") == ("width",)
    with pytest.raises(UsageError, match="unknown encoder plain option 'output_stride'"):
        create_encoder("plain", output_stride=16)
    with pytest.raises(UsageError, match="encoder named 'plain' exists already"):
        register_encoder("plain", EncoderEntry(PlainEncoder, PlainOptions))
    model = rgbdseg.create_model(
        "deeplabv3plus", 3, encoder="plain", decoder="psp", auxiliary_channels=8, encoder_options={"width": 6}
    )
    assert model({"rgb": torch.randn(2, 3, 32, 32)}).logits.shape == (2, 3, 32, 32)
    with pytest.raises(CheckpointError, match=r"encoder 'plain'; fetch them from https://example\.org/plain and give"):
        load_encoder_weights(model, "timm")
    file = {"net.conv.weight": torch.randn(6, 3, 4, 4), "net.conv.bias": torch.randn(6), "head.weight": torch.ones(2)}
    torch.save(file, tmp_path / "plain.pth")
    (report,) = load_encoder_weights(model, tmp_path / "plain.pth")
    assert (report.tensors, report.dropped) == (2, ("head.weight",))
    assert torch.equal(model.encoder.conv.weight, file["net.conv.weight"])
