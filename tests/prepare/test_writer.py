from __future__ import annotations

import errno
import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from rgbdseg.camera import PinholeCamera
from rgbdseg.data.description import DatasetDescription, DepthUnit
from rgbdseg.data.images import read_depth
from rgbdseg.data.output_folder import record_name
from rgbdseg.data.tree import open_tree
from rgbdseg.errors import DataError, UsageError
from rgbdseg.files import WriteError
from rgbdseg.labels import LabelSet, generic_palette
from rgbdseg.png import encode_png
from rgbdseg.prepare.writer import (
    CONVERTING,
    VERIFYING,
    Content,
    FrameJob,
    PrepareResult,
    encode_jpeg,
    meters_to_millimeters,
    write_prepared_tree,
)

SIZE = (6, 8)
MINE = DatasetDescription(
    name="mine",
    source="made by a test",
    label_set=LabelSet("two", ("a", "b"), generic_palette(2)),
    first_label=1,
    void_labels=(0,),
    depth=DepthUnit(0.001),
    camera=PinholeCamera(8, 8, 3.5, 2.5),
)
FILES = {"rgb": ".png", "depth_m": ".png", "label": ".png"}
JOBS = [FrameJob(f"seq/{index}", FILES, index) for index in range(5)]
SPLITS = {"train": ["seq/4", "seq/0"], "test": ["seq/1"]}


def convert(_: object, job: FrameJob) -> Mapping[str, Content]:
    return {
        "rgb": np.full((*SIZE, 3), job.data, np.uint8),
        "depth_m": np.full(SIZE, 1000 + job.data, np.uint16),
        "label": np.full(SIZE, job.data % 3, np.uint8),
    }


def convert_unless_third(_: object, job: FrameJob) -> Mapping[str, Content]:
    if job.data == 2:
        raise DataError("frame 2 of the source is damaged")
    return convert(_, job)


def prepare(root: Path, **changed: Any) -> PrepareResult:
    arguments: dict[str, Any] = {
        "description": MINE,
        "frames": JOBS,
        "convert": convert,
        "context": None,
        "splits": SPLITS,
        "parameters": {"quality": 3},
    }
    return write_prepared_tree(root, **{**arguments, **changed})


def contents(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}


class TestWriting:
    def test_the_tree_holds_what_was_converted(self, tmp_path: Path) -> None:
        calls: list[tuple[str, int, int]] = []
        cameras = {job.sample_id: PinholeCamera(9, 9, job.data, 1) for job in JOBS}
        result = prepare(
            tmp_path / "new",
            description=DatasetDescription(**{**_fields(MINE), "camera": None}),
            cameras=cameras,
            sensors={"seq/0": "kinect_v1"},
            extra_files={"scenes.txt": "hall\n"},
            progress=lambda *call: calls.append(call),
        )
        root = tmp_path / "new"
        assert result.counts == {"train": 2, "test": 1}
        assert (result.frames, result.converted, result.already_complete) == (5, 5, False)
        assert result.bytes_in_tree == sum(map(len, contents(root).values()))
        assert (root / "train.txt").read_text() == "RGB/seq/4.png\tLabel/seq/4.png\nRGB/seq/0.png\tLabel/seq/0.png\n"
        assert (root / "scenes.txt").read_text() == "hall\n"
        for job in JOBS:
            for raster, folder in (("rgb", "RGB"), ("depth_m", "Depth"), ("label", "Label")):
                stored = np.asarray(Image.open(root / folder / f"{job.sample_id}.png"))
                np.testing.assert_array_equal(stored, convert(None, job)[raster])
                assert stored.dtype == convert(None, job)[raster].dtype
        tree = open_tree(root)
        assert tree.cameras == cameras
        assert tree.sensors == {"seq/0": "kinect_v1"}
        assert tree.description.source == "made by a test; prepared with quality 3"
        assert [frame.sample_id for frame in tree.frames("train")] == SPLITS["train"]
        assert calls[0] == (CONVERTING, 0, 5)
        assert (CONVERTING, 5, 5) in calls
        assert calls[-1] == (VERIFYING, 5, 5)
        assert not list(root.glob(".*"))

    def test_bytes_are_written_as_they_are(self, tmp_path: Path) -> None:
        pixels = np.random.default_rng(0).integers(0, 256, (*SIZE, 3), dtype=np.uint8)
        jpeg = encode_jpeg(pixels, 95)
        jobs = [FrameJob("a", {"rgb": ".jpg"})]
        description = DatasetDescription(name="plain")
        prepare(
            tmp_path, description=description, frames=jobs, convert=_jpeg_frame, context=jpeg, splits={"test": ["a"]}
        )
        assert (tmp_path / "RGB" / "a.jpg").read_bytes() == jpeg
        assert (tmp_path / "test.txt").read_text() == "RGB/a.jpg\n"

    def test_workers_make_no_difference(self, tmp_path: Path) -> None:
        prepare(tmp_path / "alone")
        prepare(tmp_path / "together", workers=2)
        assert contents(tmp_path / "alone") == contents(tmp_path / "together")

    def test_millimeters(self) -> None:
        depth_m = np.array([0, -1, np.nan, np.inf, 1e-5, 0.0004, 1.2344, 1.2346, 65.5349, 80], np.float32)
        np.testing.assert_array_equal(
            meters_to_millimeters(depth_m), np.array([0, 0, 0, 0, 1, 1, 1234, 1235, 65535, 65535], np.uint16)
        )

    def test_millimeters_are_read_back_within_half_a_millimeter(self, tmp_path: Path) -> None:
        depth_m = np.random.default_rng(1).uniform(0.7, 10, (30, 40)).astype(np.float32)
        Image.fromarray(meters_to_millimeters(depth_m)).save(tmp_path / "d.png")
        read_m = read_depth(tmp_path / "d.png", DepthUnit(0.001))[0].numpy()
        np.testing.assert_allclose(read_m, depth_m, rtol=0, atol=0.000501)


