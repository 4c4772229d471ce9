"""Preparing datasets: one file per source, each turning what the dataset's authors publish into the prepared tree.

A source reads the official files, lists one `FrameJob` per frame and says in a `DatasetDescription` what the written
numbers mean; `rgbdseg.prepare.writer` does the rest alike for all of them: it refuses a folder that holds anything
else, converts in parallel, goes on after an interruption, verifies every file and writes ``dataset.json`` last.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from rgbdseg.public_names import on_first_use

if TYPE_CHECKING:
    from rgbdseg.prepare._report import report
    from rgbdseg.prepare._sources import Progress, Source, register_source
    from rgbdseg.prepare.writer import Content, FrameJob, write_prepared_tree

__all__ = ["Content", "FrameJob", "Progress", "Source", "register_source", "report", "write_prepared_tree"]

__getattr__ = on_first_use(
    __name__,
    {
        "report": "rgbdseg.prepare._report",
        **dict.fromkeys(("Progress", "Source", "register_source"), "rgbdseg.prepare._sources"),
        **dict.fromkeys(("Content", "FrameJob", "write_prepared_tree"), "rgbdseg.prepare.writer"),
    },
)
