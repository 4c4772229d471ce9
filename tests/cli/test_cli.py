"""The command line as a user meets it: what works, and what is said when it cannot."""

from __future__ import annotations

import json
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from rgbdseg.cli.main import COMMANDS, in_options, main, plain_message
from rgbdseg.errors import DataError
from rgbdseg.models._registry import create_model
from rgbdseg.weights.published import to_published
from tests.synthetic import CLASSES, make_camera, make_scene, write_depth, write_tree

SIZE = (40, 48)
CAMERA = ",".join(map(str, make_camera(SIZE).as_tuple()))
BRIEF = [
    "--schedule.epochs", "2", "--schedule.iterations_per_epoch", "1", "--schedule.warmup_epochs", "0",
    "--schedule.checkpoint_every_epochs", "1", "--loader.batch_size", "2", "--augmentation.crop_size", "[32,32]",
    "--hardware.threads", "1",
]  # fmt: skip
QUICK = [*BRIEF, "--model.options", '{"encoder": "mobilenetv2_035", "decoder_channels": 16, "min_gate_width": 4}']

Result = tuple[int, str, str]


@pytest.fixture
def call(capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Result]:
    # A command that should have been refused must not leave a run in the checkout.
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")

    def run(*arguments: object) -> Result:
        status = main([str(a) for a in arguments])
        captured = capsys.readouterr()
        return status, captured.out, captured.err

    return run


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("data") / "my tree"
    write_tree(root, count=5, size=SIZE)
    return root


