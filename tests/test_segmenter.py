from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

import rgbdseg
from rgbdseg.camera import PinholeCamera
from rgbdseg.config.protocol import EvaluationProtocol
from rgbdseg.device import choose_device
from rgbdseg.errors import CheckpointError, DataError, RGBDSegError, UsageError
from rgbdseg.geometry.hha import INDOOR
from rgbdseg.inference import segment
from rgbdseg.input_spec import InputSpec
from rgbdseg.labels import LabelSet
from rgbdseg.models._base import SegmentationModel, SegmentationOutput
from rgbdseg.sample import RGBDSample, register_raster
from rgbdseg.segmented_frame import SegmentedFrame
from rgbdseg.segmenter import Segmenter
from rgbdseg.transforms.derive import with_hha
from rgbdseg.weights.checkpoint import load_bundle, save_bundle
from tests import infrared
from tests.first_version import FIXTURE, write_run_of_version_0_1
from tests.specs import PLAIN_RGB, RGB_DEPTH, RGB_HHA
from tests.synthetic import make_camera, make_scene

SIZE = (24, 32)
ABC = LabelSet("abc", ("a", "b", "c"), ((255, 0, 0), (0, 255, 0), (0, 0, 255)))
CAMERA = make_camera(SIZE)


class Channels(SegmentationModel):
    """The channels of the last stream are the logits of the classes, three times as they are if there is one."""

    def __init__(self, spec: InputSpec) -> None:
        super().__init__(3, spec)
        self.factor = nn.Parameter(torch.tensor(1.0))

    def forward(self, images: Mapping[str, Tensor], camera: Tensor | None = None) -> SegmentationOutput:
        last = self.check_images(images)[-1]
        return SegmentationOutput(self.factor * last.expand(-1, 3, -1, -1))


def segmenter(spec: InputSpec = PLAIN_RGB, **options: Any) -> Segmenter:
    return Segmenter(Channels(spec), ABC, **{"device": "cpu", **options})


def picture(seed: int = 0) -> npt.NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, (*SIZE, 3)).astype(np.uint8)


# --- what comes out


def test_labels_confidence_and_shares_by_hand() -> None:
    rgb = picture()
    result = segmenter()(rgb)
    assert result.labels.dtype == np.uint8
    assert np.array_equal(result.labels, rgb.argmax(2))
    exponentials = np.exp(rgb / 255.0)
    np.testing.assert_allclose(result.confidence, exponentials.max(2) / exponentials.sum(2), rtol=1e-5)
    assert result.names == ("a", "b", "c")
    counts = np.bincount(rgb.argmax(2).ravel())
    assert list(result.shares.values()) == sorted((counts / counts.sum()).tolist(), reverse=True)
    assert result.shares["b"] == counts[1] / counts.sum()
    assert np.array_equal(result.mask("b"), result.labels == 1)
    with pytest.raises(UsageError, match="unknown class of the model 'd'"):
        result.mask("d")


def test_pictures_point_cloud_and_files(tmp_path: Path) -> None:
    rgb, depth_m = picture(), np.full(SIZE, 2.0, np.float32)
    depth_m[0, :5] = 0
    result = segmenter()(rgb, depth_m, CAMERA)
    palette = np.array(ABC.palette)
    assert np.array_equal(result.colors(), palette[result.labels])
    assert np.array_equal(result.overlay(0.0), rgb)
    assert np.array_equal(result.overlay(1.0), result.colors())
    xyz_cam_m, colors, labels = result.point_cloud()
    assert len(xyz_cam_m) == SIZE[0] * SIZE[1] - 5
    assert np.array_equal(colors, palette[labels])
    assert np.all(xyz_cam_m[:, 2] == 2)
    assert xyz_cam_m[0, 0] == pytest.approx((5 - CAMERA.cx) / CAMERA.fx * 2)
    files = result.save(tmp_path, "one")
    assert [file.relative_to(tmp_path).as_posix() for file in files] == [
        "label/one.png", "color/one.png", "overlay/one.png", "cloud/one.ply",
    ]  # fmt: skip
    assert np.array_equal(np.asarray(Image.open(files[0])), result.labels)
    header = files[3].read_bytes().split(b"end_header\n")[0].decode().splitlines()
    assert header[:3] == ["ply", "format binary_little_endian 1.0", "comment label 0 a"]
    assert "element vertex 763" in header
    without_depth = segmenter()(rgb)
    assert len(without_depth.save(tmp_path / "b")) == 3
    with pytest.raises(DataError, match="'frame' has no depth; a point cloud needs depth and a camera"):
        without_depth.point_cloud()


# --- what goes in


