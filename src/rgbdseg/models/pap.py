"""PAP: pattern-affinitive propagation across depth, surface normals and segmentation.

Zhang, Cui, Xu, Yan, Sebe, Yang, Pattern-Affinitive Propagation across Depth, Surface Normal and Semantic Segmentation,
CVPR 2019.  Code, numbers and what is exact: `PAP.card`.  Of the re-implementations named there, the former walks with
restart, which is the same for one step, and its affinities do not sum to one per row.
**The network sees RGB alone**: depth and normals are training targets, and no geometry is read at test time.

As in the paper: three task decoders with initial predictions, an affinity matrix over positions per task, a learned
convex combination of the three for each target task, diffusion of the target's feature by it, final predictions.
Ours, where the paper is open: decoders with 3x3 convolutions of 256 channels and lateral connections, the affinity as
softmax of scaled inner products, five steps with a share of 0.05, diffusion at 1/16 of the image with its change added
to the feature at 1/4, reconstruction by two convolutions after bilinear enlargement, the ResNet with a stem of three
convolutions.  The paper's additional loss on the affinities themselves is there (`losses/affinity.py`, whose form is
ours) for models with ``affinity_outputs``; the recipes do without it.

Memory of the affinities: with N = ceil(H / s) ceil(W / s) positions at the working resolution of stride s, training
keeps 6 N^2 float32 numbers per image (three affinities and three combinations) and needs about as many again for their
gradients; prediction needs 4 N^2.  For 480x640 that is 35 MB per image at s = 16 (N = 1200), 553 MB at s = 8, 8.8 GB at
s = 4; for 1024x2048 it is 1.6 GB at s = 16 and 101 MB at s = 32.  The losses on the affinities keep 12 N^2 on top.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from rgbdseg.encoders import create_encoder, stride_options
from rgbdseg.errors import UsageError
from rgbdseg.input_spec import InputSpec, rgb_stream
from rgbdseg.models._base import AuxiliaryOutput, SegmentationModel, SegmentationOutput, Task, check_widths
from rgbdseg.models._card import MethodCard, PublishedResult
from rgbdseg.models._registry import Variant
from rgbdseg.nn.blocks import at_least_float32, without_autocast
from rgbdseg.nn.conv_norm import conv_norm_relu
from rgbdseg.nn.init import init_head
from rgbdseg.nn.resize import cut_to, resize_half_pixel
from rgbdseg.options import check_choice

# B batch, C channels, H height, W width, N positions of the working grid

AffinityForm = Literal["softmax", "exp_dist", "relu_norm"]
"""How two positions with vectors x and y are similar, before every row is divided by its sum:
``softmax``: exp(x.y / sqrt(C)).  ``exp_dist``: exp(-|x - y|^2 / sqrt(C)).  ``relu_norm``: max(0, x.y)."""

_TASKS: tuple[Task, ...] = ("segmentation", "depth", "normals")
_AFFINITY_TASKS: tuple[Task, ...] = ("affinity_segmentation", "affinity_depth", "affinity_normals")
"""In the order of `_TASKS`."""
_FEATURE_STRIDE = 4
_STRIDES = (4, 8, 16, 32)


_CARD = MethodCard(
    method="PAP",
    year=2019,
    paper="CVPR 2019, arXiv 1906.03525",
    input="RGB (depth supervision)",
    code="none; simplified re-implementations in github.com/Armanfard-Lab/EMA-Net (headers: CC BY-NC, no license file) "
    "and github.com/VITA-Group/M3ViT",
    results=(
        PublishedResult("NYU Depth V2, 40", "pap_resnet50", 50.4, pixel_accuracy=76.2),
        PublishedResult("SUN RGB-D, 37", "pap_resnet50", 50.5, pixel_accuracy=83.8),
    ),
    exact="tasks, affinities with rows that sum to one, cross-task combination, diffusion",
    ours="decoders, form and resolution of the affinities, steps and share, form of the loss on the affinities "
    "themselves, which the recipes leave out",
)


def affinity_matrix(x_BNC: Tensor, form: AffinityForm) -> Tensor:
    """Return the affinities of all pairs of positions (B, N, N), not negative, with rows that sum to one.

    Computed in the precision of ``x_BNC``.
    """
    width = x_BNC.shape[-1]
    if form == "relu_norm":
        products_BNN = functional.relu(x_BNC @ x_BNC.transpose(1, 2))
        # A vector of zeros is similar to nothing else; it keeps to itself.
        itself = torch.eye(products_BNN.shape[-1], dtype=x_BNC.dtype, device=x_BNC.device) * 1e-6
        products_BNN = products_BNN + itself
        return products_BNN / products_BNN.sum(dim=-1, keepdim=True)
    scaled_BNC = x_BNC * width**-0.25
    if form == "softmax":
        return (scaled_BNC @ scaled_BNC.transpose(1, 2)).softmax(dim=-1)
    # |x|^2 is the same along a row and falls out.
    return torch.baddbmm(
        scaled_BNC.square().sum(dim=-1)[:, None, :], scaled_BNC, scaled_BNC.transpose(1, 2), beta=-1, alpha=2
    ).softmax(dim=-1)


def diffuse(h_BNC: Tensor, affinity_BNN: Tensor, iterations: int, beta: float) -> Tensor:
    """Return ``beta M^n h + (1 - beta) h`` with the n-th power, n = ``iterations``, of the affinity M.

    Args:
        h_BNC: a feature at all positions.
        affinity_BNN: M, see `affinity_matrix`.
        iterations: n.
        beta: share of the diffused feature, from 0 (no diffusion) to 1.
    """
    diffused = h_BNC
    for _ in range(iterations):
        diffused = affinity_BNN @ diffused
    return beta * diffused + (1 - beta) * h_BNC


class TaskDecoder(nn.Module):
    """Upsampling blocks of one task, from the last encoder feature to 1/4 of the image.

    Args:
        encoder_channels: of all encoder features, finest first.
        channels: of the result.
    """

    def __init__(self, encoder_channels: Sequence[int], channels: int) -> None:
        super().__init__()
        self.top = conv_norm_relu(encoder_channels[-1], channels)
        self.laterals = nn.ModuleList(nn.Conv2d(c, channels, 1) for c in (encoder_channels[1], encoder_channels[0]))
        self.blocks = nn.ModuleList(conv_norm_relu(channels, channels) for _ in self.laterals)

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        """Return (B, channels, H / 4, W / 4) from all encoder features, finest first."""
        x: Tensor = self.top(features[-1])
        for lateral, block, skip in zip(self.laterals, self.blocks, (features[1], features[0]), strict=True):
            size = (skip.shape[-2], skip.shape[-1])
            x = block(resize_half_pixel(x, size) + lateral(skip))
        return x


class Reconstruction(nn.Module):
    """From a task's feature at 1/4 of the image to its prediction at full size."""

    def __init__(self, channels: int, outputs: int) -> None:
        super().__init__()
        self.at_half = conv_norm_relu(channels, channels // 2)
        self.at_full = conv_norm_relu(channels // 2, channels // 4)
        self.predict = nn.Conv2d(channels // 4, outputs, 1)

    def forward(self, x: Tensor, size: tuple[int, int]) -> Tensor:
        """Return (B, outputs, H, W) in float32, of the given size (H, W)."""
        half = ((size[0] + 1) // 2, (size[1] + 1) // 2)
        x = self.at_half(resize_half_pixel(x, half))
        x = self.at_full(resize_half_pixel(x, size))
        prediction: Tensor = self.predict(x)
        return at_least_float32(prediction)


class PAP(SegmentationModel):
    """One RGB encoder, three task decoders, cross-task affinities and diffusion.

    Args:
        num_classes: number of classes.
        encoder: name of a staged encoder whose first two features are at 1/4 and 1/8.
        output_stride: of the encoder.
        channels: of the decoders, a multiple of 4.
        affinity: form of the affinities, see `AffinityForm`.
        iterations: steps of the diffusion.
        beta: share of the diffused feature, from 0 (no diffusion) to 1.
        affinity_stride: image size divided by that of the grid of affinities and diffusion: 4, 8, 16 or 32.  Memory
            grows with the fourth power of the resolution, see above.
        affinity_outputs: also return the affinities while training, to be compared with the ground truth.
        encoder_options: further options of the encoder, such as ``drop_path_rate``.

    Raises:
        UsageError: for values outside these ranges.
    """

    card = _CARD
    backbone_prefixes = ("encoder.",)
    no_decay_names = ("alpha_logits",)

    def __init__(
        self,
        num_classes: int,
        encoder: str,
        *,
        output_stride: int = 16,
        channels: int = 256,
        affinity: AffinityForm = "softmax",
        iterations: int = 5,
        beta: float = 0.05,
        affinity_stride: int = 16,
        affinity_outputs: bool = False,
        encoder_options: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(num_classes, InputSpec((rgb_stream(),)))
        check_widths(channels=channels)
        _check_options(channels, affinity, iterations, beta, affinity_stride)
        self.affinity: AffinityForm = affinity
        self.iterations = iterations
        self.beta = beta
        self.pool = affinity_stride // _FEATURE_STRIDE
        self.affinity_tasks: tuple[Task, ...] = _AFFINITY_TASKS if affinity_outputs else ()
        self.auxiliary_tasks = (*_TASKS[1:], *self.affinity_tasks)
        self.encoder = create_encoder(encoder, **{**stride_options(output_stride), **(encoder_options or {})})
        outputs = {"segmentation": num_classes, "depth": 1, "normals": 3}
        self.decoders = nn.ModuleDict({task: TaskDecoder(self.encoder.channels, channels) for task in _TASKS})
        self.heads = nn.ModuleDict({task: nn.Conv2d(channels, outputs[task], 1) for task in _TASKS})
        self.embeddings = nn.ModuleDict({task: nn.Conv2d(channels, channels // 2, 1) for task in _TASKS})
        # Row k: how much each task's affinity counts for target k, before the softmax; at first mostly its own.
        self.alpha_logits = nn.Parameter(torch.eye(len(_TASKS)))
        self.reconstructions = nn.ModuleDict({task: Reconstruction(channels, outputs[task]) for task in _TASKS})
        for name, part in self.named_children():
            if name != "encoder":
                init_head(part)

    def task_affinities(self, working: dict[Task, Tensor]) -> list[Tensor]:
        """Return the float32 affinity (B, N, N) of every task from features (B, C, h, w) on the working grid."""
        embedded = [self.embeddings[task](working[task]).flatten(2).transpose(1, 2) for task in _TASKS]
        # Sums over thousands of positions lose too much in half precision.
        with without_autocast(embedded[0]):
            return [affinity_matrix(at_least_float32(x_BNC), self.affinity) for x_BNC in embedded]

    def combined_affinity(self, target: Task, affinities: Sequence[Tensor]) -> Tensor:
        """Return the convex combination (B, N, N) of all tasks' affinities for one target."""
        alpha = self.alpha_logits[_TASKS.index(target)].softmax(dim=0)
        combined = alpha[0] * affinities[0]
        for share, affinity_BNN in zip(alpha[1:], affinities[1:], strict=True):
            combined = combined + share * affinity_BNN
        return combined

    def forward(self, images: Mapping[str, Tensor], camera: Tensor | None = None) -> SegmentationOutput:
        """Return logits (B, classes, H, W); in training also ``aux``.

        ``aux`` holds ``initial_segmentation``, ``initial_depth`` and ``initial_normals`` at 1/4 of the image, and the
        final ``depth`` and ``normals`` at its size; with ``affinity_outputs`` also ``affinity_TASK`` of every task on
        the working grid.

        Args:
            images: ``rgb`` (B, 3, H, W), normalized as ``input_spec`` says.
            camera: not used.
        """
        (rgb,) = self.check_images(images)
        size = (rgb.shape[-2], rgb.shape[-1])
        encoded = self.encoder(rgb)
        features: dict[Task, Tensor] = {task: self.decoders[task](encoded) for task in _TASKS}
        working = {task: self._to_grid(feature) for task, feature in features.items()}
        affinities = self.task_affinities(working)
        final: dict[Task, Tensor] = {}
        for task in _TASKS if self.training else _TASKS[:1]:
            change = self._change(task, working[task], affinities)
            quarter = (features[task].shape[-2], features[task].shape[-1])
            final[task] = self.reconstructions[task](features[task] + self._from_grid(change, quarter), size)
        logits = final["segmentation"]
        if not self.training:
            return SegmentationOutput(logits)
        initial = [AuxiliaryOutput(f"initial_{task}", task, self.heads[task](features[task])) for task in _TASKS]
        further = [AuxiliaryOutput(task, task, final[task]) for task in _TASKS[1:]]
        grid = working["segmentation"].shape[-2:]
        alike = [
            AuxiliaryOutput(task, task, affinity_BNN.unflatten(2, grid))
            for task, affinity_BNN in zip(self.affinity_tasks, affinities, strict=False)  # none or all
        ]
        return SegmentationOutput(logits, (*initial, *further, *alike))

    def _to_grid(self, feature: Tensor) -> Tensor:
        """Average the feature over the cells of the working grid; cells at the border may be smaller."""
        return feature if self.pool == 1 else functional.avg_pool2d(feature, self.pool, ceil_mode=True)

    def _from_grid(self, change: Tensor, size: tuple[int, int]) -> Tensor:
        """Enlarge a map on the working grid to ``size`` at 1/4 of the image, every cell where it was taken from."""
        if self.pool == 1:
            return change
        whole_cells = (change.shape[-2] * self.pool, change.shape[-1] * self.pool)
        return cut_to(resize_half_pixel(change, whole_cells), size)

    def _change(self, task: Task, working: Tensor, affinities: Sequence[Tensor]) -> Tensor:
        """Return what diffusion adds to the feature (B, C, h, w) on the working grid."""
        with without_autocast(working):
            h_BNC = at_least_float32(working).flatten(2).transpose(1, 2)
            diffused = diffuse(h_BNC, self.combined_affinity(task, affinities), self.iterations, self.beta)
            change = (diffused - h_BNC).transpose(1, 2).unflatten(2, working.shape[-2:])
        return change.to(working.dtype)


def _check_options(channels: int, affinity: str, iterations: int, beta: float, affinity_stride: int) -> None:
    if channels % 4:
        raise UsageError(f"model option channels is {channels}; expected a multiple of 4")
    check_choice("PAP affinity", affinity, AffinityForm)
    if iterations < 1:
        raise UsageError(f"model option iterations is {iterations}; expected 1 or more; beta 0 switches diffusion off")
    if not 0 <= beta <= 1:
        raise UsageError(f"model option beta is {beta}; expected a number from 0 to 1")
    if affinity_stride not in _STRIDES:
        raise UsageError(f"model option affinity_stride is {affinity_stride}; expected one of {_STRIDES}")


VARIANTS = {
    "pap_resnet50": Variant(
        PAP, {"encoder": "resnet50s"}, note="encoder of the published results; 43,142,433 parameters with 40 classes"
    ),
    "pap_resnet18": Variant(
        PAP,
        {"encoder": "resnet18"},
        note="encoder of the paper's ablations",
        small=True,
        tiny={"encoder": "test_resnet", "channels": 16, "affinity_stride": 8},
    ),
}