class TestInterruptions:
    def test_an_interrupted_run_goes_on_and_ends_the_same(self, tmp_path: Path) -> None:
        def stop(stage: str, done: int, total: int) -> None:
            if done >= 2:
                raise KeyboardInterrupt

        root = tmp_path / "broken"
        with pytest.raises(KeyboardInterrupt):
            prepare(root, progress=stop)
        assert not (root / "dataset.json").exists()
        with pytest.raises(DataError, match="is not finished"):
            open_tree(root)
        with pytest.raises(DataError, match="unfinished mine made with other arguments"):
            prepare(root, parameters={"quality": 4})
        with pytest.raises(DataError, match="unfinished mine made with other arguments"):
            prepare(root, splits={"train": ["seq/0"]})
        (root / "RGB" / "seq" / ".1.x.part.png").write_bytes(b"half")
        (root / "Label" / "seq" / "1.png").unlink()
        kept = (root / "RGB" / "seq" / "0.png").stat().st_mtime_ns
        result = prepare(root)
        assert result.converted == 4
        assert (root / "RGB" / "seq" / "0.png").stat().st_mtime_ns == kept
        prepare(tmp_path / "whole")
        assert contents(root) == contents(tmp_path / "whole")

    @pytest.mark.parametrize("workers", [0, 2])
    def test_a_source_that_fails_leaves_an_unfinished_tree(self, tmp_path: Path, workers: int) -> None:
        with pytest.raises(DataError, match="frame 2 of the source is damaged"):
            prepare(tmp_path, convert=convert_unless_third, workers=workers)
        assert (tmp_path / record_name("mine")).exists()
        assert not (tmp_path / "dataset.json").exists()
        assert prepare(tmp_path).frames == 5

    def test_a_finished_tree_is_left_alone(self, tmp_path: Path) -> None:
        prepare(tmp_path)
        before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*") if path.is_file()}
        result = prepare(tmp_path)
        assert result.already_complete
        assert result.converted == 0
        assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*") if path.is_file()} == before

    def test_a_finished_tree_with_other_lists_is_refused(self, tmp_path: Path) -> None:
        prepare(tmp_path)
        with pytest.raises(DataError, match=r"already holds this dataset, but its train\.txt is another"):
            prepare(tmp_path, splits={**SPLITS, "train": ["seq/0"]})
        (tmp_path / "test.txt").unlink()
        with pytest.raises(DataError, match=r"but its test\.txt is missing"):
            prepare(tmp_path)

    def test_another_dataset_is_refused(self, tmp_path: Path) -> None:
        prepare(tmp_path / "mine")
        before = contents(tmp_path / "mine")
        with pytest.raises(
            DataError, match=r"already holds another dataset \(mine: made by a test; prepared with qual"
        ):
            prepare(tmp_path / "mine", parameters={"quality": 4})
        assert contents(tmp_path / "mine") == before
        (tmp_path / "thesis.txt").write_text("mine")
        with pytest.raises(DataError, match=r"holds other files; expected a new or empty folder"):
            prepare(tmp_path)
        with pytest.raises(DataError, match=r"thesis\.txt is a file"):
            prepare(tmp_path / "thesis.txt")


