"""The newest frame, its labels over time, and what a view is given."""

from __future__ import annotations

import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from rgbdseg.camera import PinholeCamera
from rgbdseg.errors import DataError, UsageError
from rgbdseg.frame_inputs import make_sample
from rgbdseg.inference import Segmentation
from rgbdseg.labels import IGNORE_INDEX, LabelValues
from rgbdseg.live import rerun_view, sources
from rgbdseg.live.rerun_view import RerunView
from rgbdseg.live.run import Pace, run_live
from rgbdseg.live.sources import Newest, Replay
from rgbdseg.live.steadying import Steadying
from rgbdseg.recordings._base import RecordedFrame, Recording
from rgbdseg.recordings._poses import rigid, rotation_from_axis_angle
from rgbdseg.segmented_frame import SegmentedFrame
from tests.test_segmenter import SIZE, segmenter


class Numbers(Recording):
    """Frames at 10 Hz whose color says their number."""

    path = Path("numbers")

    def __init__(self, count: int = 10) -> None:
        self.names, self.times_s = [str(k) for k in range(count)], [100 + k / 10 for k in range(count)]
        self.read_frames: list[int] = []
        self.damaged: set[int] = set()

    def read(self, index: int) -> RecordedFrame:
        self.read_frames.append(index)
        if index in self.damaged:
            raise DataError(f"frame {index} is damaged")
        rgb = np.zeros((*SIZE, 3), np.uint8)
        rgb[..., index % 3] = 200
        return RecordedFrame(str(index), self.times_s[index], rgb)

    def pose(self, index: int) -> None:
        return None

    def describe(self) -> dict[str, Any]:
        return {}


