"""Layers of timm that training changes, imported without PyTorch's compiler."""

from rgbdseg.quick_import import import_quickly

import_quickly("timm")

from timm.layers.conv2d_same import Conv2dSame  # noqa: E402
from timm.layers.drop import DropBlock2d, DropPath  # noqa: E402
from timm.layers.norm_act import BatchNormAct2d, SyncBatchNormAct  # noqa: E402
from timm.layers.padding import pad_same  # noqa: E402

__all__ = ["BatchNormAct2d", "Conv2dSame", "DropBlock2d", "DropPath", "SyncBatchNormAct", "pad_same"]
