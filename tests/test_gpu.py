"""What only a GPU can show: the same results as on the CPU, and no step that waits for the device.

RGBDSEG_TEST_DEVICE=cpu runs these tests without one, to try the tests themselves.
"""

from __future__ import annotations

import copy
import dataclasses
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import rgbdseg
from rgbdseg.config.loss import LossConfig
from rgbdseg.config.protocol import EvaluationProtocol
from rgbdseg.config.train import (
    AugmentationConfig,
    HardwareConfig,
    LoaderConfig,
    ModelConfig,
    OptimizerConfig,
    ScheduleConfig,
    TrainConfig,
)
from rgbdseg.data.dataset import RGBDDataset
from rgbdseg.engine.data_module import SegmentationData
from rgbdseg.engine.hardware import make_fabric
from rgbdseg.engine.step import TrainingState, make_state, training_step
from rgbdseg.engine.train import build_run, train
from rgbdseg.geometry.hha import HHA_PRESETS, encode_hha
from rgbdseg.inference import segment
from rgbdseg.labels import LabelSet, generic_palette
from rgbdseg.models._base import SegmentationModel
from rgbdseg.models._registry import get_variant
from rgbdseg.nn.selective_scan import selective_scan
from rgbdseg.sample import RGBDBatch, RGBDSample
from rgbdseg.segmenter import Segmenter
from rgbdseg.weights.checkpoint import load_bundle
from tests.geometry.scenes import camera_tensor, planes_depth, room
from tests.synthetic import CLASSES, make_camera, make_scene, write_tree

pytestmark = pytest.mark.gpu
DEVICE = os.environ.get("RGBDSEG_TEST_DEVICE", "cuda")
ACCELERATOR = "cpu" if DEVICE == "cpu" else "gpu"
NETWORK = "deeplabv3plus_resnet18"
SMALL = sorted(name for name in rgbdseg.list_models() if get_variant(name).small)


@pytest.fixture(autouse=True)
def _full_precision(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)


@pytest.fixture
def no_waiting() -> Iterator[None]:
    """Whatever waits for the GPU inside of this is an error."""
    if DEVICE == "cpu":
        yield
        return
    torch.cuda.set_sync_debug_mode("error")
    yield
    torch.cuda.set_sync_debug_mode("default")


def sample(size: tuple[int, int] = (96, 128)) -> RGBDSample:
    scene = make_scene(0, size)
    return RGBDSample(
        torch.from_numpy(scene.rgb).permute(2, 0, 1).contiguous(),
        depth_m=torch.from_numpy(scene.depth_m)[None],
        label=torch.from_numpy(scene.label)[None],
        camera=make_camera(size),
        sample_id="frame",
    )


def test_hha_agrees_with_the_cpu() -> None:
    camera = camera_tensor(58, 59, 39, 31)
    depth_m = planes_depth(camera, 60, 80, room(pitch_deg=11), torch.float32)
    depth_m[..., 10:25, 30:50] = 0
    depth_m = torch.cat((depth_m, 1.5 * depth_m.flip(-1)))
    for parameters in HHA_PRESETS.values():
        on_gpu = encode_hha(depth_m.to(DEVICE), camera, parameters=parameters)
        assert on_gpu.device.type == DEVICE
        difference = (on_gpu.cpu().int() - encode_hha(depth_m, camera, parameters=parameters).int()).abs()
        assert difference.max() <= 1
        assert (difference == 0).double().mean() > 0.99


