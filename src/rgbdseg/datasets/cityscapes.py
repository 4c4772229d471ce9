"""Cityscapes (Cordts et al., CVPR 2016): streets, depth from stereo, a camera for each image."""

from __future__ import annotations

from rgbdseg.datasets._facts import DatasetFacts, ServerFormat
from rgbdseg.labels import LabelSet

# Cordts et al., CVPR 2016: the 19 training classes with their official colors, categories and label ids.
CITYSCAPES19 = LabelSet(
    "cityscapes19",
    (
        "road", "sidewalk", "building", "wall", "fence", "pole", "traffic light", "traffic sign", "vegetation",
        "terrain", "sky", "person", "rider", "car", "truck", "bus", "train", "motorcycle", "bicycle",
    ),
    palette=(
        (128, 64, 128), (244, 35, 232), (70, 70, 70), (102, 102, 156), (190, 153, 153), (153, 153, 153),
        (250, 170, 30), (220, 220, 0), (107, 142, 35), (152, 251, 152), (70, 130, 180), (220, 20, 60),
        (255, 0, 0), (0, 0, 142), (0, 0, 70), (0, 60, 100), (0, 80, 100), (0, 0, 230), (119, 11, 32),
    ),
    categories=(
        "flat", "flat", "construction", "construction", "construction", "object", "object", "object", "nature",
        "nature", "sky", "human", "human", "vehicle", "vehicle", "vehicle", "vehicle", "vehicle", "vehicle",
    ),
    official_ids=(7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33),
)  # fmt: skip

SIZE = (1024, 2048)

FOCAL_PX = 2262.52
"""Horizontal focal length of most of its images."""

FACTS = {
    "cityscapes": DatasetFacts(
        title="Cityscapes",
        label_sets=(CITYSCAPES19,),
        splits={"train": 2975, "val": 500, "test": 1525},
        size=SIZE,
        median_range_m=(3.0, 60.0),
        # cityscapesScripts, evaluation/evalPixelLevelSemanticLabeling.py, which the server runs.
        server=ServerFormat("_pred_labelIds.png", r"[^_/]+_\d{6}_\d{6}", "berlin_000000_000019", SIZE),
    )
}
