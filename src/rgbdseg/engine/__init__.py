"""Training, evaluation, prediction and checkpoints; the only place that knows Lightning."""

from rgbdseg.quick_import import import_quickly

import_quickly("timm")
