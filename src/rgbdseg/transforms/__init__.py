"""From physical samples to model input: spatial moves, color changes, derived geometry, packing."""

from rgbdseg.quick_import import import_quickly

import_quickly("torchvision.transforms.v2")
