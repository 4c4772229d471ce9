"""Submissions for the Cityscapes server: what is written, and every rule by a folder that breaks it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from rgbdseg.datasets.cityscapes import CITYSCAPES19
from rgbdseg.datasets.nyuv2 import NYU40
from rgbdseg.engine.submission import SubmissionFolder, check_submission, server_format, submission_problems
from rgbdseg.errors import DataError, UsageError
from rgbdseg.labels import LabelSet, generic_palette

FRAMES = ("berlin_000000_000019", "berlin_000001_000019", "mainz_000002_000019")
SIZE = (8, 19)
# train id -> label id, as in the list of labels that Cityscapes publishes
LABEL_IDS = [7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33]


def prediction(seed: int, size: tuple[int, int] = SIZE) -> torch.Tensor:
    return torch.randint(19, size, generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)


def write(folder: Path, size: tuple[int, int] = SIZE) -> SubmissionFolder:
    submission = SubmissionFolder(folder, CITYSCAPES19, FRAMES)
    submission.start()
    for index, frame in enumerate(FRAMES):
        submission.write(frame, prediction(index, size))
    return submission


def problems(folder: Path, **options: object) -> list[str]:
    return list(submission_problems(folder, FRAMES, CITYSCAPES19, size=SIZE, **options))  # type: ignore[arg-type]


def test_label_ids_are_written_under_the_frames_names(tmp_path: Path) -> None:
    write(tmp_path / "out").finish(SIZE)
    assert sorted(path.name for path in tmp_path.rglob("*.png")) == [f"{f}_pred_labelIds.png" for f in FRAMES]
    for index, frame in enumerate(FRAMES):
        with Image.open(tmp_path / "out" / server_format(CITYSCAPES19).file_name(frame)) as image:
            assert image.mode == "L"
            values = np.array(image)
        assert np.array_equal(values, np.array(LABEL_IDS)[prediction(index).numpy()])
    assert problems(tmp_path / "out") == []


def test_official_size(tmp_path: Path) -> None:
    folder = write(tmp_path / "out", (1024, 2048)).finish((1024, 2048))
    check_submission(folder, FRAMES, CITYSCAPES19, size=(1024, 2048))
    short = "out is not a submission that the evaluation server takes: .*1024x2048, expected 8x19.* \\(and 2 more\\)"
    with pytest.raises(DataError, match=short):
        check_submission(folder, FRAMES, CITYSCAPES19, size=SIZE)


def test_nothing_is_there_before_everything_is(tmp_path: Path) -> None:
    submission = SubmissionFolder(tmp_path / "out", CITYSCAPES19, FRAMES)
    submission.start()
    submission.write(FRAMES[0], prediction(0))
    with pytest.raises(DataError, match=r"frame 'berlin_000001_000019' has 0 files .*; expected 1 \(and 1 more\)"):
        submission.finish(SIZE)
    assert not (tmp_path / "out").exists()
    # What an interrupted attempt left does not get into the next one.
    (submission.staging / "old_000000_000019.png").write_bytes(b"")
    (tmp_path / "out").mkdir()
    write(tmp_path / "out").finish(SIZE)
    assert problems(tmp_path / "out") == []
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_folder_that_holds_something_is_refused(tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "x").touch()
    for taken in ("full", "full/x"):
        with pytest.raises(UsageError, match="already holds something; choose a new or an empty one"):
            SubmissionFolder(tmp_path / taken, CITYSCAPES19, FRAMES)


def test_label_sets_and_frames_without_official_names_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no evaluation server is known for the classes of 'nyu40'"):
        SubmissionFolder(tmp_path / "out", NYU40, FRAMES)
    with pytest.raises(UsageError, match="frame 'berlin_19' has no name that the evaluation server knows"):
        SubmissionFolder(tmp_path / "out", CITYSCAPES19, ("berlin_19",))


def test_every_rule(tmp_path: Path) -> None:
    folder = write(tmp_path / "out").finish(SIZE)
    first = folder / server_format(CITYSCAPES19).file_name(FRAMES[0])
    good = np.array(Image.open(first))

    def found_with(values: np.ndarray) -> list[str]:
        Image.fromarray(values).save(first)
        return problems(folder)

    name = first.name
    assert found_with(good[:-1]) == [f"{name} is 7x19, expected 8x19 (height x width)"]
    assert found_with(good.astype(np.uint16)) == [f"{name} has 16 bits per pixel, expected 8"]
    assert "label map of class values with one channel" in found_with(np.dstack([good] * 3))[0]
    for value in (0, 6, 18, 29, 34, 255):
        changed = good.copy()
        changed[3, 4] = value
        assert found_with(changed) == [
            f"{name} holds {value}, which is not the label id of an evaluated class; were training ids written?"
        ]
    first.write_bytes(first.read_bytes()[:60])
    assert "damaged or truncated" in problems(folder)[0]
    Image.fromarray(good).save(first)
    assert problems(folder) == []
    # Any name that begins with the frame will do, in any folder, but only one of them.
    (folder / "mainz").mkdir()
    last = folder / server_format(CITYSCAPES19).file_name(FRAMES[2])
    last.rename(folder / "mainz" / "mainz_000002_000019.png")
    assert problems(folder) == []
    last.write_bytes((folder / "mainz" / "mainz_000002_000019.png").read_bytes())
    assert problems(folder) == ["frame 'mainz_000002_000019' has 2 files mainz_000002_000019*.png; expected 1"]
    last.unlink()
    (folder / "bonn_000000_000019.png").write_bytes(first.read_bytes())
    (folder / "notes.txt").touch()
    assert problems(folder) == [
        "bonn_000000_000019.png belongs to no frame of the split",
        "notes.txt belongs to no frame of the split",
    ]
    assert list(submission_problems(tmp_path / "none", FRAMES, CITYSCAPES19)) == [
        f"{tmp_path / 'none'} is not a folder"
    ]


def test_remarks(tmp_path: Path) -> None:
    submission = write(tmp_path / "out")
    submission.finish(SIZE)
    assert submission.remarks("cityscapes", "test") == [
        "the server wants all 1525 frames of split test; these are 3",
        "the server wants 1024x2048 pixels; these frames are 8x19",
    ]


def test_any_label_set_with_official_ids_can_be_submitted(tmp_path: Path) -> None:
    mine = LabelSet("mine", ("a", "b"), generic_palette(2), official_ids=(5, 9))
    submission = SubmissionFolder(tmp_path / "out", mine, ("x/1", "x/2"))
    submission.start()
    for frame in ("x/1", "x/2"):
        submission.write(frame, torch.tensor([[0, 1, 1]], dtype=torch.uint8))
    submission.finish((1, 3))
    assert np.asarray(Image.open(tmp_path / "out" / "x" / "2.png")).tolist() == [[5, 9, 9]]
    assert submission.remarks("mine", "test") == []
    assert list(submission_problems(tmp_path / "out", ("x/1",), mine)) == ["x/2.png belongs to no frame of the split"]
