"""Speed and memory of ``rgbdseg prepare nyuv2`` on a synthetic file in the official format.

    python benchmarks/prepare_nyuv2.py [--frames 400] [--workers 0] [--rgb png] [--frames-per-block 1]

Writes a MATLAB 7.3 file (HDF5, compressed blocks, axes as in the official one) into a temporary folder, converts it,
does the same with a quarter of the frames, and removes everything: the two peaks of resident memory show whether memory
grows with the file.  The arrays that are read take 4 MB for each frame, and the noise in them compresses little.
"""

from __future__ import annotations

import argparse
import multiprocessing
import resource
import tempfile
import time
from pathlib import Path

import h5py
import numpy as np
import scipy.io

from rgbdseg.prepare.nyuv2 import class_table, prepare_nyuv2

WIDTH, HEIGHT = 640, 480


def write_mat(path: Path, frames: int, frames_per_block: int) -> None:
    """Write frame after frame: smooth surfaces with noise, as cameras see them."""
    random = np.random.default_rng(0)
    block = min(frames_per_block, frames)
    with h5py.File(path, "w", userblock_size=512) as file:
        layout = {"compression": "gzip", "compression_opts": 1}
        shape, chunks = (frames, WIDTH, HEIGHT), (block, WIDTH, HEIGHT)
        images = file.create_dataset(
            "images", (frames, 3, WIDTH, HEIGHT), "u1", chunks=(block, 3, WIDTH, HEIGHT), **layout
        )
        depths = file.create_dataset("depths", shape, "f4", chunks=chunks, **layout)
        raw_depths = file.create_dataset("rawDepths", shape, "f4", chunks=chunks, **layout)
        labels = file.create_dataset("labels", shape, "u2", chunks=chunks, **layout)
        ramp = np.linspace(1, 6, WIDTH, dtype=np.float32)[:, None] + np.zeros((1, HEIGHT), np.float32)
        for start in range(0, frames, block):
            count = min(block, frames - start)
            noise = random.normal(0, 1, (count, WIDTH, HEIGHT)).astype(np.float32)
            images[start : start + count] = np.clip(ramp * 35 + 6 * noise, 0, 255).astype(np.uint8)[:, None]
            depths[start : start + count] = ramp + 0.01 * noise
            raw_depths[start : start + count] = np.where(noise > 1.3, 0, ramp + 0.01 * noise)
            labels[start : start + count] = (ramp * 140 + start % 20).astype(np.uint16)
        write_names(file)


def write_names(file: h5py.File) -> None:
    """Write the cell array of class names: references to arrays of character codes."""
    group = file.create_group("#refs#")
    table = np.empty((1, len(class_table().names)), dtype=h5py.ref_dtype)
    for number, name in enumerate(class_table().names):
        table[0, number] = group.create_dataset(str(number), data=np.array([[ord(c)] for c in name], np.uint16)).ref
    file.create_dataset("names", data=table, dtype=h5py.ref_dtype)


def convert(mat: Path, root: Path, workers: int, rgb: str, answers: multiprocessing.Queue) -> None:
    """Convert in a process of its own and report the result with the peak of its and its workers' memory."""
    start = time.monotonic()
    result = prepare_nyuv2(mat, root, splits=mat.with_suffix(".splits.mat"), rgb_format=rgb, workers=workers)
    peaks = [resource.getrusage(who).ru_maxrss / 1024 for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    answers.put((result.frames, result.convert_seconds, time.monotonic() - start, max(peaks)))


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--frames", type=int, default=400)
    parser.add_argument("--workers", type=int, default=0)
    parser.add_argument("--rgb", default="png")
    parser.add_argument("--frames-per-block", type=int, default=1)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        for frames in (options.frames, max(options.frames // 4, 2)):
            mat = Path(folder) / f"{frames}.mat"
            write_mat(mat, frames, options.frames_per_block)
            scipy.io.savemat(mat.with_suffix(".splits.mat"), {"trainNdxs": [1], "testNdxs": [2]})
            answers: multiprocessing.Queue = multiprocessing.get_context("spawn").Queue()
            process = multiprocessing.get_context("spawn").Process(
                target=convert, args=(mat, Path(folder) / f"{frames}", options.workers, options.rgb, answers)
            )
            process.start()
            count, seconds, total, peak = answers.get()
            process.join()
            print(
                f"{mat.stat().st_size / 1e9:.2f} GB, {count} frames, {options.workers} workers: "
                f"{count / seconds:.1f} frames/s converted, {count / total:.1f} with verification; "
                f"peak memory of one process {peak:.0f} MiB"
            )
            mat.unlink()


if __name__ == "__main__":
    main()
