"""Whether frames that stay in memory are those of the files, once for all processes."""

from __future__ import annotations

import copy
import pickle
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

RASTERS = ("rgb", "depth_m", "hha", "label")


class Counted(RGBDDataset):
    """Remembers which frames were read, in this process."""

    def sample(self, index: int) -> RGBDSample:
        self.read = [*getattr(self, "read", ()), index]
        return super().sample(index)


@pytest.fixture
def dataset(tmp_path: Path) -> Counted:
    return Counted(write_tree(tmp_path / "tree"), needs=RASTERS)


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
    assert isinstance(kept[0].camera, PinholeCamera)
    assert dataset.read == list(range(len(dataset)))


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


def test_only_what_is_written_takes_memory() -> None:
    def shared_kib() -> int:
        text = Path("/proc/self/status").read_text()
        return int(text[text.index("RssShmem:") :].split()[1])

    before = shared_kib()
    room = SharedRoom(2**36, 10)
    room.put(3, "a", {"x": torch.ones(2**20)})
    assert shared_kib() - before < 5 * 2**10
    entry = room.get(3)
    assert entry is not None
    assert entry[0] == "a"
    assert torch.equal(entry[1]["x"], torch.ones(2**20))
    assert room.get(2) is None


def test_other_types_and_names_come_back() -> None:
    room = SharedRoom(2**16, 2)
    tensors = {
        "ä": torch.arange(6).view(2, 3).T,
        "none": torch.zeros(0, 4),
        "one": torch.tensor(1.5, dtype=torch.float64),
    }
    assert room.put(0, 'a "name"', tensors)
    assert not room.put(1, "large", {"x": torch.ones(2**14)})
    assert room.put(1, "b", {"x": torch.ones(2)})
    entry = room.get(0)
    assert entry is not None
    assert entry[0] == 'a "name"'
    assert list(entry[1]) == list(tensors)
    for name, tensor in tensors.items():
        assert entry[1][name].dtype == tensor.dtype
        assert torch.equal(entry[1][name], tensor)
