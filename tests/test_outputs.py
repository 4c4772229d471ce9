"""Label files hold a dataset's own numbers, and say which class each number is."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from rgbdseg.cli.main import main
from rgbdseg.config.train import TrainConfig
from rgbdseg.data.dataset import RGBDDataset
from rgbdseg.data.description import DatasetDescription
from rgbdseg.data.images import read_label_values
from rgbdseg.engine.evaluate import save_prediction
from rgbdseg.engine.train import model_facts
from rgbdseg.errors import CheckpointError, DataError, UsageError
from rgbdseg.frame_inputs import make_sample
from rgbdseg.labels import LabelSet, LabelValues
from rgbdseg.loading import load
from rgbdseg.models._registry import create_model
from rgbdseg.outputs import LabelFiles
from rgbdseg.segmented_frame import SegmentedFrame
from rgbdseg.segmenter import Segmenter
from rgbdseg.visualize import colorize
from rgbdseg.weights.checkpoint import save_bundle
from rgbdseg.weights.facts import ModelFacts
from tests.synthetic import make_camera, make_scene, write_tree

SIZE = (24, 32)
ABC = LabelSet("abc", ("a", "b", "c"), ((255, 0, 0), (0, 255, 0), (0, 0, 255)))
LABELS = np.array([[0, 1, 2], [255, 2, 0]], dtype=np.uint8)


@pytest.mark.parametrize(
    ("values", "expected", "kind"),
    [
        (LabelValues((1, 2, 3), 0), [[1, 2, 3], [0, 3, 1]], np.uint8),
        (LabelValues((7, 8, 11), 255), [[7, 8, 11], [255, 11, 7]], np.uint8),
        (LabelValues((0, 255, 300), 9), [[0, 255, 300], [9, 300, 0]], np.uint16),
        (LabelValues.of_indices(3), [[0, 1, 2], [255, 2, 0]], np.uint8),
    ],
)
def test_values_are_written_and_read_back(tmp_path: Path, values: LabelValues, expected: object, kind: type) -> None:
    files = LabelFiles.of_classes(ABC, values, "mine")
    files.write_labels(tmp_path / "a.png", LABELS)
    stored = read_label_values(tmp_path / "a.png")
    assert stored.dtype == kind
    assert stored.tolist() == expected
    assert LabelValues.from_dict(json.loads(json.dumps(values.to_dict()))) == values


def test_void_is_a_free_number_where_a_dataset_has_none() -> None:
    assert LabelValues.with_free_void((0, 1), (9, 4)).void == 9
    assert LabelValues.with_free_void((0, 1), ()).void == 255
    assert LabelValues.with_free_void((0, 255), ()).void == 1
    with pytest.raises(DataError, match="expected distinct numbers"):
        LabelValues((1, 2), 2)
    with pytest.raises(CheckpointError, match="label values are not understood"):
        LabelValues.from_dict({"classes": [1, 1], "void": 0})


def test_a_folder_says_what_its_numbers_mean(tmp_path: Path) -> None:
    files = LabelFiles.of_classes(ABC, LabelValues((1, 2, 3), 0), "mine")
    files.write_key(tmp_path)
    key = json.loads((tmp_path / "classes.json").read_text())
    assert key["label_files"] == "hold the values of mine, 1..3, 0 = void"
    assert key["void"] == 0
    assert key["classes"][1] == {"value": 2, "index": 1, "name": "b", "color": [0, 255, 0]}
    picture = np.asarray(Image.open(tmp_path / "legend.png"))
    assert all((picture == color).all(2).sum() == 16**2 for color in ABC.palette)
    files.write_key(tmp_path)
    other = LabelFiles.of_classes(ABC, None)
    assert other.describe() == "class indices, 0..2, 255 = void"
    with pytest.raises(UsageError, match=r"classes\.json says that the labels in the folder have other classes"):
        other.write_key(tmp_path)
    other.write_key(tmp_path, replace=True)
    assert json.loads((tmp_path / "classes.json").read_text())["classes"][1]["value"] == 1


@pytest.mark.parametrize(
    ("name", "text"), [("classes.json", '{"names": []}'), ("classes.json", "x"), ("legend.png", "")]
)
def test_a_key_replaces_nothing_of_somebody_else(tmp_path: Path, name: str, text: str) -> None:
    (tmp_path / name).write_text(text)
    for replace in (False, True):
        with pytest.raises(UsageError, match=f"{name} is something else than the {name} of labels"):
            LabelFiles.of_classes(ABC, None).write_key(tmp_path, replace=replace)
    assert [path.name for path in tmp_path.iterdir()] == [name]
    assert (tmp_path / name).read_text() == text


def test_a_frame_is_not_saved_among_files_of_somebody_else(tmp_path: Path) -> None:
    frame = Segmenter(create_model("deeplabv3plus_resnet18", 3), ABC, device="cpu")(make_scene(0, SIZE).rgb)
    (tmp_path / "color").mkdir()
    (tmp_path / "color" / "0.png").write_text("of a dataset")
    with pytest.raises(UsageError, match=r"holds files in color/, such as 0\.png, that no prediction has written"):
        frame.save(tmp_path, "0")
    assert (tmp_path / "color" / "0.png").read_text() == "of a dataset"
    for _ in range(2):
        frame.save(tmp_path / "own", "0")


def test_a_frame_is_saved_in_the_numbers_of_the_dataset(tmp_path: Path) -> None:
    scene = make_scene(0, SIZE)
    sample = make_sample(scene.rgb, scene.depth_m, make_camera(SIZE))
    labels = np.minimum(scene.label, 2).astype(np.uint8)
    frame = SegmentedFrame(
        labels, np.ones(SIZE, np.float32), ABC.classes, ABC.palette, sample, LabelValues((5, 6, 300), 0), "mine"
    )
    frame.restricted_to(["a", "c"]).save(tmp_path, "x")
    expected = np.select([labels == 0, labels == 2], [5, 300], 0)
    assert np.array_equal(read_label_values(tmp_path / "label" / "x.png"), expected)
    key = json.loads((tmp_path / "classes.json").read_text())
    assert [(one["value"], one["index"], one["name"]) for one in key["classes"]] == [(5, 0, "a"), (300, 2, "c")]
    assert key["label_files"] == "hold the values of mine, 5 a, 300 c, 0 = void or any other class"
    legend = np.asarray(Image.open(tmp_path / "legend.png")).reshape(-1, 3)
    assert [any((legend == color).all(1)) for color in ABC.palette] == [True, False, True]
    over = np.asarray(Image.open(tmp_path / "overlay" / "x.png"))
    assert np.array_equal(over[expected == 0], scene.rgb[expected == 0])
    assert np.array_equal(over[expected > 0], frame.overlay()[expected > 0])
    colored = np.asarray(Image.open(tmp_path / "color" / "x.png"))
    assert not colored[expected == 0].any()
    header, _, body = (tmp_path / "cloud" / "x.ply").read_bytes().partition(b"end_header\n")
    lines = header.decode().splitlines()
    assert [line for line in lines if line.startswith("comment")] == [
        "comment label 5 a", "comment label 300 c", "comment label 0 void",
    ]  # fmt: skip
    assert lines[-1] == "property ushort label"
    vertices = np.frombuffer(body, dtype=[("xyz", "<f4", 3), ("rgb", "u1", 3), ("label", "<u2")])
    assert np.array_equal(vertices["label"], expected[(scene.depth_m > 0) & (expected > 0)])


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of a model of rooms that was trained on labels from 1 on, with void 0."""
    folder = tmp_path_factory.mktemp("model")
    torch.manual_seed(0)
    tree = write_tree(folder / "tree", 2, SIZE)
    description = DatasetDescription.read(tree)
    dataset = RGBDDataset(tree, "all", needs={"rgb", "label"})
    model = create_model("deeplabv3plus_resnet18", len(dataset.label_set))
    facts = model_facts(TrainConfig(), model, dataset)
    assert facts.label_values == description.label_values
    stored = LabelValues(tuple(range(1, len(dataset.label_set) + 1)), 0)
    facts = ModelFacts(
        "deeplabv3plus_resnet18", {}, model.input_spec, dataset.label_set, "rooms of mine", label_values=stored
    )
    assert ModelFacts.from_dict(json.loads(json.dumps(facts.to_dict()))) == facts
    assert ModelFacts.from_dict({**facts.to_dict(), "label_values": None}).label_values is None
    save_bundle(facts, model.state_dict(), folder / "model.safetensors")
    return folder / "model.safetensors"


