"""Frames per second of bulk prediction beside the bare network, and where the time of a frame goes.

    python benchmarks/bulk.py --data DATASET [--split test] [--frames 24] [--threads 1] [--workers 2] [--rounds 3]
                              [--outputs label] [--model MODEL] [--stages]

Four ways take turns over the same frames: the network alone (inputs ready in memory, as many views at once as
prediction takes), `Segmenter` over frames in memory, reading, labeling and writing one frame after the other, and
`predict_in_bulk`, which overlaps them.  Each writes into a folder of its own that is emptied before.  Wall clock and
processor time are given; processor time is that of all threads, which other processes disturb less.
--stages: processor time of each step of one frame on one thread.
"""

from __future__ import annotations

import argparse
import collections
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor

import rgbdseg
from rgbdseg.data.dataset import RGBDDataset, rasters_needed
from rgbdseg.data.tree import open_tree
from rgbdseg.engine.bulk import BulkOptions, predict_in_bulk
from rgbdseg.engine.predict import TreeFrames
from rgbdseg.sample import RGBDSample
from rgbdseg.segmenter import Segmenter
from turns import machine, seconds_in_turns

Inputs = tuple[dict[str, Tensor], Tensor | None]


class Recorded:
    """What the network is given, in the order in which it is."""

    def __init__(self, segmenter: Segmenter) -> None:
        self.inputs: list[Inputs] = []
        self._hook = segmenter.model.register_forward_pre_hook(self._keep)

    def _keep(self, _: torch.nn.Module, given: tuple[dict[str, Tensor], Tensor | None]) -> None:
        self.inputs.append((dict(given[0]), given[1]))

    def stop(self) -> list[Inputs]:
        self._hook.remove()
        return self.inputs


class BothClocks:
    """Runs a way and keeps the processor time that it took."""

    def __init__(self, way: Callable[[], object]) -> None:
        self.way, self.processor_s = way, list[float]()

    def __call__(self) -> None:
        start = time.process_time()
        self.way()
        self.processor_s.append(time.process_time() - start)


def ways(segmenter: Segmenter, source: TreeFrames, folder: Path, options: argparse.Namespace) -> dict[str, BothClocks]:
    outputs = tuple(options.outputs.split(","))
    samples = [source.sample(index) for index in range(len(source.names))]
    recorded = Recorded(segmenter)
    for sample in samples:
        segmenter.segment(sample)
    inputs = recorded.stop()

    def network() -> None:
        with torch.inference_mode():
            for images, camera in inputs:
                segmenter.model(images, camera)

    def in_memory() -> None:
        for sample in samples:
            segmenter.segment(sample)

    def in_sequence() -> None:
        shutil.rmtree(folder, ignore_errors=True)
        for index, name in enumerate(source.names):
            segmenter.segment(source.sample(index)).write(folder, name, outputs)

    def in_bulk() -> None:
        shutil.rmtree(folder, ignore_errors=True)
        predict_in_bulk(segmenter, source, folder, BulkOptions(outputs=outputs, workers=options.workers))

    return {
        "network alone": BothClocks(network),
        "Segmenter, frames in memory": BothClocks(in_memory),
        "read, label, write in sequence": BothClocks(in_sequence),
        "predict_in_bulk": BothClocks(in_bulk),
    }


def show(chosen: dict[str, BothClocks], wall_s: dict[str, list[float]], frames: int) -> None:
    first = next(iter(chosen))
    width = max(map(len, chosen)) + 2
    print(f"{'':{width}}{'frames/s':>10}{'of bare':>9}{'processor ms':>14}{'of bare':>9}   (medians, per frame)")
    bare_wall, bare_processor = statistics.median(wall_s[first]), _processor(chosen[first])
    for name, way in chosen.items():
        wall, processor = statistics.median(wall_s[name]), _processor(way)
        print(
            f"{name:{width}}{frames / wall:10.2f}{bare_wall / wall:9.2f}{1000 * processor / frames:14.1f}"
            f"{bare_processor / processor:9.2f}"
        )


def _processor(way: BothClocks) -> float:
    return statistics.median(way.processor_s[1:])  # the first round is not counted


def stages(segmenter: Segmenter, source: TreeFrames, folder: Path, outputs: Sequence[str]) -> None:
    """Print the processor time of each step, the median over the frames."""
    spent: dict[str, list[float]] = collections.defaultdict(list)

    def timed(name: str, step: Callable[[], object]) -> object:
        start = time.process_time()
        result = step()
        spent[name].append(1000 * (time.process_time() - start))
        return result

    recorded = Recorded(segmenter)
    for index, name in enumerate(source.names):
        sample = timed("read", lambda index=index: source.sample(index))
        assert isinstance(sample, RGBDSample)
        ready = timed("prepare (HHA)", lambda sample=sample: segmenter.prepare(sample))
        assert isinstance(ready, RGBDSample)
        with torch.inference_mode():
            result = timed("pack, network, scores", lambda ready=ready: segmenter.score(ready))
            images, camera = recorded.inputs[-1]
            timed("  of it the network", lambda images=images, camera=camera: segmenter.model(images, camera))
        timed("labels", lambda result=result: result.prediction)
        timed("confidence", lambda result=result: result.confidence)
        frame = segmenter.segment(ready)
        timed("write", lambda frame=frame, name=name: frame.write(folder, name, outputs))
        recorded.inputs.clear()
    recorded.stop()
    print("processor time of a frame, ms:")
    for name, values in spent.items():
        print(f"  {name:24}{statistics.median(values):8.1f}")


def main() -> None:
    parser = argparse.ArgumentParser(description="Time bulk prediction beside the bare network.")
    parser.add_argument("--data", required=True, help="a prepared dataset")
    parser.add_argument("--split", default="test")
    parser.add_argument("--frames", type=int, default=24)
    parser.add_argument("--model", help="as for rgbdseg predict; default: the model that comes with rgbdseg")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--outputs", default="label")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--stages", action="store_true", help="the steps of one frame instead")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    segmenter = rgbdseg.load(options.model, device="cpu")
    tree = open_tree(Path(options.data))
    needs = rasters_needed(segmenter.input_spec, label=False)
    if "hha" in needs and not tree.index("hha").files:
        needs = needs - {"hha"} | {"depth_m"}  # HHA is then computed as it is for recordings
    source = TreeFrames(RGBDDataset(tree, options.split, needs=needs, limit=options.frames))
    print(machine("cpu", options.threads))
    print(f"{len(source.names)} frames of {options.data}, {segmenter.name}, {segmenter.protocol.describe()}")
    with tempfile.TemporaryDirectory() as folder:
        if options.stages:
            stages(segmenter, source, Path(folder) / "out", options.outputs.split(","))
            return
        chosen = ways(segmenter, source, Path(folder) / "out", options)
        show(chosen, seconds_in_turns(chosen, options.rounds, "cpu", 2), len(source.names))


if __name__ == "__main__":
    main()
