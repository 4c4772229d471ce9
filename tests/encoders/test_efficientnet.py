from __future__ import annotations

import pytest
import timm
import torch
from torch import nn

import rgbdseg
from rgbdseg.encoders import create_encoder, deeplab_options
from rgbdseg.errors import UsageError
from rgbdseg.weights.files import read_state_dict
from rgbdseg.weights.imagenet import load_encoder_weights
from tests.shared_data import shared_path

HEAD = ("conv_head.", "bn2.", "classifier.")
# Padding as in TensorFlow, plain padding with a narrow width, fused blocks with squeeze-and-excitation.
MEMBERS = [
    ("tf_efficientnet_lite0", 32),
    ("tf_efficientnet_lite0", 16),
    ("tf_efficientnet_lite0", 8),
    ("mobilenetv2_035", 16),
    ("efficientnetv2_rw_t", 32),
]


def randomize(module: nn.Module) -> None:
    generator = torch.Generator().manual_seed(3)
    for child in module.modules():
        if isinstance(child, nn.BatchNorm2d):
            child.weight.data.uniform_(0.5, 1.0, generator=generator)
            child.running_mean.normal_(0, 0.1, generator=generator)


@pytest.mark.parametrize(("name", "output_stride"), MEMBERS)
def test_stage_by_stage_equals_timm(name: str, output_stride: int) -> None:
    network = timm.create_model(name, num_classes=7, output_stride=output_stride)
    randomize(network)
    reference = timm.create_model(name, features_only=True, output_stride=output_stride).eval()
    weights = {k: v for k, v in network.state_dict().items() if not k.startswith(HEAD)}
    reference.load_state_dict(weights)
    encoder = create_encoder(name, output_stride=output_stride).eval()
    encoder.load_state_dict(weights)
    image = torch.randn(1, 3, 65, 90)
    with torch.no_grad():
        expected = reference(image)[1:]
        state = encoder.stem(image)
        for index in range(encoder.num_stages):
            state = encoder.stage(index, state)
            torch.testing.assert_close(state, (expected[index],))
        for feature, stage_output in zip(encoder(image), expected, strict=True):
            torch.testing.assert_close(feature, stage_output)
    assert encoder.channels == tuple(f.shape[1] for f in expected)
    assert encoder.reductions == tuple(reference.feature_info.reduction()[1:])
    assert encoder.reductions[-1] == output_stride
    assert [-(-65 // r) for r in encoder.reductions] == [f.shape[-2] for f in expected]


def test_strides_become_dilations() -> None:
    def dilations(output_stride: int) -> list[int]:
        encoder = create_encoder("tf_efficientnet_lite0", output_stride=output_stride)
        return [m.dilation[0] for m in encoder.blocks[6].modules() if isinstance(m, nn.Conv2d) and m.groups > 1]

    assert [dilations(stride) for stride in (32, 16, 8)] == [[1], [2], [4]]


@pytest.mark.parametrize(
    ("name", "mean"),
    [
        ("tf_efficientnet_lite0", 0.5),
        ("tf_efficientnet_b0", 0.485),
        ("tf_efficientnet_b0.ap_in1k", 0.5),  # the tag decides, not the network
        ("resnet101s", 0.485),
    ],
)
def test_images_are_normalized_as_the_weights_were_trained(name: str, mean: float) -> None:
    with torch.device("meta"):
        model = rgbdseg.create_model("sagate", 3, encoder=name)
        single = rgbdseg.create_model("deeplabv3plus", 3, encoder=name, inputs=["hha"])
    for spec in (model.input_spec, single.input_spec):
        assert {stream.mean[0] for stream in spec.streams} == {mean}
        assert {stream.std[0] for stream in spec.streams} == {0.5 if mean == 0.5 else 0.229}


def test_strides_of_the_released_networks() -> None:
    assert deeplab_options("resnet50") == {"output_stride": 16, "dilations": (2, 4, 8)}
    assert deeplab_options("tf_efficientnet_lite2") == {"output_stride": 16}
    assert deeplab_options("hrnet_w18") == {}
    assert deeplab_options("resnet50", 8, None) == {"output_stride": 8}
    assert deeplab_options("resnet50", 32, (2, 4)) == {}  # nothing is dilated


def test_features_are_not_rectified() -> None:
    encoder = create_encoder("tf_efficientnet_lite0").eval()
    assert not encoder.rectified
    assert all(feature.min() < 0 for feature in encoder(torch.randn(1, 3, 64, 64)))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"output_stride": 4}, r"output stride 4 of encoder 'tf_efficientnet_lite0' is not one of \(8, 16, 32\)"),
        ({"output_stride": 16, "dilations": (2,)}, "unknown encoder tf_efficientnet_lite0 option 'dilations'"),
    ],
)
def test_errors(options: dict[str, object], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        create_encoder("tf_efficientnet_lite0", **options)


@pytest.mark.parametrize("name", ["tf_efficientnet_lite0", "tf_efficientnet_lite2"])
def test_published_weights(name: str) -> None:
    path = shared_path(f"weights/{name}.safetensors")
    model = rgbdseg.create_model("deeplabv3plus", 3, encoder=name, inputs=["rgb", "hha"], decoder_channels=8)
    (report,) = load_encoder_weights(model, path)
    assert (report.stream, report.adapted_from) == ("rgb+hha", 3)
    assert {entry.split(".")[0] + "." for entry in report.dropped} == set(HEAD)
    reference = timm.create_model(name, features_only=True, output_stride=16).eval()
    weights = {k: v for k, v in read_state_dict(path).items() if not k.startswith(HEAD)}
    reference.load_state_dict(weights)
    image = torch.rand(1, 3, 64, 64) * 2 - 1
    with torch.no_grad():
        # Two copies of an image, each with half of the weights, are one image with all of them.
        features = model.encoder.eval()(torch.cat([image, image], dim=1))
        for feature, expected in zip(features, reference(image)[1:], strict=True):
            torch.testing.assert_close(feature, expected, rtol=1e-3, atol=1e-3)
