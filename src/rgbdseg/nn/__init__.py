"""Blocks that two or more model families use."""

from rgbdseg.quick_import import import_quickly

import_quickly("timm")
