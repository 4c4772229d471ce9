"""PAD-Net: intermediate predictions of several tasks, distilled into the final segmentation and depth.

Xu, Ouyang, Wang, Sebe, PAD-Net: Multi-Tasks Guided Prediction-and-Distillation Network for Simultaneous Depth
Estimation and Scene Parsing, CVPR 2018.  Code, numbers and what is exact: `PADNet.card`.  The re-implementation named
there differs: gates from the source task, features instead of score maps, all tasks as targets, another backbone.
**The network sees RGB alone**: depth, normals and contours are training targets, and no geometry is read at test time.

As in the paper: the four intermediate tasks, their branches at 1/4 of the image with 512 channels (depth, segmentation)
and 256 (normals, contours), distillation modules A, B and C, and decoders of two transposed convolutions that halve
the channels.  What the paper leaves open, and is ours: 3x3 convolutions to 256 channels per stage before aggregation
and 512 after it, the lifting of predictions to 256 channels by a 3x3 convolution with normalization and ReLU, weights
of their own for every pair of tasks, the ResNet with a stem of three convolutions.  `padnet_resnet18` is ours: a
narrow network for CPUs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from rgbdseg.encoders import create_encoder, stride_options
from rgbdseg.errors import UsageError, unknown_name
from rgbdseg.input_spec import InputSpec, rgb_stream
from rgbdseg.models._base import AuxiliaryOutput, SegmentationModel, SegmentationOutput, Task, check_widths
from rgbdseg.models._card import MethodCard, PublishedResult
from rgbdseg.models._registry import Variant
from rgbdseg.nn.blocks import at_least_float32
from rgbdseg.nn.conv_norm import conv_norm_relu
from rgbdseg.nn.init import init_head
from rgbdseg.nn.resize import cut_to, resize_half_pixel
from rgbdseg.options import check_choice

# B batch, C channels, H height, W width; h w at 1/4 of the image

Distillation = Literal["A", "B", "C"]
"""``A``: concatenation.  ``B``: messages between tasks.  ``C``: messages through an attention gate."""
Gate = Literal["target", "source"]
"""Which task's feature decides what passes a gate of module C: the receiver's (paper) or the sender's."""
Lift = Literal["scores", "features"]
"""What is distilled: the intermediate predictions (paper) or the features that they are made from."""

Phase = Literal["initial", "whole"]
"""Of the published training: ``initial`` is the front end with the intermediate tasks alone, without distillation."""

FurtherTask = Literal["depth", "normals", "contours"]
"""Intermediate tasks besides segmentation."""

_AUXILIARY_TASKS: tuple[FurtherTask, ...] = ("depth", "normals", "contours")


_CARD = MethodCard(
    method="PAD-Net",
    year=2018,
    paper="CVPR 2018, arXiv 1805.04409",
    input="RGB (depth supervision)",
    code="none; re-implementation in github.com/SimonVandenhende/Multi-Task-Learning-PyTorch (CC BY-NC 4.0)",
    results=(
        PublishedResult("NYU Depth V2, 40", "padnet_resnet50", 50.2, pixel_accuracy=75.2),
        PublishedResult("Cityscapes test, 19", "padnet_resnet101", 80.3, "fine annotations; scales and flip unknown"),
        PublishedResult("Cityscapes validation, 19", "padnet_resnet50", 76.1, "as quoted by SA-Gate"),
    ),
    exact="tasks, branches, distillation modules A, B and C, decoders",
    ours="widths and kernels the paper leaves open, training settings; `padnet-nyuv2` trains in one "
    "phase unless it starts from `padnet-nyuv2-initial`",
)


def _up(in_channels: int, out_channels: int) -> nn.Sequential:
    """Transposed convolution to twice the size, normalization and ReLU."""
    return nn.Sequential(
        nn.ConvTranspose2d(in_channels, out_channels, 4, stride=2, padding=1, bias=False),
        nn.BatchNorm2d(out_channels),
        nn.ReLU(inplace=True),
    )