@pytest.mark.parametrize(
    "given",
    [
        lambda a: a,
        lambda a: np.ascontiguousarray(a.transpose(2, 0, 1)),
        torch.from_numpy,
        lambda a: torch.from_numpy(a).permute(2, 0, 1),
        Image.fromarray,
        lambda a: a[::-1][::-1],
        lambda a: np.flip(np.flip(a, 1).copy(), 1),
    ],
)
def test_layouts_of_a_picture(given: Any) -> None:
    rgb = picture()
    rgb.flags.writeable = False
    rgb = np.array(rgb)
    assert np.array_equal(segmenter()(given(rgb)).labels, rgb.argmax(2))


def test_a_layout_that_could_be_both_follows_the_kind_of_array() -> None:
    rgb = np.random.default_rng(1).integers(0, 256, (3, 8, 3)).astype(np.uint8)
    assert np.array_equal(segmenter()(rgb).labels, rgb.argmax(2))
    assert np.array_equal(segmenter()(torch.from_numpy(rgb.transpose(2, 0, 1).copy())).labels, rgb.argmax(2))


@pytest.mark.parametrize(
    ("depth", "unit"),
    [
        (lambda m: m.astype(np.float32), None),
        (lambda m: m.astype(np.float64)[..., None], None),
        (lambda m: torch.from_numpy(m.astype(np.float32))[None], "m"),
        (lambda m: np.round(1000 * m).astype(np.uint16), "mm"),
        (lambda m: np.round(1000 * m).astype(np.uint16), 0.001),
        (lambda m: np.round(1000 * m).astype(np.int32), "mm"),
        (lambda m: 100 * m, "cm"),
        (lambda m: np.where(m == 0, np.nan, m), None),
        (lambda m: np.where(m == 0, -1.0, m), None),
    ],
)
def test_units_and_layouts_of_depth(depth: Any, unit: Any) -> None:
    meters = np.round(np.random.default_rng(2).uniform(1, 4, SIZE), 3)
    meters[3, 4] = 0
    result = segmenter(RGB_DEPTH)(picture(), depth(meters), depth_unit=unit)
    assert result.sample.depth_m is not None
    np.testing.assert_allclose(result.sample.depth_m[0].numpy(), meters, rtol=1e-6)
    assert result.sample.depth_m[0, 3, 4] == 0


@pytest.mark.parametrize(
    "camera",
    [
        PinholeCamera(20.0, 21.0, 15.0, 11.0),
        (20, 21, 15, 11),
        np.array([20.0, 21.0, 15.0, 11.0]),
        np.array([[20.0, 0, 15.0], [0, 21.0, 11.0], [0, 0, 1]]),
        [[20.0, 0, 15.0], [0, 21.0, 11.0], [0, 0, 1]],
        torch.tensor([20.0, 21.0, 15.0, 11.0]),
        {"fx": 20, "fy": 21, "cx": 15, "cy": 11},
    ],
)
def test_forms_of_a_camera(camera: Any) -> None:
    expected = PinholeCamera(20.0, 21.0, 15.0, 11.0)
    assert segmenter()(picture(), camera=camera).sample.camera == expected
    several = segmenter()([picture(), picture(1)], camera=camera)
    assert [result.sample.camera for result in several] == [expected, expected]


def test_a_list_of_frames_is_labeled_frame_by_frame() -> None:
    rgb = [picture(seed) for seed in range(3)]
    depth = [np.full(SIZE, 1.0 + seed) for seed in range(3)]
    cameras = [CAMERA.cropped(0, seed) for seed in range(3)]
    results = segmenter(RGB_HHA)(rgb, depth, cameras, name=["x", "y", "z"])
    for index, result in enumerate(results):
        single = segmenter(RGB_HHA)(rgb[index], depth[index], cameras[index])
        assert np.array_equal(result.labels, single.labels)
    assert [result.sample.sample_id for result in results] == ["x", "y", "z"]
    stacked = segmenter()(np.stack(rgb))
    assert [np.array_equal(a.labels, b.argmax(2)) for a, b in zip(stacked, rgb, strict=True)] == [True] * 3
    for wrong in ({"depth": depth[:2]}, {"depth": np.ones(5)}, {"camera": cameras[:2]}, {"name": "x"}):
        with pytest.raises(UsageError, match="for 3 frames; expected"):
            segmenter()(rgb, **wrong)


