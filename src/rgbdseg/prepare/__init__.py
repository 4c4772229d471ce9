"""Preparing datasets: one file per source, each turning what the dataset's authors publish into the prepared tree.

A source reads the official files, lists one `FrameJob` per frame and says in a `DatasetDescription` what the written
numbers mean; `rgbdseg.prepare.writer` does the rest alike for all of them: it refuses a folder that holds anything
else, converts in parallel, goes on after an interruption, verifies every file and writes ``dataset.json`` last.
"""