class MultiModalDistillation(nn.Module):
    """Pass what other tasks know to one target task k (section 3.4 of the paper).

    A: ``W * concat(F)``.  B: ``F_k + sum_t W_t * F_t`` over the other tasks t.
    C with the target's gate: ``F_k + G . sum_t W_t * F_t`` with ``G = sigmoid(W_g * F_k)`` of full size.
    C with the source's gates: ``F_k + sum_t sigmoid(V_t * F_t) . (W_t * F_t)``, convolutions without bias.

    Args:
        target: k.
        tasks: all tasks, k among them.
        channels: of every feature.
    """

    def __init__(self, target: Task, tasks: Sequence[Task], channels: int, kind: Distillation, gate: Gate) -> None:
        super().__init__()
        self.target = target
        self.tasks = tuple(tasks)
        others = [task for task in tasks if task != target]
        self.join = nn.Conv2d(channels * len(tasks), channels, 3, padding=1) if kind == "A" else None
        self.messages, self.source_gates = nn.ModuleDict(), nn.ModuleDict()
        self.gate: nn.Conv2d | None = None
        if kind == "A":
            return
        from_source = kind == "C" and gate == "source"
        for task in others:
            self.messages[task] = nn.Conv2d(channels, channels, 3, padding=1, bias=not from_source)
            if from_source:
                self.source_gates[task] = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        if others and kind == "C" and gate == "target":
            self.gate = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, features: Mapping[str, Tensor]) -> Tensor:
        """Return the distilled feature of the target (B, C, h, w) from one feature of that shape per task."""
        own = features[self.target]
        if self.join is not None:
            joined: Tensor = self.join(torch.cat([features[task] for task in self.tasks], dim=1))
            return joined
        if not self.messages:
            return own
        message = torch.zeros_like(own)
        for task, convolution in self.messages.items():
            part = convolution(features[task])
            if task in self.source_gates:
                part = part * torch.sigmoid(self.source_gates[task](features[task]))
            message = message + part
        if self.gate is not None:
            message = message * torch.sigmoid(self.gate(own))
        return own + message