def test_predict_writes_the_values_of_the_dataset(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    scene = make_scene(1, SIZE)
    Image.fromarray(scene.rgb).save(tmp_path / "a.png")
    out = tmp_path / "out"
    assert (
        main(["predict", str(checkpoint), "--rgb", str(tmp_path / "a.png"), "--out", str(out), "--device", "cpu"]) == 0
    )
    printed = capsys.readouterr().out
    assert f"label files hold the values of rooms of mine, 1..4, 0 = void; see {out}/classes.json" in printed
    frame = load(checkpoint, device="cpu")(scene.rgb)
    assert np.array_equal(read_label_values(out / "label" / "a.png"), frame.labels + 1)
    assert json.loads((out / "classes.json").read_text())["classes"][0]["value"] == 1
    share = float((frame.labels == frame.labels[0, 0]).mean())
    assert f"{frame.names[frame.labels[0, 0]]} {share:.0%}" in printed
    absent = next(name for index, name in enumerate(frame.names) if not (frame.labels == index).any())
    arguments = ["--rgb", str(tmp_path / "a.png"), "--out", str(tmp_path / "none"), "--classes", absent]
    assert main(["predict", str(checkpoint), *arguments, "--device", "cpu"]) == 0
    assert f"found: none of {absent} in 0.5% of the pixels or more" in capsys.readouterr().out
    assert (read_label_values(tmp_path / "none" / "label" / "a.png") == 0).all()


def test_a_segmenter_of_unknown_origin_writes_class_indices(checkpoint: Path) -> None:
    loaded = load(checkpoint, device="cpu")
    plain = Segmenter(loaded.model, loaded.label_set, device="cpu")
    assert plain.label_files.describe().startswith("class indices, 0..3")
    assert loaded.label_files.numbers.classes == (1, 2, 3, 4)


def test_evaluation_saves_in_the_values_of_the_dataset(tmp_path: Path) -> None:
    save_prediction(torch.from_numpy(LABELS), "x/1", tmp_path, LabelFiles.of_classes(ABC, LabelValues((1, 2, 3), 0)))
    assert read_label_values(tmp_path / "label" / "x" / "1.png").tolist() == [[1, 2, 3], [0, 3, 1]]
    assert np.asarray(Image.open(tmp_path / "color" / "x" / "1.png"))[0].tolist() == [list(c) for c in ABC.palette]


def test_a_frame_is_colored_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sample = make_sample(make_scene(0, SIZE).rgb)
    frame = SegmentedFrame(
        np.full(SIZE, 1, np.uint8),
        np.ones(SIZE, np.float32),
        ABC.classes,
        ABC.palette,
        sample,
        LabelValues((1, 2, 3), 0),
    )
    colored, over = frame.colors(), frame.overlay()
    calls: list[object] = []
    monkeypatch.setattr(
        "rgbdseg.segmented_frame.colorize", lambda labels, palette: calls.append(1) or colorize(labels, palette)
    )
    frame.save(tmp_path, "x", outputs=("overlay", "label", "color"))
    assert len(calls) == 1
    assert np.array_equal(np.asarray(Image.open(tmp_path / "color" / "x.png")), colored)
    assert np.array_equal(np.asarray(Image.open(tmp_path / "overlay" / "x.png")), over)
    frame.save(tmp_path, "y", outputs=("label",))
    assert len(calls) == 1