def test_hha_is_computed_as_the_model_was_trained() -> None:
    parameters = dataclasses.replace(INDOOR, min_depth_cm=250.0)
    scene, camera = make_scene(0, SIZE), CAMERA
    result = segmenter(RGB_HHA, hha=parameters)(scene.rgb, scene.depth_m, camera)
    sample = RGBDSample(
        torch.from_numpy(scene.rgb).permute(2, 0, 1), torch.from_numpy(scene.depth_m)[None], camera=camera
    )
    expected = with_hha(sample, parameters).hha
    assert expected is not None
    assert result.sample.hha is not None
    assert torch.equal(result.sample.hha, expected)
    assert not torch.equal(expected, with_hha(sample, INDOOR).hha)  # type: ignore[arg-type]
    given = np.zeros((*SIZE, 3), np.uint8)
    assert segmenter(RGB_HHA)(scene.rgb, images={"hha": given}).sample.hha.sum() == 0  # type: ignore[union-attr]


def test_raw_depth_is_the_missing_mask_of_hha() -> None:
    scene = make_scene(0, SIZE)
    raw = np.where(np.arange(SIZE[1]) < 20, scene.depth_m, 0)
    network = segmenter(RGB_HHA)
    plain = network(scene.rgb, scene.depth_m, CAMERA)
    masked = network(scene.rgb, scene.depth_m, CAMERA, images={"raw_depth_m": raw})
    assert not torch.equal(plain.sample.hha, masked.sample.hha)  # type: ignore[arg-type]


def test_further_rasters_by_name() -> None:
    register_raster(infrared.RASTER, infrared.RULE)
    network = segmenter(InputSpec((*PLAIN_RGB.streams, infrared.STREAM)))
    celsius = np.random.default_rng(0).normal(300, 10, SIZE)
    result = network(picture(), images={"infrared": celsius})
    assert result.sample.others["infrared"].shape == (1, *SIZE)
    with pytest.raises(
        DataError, match="sample 'frame' has no infrared, which this model needs; give the frame's infrared"
    ):
        network(picture())
    with pytest.raises(DataError, match="infrared is 5x7 but rgb is 24x32"):
        network(picture(), images={"infrared": np.zeros((5, 7))})
    with pytest.raises(UsageError, match="unknown raster 'infared'; did you mean 'infrared'"):
        network(picture(), images={"infared": celsius})
    with pytest.raises(
        UsageError, match="images holds 'hha', which the model does not look at; it takes rgb, infrared"
    ):
        network(picture(), images={"hha": picture()})


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"rgb": np.zeros(SIZE, np.uint8)}, r"rgb has the shape \(24, 32\); expected uint8 of 0 to 255"),
        ({"rgb": np.zeros((*SIZE, 4), np.uint8)}, r"leave out the alpha channel: rgb\[..., :3\]"),
        ({"rgb": np.zeros((*SIZE, 3), np.float32)}, r"rgb is float32; .* values of 0 to 1 become \(255 \* rgb\)"),
        ({"rgb": np.zeros((*SIZE, 3), np.uint16)}, "rgb is uint16; expected uint8"),
        ({"rgb": np.array([["a"]])}, "rgb is ndarray of <U1; expected a NumPy array or tensor"),
        ({"depth": np.ones((5, 6))}, "depth is 5x6 but rgb is 24x32; register depth to the color image"),
        ({"depth": np.ones((*SIZE, 3))}, "depth has the shape .* is it a colored rendering"),
        ({"depth": np.full(SIZE, 1500, np.uint16)}, "depth is uint16, whole numbers whose unit .* depth_unit='mm'"),
        (
            {"depth": np.full(SIZE, 1500.0)},
            r"frame: depth: the median depth is 1500 m .*0.001 m for each unit \(millimeters\)",
        ),
        ({"depth": np.zeros(SIZE)}, "depth has no reading"),
        ({"depth": np.ones(SIZE, np.bool_)}, "depth is bool; expected numbers"),
        ({"depth": np.ones(SIZE), "depth_unit": "inch"}, "depth unit 'inch' is not understood; expected m, cm, mm or"),
        ({"camera": (1, 2, 3)}, r"the camera has the shape \(3,\); expected \(fx, fy, cx, cy\) or a 3x3 matrix"),
        ({"camera": "wide"}, "camera 'wide' is not understood"),
        ({"camera": object()}, "camera <object .* is not understood"),
        ({"camera": [[20.0, 3, 15], [0, 20, 11], [0, 0, 1]]}, "has a skew of 3"),
        ({"camera": (0, 20, 15, 11)}, "is not usable"),
    ],
)
def test_what_cannot_be_used_is_said(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(RGBDSegError, match=message):
        segmenter()(**{"rgb": picture(), **arguments})


def test_what_the_model_needs_is_said() -> None:
    with pytest.raises(DataError, match=r"the model looks at depth \(as HHA\), but 'frame' has none; give depth="):
        segmenter(RGB_HHA)(picture())
    with pytest.raises(DataError, match="the model looks at depth, but 'frame' has none; give depth="):
        segmenter(RGB_DEPTH)(picture())
    with pytest.raises(DataError, match=r"needs the camera to compute HHA, but 'f7' has none; give camera=\(fx"):
        segmenter(RGB_HHA)(picture(), np.ones(SIZE), name="f7")
    with pytest.raises(DataError, match="the model needs the camera, but 'frame' has none"):
        segmenter(dataclasses.replace(RGB_DEPTH, needs_camera=True))(picture(), np.ones(SIZE))


def test_devices_and_precisions() -> None:
    assert choose_device("cpu") == torch.device("cpu")
    for wrong in ("gpu", "mps", "cuda:77"):
        with pytest.raises(UsageError, match=f"device '{wrong}'"):
            choose_device(wrong)
    with pytest.raises(UsageError, match="unknown precision 'bf16'; did you mean 'bf16-mixed'"):
        segmenter(precision="bf16")
    assert segmenter(precision="bf16-mixed")(picture()).confidence.dtype == np.float32


# --- where models come from


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_run_of_version_0_1(tmp_path_factory.mktemp("runs") / "first")


def random_frame() -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint8]]:
    generator = np.random.Generator(np.random.PCG64(0))
    rgb, hha = (generator.integers(0, 256, (3, *SIZE)).astype(np.uint8) for _ in range(2))
    return rgb, hha