class PADNet(SegmentationModel):
    """One RGB encoder, a branch per task, distillation, and decoders of segmentation and depth.

    Args:
        num_classes: number of classes.
        encoder: name of a staged encoder whose first two features are at 1/4 and 1/8.
        output_stride: of the encoder; deeper features are brought to 1/8 whatever it is.
        tasks: intermediate tasks besides segmentation, a subset of depth, normals and contours; none of them makes the
            single-task control.  The final depth is there when depth is among them.
        distillation: see `Distillation`.
        gate: see `Gate`; matters for C only.
        lift: see `Lift`.
        phase: see `Phase`; a network of the initial phase gives its intermediate segmentation as logits, and has no
            part of the whole one that would not be trained.
        branch_channels: of the depth and segmentation branches and of the shared feature.
        small_branch_channels: of the normals and contours branches.
        channels: of aggregated stages and of distilled features, a multiple of 4.
        encoder_options: further options of the encoder, such as ``drop_path_rate``.

    Raises:
        UsageError: for values outside these ranges.
    """

    card = _CARD
    backbone_prefixes = ("encoder.",)

    def __init__(
        self,
        num_classes: int,
        encoder: str,
        *,
        output_stride: int = 8,
        tasks: Sequence[FurtherTask] = _AUXILIARY_TASKS,
        distillation: Distillation = "C",
        gate: Gate = "target",
        lift: Lift = "scores",
        phase: Phase = "whole",
        branch_channels: int = 512,
        small_branch_channels: int = 256,
        channels: int = 256,
        encoder_options: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(num_classes, InputSpec((rgb_stream(),)))
        check_widths(branch_channels=branch_channels, small_branch_channels=small_branch_channels, channels=channels)
        _check_choices(tasks, distillation, gate, lift, phase)
        if channels % 4:
            raise UsageError(f"model option channels is {channels}; expected a multiple of 4")
        self.auxiliary_tasks: tuple[Task, ...] = tuple(task for task in _AUXILIARY_TASKS if task in tasks)
        self.lift = lift
        self.phase = phase
        self.encoder = create_encoder(encoder, **{**stride_options(output_stride), **(encoder_options or {})})
        self.reduce = nn.ModuleList(conv_norm_relu(c, channels) for c in self.encoder.channels)
        self.aggregate = conv_norm_relu(channels * len(self.encoder.channels), branch_channels)
        all_tasks: tuple[Task, ...] = ("segmentation", *self.auxiliary_tasks)
        outputs = {"segmentation": num_classes, "depth": 1, "normals": 3, "contours": 1}
        self.branches, self.heads, self.lifts = nn.ModuleDict(), nn.ModuleDict(), nn.ModuleDict()
        for task in all_tasks:
            width = branch_channels if task in ("segmentation", "depth") else small_branch_channels
            self.branches[task] = _up(branch_channels, width)
            self.heads[task] = nn.Conv2d(width, outputs[task], 1)
            if phase == "whole":
                self.lifts[task] = conv_norm_relu(outputs[task] if lift == "scores" else width, channels)
        self.distillations, self.decoders = nn.ModuleDict(), nn.ModuleDict()
        for task in all_tasks if phase == "whole" else ():
            if task in ("segmentation", "depth"):
                self.distillations[task] = MultiModalDistillation(task, all_tasks, channels, distillation, gate)
                self.decoders[task] = nn.Sequential(
                    _up(channels, channels // 2),
                    _up(channels // 2, channels // 4),
                    nn.Conv2d(channels // 4, outputs[task], 1),
                )
        for name, part in self.named_children():
            if name != "encoder":
                init_head(part)

    def shared_feature(self, features: Sequence[Tensor]) -> Tensor:
        """Return the feature that all branches start from (B, branch_channels, H / 8, W / 8)."""
        size = (features[1].shape[-2], features[1].shape[-1])
        at_eighth = [f if f.shape[-2:] == size else resize_half_pixel(f, size) for f in features]
        reduced = [reduce(feature) for reduce, feature in zip(self.reduce, at_eighth, strict=True)]
        shared: Tensor = self.aggregate(torch.cat(reduced, dim=1))
        return shared

    def forward(self, images: Mapping[str, Tensor], camera: Tensor | None = None) -> SegmentationOutput:
        """Return logits (B, classes, H, W); in training also ``aux``.

        ``aux`` holds ``initial_segmentation`` and ``initial_TASK`` of every further task at 1/4 of the image, and the
        final ``depth`` (B, 1, H, W).  In the initial phase the logits are ``initial_segmentation``, enlarged, and
        ``aux`` holds the further tasks.

        Args:
            images: ``rgb`` (B, 3, H, W), normalized as ``input_spec`` says.
            camera: not used.
        """
        (rgb,) = self.check_images(images)
        size = (rgb.shape[-2], rgb.shape[-1])
        features = self.encoder(rgb)
        quarter = (features[0].shape[-2], features[0].shape[-1])
        shared = self.shared_feature(features)
        if self.phase == "initial":
            return self._initial_output(shared, quarter, size)
        initial: dict[str, Tensor] = {}
        lifted: dict[str, Tensor] = {}
        for task, branch in self.branches.items():
            feature = branch(shared)
            if self.training or self.lift == "scores":
                initial[task] = self.heads[task](feature)
            lifted[task] = self.lifts[task](initial[task] if self.lift == "scores" else feature)
        logits = self._final("segmentation", lifted, size)
        if not self.training:
            return SegmentationOutput(logits)
        aux = [AuxiliaryOutput(f"initial_{task}", task, cut_to(initial[task], quarter)) for task in self._all_tasks()]
        if "depth" in self.decoders:
            aux.append(AuxiliaryOutput("depth", "depth", self._final("depth", lifted, size)))
        return SegmentationOutput(logits, tuple(aux))

    def _initial_output(self, shared: Tensor, quarter: tuple[int, int], size: tuple[int, int]) -> SegmentationOutput:
        tasks = self._all_tasks() if self.training else self._all_tasks()[:1]
        initial = {task: cut_to(self.heads[task](self.branches[task](shared)), quarter) for task in tasks}
        logits = resize_half_pixel(at_least_float32(initial.pop("segmentation")), size)
        aux = tuple(AuxiliaryOutput(f"initial_{task}", task, value) for task, value in initial.items())
        return SegmentationOutput(logits, aux)

    def _all_tasks(self) -> tuple[Task, ...]:
        return ("segmentation", *self.auxiliary_tasks)

    def _final(self, task: Task, lifted: Mapping[str, Tensor], size: tuple[int, int]) -> Tensor:
        return at_least_float32(cut_to(self.decoders[task](self.distillations[task](lifted)), size))


def _check_choices(tasks: Sequence[FurtherTask], distillation: str, gate: str, lift: str, phase: str) -> None:
    for task in tasks:
        if task not in _AUXILIARY_TASKS:
            raise unknown_name("PAD-Net task", task, _AUXILIARY_TASKS)
    check_choice("PAD-Net distillation", distillation, Distillation)
    check_choice("PAD-Net gate", gate, Gate)
    check_choice("PAD-Net lift", lift, Lift)
    check_choice("PAD-Net phase", phase, Phase)


VARIANTS = {
    "padnet_resnet101": Variant(
        PADNet,
        {"encoder": "resnet101s"},
        note="encoder of the published Cityscapes test result; 74,881,004 parameters with 19 classes",
    ),
    "padnet_resnet50": Variant(
        PADNet,
        {"encoder": "resnet50s"},
        note="encoder of the published NYU Depth V2 result; 55,949,398 parameters with 40 classes",
    ),
    "padnet_resnet18": Variant(
        PADNet,
        {
            "encoder": "resnet18",
            "output_stride": 32,
            "branch_channels": 64,
            "small_branch_channels": 32,
            "channels": 32,
        },
        note="for CPUs: output stride 32 and narrow branches",
        small=True,
        tiny={
            "encoder": "test_resnet",
            "output_stride": 16,
            "branch_channels": 16,
            "small_branch_channels": 8,
            "channels": 16,
        },
    ),
}
