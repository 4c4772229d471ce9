"""Whether frames that stay in memory are those of the files, once for all processes."""

from __future__ import annotations

import copy
import gc
import os
import pickle
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from torch.utils.data import DataLoader

from rgbdseg.camera import PinholeCamera
from rgbdseg.data.dataset import RGBDDataset
from rgbdseg.data.kept_frames import KeptFrames, SharedRoom
from rgbdseg.parallel import process_context
from rgbdseg.sample import RGBDSample
from tests.synthetic import write_tree

ENTRIES = 600
RASTERS = ("rgb", "depth_m", "hha", "label")


class Counted(RGBDDataset):
    """Remembers which frames were read, in this process."""

    def sample(self, index: int) -> RGBDSample:
        self.read = [*getattr(self, "read", ()), index]
        return super().sample(index)


@pytest.fixture
def dataset(tmp_path: Path) -> Counted:
    return Counted(write_tree(tmp_path / "tree", cameras="per_image"), needs=RASTERS)


def first(samples: list[RGBDSample]) -> RGBDSample:
    """Return the sample of a batch of one; a function of a module, so that loader processes find it."""
    return samples[0]


def require_equal(found: RGBDSample, expected: RGBDSample) -> None:
    assert (found.sample_id, found.camera) == (expected.sample_id, expected.camera)
    rasters, others = dict(found.rasters()), dict(expected.rasters())
    assert list(rasters) == list(others)
    for name, raster in rasters.items():
        assert raster.dtype == others[name].dtype
        assert torch.equal(raster, others[name])


def test_every_frame_is_read_once_and_comes_back_as_it_was(dataset: Counted) -> None:
    kept = KeptFrames(dataset, 2**24)
    for _ in range(3):
        for index in range(len(dataset)):
            require_equal(kept[index], RGBDDataset.sample(dataset, index))
    assert len({kept[index].camera for index in range(len(dataset))}) == len(dataset)
    assert dataset.read == list(range(len(dataset)))


def test_what_a_frame_has_beside_rasters_is_kept() -> None:
    class One(Counted):
        """Has one frame."""

        def __init__(self) -> None:
            pass

        def __len__(self) -> int:
            return 1

        def sample(self, index: int) -> RGBDSample:
            camera = PinholeCamera(525.1, 1 / 3, 319.5, -0.5)
            ranges = {"depth_m": (0.1, 9.7)}
            return RGBDSample(torch.ones(3, 2, 5, dtype=torch.uint8), camera=camera, reading_ranges=ranges)

    kept = KeptFrames(One(), 2**12)
    assert kept[0].reading_ranges == kept[0].reading_ranges == {"depth_m": (0.1, 9.7)}
    assert kept[0].camera == PinholeCamera(525.1, 1 / 3, 319.5, -0.5)


def put_every_second(room: SharedRoom, first: int) -> None:
    for number in range(first, ENTRIES, 2):
        room.put(number, {"number": number}, {"x": torch.full((500,), number)})


def require_every_entry(room: SharedRoom) -> None:
    for number in range(ENTRIES):
        entry = room.get(number)
        assert entry is not None
        assert entry[0] == {"number": number}
        assert torch.equal(entry[1]["x"], torch.full((500,), number))


@pytest.mark.skipif(not hasattr(os, "memfd_create"), reason="this system has no memory to share")
def test_processes_do_not_mix_up_what_they_put() -> None:
    room = SharedRoom(2**24, ENTRIES)
    started = [process_context().Process(target=put_every_second, args=(room, first)) for first in (0, 1)]  # type: ignore[attr-defined]
    for process in started:
        process.start()
    for process in started:
        process.join()
    require_every_entry(room)


def test_threads_do_not_mix_up_what_they_put() -> None:
    room = SharedRoom(2**24, ENTRIES)
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(put_every_second, (room, room), (0, 1)))
    require_every_entry(room)


@pytest.mark.parametrize("size", [2**62, 10**30])
def test_more_than_the_system_gives_keeps_nothing(dataset: Counted, size: int) -> None:
    kept = KeptFrames(dataset, size)
    require_equal(kept[0], RGBDDataset.sample(dataset, 0))
    assert kept._room is None


