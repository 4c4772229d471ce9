"""Many frames: nothing is done twice, nothing is lost, whatever stops the work."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from rgbdseg.data.hha_cache import cache_hha
from rgbdseg.data.tree import open_tree
from rgbdseg.engine.bulk import BulkOptions, BulkResult, predict_in_bulk
from rgbdseg.engine.bulk_processes import Share
from rgbdseg.engine.bulk_record import finished_frames
from rgbdseg.engine.predict import FileFrames, TreeInputs, find_frames, open_inputs
from rgbdseg.errors import DataError, UsageError
from rgbdseg.labels import LabelSet
from rgbdseg.outputs import LabelFiles
from rgbdseg.recordings import OpenOptions
from rgbdseg.sample import RGBDSample
from rgbdseg.segmenter import Segmenter
from rgbdseg.weights.fingerprint import weights_fingerprint
from tests.foreign_trees import write_dformer
from tests.specs import RGB_DEPTH, RGB_HHA
from tests.synthetic import make_camera, make_scene, write_depth, write_tree
from tests.test_segmenter import ABC, SIZE, Channels, segmenter

ROOT = Path(__file__).resolve().parents[2]


class Pictures:
    """Frames of random colors; counts what is read."""

    sequential = False

    def __init__(self, count: int = 8) -> None:
        self.names = [f"room/{index}" for index in range(count)]
        self.read: list[int] = []
        self.damaged: set[int] = set()
        self.changed: dict[int, float] = {}
        self.facts: dict[str, Any] = {"recording": "one"}

    def rgb(self, index: int) -> np.ndarray:
        return np.random.default_rng(index).integers(0, 256, (3, *SIZE)).astype(np.uint8)

    def sample(self, index: int) -> RGBDSample:
        self.read.append(index)
        if index in self.damaged:
            raise DataError(f"{self.names[index]}.png is damaged")
        return RGBDSample(torch.from_numpy(self.rgb(index)), sample_id=self.names[index])

    def changed_s(self, index: int) -> float:
        return self.changed.get(index, 0.0)

    def describe(self) -> dict[str, Any]:
        return self.facts


def labels(out: Path) -> dict[str, np.ndarray]:
    return {
        str(file.relative_to(out / "label").with_suffix("")): np.asarray(Image.open(file))
        for file in sorted((out / "label").rglob("[!.]*.png"))
    }


def run(source: Pictures, out: Path, outputs: Sequence[str] = ("label",), **options: Any) -> BulkResult:
    return predict_in_bulk(segmenter(), source, out, BulkOptions(tuple(outputs), **options))


def test_every_frame_once_with_its_own_labels(tmp_path: Path) -> None:
    source, moves = Pictures(), []
    result = predict_in_bulk(
        segmenter(), source, tmp_path, BulkOptions(("label", "overlay")), progress=lambda *at: moves.append(at)
    )
    assert sorted(source.read) == list(range(8))
    found = labels(tmp_path)
    assert list(found) == source.names
    for index, name in enumerate(source.names):
        assert np.array_equal(found[name], source.rgb(index).argmax(0))
    assert (tmp_path / "overlay" / "room" / "7.png").is_file()
    assert not (tmp_path / "color").exists()
    assert (result.frames, result.labeled, result.kept, result.skipped) == (8, 8, 0, ())
    counts = np.bincount(np.concatenate([values.ravel() for values in found.values()]), minlength=3)
    assert result.shares == pytest.approx(dict(zip("abc", counts / counts.sum(), strict=True)))
    assert moves == [(done, 8) for done in range(1, 9)]


def test_a_damaged_frame_stops_and_the_same_call_goes_on(tmp_path: Path) -> None:
    source = Pictures()
    source.damaged = {3}
    for _ in range(2):
        with pytest.raises(DataError, match=r"room/3\.png is damaged .* 3 of 8 frames are finished"):
            run(source, tmp_path)
        assert list(labels(tmp_path)) == ["room/0", "room/1", "room/2"]
    source.damaged, source.read = set(), []
    result = run(source, tmp_path)
    assert sorted(source.read) == [3, 4, 5, 6, 7]
    assert (result.labeled, result.kept) == (5, 3)
    assert list(labels(tmp_path)) == source.names
    assert run(source, tmp_path).kept == 8


def test_skipped_frames_are_listed_and_tried_again(tmp_path: Path) -> None:
    source = Pictures()
    source.damaged = {2, 5}
    result = run(source, tmp_path, on_error="skip")
    assert [(frame.name, frame.reason) for frame in result.skipped] == [
        ("room/2", "room/2.png is damaged"),
        ("room/5", "room/5.png is damaged"),
    ]
    record = json.loads((tmp_path / "prediction.json").read_text())
    assert record["finished"]
    assert [frame["name"] for frame in record["skipped"]] == ["room/2", "room/5"]
    source.damaged, source.read = {5}, []
    assert [frame.name for frame in run(source, tmp_path, on_error="skip").skipped] == ["room/5"]
    assert sorted(source.read) == [2, 5]


def test_outputs_that_lack_are_made(tmp_path: Path) -> None:
    source = Pictures(3)
    run(source, tmp_path)
    (tmp_path / "label" / "room" / "1.png").unlink()
    source.read = []
    assert run(source, tmp_path).kept == 2
    assert source.read == [1]
    assert run(source, tmp_path, ("label", "color")).labeled == 3


def test_frames_that_were_written_anew_are_labeled_anew(tmp_path: Path) -> None:
    source = Pictures(3)
    run(source, tmp_path)
    source.changed, source.read = {1: time.time() + 1}, []
    run(source, tmp_path)
    assert source.read == [1]


def test_what_a_killed_process_left_is_no_prediction(tmp_path: Path) -> None:
    """A process that is killed at its sixth frame, while others are being written."""
    code = (
        "import os, signal, sys\nfrom tests.engine.test_bulk import *\n"
        "class Killed(Pictures):\n"
        "    def changed_s(self, index): return 0.0\n"
        "made = segmenter()\nbefore, seen = made.segment, []\n"
        "def segment(sample, **options):\n"
        "    seen.append(1)\n"
        "    if len(seen) == 6: os.kill(os.getpid(), signal.SIGKILL)\n"
        "    return before(sample)\n"
        "made.segment = segment\n"
        f"predict_in_bulk(made, Killed(20), {str(tmp_path)!r}, BulkOptions(('label', 'color')))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, check=False, timeout=120)
    assert done.returncode == -signal.SIGKILL, done.stderr.decode()
    (tmp_path / "label" / "room" / f".9.{'0' * 8}-1-x.part.png").write_bytes(b"half")
    finished = finished_frames(tmp_path, ("label", "color"))
    assert len(finished) <= 5
    source = Pictures(20)
    result = run(source, tmp_path, ("label", "color"))
    assert result.kept == len(finished)
    assert sorted(source.read) == [k for k in range(20) if source.names[k] not in finished]
    for index, name in enumerate(source.names):
        assert np.array_equal(labels(tmp_path)[name], source.rgb(index).argmax(0))


def test_predictions_of_another_model_are_never_mixed(tmp_path: Path) -> None:
    source = Pictures(4)
    run(source, tmp_path)
    other = Channels(segmenter().input_spec)
    torch.nn.init.constant_(other.factor, -1.0)
    trained = Segmenter(other, ABC, device="cpu")
    options = BulkOptions(("label",))
    with pytest.raises(UsageError, match="made with another weights"):
        predict_in_bulk(trained, source, tmp_path, options)
    with pytest.raises(UsageError, match="another classes"):
        run(source, tmp_path, classes=("a",))
    source.facts = {"recording": "two"}
    with pytest.raises(UsageError, match=r"another recording \(one, now two\)"):
        run(source, tmp_path)
    # Replacing removes what is there first: killed on the way, it leaves no frame of the model before.
    source.damaged = {2}
    with pytest.raises(DataError, match="damaged"):
        predict_in_bulk(trained, source, tmp_path, BulkOptions(("label",), force=True))
    assert list(labels(tmp_path)) == ["room/0", "room/1"]
    source.damaged = set()
    predict_in_bulk(trained, source, tmp_path, options)
    assert all(np.array_equal(labels(tmp_path)[f"room/{k}"], source.rgb(k).argmin(0)) for k in range(4))


def test_predictions_without_a_record_are_refused(tmp_path: Path) -> None:
    source = Pictures(2)
    run(source, tmp_path)
    (tmp_path / "prediction.json").unlink()
    with pytest.raises(UsageError, match="already holds a prediction of 'room/0'"):
        run(source, tmp_path)


@pytest.mark.parametrize("force", [False, True])
@pytest.mark.parametrize("place", ["label/a.png", "color/room/1.png", "cloud/x.ply", "classes.json", "legend.png"])
def test_files_of_somebody_else_are_never_replaced(place: str, force: bool, tmp_path: Path) -> None:
    (tmp_path / place).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / place).write_bytes(b"an image of a dataset")
    with pytest.raises(UsageError, match=r"choose another folder"):
        run(Pictures(3), tmp_path, force=force)
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == [tmp_path / place]
    assert (tmp_path / place).read_bytes() == b"an image of a dataset"


def test_hha_of_a_tree_is_compared_with_its_depth(tmp_path: Path) -> None:
    tree = open_tree(write_tree(tmp_path / "tree", count=3, hha=False))
    cache_hha(tree.root)
    (tree.root / "HHA" / "hha.json").unlink()
    made = segmenter(RGB_HHA)
    assert len(TreeInputs(open_tree(tree.root), "all").source(made, ("label",)).names) == 3
    for path in (tree.root / "HHA").glob("*.png"):
        Image.fromarray(np.asarray(Image.open(path))[..., ::-1].copy()).save(path)
    with pytest.raises(DataError, match=r'channels in the order angle, height, disparity .*"hha_channels"'):
        TreeInputs(open_tree(tree.root), "all").source(made, ("label",))


def test_trees_of_other_programs_are_no_recordings(tmp_path: Path) -> None:
    found = open_inputs(write_dformer(tmp_path), OpenOptions())
    assert isinstance(found, TreeInputs)
    assert found.tree.recognized_as == "DFormer tree"


def test_fingerprint_follows_the_weights_alone() -> None:
    one, other = Channels(RGB_DEPTH), Channels(RGB_DEPTH)
    assert weights_fingerprint(one) == weights_fingerprint(other)
    with torch.no_grad():
        other.factor.mul_(1 + 2**-20)
    assert weights_fingerprint(one) != weights_fingerprint(other)


def test_files_without_depth_have_no_cloud(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no cloud"):
        run(Pictures(1), tmp_path, ("label", "cloud"))
    with pytest.raises(UsageError, match="unknown output 'cluod'; did you mean 'cloud'"):
        BulkOptions(("cluod",))


def test_files_tell_when_they_changed(tmp_path: Path) -> None:
    scene = make_scene(0, SIZE)
    (tmp_path / "rgb").mkdir()
    Image.fromarray(scene.rgb).save(tmp_path / "rgb" / "a.png")
    write_depth(tmp_path / "depth", "a", scene.depth_m, "mm16")
    source = FileFrames(find_frames(tmp_path / "rgb", tmp_path / "depth"), camera=make_camera(SIZE))
    os.utime(tmp_path / "rgb" / "a.png", (1000, 1000))
    os.utime(tmp_path / "depth" / "a.png", (2000, 2000))
    assert source.changed_s(0) == 2000
    np.testing.assert_allclose(source.sample(0).depth_m[0].numpy(), scene.depth_m, atol=6e-4)


def test_two_processes_share_the_frames(tmp_path: Path) -> None:
    tree = write_tree(tmp_path / "tree", count=5, size=(32, 48))
    out = tmp_path / "out"
    command = [
        sys.executable, "-m", "rgbdseg", "predict", "--source", str(tree), "--out", str(out), "--devices", "2",
        "--hardware.accelerator", "cpu", "--hardware.threads", "1", "--outputs", "label", "--on-error", "skip",
    ]  # fmt: skip
    broken = tree / "Depth" / "3.png"  # of the process that is not the main one
    broken.write_bytes(broken.read_bytes()[:40])
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=400)
    assert done.returncode == 1, done.stderr
    assert "labeled 4 images" in done.stdout
    assert "skipped 1 of 5 frames" in done.stdout
    assert done.stdout.count("found:") == 1
    assert list(labels(out)) == ["0", "1", "2", "4"]


@pytest.mark.parametrize("force", [False, True])
def test_the_key_is_written_once_and_not_before_a_frame_is_labeled(
    force: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written: list[bool] = []
    write_key = LabelFiles.write_key

    def seen(files: LabelFiles, folder: str | Path, *, replace: bool = False) -> list[Path]:
        written.append(replace)
        return write_key(files, folder, replace=replace)

    monkeypatch.setattr(LabelFiles, "write_key", seen)
    source = Pictures(6)
    source.damaged = set(range(6))
    run(source, tmp_path, on_error="skip")
    assert written == []
    assert not (tmp_path / "classes.json").exists()
    source.damaged = {0}
    run(source, tmp_path, ("label", "color", "overlay"), on_error="skip", force=force)
    assert written == [force]
    assert list(labels(tmp_path)) == source.names[1:]
    assert (tmp_path / "legend.png").is_file()


def test_labels_of_other_classes_are_refused_by_the_first_frame(tmp_path: Path) -> None:
    LabelFiles.of_classes(LabelSet("other", ("x", "y", "z"), ABC.palette), None).write_key(tmp_path)
    with pytest.raises(UsageError, match="have other classes or numbers"):
        run(Pictures(5), tmp_path)
    assert not (tmp_path / "label").exists()


class Second(Share):
    """One of two processes, the other of which is always there."""

    def wait(self) -> None:
        pass

    def gather(self, value: Any) -> list[Any]:
        return [value]


def test_only_the_main_process_looks_at_all_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[object] = []
    monkeypatch.setattr(Segmenter, "weights_fingerprint", lambda self: seen.append(self) or "weights")
    source = Pictures(4)
    predict_in_bulk(segmenter(), source, tmp_path, BulkOptions(("label",)), share=Second(1, 2))
    assert seen == []
    assert list(labels(tmp_path)) == ["room/1", "room/3"]
    assert not (tmp_path / "prediction.json").exists()
    predict_in_bulk(segmenter(), source, tmp_path / "main", BulkOptions(("label",)), share=Second(0, 2))
    assert len(seen) == 1
    record = json.loads((tmp_path / "main" / "prediction.json").read_text())
    assert (record["made_with"]["weights"], record["finished"]) == ("weights", True)