@pytest.mark.parametrize("combination", ["softmax", "sagate", "malleable"])
def test_scores_agree_with_the_cpu(combination: str) -> None:
    torch.manual_seed(0)
    model = rgbdseg.create_model(NETWORK, num_classes=len(CLASSES)).eval()
    protocol = EvaluationProtocol("sliding", (64, 64), 2 / 3, (0.75, 1.25), True, combination)  # type: ignore[arg-type]
    expected = segment(model, sample(), model.input_spec, protocol)
    found = segment(copy.deepcopy(model).to(DEVICE), sample(), model.input_spec, protocol)
    assert found.log_scores.device.type == DEVICE
    torch.testing.assert_close(found.log_scores.cpu(), expected.log_scores, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed", "16-mixed"])
def test_frames_get_the_labels_of_the_cpu(precision: str) -> None:
    torch.manual_seed(0)
    model = rgbdseg.create_model("sagate_resnet18", num_classes=len(CLASSES)).eval()
    labels = LabelSet("test", CLASSES, generic_palette(len(CLASSES)))
    frame = sample()
    arrays = frame.rgb.permute(1, 2, 0).numpy(), frame.depth_m[0].numpy(), frame.camera  # type: ignore[index]
    expected = Segmenter(copy.deepcopy(model), labels, device="cpu")(*arrays)
    found = Segmenter(model, labels, device=DEVICE, precision=precision)(*arrays)
    assert (found.labels == expected.labels).mean() > (0.999 if precision == "32-true" else 0.9)
    assert np.abs(found.confidence - expected.confidence).mean() < (1e-4 if precision == "32-true" else 0.05)


@pytest.mark.parametrize("name", SMALL)
def test_networks_give_the_logits_of_the_cpu(name: str) -> None:
    torch.manual_seed(1)
    model = rgbdseg.create_model(name, 5, **get_variant(name).tiny).eval()
    images, camera = network_inputs(model)
    with torch.no_grad():
        expected = model(images, camera).logits
        moved = {key: image.to(DEVICE) for key, image in images.items()}
        found = model.to(DEVICE)(moved, None if camera is None else camera.to(DEVICE)).logits.cpu()
    assert (found - expected).abs().max() < 2e-3 * expected.std() + 1e-5


def network_inputs(model: SegmentationModel) -> tuple[dict[str, Tensor], Tensor | None]:
    height, width = model.input_spec.padded_size((64, 64))
    generator = torch.Generator().manual_seed(2)
    images = {}
    for stream in model.input_spec.streams:
        image = torch.randn(2, stream.channels, height, width, generator=generator)
        images[stream.name] = 1 + image.abs() if stream.from_depth and stream.mean == (0.0,) else image
    camera = torch.tensor([[0.8 * width, 0.8 * width, width / 2, height / 2]]).repeat(2, 1)
    return images, camera if model.input_spec.needs_camera else None


def test_selective_scan_agrees_with_the_cpu() -> None:
    generator = torch.Generator().manual_seed(0)
    shapes = [(2, 3, 300, 8)] * 2 + [(3, 8, 4)] + [(2, 3, 300, 4)] * 2 + [(3, 8)] * 2
    inputs = [torch.randn(shape, generator=generator) for shape in shapes]
    inputs[2] = -inputs[2].abs() - 0.1
    results = []
    for device in ("cpu", DEVICE):
        leaves = [value.to(device).detach().requires_grad_() for value in inputs]
        y = selective_scan(*leaves[:5], d_KD=leaves[5], bias_KD=leaves[6], implementation="blocks")
        results.append([y, *torch.autograd.grad(y.square().mean(), leaves)])
    for found, expected in zip(results[1], results[0], strict=True):
        torch.testing.assert_close(found.cpu(), expected, rtol=1e-3, atol=1e-4)


def config(tree: Path, **hardware: object) -> TrainConfig:
    return TrainConfig(
        data=str(tree),
        ema_decay=0.9,
        model=ModelConfig(name=NETWORK, options={"inputs": ["rgb", "hha"], "decoder_channels": 32}),
        loader=LoaderConfig(batch_size=4, workers=0),
        augmentation=AugmentationConfig(crop_size=(64, 64), scales=(0.75, 1.0, 1.5), brightness=0.2, on_device=True),
        optimizer=OptimizerConfig(learning_rate=0.01, gradient_clip_norm=1.0),
        loss=LossConfig(class_weights=(1.0, 2.0, 1.0, 0.5)),
        schedule=ScheduleConfig(epochs=1, iterations_per_epoch=4, warmup_epochs=0, validate_every_epochs=1),
        hardware=HardwareConfig(accelerator=ACCELERATOR, **hardware),  # type: ignore[arg-type]
    )


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tree(tmp_path_factory.mktemp("gpu") / "tree", count=6, train=4, size=(80, 96))


def prepared(tree: Path, **hardware: object) -> tuple[TrainConfig, TrainingState, RGBDBatch]:
    one = config(tree, accumulate=1, **hardware)
    fabric = make_fabric(one.hardware)
    model, (train_set, _) = build_run(one)
    data = SegmentationData(one, train_set, None, model.input_spec)
    batch = data.prepared(next(iter(data.training_batches(0, 1))), fabric.device)
    return one, make_state(model, one, fabric), batch


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_a_step_does_not_wait_for_the_device(
    tree: Path, request: pytest.FixtureRequest, precision: str, channels_last: bool
) -> None:
    one, state, batch = prepared(tree, precision=precision, channels_last=channels_last)
    training_step(state, [batch], one)  # the first allocates, and picks algorithms
    request.getfixturevalue("no_waiting")
    losses = training_step(state, [batch], one)
    assert losses["loss"].device.type == DEVICE


def test_augmentation_on_the_device_gives_the_batches_of_the_cpu(tree: Path) -> None:
    batches = []
    for device in ("cpu", DEVICE):
        one = config(tree, accumulate=1)
        model, (train_set, _) = build_run(one)
        data = SegmentationData(one, train_set, None, model.input_spec)
        batches.append(data.prepared(next(iter(data.training_batches(0, 1))), device))
    expected, found = batches
    assert expected.label is not None
    assert found.label is not None
    assert torch.equal(found.label.cpu(), expected.label)
    # Bilinear weights are rounded otherwise: a gray level more or less here and there.
    difference = (found.images["hha"].cpu() - expected.images["hha"]).abs()
    assert difference.max() < 0.02
    assert (difference > 1e-5).float().mean() < 0.01
    # The mean gray level, which contrast turns about, is summed in another order.
    assert (found.images["rgb"].cpu() - expected.images["rgb"]).abs().max() < 0.05


def test_first_losses_are_those_of_the_cpu(tree: Path) -> None:
    one, state, batch = prepared(tree)
    slow, cpu_state, cpu_batch = prepared(tree)
    if DEVICE != "cpu":
        slow = dataclasses.replace(slow, hardware=dataclasses.replace(slow.hardware, accelerator="cpu"))
        cpu_state = make_state(build_run(slow)[0], slow, make_fabric(slow.hardware))
        cpu_batch = batch.to("cpu")
    for module in (*state.model.modules(), *cpu_state.model.modules()):
        if isinstance(module, nn.modules.dropout._DropoutNd):
            module.p = 0.0  # devices draw different numbers
    found = float(training_step(state, [batch], one)["loss"])
    assert found == pytest.approx(float(training_step(cpu_state, [cpu_batch], slow)["loss"]), rel=1e-3)


@pytest.mark.parametrize("precision", ["bf16-mixed", "16-mixed"])
def test_training_from_start_to_checkpoint(tree: Path, tmp_path: Path, precision: str) -> None:
    run = train(config(tree, precision=precision, channels_last=True), tmp_path / "run")
    bundle = load_bundle(run.last)
    assert all(torch.isfinite(value).all() for value in bundle.model.state_dict().values())
    frame = RGBDDataset(tree, "test").sample(0)
    assert Segmenter.from_bundle(bundle, device=DEVICE).segment(frame).labels.shape == frame.size