class TestFaults:
    def test_no_space(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        written: list[Path] = []

        def full(path: Path, data: bytes) -> int:
            written.append(path)
            if len(written) > 4:
                raise OSError(errno.ENOSPC, "No space left on device")
            with open(path, "wb") as file:
                return file.write(data)

        monkeypatch.setattr(Path, "write_bytes", full)
        with pytest.raises(WriteError, match=r"cannot write .*: No space left on device"):
            prepare(tmp_path)
        assert not (tmp_path / "dataset.json").exists()
        assert not list(tmp_path.rglob("*.part.*"))
        with pytest.raises(DataError, match="is not finished"):
            open_tree(tmp_path)
        monkeypatch.undo()
        assert prepare(tmp_path).converted == 4

    def test_a_folder_that_cannot_be_made(self, tmp_path: Path) -> None:
        (tmp_path / "new").mkdir()
        (tmp_path / "new" / record_name("mine")).write_text("{}")
        with pytest.raises(DataError, match="unfinished mine made with other arguments"):
            prepare(tmp_path / "new")
        (tmp_path / "file").write_text("")
        with pytest.raises(WriteError, match="cannot write"):
            prepare(tmp_path / "file" / "below")

    @pytest.mark.parametrize(
        ("raster", "content", "message"),
        [
            ("label", np.full(SIZE, 3, np.uint8), r"unknown label value 3; expected 1\.\.2, void 0"),
            ("label", np.ones((6, 7), np.uint8), r"Label/seq/0\.png is 6x7, expected the size of RGB/seq/0\.png, 6x8"),
            ("depth_m", np.ones((6, 8, 3), np.uint8), "expected a depth map with one channel"),
            ("depth_m", np.ones((5, 8), np.uint16) * 1000, r"Depth/seq/0\.png is 5x8, expected"),
            ("rgb", b"no image", "is not an image that can be read"),
        ],
    )
    def test_verification_finds_what_training_would_stumble_over(
        self, tmp_path: Path, raster: str, content: Content, message: str
    ) -> None:
        with pytest.raises(DataError, match=message):
            prepare(tmp_path, convert=_with_fault, context=(raster, content))
        assert not (tmp_path / "dataset.json").exists()

    def test_pixels_that_no_png_holds_are_named(self, tmp_path: Path) -> None:
        with pytest.raises(DataError, match=r"frame 'seq/0': depth_m: a PNG cannot hold float32 \(6, 8\)"):
            prepare(tmp_path, convert=_with_fault, context=("depth_m", np.ones(SIZE, np.float32)))

    def test_labels_without_a_label_set_are_verified_too(self, tmp_path: Path) -> None:
        unlabeled = DatasetDescription(name="mine", depth=DepthUnit(0.001))
        with pytest.raises(DataError, match=r"Label/seq/0\.png is 6x7, expected"):
            prepare(
                tmp_path,
                description=unlabeled,
                convert=_with_fault,
                context=("label", np.ones((6, 7), np.uint16)),
            )

    @pytest.mark.parametrize(
        ("ids", "splits", "message"),
        [
            ([], {}, "has no frames"),
            (["a", "b", "a"], {}, "2 frames with the id 'a'"),
            (["../a"], {}, "'../a' cannot be the id of a frame"),
            (["/a"], {}, "'/a' cannot be the id"),
            (["a/.b"], {}, "cannot be the id"),
            (["a\tb"], {}, "cannot be the id"),
            (["a"], {"test": ["b"]}, "split 'test' lists 'b', which is not among the 1 frames"),
        ],
    )
    def test_ids(self, tmp_path: Path, ids: Sequence[str], splits: dict[str, list[str]], message: str) -> None:
        with pytest.raises(DataError, match=message):
            prepare(tmp_path / "new", frames=[FrameJob(i, FILES, 0) for i in ids], splits=splits)
        assert not (tmp_path / "new").exists()

    def test_the_record_holds_all_that_decides(self, tmp_path: Path) -> None:
        with pytest.raises(DataError):
            prepare(tmp_path, convert=convert_unless_third)
        record = json.loads((tmp_path / record_name("mine")).read_text())
        assert record["name"] == "mine"
        assert "quality 3" in record["source"]
        assert len(record["text_files"]) == 64


def _with_fault(fault: tuple[str, Content], job: FrameJob) -> Mapping[str, Content]:
    return {**convert(None, job), **({fault[0]: fault[1]} if job.data == 0 else {})}


def _jpeg_frame(jpeg: bytes, _: FrameJob) -> Mapping[str, Content]:
    return {"rgb": jpeg}


def _fields(description: DatasetDescription) -> dict[str, Any]:
    return {name: getattr(description, name) for name in description.__dataclass_fields__}


def _copy(_: object, job: FrameJob) -> Mapping[str, Content]:
    return {raster: path.read_bytes() for raster, path in job.sources.items()}


class TestMending:
    """A source file that is mended, added or removed does not stop an unfinished preparation."""

    def jobs(self, source: Path, ids: Sequence[str]) -> list[FrameJob]:
        for sample_id in ids:
            for raster, content in convert(None, FrameJob(sample_id, FILES, 0)).items():
                path = source / raster / f"{sample_id}{FILES[raster]}"
                path.parent.mkdir(parents=True, exist_ok=True)
                if not path.exists():
                    path.write_bytes(content if isinstance(content, bytes) else encode_png(content))
        return [
            FrameJob(i, FILES, None, {raster: source / raster / f"{i}{suffix}" for raster, suffix in FILES.items()})
            for i in ids
        ]

    def run(self, tmp_path: Path, ids: Sequence[str], **changed: Any) -> PrepareResult:
        source = tmp_path / "source"
        frames = self.jobs(source, ids)
        more = {"splits": {"train": list(ids)}, "copies_of": source, **changed}
        return prepare(tmp_path / "out", frames=frames, convert=_copy, **more)

    def test_a_mended_file_is_taken_and_the_error_names_the_source(self, tmp_path: Path) -> None:
        bad = tmp_path / "source" / "label" / "b.png"
        self.jobs(tmp_path / "source", "abc")
        good = bad.read_bytes()
        bad.write_bytes(encode_png(np.full(SIZE, 200, np.uint8)))
        with pytest.raises(DataError) as caught:
            self.run(tmp_path, "abc")
        assert str(caught.value).startswith(f"{bad}: unknown label value 200")
        assert "Label" not in str(caught.value)
        kept = (tmp_path / "out" / "RGB" / "a.png").stat().st_mtime_ns
        bad.write_bytes(good)
        result = self.run(tmp_path, "abc", parameters={"files": "others"})
        assert (result.frames, result.converted) == (3, 1)
        assert (tmp_path / "out" / "RGB" / "a.png").stat().st_mtime_ns == kept
        assert (tmp_path / "out" / "Label" / "b.png").read_bytes() == good

    def test_a_frame_that_was_right_before_is_read_again(self, tmp_path: Path) -> None:
        first, bad = (tmp_path / "source" / "label" / f"{i}.png" for i in "ab")
        self.jobs(tmp_path / "source", "abc")
        good = bad.read_bytes()
        bad.write_bytes(b"no image")
        with pytest.raises(DataError, match="is not an image"):
            self.run(tmp_path, "abc")
        bad.write_bytes(good)
        first.write_bytes(encode_png(np.full(SIZE, 2, np.uint8)))
        self.run(tmp_path, "abc")
        assert (tmp_path / "out" / "Label" / "a.png").read_bytes() == first.read_bytes()

    def test_a_frame_whose_files_are_removed_leaves_the_tree(self, tmp_path: Path) -> None:
        bad = tmp_path / "source" / "label" / "c.png"
        self.jobs(tmp_path / "source", "abc")
        bad.write_bytes(encode_png(np.full(SIZE, 200, np.uint8)))
        with pytest.raises(DataError, match="unknown label value 200"):
            self.run(tmp_path, "abc")
        assert self.run(tmp_path, "ab").frames == 2
        assert not list((tmp_path / "out").rglob("c.*"))

    def test_another_recording_is_refused(self, tmp_path: Path) -> None:
        self.jobs(tmp_path / "source", "abc")
        (tmp_path / "source" / "label" / "b.png").write_bytes(b"no image")
        with pytest.raises(DataError, match="is not an image"):
            self.run(tmp_path, "abc")
        with pytest.raises(DataError, match="unfinished mine made with other arguments"):
            self.run(tmp_path, "abc", copies_of=tmp_path)

    def test_killed_in_its_first_write(self, tmp_path: Path) -> None:
        (tmp_path / "out").mkdir()
        (tmp_path / "out" / ".mine-in-progress.0123abcd-1-x.part.json").write_bytes(b"{")
        assert prepare(tmp_path / "out").frames == 5

    def test_nothing_is_written_through_a_link(self, tmp_path: Path) -> None:
        with pytest.raises(DataError):
            prepare(tmp_path / "out", convert=convert_unless_third)
        shutil.rmtree(tmp_path / "out" / "Depth")
        (tmp_path / "victim").mkdir()
        (tmp_path / "out" / "Depth").symlink_to(tmp_path / "victim")
        with pytest.raises(DataError, match="is a link out of"):
            prepare(tmp_path / "out")
        assert not list((tmp_path / "victim").iterdir())

    def test_a_name_is_part_of_files_names(self, tmp_path: Path) -> None:
        with pytest.raises(UsageError, match=r"'/\.\./x' cannot be the name of a dataset"):
            prepare(tmp_path / "out", description=DatasetDescription(name="/../x", depth=DepthUnit(0.001)))