def test_a_checkpoint_of_version_0_1_gives_the_scores_that_it_gave(run: Path) -> None:
    bundle = load_bundle(run / "checkpoints" / "last.ckpt")
    rgb, hha = (torch.from_numpy(values) for values in random_frame())
    result = segment(bundle.model, RGBDSample(rgb, hha=hha), bundle.facts.input_spec, EvaluationProtocol())
    rows, columns = np.array(FIXTURE["pixels"]).T
    found = result.log_scores[:, rows, columns].T
    torch.testing.assert_close(found, torch.tensor(FIXTURE["log_scores"]), rtol=0, atol=2e-4)


def test_load_takes_runs_and_files(run: Path, tmp_path: Path) -> None:
    rgb, hha = random_frame()
    first = rgbdseg.load(run, device="cpu")
    assert isinstance(first, Segmenter)
    assert repr(first) == "Segmenter(sagate: rgb + hha to 18 classes of rooms)"
    assert first.names[:2] == ("wall", "floor")
    bundle = load_bundle(run / "checkpoints" / "last.ckpt")
    save_bundle(bundle.facts, bundle.model.state_dict(), tmp_path / "x.safetensors")
    results = [
        rgbdseg.load(source, device="cpu")(rgb, images={"hha": hha})
        for source in (run, str(run / "checkpoints" / "last.ckpt"), tmp_path / "x.safetensors")
    ]
    assert isinstance(results[0], SegmentedFrame)
    assert len(np.unique(results[0].labels)) > 2
    for result in results[1:]:
        assert np.array_equal(result.labels, results[0].labels)
    with pytest.raises(CheckpointError, match=r"no checkpoint or run folder at .*nothing"):
        rgbdseg.load(tmp_path / "nothing")


def test_the_protocol_is_the_recipes_without_what_belongs_to_its_dataset(run: Path) -> None:
    bundle = load_bundle(run / "checkpoints" / "last.ckpt")
    assert bundle.facts.config is not None
    stored = EvaluationProtocol("sliding", (16, 16), flip=True, margin=3, area="nyu-crop").to_dict()
    facts = dataclasses.replace(bundle.facts, config={**bundle.facts.config, "evaluation": stored})
    network = Segmenter.from_bundle(dataclasses.replace(bundle, facts=facts), device="cpu")
    assert network.protocol == EvaluationProtocol("sliding", (16, 16), flip=True)
    whole = Segmenter.from_bundle(bundle, protocol=EvaluationProtocol(), device="cpu")
    assert whole.protocol == EvaluationProtocol()


def test_loading_imports_neither_training_nor_data(run: Path) -> None:
    code = (
        "import sys, json, numpy as np, rgbdseg;"
        f"seg = rgbdseg.load({str(run)!r}, device='cpu');"
        "result = seg(np.zeros((24, 32, 3), np.uint8), np.full((24, 32), 2.0), (30, 30, 16, 12));"
        "result.overlay(); result.point_cloud();"
        "print(json.dumps(sorted(sys.modules)))"
    )
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    loaded = json.loads(output.strip().splitlines()[-1])
    heavy = ("lightning", "scipy", "torchmetrics", "matplotlib", "h5py")
    assert not [name for name in loaded if name.split(".")[0] in heavy]
    ours = {".".join(name.split(".")[:2]) for name in loaded if name.startswith("rgbdseg.")}
    assert not ours & {f"rgbdseg.{name}" for name in ("data", "engine", "prepare", "doctor", "rooms", "recipes", "cli")}
