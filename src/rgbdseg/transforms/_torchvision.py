"""What is taken from torchvision; importing it takes a second, so that only who changes colors or rotates does."""

from rgbdseg.quick_import import import_quickly

import_quickly("torchvision.transforms.v2")

from torchvision.transforms.v2 import InterpolationMode  # noqa: E402
from torchvision.transforms.v2 import functional as tvf  # noqa: E402

__all__ = ["InterpolationMode", "tvf"]
