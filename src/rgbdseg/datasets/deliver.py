"""DeLiVER: simulated streets in five weathers, with depth, LiDAR and events, and with sensors that fail.

Zhang, Liu, Shi, Yang, Reiß, Peng, Fu, Wang, Stiefelhagen: Delivering Arbitrary-Modal Semantic Segmentation, CVPR 2023,
arXiv 2303.01480.  7885 frames of the front camera, 1042x1042 pixels, from the simulator CARLA; 25 classes.
"""

from __future__ import annotations

from rgbdseg.datasets._facts import DatasetFacts
from rgbdseg.labels import LabelSet

DELIVER25 = LabelSet(
    "deliver25",
    (
        "building", "fence", "other", "pedestrian", "pole", "road line", "road", "sidewalk", "vegetation", "cars",
        "wall", "traffic sign", "sky", "ground", "bridge", "rail track", "ground rail", "traffic light", "static",
        "dynamic", "water", "terrain", "two-wheeler", "bus", "truck",
    ),
    palette=(
        (70, 70, 70), (100, 40, 40), (55, 90, 80), (220, 20, 60), (153, 153, 153), (157, 234, 50), (128, 64, 128),
        (244, 35, 232), (107, 142, 35), (0, 0, 142), (102, 102, 156), (220, 220, 0), (70, 130, 180), (81, 0, 81),
        (150, 100, 100), (230, 150, 140), (180, 165, 180), (250, 170, 30), (110, 190, 160), (170, 120, 50),
        (45, 60, 150), (145, 170, 100), (0, 0, 230), (0, 60, 100), (0, 0, 70),
    ),
    aliases=(
        ("RoadLine", "road line"), ("SideWalk", "sidewalk"), ("TrafficSign", "traffic sign"),
        ("RailTrack", "rail track"), ("GroundRail", "ground rail"), ("TrafficLight", "traffic light"),
        ("TwoWheeler", "two-wheeler"),
    ),
)  # fmt: skip

OFFICIAL_FRAMES = {"train": 3983, "val": 2005, "test": 1897}
SIZE = (1042, 1042)
"""(height, width) of all frames, in pixels."""

WEATHERS = ("cloud", "fog", "night", "rain", "sun")
"""Every frame has one of them."""
FAILURES = ("motionblur", "overexposure", "underexposure", "lidarjitter", "eventlowres")
"""A frame has one of them or none; the event camera of the last has 512x512 pixels."""

FACTS = {"deliver": DatasetFacts(title="DeLiVER", label_sets=(DELIVER25,), splits=OFFICIAL_FRAMES, size=SIZE)}