def test_a_sandbox_that_denies_memory_keeps_nothing(dataset: Counted, monkeypatch: pytest.MonkeyPatch) -> None:
    def deny(*given: object) -> None:
        raise PermissionError

    monkeypatch.setattr(os, "memfd_create", deny, raising=False)
    require_equal(KeptFrames(dataset, 2**20)[0], RGBDDataset.sample(dataset, 0))


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="this system does not list open files")
def test_nothing_is_left_open(dataset: Counted) -> None:
    gc.collect()
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(10):
        KeptFrames(dataset, 2**20)[0]
        KeptFrames(dataset, 2**62)  # which is denied
    gc.collect()
    assert len(os.listdir("/proc/self/fd")) == before


@pytest.mark.parametrize("room", [0, 1000])
def test_without_room_every_frame_is_read_every_time(dataset: Counted, room: int) -> None:
    kept = KeptFrames(dataset, room)
    for _ in range(2):
        require_equal(kept[1], RGBDDataset.sample(dataset, 1))
    assert dataset.read == [1, 1]


def test_what_fits_is_kept_and_never_given_up(dataset: Counted) -> None:
    one = sum(raster.nbytes for _, raster in RGBDDataset.sample(dataset, 0).rasters())
    kept = KeptFrames(dataset, int(2.7 * one))
    for index in (2, 0, 1, 1, 0, 2):
        kept[index]
    assert dataset.read == [2, 0, 1, 1]


def test_loader_processes_share_one_copy(dataset: Counted) -> None:
    kept = KeptFrames(dataset, 2**24)
    if kept._room is None or kept._room._file is None:
        pytest.skip("this system has no memory to share")
    order = [0, 1, 2, 0]
    loader = DataLoader(
        kept, batch_size=1, sampler=order, num_workers=2, collate_fn=first, multiprocessing_context=process_context()
    )
    for sample, index in zip(loader, order, strict=True):
        require_equal(sample, RGBDDataset.sample(dataset, index))
    for index in set(order):  # what they have read is here
        require_equal(kept[index], RGBDDataset.sample(dataset, index))
    assert not hasattr(dataset, "read")


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda kept: pickle.loads(pickle.dumps(kept))])
def test_a_copy_for_something_else_keeps_nothing(dataset: Counted, copied: object) -> None:
    kept = KeptFrames(dataset, 2**24)
    kept[0]
    other = copied(kept)  # type: ignore[operator]
    require_equal(other[0], RGBDDataset.sample(dataset, 0))
    require_equal(other[0], RGBDDataset.sample(dataset, 0))
    assert other.dataset.read == [0, 0, 0]


@pytest.mark.skipif(not hasattr(os, "memfd_create"), reason="this system has no memory to share")
def test_only_what_is_written_takes_memory() -> None:
    def shared_kib() -> int:
        text = Path("/proc/self/status").read_text()
        return int(text[text.index("RssShmem:") :].split()[1])

    before = shared_kib()
    room = SharedRoom(2**36, 10)
    room.put(3, {"name": "a"}, {"x": torch.ones(2**20)})
    assert shared_kib() - before < 5 * 2**10
    entry = room.get(3)
    assert entry is not None
    assert entry[0] == {"name": "a"}
    assert torch.equal(entry[1]["x"], torch.ones(2**20))
    assert room.get(2) is None


def test_other_types_and_names_come_back() -> None:
    room = SharedRoom(2**16, 2)
    tensors = {
        "ä": torch.arange(6).view(2, 3).T,
        "none": torch.zeros(0, 4),
        "one": torch.tensor(1.5, dtype=torch.float64),
    }
    assert room.put(0, {"a": 'a "name"'}, tensors)
    assert not room.put(1, {}, {"x": torch.ones(2**14)})
    assert room.put(1, {}, {"x": torch.ones(2)})
    entry = room.get(0)
    assert entry is not None
    assert entry[0] == {"a": 'a "name"'}
    assert list(entry[1]) == list(tensors)
    for name, tensor in tensors.items():
        assert entry[1][name].dtype == tensor.dtype
        assert torch.equal(entry[1][name], tensor)