@pytest.fixture(scope="module")
def run_folder(tree: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "my run"
    assert main(["train", "demo", "--data", str(tree), "--out", str(out), *QUICK]) == 0
    return out


def expect_error(result: Result, *words: str, status: int = 1) -> None:
    code, _, err = result
    assert code == status
    lines = err.strip().splitlines()
    assert len(lines) == 1, err
    assert lines[0].startswith("error: ")
    for word in words:
        assert word in lines[0]


@pytest.mark.parametrize(
    "arguments", [["--help"], ["--version"], ["recipes"], ["train", "--help"], ["evaluate", "--help"]]
)
def test_help_does_not_import_torch(arguments: list[str]) -> None:
    code = (
        "import sys\nfrom rgbdseg.cli.main import main\n"
        f"try:\n    main({arguments!r})\nexcept SystemExit:\n    pass\n"
        "assert 'torch' not in sys.modules and 'lightning' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stderr
    assert "rgbdseg" in done.stdout or "recipe" in done.stdout


@pytest.mark.parametrize("command", sorted(COMMANDS))
def test_every_command_explains_itself(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    try:
        status = main([command, "--help"])
    except SystemExit as stop:
        status = int(stop.code or 0)
    assert status == 0
    assert "usage" in capsys.readouterr().out


def test_unknown_names_get_a_suggestion(call: Callable[..., Result], tree: Path, tmp_path: Path) -> None:
    expect_error(call("trian"), "unknown command 'trian'; did you mean 'train'?")
    expect_error(call("train", "sagate-nyuv2-408", "--data", tree), "did you mean 'sagate-nyuv2-480'?")
    expect_error(
        call("train", "demo", "--data", tree, "--model.name", "sagate_resnet118", "--out", tmp_path / "x"),
        "unknown model 'sagate_resnet118'; did you mean 'sagate_resnet1",
    )
    expect_error(call("train", "demo", "--data", tree, "--optimizer.learning_rat", "1"), "'optimizer.learning_rate'?")
    expect_error(call("models", "xyz*"), "no model matches 'xyz*'")
    assert not (tmp_path / "x").exists()


def test_bad_values_name_the_key(call: Callable[..., Result], tree: Path, tmp_path: Path) -> None:
    train = ("train", "demo", "--data", tree, "--out", tmp_path / "x")
    expect_error(call(*train, "--loader.batch_size", "many"), "loader.batch_size", "many")
    expect_error(call(*train, "--loader.batch_size", "0"), "loader.batch_size is 0; expected a positive number")
    expect_error(call(*train, "--hardware.accumulate", "3"), "batch_size 8 is not divisible by 3")
    expect_error(call(*train, "--ema_decay", "1.5"), "ema_decay is 1.5")
    expect_error(call(*train, "--evaluation.scales", "[0]"), "scales")
    expect_error(call(*train, "--loader.validation_limit", "0"), "loader.validation_limit is 0")
    expect_error(call(*train, "--augmentation.flip_probability", "3"), "flip_probability is 3.0; expected 0 to 1")
    expect_error(call(*train, "--optimizer.momentum", "7"), "optimizer.momentum is 7.0")
    expect_error(call(*train, "--hardware.threads", "-3"), "hardware.threads is -3")
    expect_error(call(*train, "--hardware.devices", "-1"), "hardware.devices is -1")
    expect_error(call(*train, "--seed", "-1"), "seed is -1; expected 0 or more")
    assert not (tmp_path / "x").exists()


def test_values_that_evaluate_and_check_refuse(call: Callable[..., Result], tree: Path, run_folder: Path) -> None:
    expect_error(call("evaluate", run_folder, "--workers", "-2"), "--workers is -2; expected 0 or more")
    expect_error(call("check", tree, "--workers", "-2"), "--workers: -2; expected a whole number, 0 or more")
    expect_error(call("evaluate", run_folder, "--devices", "0"), "devices is 0")
    few = call("evaluate", run_folder, "--accelerator", "cpu", "--devices", "3", "--limit", "1")
    expect_error(few, "1 images cannot be shared among 3 devices")
    expect_error(call("evaluate", run_folder, "--mode", "sliding"), "add --crop")
    other_size = call("evaluate", run_folder, "--area", "nyu-crop", "--workers", "0")
    expect_error(other_size, "sample '3' is 40x48", "evaluation area 'nyu-crop' is that of images of 480x640")
    expect_error(call("evaluate", run_folder, "--margin", "-1", "--workers", "0"), "margin is -1")
    all_of_it = call("evaluate", run_folder, "--margin", "20", "--workers", "0")
    expect_error(all_of_it, "sample '3' is 40x48, of which nothing is left")
    submission = call("evaluate", run_folder, "--save-submission", tree.parent / "submission")
    expect_error(submission, "no evaluation server is known for the classes of")
    assert not (tree.parent / "submission").exists()
    expect_error(call("check", tree, "--limit", "0"), "--limit 0 leaves no frame")


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
def test_a_gpu_that_is_not_there(call: Callable[..., Result], tree: Path, run_folder: Path, tmp_path: Path) -> None:
    expect_error(call("evaluate", run_folder, "--accelerator", "gpu"), "sees no GPU")
    train = ("train", "demo", "--data", tree, "--out", tmp_path / "x")
    expect_error(call(*train, "--hardware.accelerator", "gpu"), "sees no GPU")


def test_ctrl_c_while_evaluating_says_so(
    call: Callable[..., Result], run_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*arguments: object, **options: object) -> None:
        raise KeyboardInterrupt

    before = signal.getsignal(signal.SIGINT)
    monkeypatch.setattr("rgbdseg.engine.evaluate.segment", interrupt)
    try:
        expect_error(call("evaluate", run_folder, "--workers", "0"), "interrupted", status=130)
    finally:
        signal.signal(signal.SIGINT, before)


def test_evaluate_shows_scores_that_it_cannot_write(call: Callable[..., Result], run_folder: Path, tree: Path) -> None:
    result = call("evaluate", run_folder, "--workers", "0", "--out", tree / "dataset.json")
    assert result[0] == 1
    assert "mIoU" in result[1]
    assert "cannot write" in result[2]


def test_wrong_places(call: Callable[..., Result], tree: Path, tmp_path: Path, run_folder: Path) -> None:
    (tmp_path / "empty").mkdir()
    expect_error(call("train", "demo", "--data", tmp_path / "nowhere"), "nowhere")
    expect_error(call("train", "demo", "--data", tmp_path / "empty"), "empty")
    expect_error(call("train", "demo"), "--data")
    expect_error(call("check", tmp_path / "nowhere"), "nowhere")
    expect_error(call("evaluate", tmp_path / "nowhere"), "no checkpoint or run folder")
    expect_error(call("evaluate", run_folder, "--split", "tset", "--workers", "0"), "did you mean 'test'?")
    expect_error(call("evaluate", run_folder, "--epochs", "7-9"), "no checkpoint of epochs 7-9; it has: 1, 2")
    expect_error(call("evaluate", run_folder, "--epochs", "last"), "--epochs last is not understood")
    expect_error(call("info", tree / "dataset.json"), "is text, not a checkpoint")
    expect_error(call("train", "--out", tmp_path / "none", "--resume"), "no run to resume")
    expect_error(call("train", "dmeo", "--out", run_folder, "--resume"), "did you mean 'demo")


def test_a_run_folder_is_never_overwritten(call: Callable[..., Result], tree: Path, run_folder: Path) -> None:
    before = (run_folder / "checkpoints" / "last.ckpt").read_bytes()
    expect_error(call("train", "demo", "--data", tree, "--out", run_folder, *QUICK), "--resume")
    assert (run_folder / "checkpoints" / "last.ckpt").read_bytes() == before


def test_a_resumed_run_keeps_its_configuration(call: Callable[..., Result], run_folder: Path) -> None:
    expect_error(
        call("train", "--out", run_folder, "--resume", "--optimizer.learning_rate", "0.5"),
        "a resumed run cannot change --optimizer.learning_rate (--optimizer.learning_rate was 0.001, now 0.5)",
    )
    expect_error(call("train", "demo-rgb-only", "--out", run_folder, "--resume"), "was started with 'demo'")
    status, out, _ = call("train", "--out", run_folder, "--resume", "--loader.workers", "0")
    assert status == 0
    assert "resuming after iteration 2" in out


def test_stored_config_can_be_run_again(call: Callable[..., Result], run_folder: Path, tmp_path: Path) -> None:
    status, _, err = call("train", run_folder / "config.yaml", "--out", tmp_path / "again")
    assert status == 0, err
    stored, again = (yaml.safe_load((r / "config.yaml").read_text()) for r in (run_folder, tmp_path / "again"))
    assert stored == again
    weights = [
        torch.load(r / "checkpoints/last.ckpt", weights_only=True)["state_dict"]
        for r in (run_folder, tmp_path / "again")
    ]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


def test_evaluate_writes_what_it_prints(
    call: Callable[..., Result], run_folder: Path, tree: Path, tmp_path: Path
) -> None:
    status, out, err = call(
        "evaluate", run_folder, "--epochs", "1-2", "--workers", "0", "--out", tmp_path, "--save", tmp_path / "p",
        "--scales", "0.5", "1", "--flip", "--protocol", "sagate", "--crop", "32",
    )  # fmt: skip
    assert status == 0, err
    results = [
        json.loads((tmp_path / f"epoch-{n}-test-sagate-window32x32-scales0.5_1-flip.json").read_text()) for n in (1, 2)
    ]
    assert [r["epoch"] for r in results] == [1, 2]
    assert results[0]["protocol"]["combination"] == "sagate"
    assert results[0]["protocol"]["crop_size"] == [32, 32]
    assert "sliding 32x32" in out
    assert "(sagate)" in out
    scored = results[1]["scored_classes"]
    assert scored == sum(one["iou"] is not None for one in results[1]["classes"])
    over = f"{scored} of {len(CLASSES)} classes" if scored < len(CLASSES) else f"{len(CLASSES)} classes"
    assert f"mIoU {100 * results[1]['mean_iou']:.2f} over {over}" in out
    assert f"mean of {over}" in out
    assert "sensors" not in results[1]
    assert "by sensor" not in out
    # The saved predictions are those that were counted, in the values that the dataset stores.
    assert sorted(path.name for path in (tmp_path / "p").iterdir()) == ["epoch-1", "epoch-2"]
    confusion = np.zeros((4, 4), dtype=int)
    for index in (3, 4):
        stored = np.array(Image.open(tree / "Label" / f"{index}.png")).astype(int)
        predicted = np.array(Image.open(tmp_path / "p" / "epoch-2" / "label" / f"{index}.png"))
        valid = stored > 0
        np.add.at(confusion, (stored[valid] - 1, predicted[valid] - 1), 1)
    assert confusion.tolist() == results[1]["confusion"]


def test_an_evaluation_replaces_its_own_files_alone(
    call: Callable[..., Result], run_folder: Path, tree: Path, tmp_path: Path
) -> None:
    here = Path(shutil.copytree(tree, tmp_path / "tree"))
    (here / "color").mkdir()
    (here / "color" / "4.png").write_text("an image")
    (here / "label.csv").write_text("7,chair")
    before = {path: path.read_bytes() for path in here.rglob("*") if path.is_file()}
    command = ("evaluate", run_folder, "--workers", "0", "--limit", "1")
    expect_error(
        call(*command, "--out", here, "--name", "dataset"), "dataset.json is there already and holds no scores"
    )
    expect_error(call(*command, "--out", here, "--name", "label"), "label.csv is there already", "another --out")
    expect_error(call(*command, "--save", here), "holds files in color/, such as 4.png")
    assert {path: path.read_bytes() for path in here.rglob("*") if path.is_file()} == before
    places = ("--out", tmp_path / "out", "--save", tmp_path / "saved")
    assert "in place of" not in call(*command, *places)[1]
    said = " ".join(call(*command, *places)[1].split())
    assert re.search(r"in place of those of \S.*last\.ckpt, epoch 2, mIoU \d+\.\d\d", said)
    assert "note: 1 predictions of an earlier evaluation in" in said
    rgb = ("--rgb", tree / "RGB", "--depth", tree / "Depth", "--camera", CAMERA, "--outputs", "label")
    assert call("predict", run_folder, *rgb, "--out", tmp_path / "p")[0] == 0
    expect_error(call(*command, "--save", tmp_path / "p"), "labels that were made by prediction")


def test_pages_replace_their_own_kind_alone(call: Callable[..., Result], tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text("# Mine")
    for option in ("--markdown", "--latency"):
        expect_error(call("models", "sagate_resnet18", option, tmp_path / "README.md"), "is no page of an earlier call")
    (tmp_path / "a.md").write_bytes(b"\x89PNG\xff")
    expect_error(call("export", "--table", tmp_path / "a.md"), "a.md is not UTF-8 text")
    expect_error(call("verify", "dformer_tiny_nyuv2", "--data", "d", "--row", tmp_path / "a.md"), "not UTF-8 text")
    expect_error(call("demo", "--out", tmp_path), "holds something else than a demo")
    assert (tmp_path / "README.md").read_text() == "# Mine"


def test_evaluate_and_predict_take_options_as_train_does(
    call: Callable[..., Result], run_folder: Path, tree: Path, tmp_path: Path
) -> None:
    long = ("--evaluation.scales", "[0.5, 1]", "--evaluation.flip=true", "--hardware.accelerator", "cpu")
    status, _, err = call("evaluate", *long, "--loader.workers", 0, run_folder, "--out", tmp_path, "--name", "long")
    assert status == 0, err
    short = ("--scales", "0.5", "1", "--flip", "--accelerator", "cpu", "--workers", "0")
    assert call("evaluate", run_folder, *short, "--out", tmp_path, "--name", "short")[0] == 0
    results = [json.loads((tmp_path / f"{name}.json").read_text()) for name in ("long", "short")]
    assert results[0]["protocol"]["scales"] == [0.5, 1]
    assert results[0] == results[1]
    place = ("--rgb", tree / "RGB" / "4.png", "--depth", tree / "Depth" / "4.png", "--camera", CAMERA)
    for name, options in (("a", long[:-2]), ("b", short[:4])):
        status, out, err = call("predict", run_folder, *place, "--out", tmp_path / name, "--device", "cpu", *options)
        assert status == 0, err
        assert "scales 0.5 1; flip" in out
    first, second = (np.array(Image.open(tmp_path / name / "label" / "4.png")) for name in ("a", "b"))
    assert np.array_equal(first, second)
    expect_error(call("evaluate", run_folder, "--evaluation.scale", "1"), "'evaluation.scale'; did you mean", "scales")
    expect_error(call("evaluate", run_folder, "--evaluation.scales", "[]"), "scales are ()")
    expect_error(call("evaluate", run_folder, "--optimizer.momentum", "0.5"), "unknown config key 'optimizer.momentum'")
    expect_error(call("evaluate", run_folder, "--loader.workers", "-1"), "--workers is -1; expected 0 or more")
    expect_error(call("predict", run_folder, *place, "--out", "x", "--loader.worker", "1"), "'loader.worker'; did you")
    expect_error(call("predict", run_folder, *place, "--out", "x", "--workers", "-1"), "--workers is -1; expected 0")


def test_predict_takes_workers_and_split_of_the_loader(
    call: Callable[..., Result], run_folder: Path, tree: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[int, str]] = []

    def see(segmenter: object, source: Any, out: str, options: Any, **others: object) -> None:
        seen.append((options.workers, source.dataset.split))
        raise DataError("seen")

    monkeypatch.setattr("rgbdseg.engine.bulk.predict_in_bulk", see)
    monkeypatch.setattr("rgbdseg.cli.predict.default_workers", lambda: 7)
    for options in (
        ("--loader.workers", "0", "--loader.validation_split=test"),
        ("--workers", "3", "--split", "train"),
        ("--workers", "3", "--loader.workers", "5", "--loader.batch_size", "2"),
        (),
    ):
        expect_error(call("predict", run_folder, "--source", tree, "--out", "x", *options), "seen")
    assert seen == [(1, "test"), (3, "train"), (5, "all"), (7, "all")]


def test_evaluate_reports_each_sensor(call: Callable[..., Result], run_folder: Path, tmp_path: Path) -> None:
    root = write_tree(tmp_path / "two", count=5, size=SIZE, train=1, sensors=("kinect", "xtion"))
    status, out, err = call("evaluate", run_folder, "--data", root, "--workers", "0", "--out", tmp_path / "out")
    assert status == 0, err
    result = json.loads((tmp_path / "out" / "last-test-softmax-whole.json").read_text())
    assert {name: scores["images"] for name, scores in result["sensors"].items()} == {"kinect": 2, "xtion": 2}
    matrices = [np.array(scores["confusion"]) for scores in result["sensors"].values()]
    assert (matrices[0] != matrices[1]).any()
    np.testing.assert_array_equal(sum(matrices), result["confusion"])
    assert "by sensor" in out
    assert f"{100 * result['sensors']['xtion']['mean_iou']:.2f}" in out


def test_evaluate_reports_each_condition(call: Callable[..., Result], run_folder: Path, tmp_path: Path) -> None:
    root = write_tree(tmp_path / "weather", count=5, size=SIZE, train=1, sensors=("kinect", "xtion"))
    stated = {"1": ["fog"], "2": ["fog", "motionblur"], "3": [], "4": ["motionblur"]}
    (root / "conditions.json").write_text(json.dumps(stated))
    status, out, err = call("evaluate", run_folder, "--data", root, "--workers", "0", "--out", tmp_path / "out")
    assert status == 0, err
    result = json.loads((tmp_path / "out" / "last-test-softmax-whole.json").read_text())
    assert {name: scores["images"] for name, scores in result["conditions"].items()} == {"fog": 2, "motionblur": 2}
    assert result["images"] == sum(scores["images"] for scores in result["sensors"].values()) == 4
    (root / "test.txt").write_text("2\n4\n")  # those of one condition by themselves
    status, _, err = call("evaluate", run_folder, "--data", root, "--workers", "0", "--out", tmp_path / "alone")
    assert status == 0, err
    alone = json.loads((tmp_path / "alone" / "last-test-softmax-whole.json").read_text())
    assert alone["confusion"] == result["conditions"]["motionblur"]["confusion"] != result["confusion"]
    assert "by condition" in out
    assert f"{100 * alone['mean_iou']:.2f}" in out


def test_published_protocols_are_found_by_name(call: Callable[..., Result], run_folder: Path, tmp_path: Path) -> None:
    status, out, err = call(
        "evaluate",
        run_folder,
        "--workers",
        "0",
        "--limit",
        "1",
        "--out",
        tmp_path,
        "--protocol",
        "dformer",
        "--no-flip",
    )
    assert status == 0, err
    (path,) = tmp_path.glob("*.json")
    protocol = json.loads(path.read_text())["protocol"]
    assert (protocol["resize"], protocol["side_multiple"], protocol["absent_iou"]) == ("input", 32, "zero")
    assert (protocol["scales"], protocol["flip"]) == ([0.5, 0.75, 1.0, 1.25, 1.5], False)
    assert "sides rounded up to multiples of 32; absent classes count 0 in the mean" in " ".join(out.split())


@pytest.fixture
def recording(tmp_path: Path) -> Path:
    for index in range(2):
        scene = make_scene(index, SIZE)
        (tmp_path / "color").mkdir(exist_ok=True)
        Image.fromarray(scene.rgb).save(tmp_path / "color" / f"f {index}.png")
        (tmp_path / "depth").mkdir(exist_ok=True)
        write_depth(tmp_path / "depth", f"f {index}", scene.depth_m, "mm16")
    return tmp_path


def test_predict_a_folder(call: Callable[..., Result], run_folder: Path, recording: Path) -> None:
    out = recording / "my labels"
    command = (
        "predict", run_folder, "--rgb", recording / "color", "--depth", recording / "depth", "--camera", CAMERA,
        "--out", out, "--outputs", "label,overlay,cloud",
    )  # fmt: skip
    status, _, err = call(*command)
    assert status == 0, err
    assert not (out / "color").exists()
    label = np.array(Image.open(out / "label" / "f 0.png"))
    assert label.shape == SIZE
    assert 1 <= label.min() <= label.max() <= 4  # as the tree stores them
    header = (out / "cloud" / "f 1.ply").read_bytes().split(b"end_header\n")[0].decode()
    assert f"element vertex {SIZE[0] * SIZE[1]}" in header
    assert (out / "overlay" / "f 1.png").is_file()
    status, said, _ = call(*command)
    assert status == 0
    assert "nothing to do: all 2 frames were finished before; --force" in said
    expect_error(call(*command, "--classes", "floor"), "made with another classes", "another --out", "--force")
    # The same preprocessing as in evaluation: predict on a frame of the dataset equals evaluate --save.
    assert call(*command, "--force")[0] == 0


def test_predict_equals_evaluate(call: Callable[..., Result], run_folder: Path, tree: Path, tmp_path: Path) -> None:
    assert call("evaluate", run_folder, "--workers", "0", "--out", tmp_path, "--save", tmp_path / "e")[0] == 0
    status, _, err = call(
        "predict", run_folder, "--rgb", tree / "RGB" / "4.png", "--depth", tree / "Depth" / "4.png", "--camera", CAMERA,
        "--out", tmp_path / "p",
    )  # fmt: skip
    assert status == 0, err
    for kind in ("label", "color"):
        evaluated, predicted = (np.array(Image.open(tmp_path / place / kind / "4.png")) for place in ("e", "p"))
        assert np.array_equal(evaluated, predicted)


def test_evaluate_refuses_hha_with_its_channels_exchanged(
    call: Callable[..., Result], run_folder: Path, tree: Path, tmp_path: Path
) -> None:
    root = Path(shutil.copytree(tree, tmp_path / "tree"))
    shutil.rmtree(root / "HHA", ignore_errors=True)
    assert call("hha", root, "--workers", "0")[0] == 0
    (root / "HHA" / "hha.json").unlink()
    for path in (root / "HHA").glob("*.png"):
        Image.fromarray(np.asarray(Image.open(path))[..., ::-1].copy()).save(path)
    command = ("evaluate", run_folder, "--data", root, "--workers", "0", "--out", tmp_path)
    expect_error(call(*command), "channels in the order angle, height, disparity", '"hha_channels"')


def test_predict_says_and_checks_what_it_assumes(
    call: Callable[..., Result], run_folder: Path, recording: Path
) -> None:
    def predict(*arguments: object) -> Result:
        places = (
            "--rgb",
            recording / "color",
            "--depth",
            recording / "depth",
            "--out",
            recording / "out",
            "--force",
            "--outputs",
            "label,cloud",
        )
        return call("predict", run_folder, *places, *arguments)

    status, out, err = predict("--camera", CAMERA)
    assert status == 0, err
    assert "depth: uint16 in millimeters (assumed), median 4.5 m over 2 files, 0% missing" in out
    assert "in millimeters (stated)" in predict("--camera", CAMERA, "--depth-unit", "mm")[1]
    expect_error(predict("--camera", CAMERA, "--depth-unit", "0.1"), "0.001 m for each unit", "would make it 4.5")
    assert predict("--camera", CAMERA, "--depth-unit", "0.003", "--largest-depth", "50")[0] == 0
    expect_error(predict("--camera", "518.9,519.5,324.6,252.7"), "lies outside the 40x48 image", "they are 39.6,39.66")
    expect_error(predict("--camera", CAMERA, "--missing", "holes"), "'holes' is not understood")
    expect_error(predict("--camera", CAMERA, "--hha", "sensors"), "did you mean 'sensor'")
    for arguments in (("--hha", "sensor"), ("--missing", "0,4500")):
        assert predict("--camera", CAMERA, *arguments)[0] == 0, arguments
    # The wall at 4.5 m is no reading, so the cloud lacks it.
    header = (recording / "out" / "cloud" / "f 0.ply").read_bytes().split(b"end_header\n")[0].decode()
    wall = int((make_scene(0, SIZE).depth_m == 4.5).sum())
    assert wall
    assert f"element vertex {SIZE[0] * SIZE[1] - wall}" in header


def test_predict_bad_input(call: Callable[..., Result], run_folder: Path, recording: Path) -> None:
    def predict(*arguments: object) -> Result:
        return call("predict", run_folder, "--out", recording / "out", *arguments)

    rgb, depth = recording / "color" / "f 0.png", recording / "depth" / "f 0.png"
    pair = ("--rgb", rgb, "--depth", depth)
    expect_error(predict("--rgb", rgb), "needs depth", "--depth")
    expect_error(predict(*pair), "--camera")
    expect_error(predict(*pair, "--camera", "1,2,3"), "expected four numbers")
    expect_error(predict(*pair, "--camera", CAMERA, "--depth-unit", "furlong"), "furlong")
    expect_error(predict(*pair, "--camera", CAMERA, "--depth-unit", "m"), "median depth", "millimeters")
    for unit in ("0", "-1", "nan", "inf", ""):
        expect_error(predict(*pair, "--camera", CAMERA, f"--depth-unit={unit}"), f"depth unit '{unit}' is not")
    for largest in ("0", "nan"):
        expect_error(predict(*pair, "--camera", CAMERA, "--largest-depth", largest), "expected a positive number")
    expect_error(predict("--rgb", recording / "no.png", "--depth", depth), "does not exist")
    expect_error(predict("--rgb", recording / "color", "--depth", depth), "both be folders")
    (recording / "void").mkdir()
    expect_error(predict("--rgb", recording / "void", "--depth", recording / "depth"), "holds no images")
    expect_error(predict("--rgb", recording / "color", "--depth", recording / "void"), "void holds no depth_m files")
    Image.fromarray(np.zeros((20, 20), np.uint16)).save(recording / "small.png")
    expect_error(predict("--rgb", rgb, "--depth", recording / "small.png", "--camera", CAMERA), "20x20", "40x48")
    Image.fromarray(np.full((SIZE[0] // 2, SIZE[1] // 2), 2000, np.uint16)).save(recording / "coarse.png")
    coarse = ("--rgb", rgb, "--depth", recording / "coarse.png", "--camera", CAMERA)
    expect_error(predict(*coarse), "is 20x24, its image 40x48", "have it resampled (--resample-depth) if it is aligned")
    (recording / "cut.png").write_bytes(rgb.read_bytes()[:200])
    expect_error(predict("--rgb", recording / "cut.png", "--depth", depth, "--camera", CAMERA), "cut.png")
    Image.fromarray(np.zeros((*SIZE, 3), np.uint8)).save(recording / "color depth.png")
    expect_error(predict("--rgb", rgb, "--depth", recording / "color depth.png", "--camera", CAMERA), "depth map")
    expect_error(predict(*pair, "--camera", CAMERA, "--device", "cuda:7"), "cuda:7")
    Image.fromarray(np.zeros(SIZE, np.uint16)).save(recording / "blind.png")
    expect_error(predict("--rgb", rgb, "--depth", recording / "blind.png", "--camera", CAMERA), "has no reading")
    assert not (recording / "out").exists()


def test_convert_and_use_a_published_checkpoint(call: Callable[..., Result], recording: Path, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = create_model("sagate_resnet18", 13)
    published = tmp_path / "epoch-400.pth"
    state = {f"module.{name}": value for name, value in to_published(model).items()}
    torch.save({"model": state, "epoch": 400, "iteration": 39200}, published)
    target = tmp_path / "sagate.safetensors"
    assert call("convert", "sagate_resnet18", published, target, "--label-set", "nyu13")[0] == 0
    expect_error(call("convert", "sagate_resnet18", published, target, "--label-set", "nyu13"), "--force")
    expect_error(call("convert", "sagate_resnet18", published, tmp_path / "x.safetensors"), "13", "40")
    expect_error(call("convert", "sagate_resnet18", published, tmp_path / "x.pth"), ".safetensors")
    expect_error(call("evaluate", published, "--data", tmp_path), "rgbdseg convert")
    status, out, _ = call("info", target)
    assert status == 0
    assert "sagate_resnet18" in out
    assert "13 of nyu13" in out
    status, _, err = call(
        "predict", target, "--rgb", recording / "color", "--depth", recording / "depth", "--camera", CAMERA,
        "--out", tmp_path / "labels",
    )  # fmt: skip
    assert status == 0, err
    assert len(list((tmp_path / "labels" / "label").iterdir())) == 2


def test_evaluate_refuses_a_truth_that_is_void_throughout(
    call: Callable[..., Result], run_folder: Path, tree: Path, tmp_path: Path
) -> None:
    other = Path(shutil.copytree(tree, tmp_path / "void"))
    for path in (other / "Label").iterdir():
        pixels = np.zeros_like(np.array(Image.open(path)))
        Image.fromarray(pixels).save(path)
    result = call("evaluate", run_folder, "--data", other, "--workers", "0", "--out", tmp_path / "scores")
    expect_error(result, "is void in every pixel that is counted", "first_label, label_values and void_label")
    assert "nan" not in result[1]
    assert not (tmp_path / "scores").exists()


def test_evaluate_refuses_other_classes(call: Callable[..., Result], run_folder: Path, tmp_path: Path) -> None:
    write_tree(tmp_path / "other", count=3, size=SIZE, classes=("floor", "wall", "cat"))
    expect_error(call("evaluate", run_folder, "--data", tmp_path / "other", "--workers", "0"), "same label set")


def test_damaged_frame_is_named_also_from_a_loader_process(
    call: Callable[..., Result], run_folder: Path, tmp_path: Path
) -> None:
    root = tmp_path / "tree"
    write_tree(root, count=3, size=SIZE)
    image = root / "RGB" / "2.png"
    image.write_bytes(image.read_bytes()[:100])
    expect_error(call("evaluate", run_folder, "--data", root, "--workers", "0"), "RGB/2.png")
    wrapped = DataError(
        "Caught DataError in DataLoader worker process 0.\nOriginal Traceback (most recent call last):\n"
        '  File "x"\nrgbdseg.errors.DataError: RGB/2.png is damaged: a: b\n'
    )
    assert plain_message(wrapped) == "RGB/2.png is damaged: a: b"
    status, out, _ = call("check", root, "--workers", "0")
    assert status == 1
    assert "RGB/2.png" in out


def test_recipes_print_a_config_that_train_accepts(call: Callable[..., Result], tree: Path, tmp_path: Path) -> None:
    status, out, _ = call("recipes", "demo-rgb-only")
    assert status == 0
    (tmp_path / "mine.yaml").write_text(out)
    status, _, err = call("train", tmp_path / "mine.yaml", "--data", tree, "--out", tmp_path / "run", *BRIEF)
    assert status == 0, err
    (tmp_path / "bad.yaml").write_text(out + "learning_rate: 1\n")
    expect_error(call("train", tmp_path / "bad.yaml", "--data", tree), "unknown config key 'learning_rate'")


def test_bugs_are_reported_as_such(call: Callable[..., Result], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rgbdseg.cli.models.run", lambda arguments: 1 // 0)
    monkeypatch.delenv("RGBDSEG_TRACEBACK", raising=False)
    expect_error(call("models"), "bug in rgbdseg: ZeroDivisionError", "RGBDSEG_TRACEBACK", status=70)


def test_models_say_what_they_cost(call: Callable[..., Result], tmp_path: Path) -> None:
    code, out, _ = call("models", "sagate_resnet18", "--details", "--classes", "5", "--size", "32", "48")
    assert code == 0
    assert "SA-Gate (2020; ECCV 2020" in out
    assert "charlesCXK/RGBD_Semantic_Segmentation_PyTorch" in out
    assert re.search(r"\d\.\d\d s . +\d+ MiB", out)
    files = ("--markdown", tmp_path / "m.md", "--latency", tmp_path / "l.md", "--repeats", "1")
    code, out, _ = call("models", "*a*_resnet18", "--size", "32", "64", *files)
    assert code == 0
    rows = [line.split(" | ") for line in (tmp_path / "m.md").read_text().splitlines() if line.startswith("| ")]
    (row,) = [row for row in rows if row[0] == "| sagate_resnet18"]
    count = sum(p.numel() for p in create_model("sagate_resnet18", 40).parameters())
    assert row[1:5] == ["SA-Gate", "2020", "RGB + HHA", f"{count / 1e6:.2f} M"]
    assert not re.search(r"\d s\b|[Ll]atency", (tmp_path / "m.md").read_text())  # the same on every machine
    latencies = (tmp_path / "l.md").read_text()
    assert "that of one run in float32" in latencies
    assert re.search(r"^\| sagate_resnet18 \| \d\.\d\d s \| \d+ MiB \|$", latencies, re.MULTILINE)
    expect_error(call("models", "--details", "--size", "0", "5"), "--size is 0 5")


def test_benchmark_prints_both_ways(call: Callable[..., Result], tree: Path) -> None:
    small = ("--loader.batch_size", "2", "--augmentation.crop_size", "[32, 32]", "--hardware.accelerator", "cpu")
    code, out, _ = call("benchmark", "loader", "demo-rgb-only", "--data", tree, "--iterations", "2", *small)
    assert code == 0
    assert "plain" in out
    assert "there is nothing to compare" in out  # the same work on both sides is recognized
    code, out, _ = call(
        *("benchmark", "loader", "demo-rgb-only", "--data", tree, "--iterations", "2", "--loader.workers", "1"), *small
    )
    assert code == 0
    assert re.search(r"this recipe does \d+\.\d\d times the images per second of the plain way", out.replace("\n", " "))
    expect_error(call("benchmark", "loader", "demo", "--data", tree, "--iterations", "0"), "--iterations is 0")
    expect_error(call("benchmark", "drive", "demo", "--data", tree), "drive")
    expect_error(call("benchmark", "loader", "dmo", "--data", tree), "did you mean 'demo'?")


@pytest.mark.parametrize(
    ("command", "said", "shown"),
    [
        (
            "train",
            "go on with resume=True and hardware.precision 32-true, or lower optimizer.learning_rate",
            "go on with --resume and --hardware.precision 32-true, or lower --optimizer.learning_rate",
        ),
        ("train", "unknown config key 'loss.wrong'; did you mean --loader.workers?", None),
        ("train", "/data/model.start_from and x/loss.json are files; so is model.pt", None),
        ("evaluate", "lower loader.workers, or hardware.devices", "lower --workers, or --devices"),
        ("evaluate", "epochs='7-9' needs a run folder", "--epochs 7-9 needs a run folder"),
        ("evaluate", "hardware.timeout_minutes, optimizer.momentum", "--hardware.timeout_minutes, optimizer.momentum"),
        ("predict", "hardware.compile or loader.workers", "--hardware.compile or --workers"),
        ("info", "hardware.compile", None),
        ("map", "has no pose; give one with trajectory=FILE", "has no pose; give one with --trajectory FILE"),
        ("live", "choose one with depth_topic=NAME", "choose one with --depth-topic NAME"),
        ("predict", "or say registered=True", "or say --registered"),
        ("prepare", "with camera=(fx, fy, cx, cy)", "with --camera fx,fy,cx,cy"),
        ("prepare", "not known; state it (meters_per_unit)", "not known; state it (--meters-per-unit)"),
        (
            "check",
            "look at it with rgbdseg check (in Python: rgbdseg.doctor.f), and",
            "look at it with rgbdseg check, and",
        ),
        (
            "evaluate",
            "make a LabelSet of their names, and convert the file: rgbdseg.weights.published.convert_published("
            "'a b.pth', 'OUT.safetensors', 'cmx', label_set, options={'depth': None, 'kinds': ['a', 1]})",
            "write their names into a file, one per line, and run: rgbdseg convert cmx 'a b.pth' OUT.safetensors "
            "--label-set FILE --option depth null --option kinds '[\"a\", 1]'",
        ),
        ("prepare", "jpeg_quality is 0; expected 1..100", "--quality is 0; expected 1..100"),
    ],
)
def test_what_the_library_says_is_worded_in_options(command: str, said: str, shown: str | None) -> None:
    assert in_options(said, command) == (said if shown is None else shown)


def test_what_is_no_checkpoint_says_so(call: Callable[..., Result], run_folder: Path, tree: Path) -> None:
    config = run_folder / "config.yaml"
    expect_error(call("info", config), "config.yaml is text, not a checkpoint; name a file .ckpt or .safetensors")
    expect_error(call("predict", config, "--rgb", tree / "RGB", "--out", "p"), "is text, not a checkpoint")


def test_missing_inputs_are_found_before_anything_is_imported(tmp_path: Path) -> None:
    code = (
        "import sys; from rgbdseg.cli.main import main; "
        f"status = main(['predict', '--rgb', {str(tmp_path / 'none')!r}, '--out', 'p']); "
        "assert status == 1 and 'torch' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, f"error: {tmp_path / 'none'} does not exist\n")


def test_resuming_is_advised_where_there_is_a_run(call: Callable[..., Result], run_folder: Path, tree: Path) -> None:
    Path("no-run").mkdir()
    Path("no-run", "notes.txt").write_text("")
    expect_error(call("train", "demo", "--data", tree, "--out", "no-run"), "not empty; choose another --out")
    expect_error(call("train", "demo", "--data", tree, "--out", run_folder), "continue the run in it with --resume")


def test_scores_go_into_their_folder(call: Callable[..., Result], run_folder: Path) -> None:
    expect_error(call("evaluate", run_folder, "--name", "../x"), "--name ../x is not the stem of a file's name")


def test_a_learning_rate_beyond_all_numbers(call: Callable[..., Result], tree: Path) -> None:
    steps = ("--schedule.epochs", 1, "--schedule.iterations_per_epoch", 2, "--schedule.warmup_epochs", 0)
    sizes = ("--loader.batch_size", 2, "--augmentation.crop_size", "[24,32]", "--optimizer.gradient_clip_norm", 1)
    result = call("train", "demo", "--data", tree, "--out", "r", *steps, *sizes, "--optimizer.learning_rate", 1e38)
    expect_error(result, "start a new run with a lower --optimizer.learning_rate")
    assert "resume" not in result[2]
