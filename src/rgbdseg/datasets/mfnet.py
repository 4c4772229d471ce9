"""MFNet: streets by day and by night, seen by an RGB and a thermal camera side by side.

Ha, Watanabe, Karasawa, Ushiku, Harada: MFNet: Towards Real-Time Semantic Segmentation for Autonomous Vehicles with
Multi-Spectral Scenes, IROS 2017.  1569 frames of 480x640, 820 by day and 749 by night; 784 for training, 392 for
validation and 393 for testing.  Published scores count the unlabeled pixels as a class, the first of nine.
"""

from __future__ import annotations

from rgbdseg.datasets._facts import DatasetFacts
from rgbdseg.labels import LabelSet

MFNET9 = LabelSet(
    "mfnet9",
    ("unlabeled", "car", "person", "bike", "curve", "car stop", "guardrail", "color cone", "bump"),
    palette=(
        (0, 0, 0), (64, 0, 128), (64, 64, 0), (0, 128, 192), (0, 0, 192), (128, 128, 0), (64, 64, 128),
        (192, 128, 128), (192, 64, 0),
    ),
    aliases=(
        ("unlabelled", "unlabeled"), ("background", "unlabeled"), ("car_stop", "car stop"),
        ("color_cone", "color cone"),
    ),
)  # fmt: skip

OFFICIAL_FRAMES = {"train": 784, "val": 392, "test": 393}
SIZE = (480, 640)
"""(height, width) of all frames, in pixels."""

TIMES = {"D": "day", "N": "night"}
"""Last letter of a frame's name, such as 00001D -> when it was taken."""

FACTS = {"mfnet": DatasetFacts(title="MFNet", label_sets=(MFNET9,), splits=OFFICIAL_FRAMES, size=SIZE)}
