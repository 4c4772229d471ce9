"""Recordings of RGB-D cameras: one file per format, each turning what a recorder writes into frames in physical units.

A format says by which files it is recognized and returns a `Recording`; other packages add theirs with an entry point
in the group ``rgbdseg.recordings``: a module with a dictionary ``RECORDINGS`` of `RecordingFormat`.
"""

from rgbdseg.recordings._base import OpenOptions, RecordedFrame, Recording, RecordingFormat, open_recording

__all__ = ["OpenOptions", "RecordedFrame", "Recording", "RecordingFormat", "open_recording"]