class Clock:
    """Time that passes only when somebody sleeps."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 1000.0
        monkeypatch.setattr(sources.time, "monotonic", lambda: self.now)
        monkeypatch.setattr(sources.time, "sleep", self.sleep)

    def sleep(self, seconds: float) -> None:
        self.now += seconds


def test_a_replay_gives_the_newest_frame(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, recording = Clock(monkeypatch), Numbers()
    replay = Replay(recording)
    given = []
    while (live := replay.newest()) is not None:
        given.append((live.frame.name, round(live.taken_s - 1000, 6), live.missed))
        clock.sleep(0.25)  # what labeling takes: two and a half frames
    assert given == [("0", 0.0, 0), ("2", 0.2, 1), ("5", 0.5, 2), ("7", 0.7, 1), ("9", 0.9, 1)]
    assert recording.read_frames == [0, 2, 5, 7, 9]  # the others were never decoded


def test_a_replay_waits_for_its_time(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    replay = Replay(Numbers(), speed=2)
    times = []
    while replay.newest() is not None:
        times.append(round(clock.now - 1000, 6))
        clock.sleep(0.01)
    assert times == [round(k * 0.05, 6) for k in range(10)]


def test_every_frame_and_again(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    replay = Replay(Numbers(3), every_frame=True, repeat=True)
    names = []
    for _ in range(7):
        live = replay.newest()
        assert live is not None
        names.append(live.frame.name)
        clock.sleep(5)
    assert names == ["0", "1", "2", "0", "1", "2", "0"]
    with pytest.raises(UsageError, match="speed is 0"):
        Replay(Numbers(), speed=0)


def test_a_place_for_one_frame() -> None:
    newest = Newest()
    frames = [Numbers().read(k) for k in range(4)]
    for frame in frames[:3]:
        newest.put(frame)
    taken = newest.take(1)
    assert taken is not None
    assert (taken.frame.name, taken.missed) == ("2", 2)
    threading.Timer(0.02, newest.put, (frames[3],)).start()
    taken = newest.take(2)
    assert taken is not None
    assert (taken.frame.name, taken.missed) == ("3", 0)
    with pytest.raises(DataError, match=r"no frame for 0\.01 s"):
        newest.take(0.01)
    newest.end(DataError("unplugged"))
    with pytest.raises(DataError, match="unplugged"):
        newest.take(1)


class Seen:
    def __init__(self) -> None:
        self.frames: list[tuple[str, int]] = []
        self.closed = False

    def show(self, frame: RecordedFrame, seen: SegmentedFrame, pace: Pace) -> None:
        self.frames.append((frame.name, int(seen.labels[0, 0])))

    def close(self) -> None:
        self.closed = True


def test_the_loop_labels_shows_and_counts() -> None:
    recording, view, paces = Numbers(6), Seen(), []
    recording.damaged = {2}
    done = run_live(segmenter(), Replay(recording, every_frame=True), view, progress=paces.append)
    assert view.frames == [("0", 0), ("1", 1), ("3", 0), ("4", 1), ("5", 2)]
    assert view.closed
    assert (done.pace.frames, done.pace.missed, done.pace.damaged) == (5, 0, 1)
    assert [pace.frames for pace in paces] == [1, 2, 3, 4, 5]
    assert done.pace.fps == pytest.approx(5 / done.seconds)
    start = time.monotonic()
    run_live(segmenter(), Replay(Numbers(3), every_frame=True, repeat=True), seconds=0.1)
    assert 0.1 <= time.monotonic() - start < 5


@pytest.mark.parametrize(("frame_s", "rates"), [(0.5, [2.0] * 9), (5.0, [0.2] * 9)])
def test_frames_per_second_are_known_from_the_first_frame_on(
    monkeypatch: pytest.MonkeyPatch, frame_s: float, rates: list[float]
) -> None:
    clock, paces, network = Clock(monkeypatch), [], segmenter()

    class Slow(Numbers):
        def read(self, index: int) -> RecordedFrame:
            clock.sleep(frame_s)
            return super().read(index)

    run_live(network, Replay(Slow(9), every_frame=True), progress=paces.append)
    assert [pace.fps for pace in paces] == pytest.approx(rates)


def test_steadied_scores_are_an_exponential_average() -> None:
    steady, rng = Steadying(0.75), np.random.default_rng(0)
    frames = [torch.from_numpy(rng.dirichlet(np.ones(3), (4, 5)).transpose(2, 0, 1)) for _ in range(3)]
    results = [steady(frame) for frame in frames]
    assert torch.equal(results[0], frames[0])
    torch.testing.assert_close(results[1], 0.75 * frames[0] + 0.25 * frames[1])
    torch.testing.assert_close(results[2], 0.75 * results[1] + 0.25 * frames[2])
    with pytest.raises(UsageError, match="weight of the past is 1"):
        Steadying(1)
    # Steadying in the loop: one frame of another color does not change the label.
    view = Seen()
    run_live(segmenter(), Replay(Numbers(2), every_frame=True), view, steadying=Steadying(0.9))
    assert view.frames == [("0", 0), ("1", 0)]


def test_pixels_where_depth_has_changed_start_anew() -> None:
    steady = Steadying(0.5)
    one, other = (
        torch.tensor([1.0, 0]).view(2, 1, 1).expand(2, 1, 3),
        torch.tensor([0, 1.0]).view(2, 1, 1).expand(2, 1, 3),
    )
    steady(one, torch.tensor([[[2.0, 2.0, 0.0]]]))
    result = steady(other, torch.tensor([[[2.05, 1.0, 0.0]]]))
    assert result[0, 0].tolist() == [0.5, 0.0, 0.5]


def test_scores_follow_their_place_when_the_camera_moves() -> None:
    """A wall at 2 m; the camera moves 0.2 m to the right, so everything moves 10 * 0.2 / 2 = 1 pixel to the left."""
    camera = PinholeCamera(10.0, 10.0, 2.0, 1.0)
    depth_m = torch.full((1, 3, 5), 2.0)
    past = torch.zeros(2, 3, 5)
    past[0], past[1] = torch.arange(5) / 10, 1 - torch.arange(5) / 10
    now = torch.full((2, 3, 5), 0.5)
    steady = Steadying(0.5)
    steady(past, depth_m, camera, torch.from_numpy(np.eye(4)))
    moved = torch.from_numpy(rigid(np.eye(3), np.array([0.2, 0, 0])))
    result = steady(now, depth_m, camera, moved)
    np.testing.assert_allclose(result[0, 1, :4], [0.5 * (k + 1) / 10 + 0.25 for k in range(4)], atol=1e-6)
    assert result[0, 1, 4] == 0.5  # came into view
    # A step forward: the wall is nearer, and depth agrees with where it must be now.
    steady = Steadying(0.5)
    steady(past, depth_m, camera, torch.from_numpy(np.eye(4)))
    forward = torch.from_numpy(rigid(np.eye(3), np.array([0, 0, 0.5])))
    agreeing = steady(now, depth_m - 0.5, camera, forward)
    assert agreeing[0, 1, 2] == pytest.approx(0.5 * 0.2 + 0.25)
    steady = Steadying(0.5)
    steady(past, depth_m, camera, torch.from_numpy(np.eye(4)))
    assert steady(now, depth_m, camera, forward)[0, 1, 2] == 0.5  # something that was not there before


def test_scores_follow_their_place_when_the_camera_turns() -> None:
    """Turned to the right by 0.1 rad, a camera of f = 100 px sees what was at column u at f tan(atan(u / f) - 0.1)."""
    camera, columns = PinholeCamera(100.0, 100.0, 20.0, 0.0), np.arange(41)
    angles = np.arctan((columns - 20) / 100)
    wall_m = np.full((1, 1, 41), 2.0)  # z = 2 m in the first camera's frame
    turned_m = 2 / np.cos(angles + 0.1) * np.cos(angles)  # of the same wall, in the second one's
    past = torch.stack([torch.arange(41) / 100, 1 - torch.arange(41) / 100])[:, None].float()
    steady = Steadying(0.5)
    steady(past, torch.from_numpy(wall_m), camera, torch.eye(4, dtype=torch.float64))
    pose = np.eye(4)
    pose[:3, :3] = rotation_from_axis_angle(np.array([0.0, 0.1, 0.0]))
    turned = torch.from_numpy(turned_m[None, None])
    result = steady(torch.full((2, 1, 41), 0.5), turned, camera, torch.from_numpy(pose))
    before = np.rint(100 * np.tan(angles + 0.1) + 20)
    wanted = np.where(before < 41, 0.5 * before / 100 + 0.25, 0.5)
    np.testing.assert_allclose(result[0, 0], wanted, atol=1e-6)


def test_rerun_file(tmp_path: Path) -> None:
    pytest.importorskip("rerun")
    camera, depth_m = PinholeCamera(20.0, 20.0, 15.5, 11.5), np.full(SIZE, 2.0, np.float32)

    class Posed(Numbers):
        def read(self, index: int) -> RecordedFrame:
            frame = super().read(index)
            pose = rigid(np.eye(3), np.array([index / 10, 0, 0]))
            return RecordedFrame(frame.name, frame.time_s, frame.rgb, depth_m, camera, pose)

    view = RerunView(segmenter().label_set, record=tmp_path / "out" / "live.rrd", viewer=False)
    run_live(segmenter(), Replay(Posed(3), every_frame=True), view)
    data = (tmp_path / "out" / "live.rrd").read_bytes()
    assert data[:3] == b"RRF"
    for path in (b"/world/camera/points", b"/world/camera/image/labels", b"/world/path", b"/pace/latency_ms"):
        assert path in data


def test_points_are_as_large_as_what_their_pixels_see(monkeypatch: pytest.MonkeyPatch) -> None:
    camera, depth_m = PinholeCamera(20.0, 20.0, 15.5, 11.5), np.full(SIZE, 2.0, np.float32)
    depth_m[:, 16:] = 4.0
    depth_m[0] = 0.0
    labels = np.zeros(SIZE, np.uint8)
    labels[1] = IGNORE_INDEX
    frame = RecordedFrame("a", 0.0, np.zeros((*SIZE, 3), np.uint8), depth_m, camera)
    for most, step in ((40_000, 1), (SIZE[0] * SIZE[1] // 4, 2)):
        monkeypatch.setattr(rerun_view, "_MOST_POINTS", most)
        points, chosen, radii_m = rerun_view._points(frame, labels)
        assert len(points) == len(chosen) == len(radii_m)
        assert set(np.unique(chosen)) == {0}
        spacing_m = {z: np.unique(np.round(points[points[:, 2] == z, 0], 5)) for z in (2.0, 4.0)}
        for z, columns_m in spacing_m.items():
            assert np.diff(columns_m) == pytest.approx(z * step / 20)
            assert radii_m[points[:, 2] == z] == pytest.approx(0.7 * z * step / 20)


class Kept(Seen):
    def __init__(self) -> None:
        super().__init__()
        self.seen: list[SegmentedFrame] = []

    def show(self, frame: RecordedFrame, seen: SegmentedFrame, pace: Pace) -> None:
        self.seen.append(seen)


@pytest.mark.parametrize("weight", [None, 0.5])
def test_frames_know_the_numbers_of_the_dataset(weight: float | None) -> None:
    view, values = Kept(), LabelValues((5, 6, 300), 0)
    steadying = None if weight is None else Steadying(weight)
    run_live(
        segmenter(label_values=values, dataset="mine"), Replay(Numbers(2), every_frame=True), view, steadying=steadying
    )
    for seen in view.seen:
        assert (seen.label_values, seen.dataset) == (values, "mine")
        assert seen.label_files.describe() == "the values of mine, 5..300, 0 = void"
        assert seen.labels.dtype == np.uint8
        assert seen.confidence.dtype == np.float32
        # Nobody sees it; where it is not needed for the average, no time is spent on it.
        assert np.isnan(seen.confidence).all() == (weight is None)


def test_steadied_frames_need_one_softmax_whatever_the_order_of_depth_in_memory(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Colored(Numbers):
        def read(self, index: int) -> RecordedFrame:
            rng = np.random.default_rng(index)
            rgb = rng.integers(0, 256, (*SIZE, 3)).astype(np.uint8)
            depth_m = np.where(rng.random(SIZE[::-1]) < 0.5, np.float32(2), np.float32(3)).T  # column by column
            return RecordedFrame(str(index), self.times_s[index], rgb, depth_m)

    network, steady = segmenter(), Steadying(0.5)
    wanted = []
    for index in range(3):
        frame = Colored().read(index)
        sample = make_sample(frame.rgb, frame.depth_m, device=network.device)
        wanted.append(steady(network.score(sample).log_scores.softmax(0), sample.depth_m).max(0))
    monkeypatch.setattr(Segmentation, "log_scores", property(lambda self: pytest.fail("a second softmax")))
    view = Kept()
    run_live(network, Replay(Colored(3), every_frame=True), view, steadying=Steadying(0.5))
    for seen, (confidence, labels) in zip(view.seen, wanted, strict=True):
        assert (seen.labels == labels.numpy()).mean() > 0.995  # but for ties
        np.testing.assert_allclose(seen.confidence, confidence.numpy(), atol=1e-6)
