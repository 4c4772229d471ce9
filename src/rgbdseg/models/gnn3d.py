"""3DGNN: a recurrent graph neural network over the 3-D points of the image.

Qi, Liao, Jia, Fidler, Urtasun, 3D Graph Neural Networks for RGBD Semantic Segmentation, ICCV 2017.  Code, numbers and
what is exact: `GNN3D.card`.

The published code has layers, evaluation and the predictions of all test images, but neither the network's definition
nor its weights.  Its numbers count only a part of the image (``area="nyu-crop"``): there the released predictions have
39.85 and 41.74 mIoU, so they are those of VGG-16; on the full image they have 39.31 and 41.23.

An image network gives every position at 1/8 of the image a feature.  Positions are the nodes of a graph that joins
each to the 64 nearest in space.  A few recurrent steps pass messages along it, and the first and the last states are
classified together.

As published: neighbors, messages, the update ``rnn`` and the gates of ``lstm``, both kinds of coordinates.  Not known
and therefore ours: which of these is the default, the point of a node, the layers between encoder and graph, the
classifier's width, and that depth goes to the graph only.
Deliberate deviation: the published layer keeps the graph of the first image for all later ones; here every image has
its own.  `gnn3d_resnet18` is ours: small enough to train on a CPU.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import Tensor, nn

from rgbdseg.encoders import StagedEncoder, create_encoder, stride_options
from rgbdseg.encoders.vgg import VGGEncoder
from rgbdseg.errors import UsageError
from rgbdseg.geometry.neighbors import cell_points, nearest_neighbors
from rgbdseg.input_spec import InputSpec, metric_depth_stream, rgb_stream
from rgbdseg.models._base import SegmentationModel, SegmentationOutput, check_widths
from rgbdseg.models._card import MethodCard, PublishedResult
from rgbdseg.models._registry import Variant
from rgbdseg.nn.decoders import Decoder
from rgbdseg.nn.graph import RecurrentGraph, Update
from rgbdseg.nn.init import init_head
from rgbdseg.options import check_choice

# B batch, C channels, H W image, h w nodes (1/8 of the image), N = h*w, K neighbors

OUTPUT_STRIDE = 8
Space = Literal["xyzxy", "xyz"]
"""What distance is measured in: ``xyz`` meters; ``xyzxy`` also the position in the grid of nodes, which hardly counts
and decides where points coincide, as those of nodes without depth do."""

_METERS_PER_NODE = 1e-5  # released: 1e-4 per row and column beside 10 per meter
_NYU = "NYU Depth V2, 40"


_CARD = MethodCard(
    method="3DGNN",
    year=2017,
    paper="ICCV 2017",
    input="RGB + depth and camera (for the graph only)",
    code="xjqicuhk/3DGNN (MIT, Caffe; without the network's definition); graph alone in PyTorch: "
    "charlesCXK/PyTorch_Semantic_Segmentation (MIT)",
    results=(
        PublishedResult(_NYU, "gnn3d_vgg16", 39.9, "one scale, cropped area"),
        PublishedResult(_NYU, "gnn3d_vgg16", 41.7, "five scales, cropped area"),
        PublishedResult(_NYU, "gnn3d_resnet101", 42.0, "one scale, cropped area"),
        PublishedResult(_NYU, "gnn3d_resnet101", 43.1, "five scales, cropped area"),
        PublishedResult("SUN RGB-D, 37", "gnn3d_resnet101", 45.9, "several scales"),
    ),
    exact="neighbors, messages and rnn update (equal to a public PyTorch module), order of the lstm's gates, both "
    "coordinates of the nodes; DeepLab-LargeFOV's dilations",
    ours="which coordinates and which update are the default, a node's point as the median of its pixels, layers "
    "between encoder and graph, width of the classifier, deep-stem ResNet, ImageNet normalization, depth for the "
    "graph only; `gnn3d-nyuv2` trains image network and graph together unless it starts from `gnn3d-nyuv2-unary`",
)


class LargeFieldOfView(nn.Sequential):
    """The convolutional fc6 and fc7 of DeepLab-LargeFOV, and a projection: (B, C, h, w) to (B, channels, h, w).

    Args:
        in_channels: of the encoder's last feature.
        hidden_channels: of fc6 and fc7, 1024 as published.
    """

    def __init__(self, in_channels: int, channels: int, hidden_channels: int = 1024) -> None:
        super().__init__(
            nn.Conv2d(in_channels, hidden_channels, 3, padding=12, dilation=12),
            nn.ReLU(inplace=True),
            nn.Dropout(0.5),
            nn.Conv2d(hidden_channels, hidden_channels, 1),
            nn.ReLU(inplace=True),
            nn.Dropout(0.5),
            nn.Conv2d(hidden_channels, channels, 1),
        )


class Projection(nn.Sequential):
    """3x3 convolution, normalization, ReLU and 1x1 convolution: (B, C, h, w) to (B, channels, h, w)."""

    def __init__(self, in_channels: int, channels: int, hidden_channels: int = 512) -> None:
        super().__init__(
            nn.Conv2d(in_channels, hidden_channels, 3, padding=1, bias=False),
            nn.BatchNorm2d(hidden_channels),
            nn.ReLU(inplace=True),
            nn.Conv2d(hidden_channels, channels, 1),
        )


class NodeClassifier(nn.Sequential, Decoder):
    """Two 1x1 convolutions: features of nodes (B, C, h, w) to class scores (B, classes, h, w).

    Scores are enlarged with aligned corners as in Caffe: nodes lie at pixels 0, 8, 16 ... of the published 481x641
    input.
    """

    def __init__(self, in_channels: int, channels: int, num_classes: int) -> None:
        super().__init__(
            nn.Conv2d(in_channels, channels, 1), nn.ReLU(inplace=True), nn.Conv2d(channels, num_classes, 1)
        )


def dilate_vgg(encoder: VGGEncoder) -> None:
    """Give a VGG the pooling and dilation of DeepLab-LargeFOV: 3x3 pooling with a border, the last feature at 1/8."""
    pools = [position for position, layer in enumerate(encoder.features) if isinstance(layer, nn.MaxPool2d)]
    for number, position in enumerate(pools):
        encoder.features[position] = nn.MaxPool2d(3, stride=2 if number < 3 else 1, padding=1)
    for layer in encoder.features[pools[3] :]:
        if isinstance(layer, nn.Conv2d):
            layer.dilation = layer.padding = (2, 2)
    encoder.reductions = (4, 8, 8, 8)


def _image_encoder(name: str, options: Mapping[str, Any]) -> StagedEncoder:
    """Return an encoder whose last feature is at 1/8, where the nodes are; raises UsageError for any other."""
    encoder = create_encoder(name, **{**stride_options(32 if name.startswith("vgg") else OUTPUT_STRIDE), **options})
    if isinstance(encoder, VGGEncoder):
        dilate_vgg(encoder)
    if encoder.reductions[-1] != OUTPUT_STRIDE:
        raise UsageError(
            f"encoder '{name}' ends at 1/{encoder.reductions[-1]} of the image; 3DGNN needs 1/{OUTPUT_STRIDE}"
        )
    return encoder


class GNN3D(SegmentationModel):
    """An image network at 1/8 of the image, the recurrent graph network on its features, and a classifier.

    Args:
        num_classes: number of classes.
        encoder: name of a VGG, which becomes DeepLab-LargeFOV, or of a staged encoder whose output stride can be 8.
        channels: of a node.
        hidden_channels: between the encoder and the nodes.
        steps: updates of the nodes; 0 leaves the graph out, and with it depth and camera: the image network alone.
        neighbors: of each node, itself included.
        update: ``rnn`` or ``lstm``.
        space: of the distances.
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
        channels: int = 256,
        hidden_channels: int = 512,
        steps: int = 3,
        neighbors: int = 64,
        update: Update = "rnn",
        space: Space = "xyzxy",
        encoder_options: Mapping[str, Any] | None = None,
    ) -> None:
        if steps < 0 or neighbors < 1:
            raise UsageError(
                f"steps is {steps} and neighbors {neighbors}; expected at least 0 steps and at least 1 neighbor"
            )
        check_choice("space", space, Space)
        uses_points = steps > 0
        streams = (rgb_stream(), metric_depth_stream()) if uses_points else (rgb_stream(),)
        super().__init__(num_classes, InputSpec(streams, needs_camera=uses_points))
        check_widths(channels=channels, hidden_channels=hidden_channels)
        self.space: Space = space
        self.neighbors = neighbors
        self.encoder = _image_encoder(encoder, encoder_options or {})
        unary = LargeFieldOfView if encoder.startswith("vgg") else Projection
        self.unary = unary(self.encoder.channels[-1], channels, hidden_channels)
        self.propagation = RecurrentGraph(channels, steps, update) if uses_points else None
        self.classifier = NodeClassifier((2 if uses_points else 1) * channels, channels, num_classes)
        init_head(self.unary)
        init_head(self.classifier)

    def adapt_weights(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Let the graph join a trained image network (``steps=0``), whose logits then change with training only.

        The classifier sees the states beside the features: its weights for them start at 0.
        """
        adapted = super().adapt_weights(state)
        name = "classifier.0.weight"
        channels, joined = self.classifier.get_parameter("0.weight").shape[:2]
        if self.propagation is not None and name in adapted and adapted[name].shape[:2] == (channels, joined // 2):
            adapted[name] = torch.cat([adapted[name], torch.zeros_like(adapted[name])], dim=1)
        return adapted

    def find_neighbors(self, depth_m: Tensor, camera: Tensor) -> Tensor:
        """Return the neighbors of every node, int64 (B, N, K), for depth (B, 1, H, W) and camera (B, 4).

        A node without a reading in its 8x8 pixels lies at the camera center: its neighbors are the nearest other such
        nodes in the image.
        """
        points_B3hw = cell_points(depth_m, camera, OUTPUT_STRIDE).float()
        nodes_BN3 = points_B3hw.flatten(2).transpose(1, 2)
        if self.space == "xyzxy":
            height, width = points_B3hw.shape[-2:]
            rows, columns = (
                torch.arange(length, device=depth_m.device, dtype=torch.float32) * _METERS_PER_NODE
                for length in (height, width)
            )
            grid_N2 = torch.stack(torch.meshgrid(rows, columns, indexing="ij"), dim=-1).flatten(0, 1)
            nodes_BN3 = torch.cat([nodes_BN3, grid_N2.expand(depth_m.shape[0], -1, -1)], dim=-1)
        return nearest_neighbors(nodes_BN3, self.neighbors)

    def forward(self, images: Mapping[str, Tensor], camera: Tensor | None = None) -> SegmentationOutput:
        """Return logits (B, classes, H, W).

        Args:
            images: ``rgb`` (B, 3, H, W) normalized as ``input_spec`` says and, but for a model of 0 steps, ``depth``
                (B, 1, H, W) in meters with 0 = no reading.
            camera: (B, 4) as fx, fy, cx, cy in pixels; not used with 0 steps.

        Raises:
            UsageError: for an image or camera that is absent or does not fit.
        """
        rgb, *depth = self.check_images(images)
        feature = self.unary(self.encoder(rgb)[-1])
        if self.propagation is not None:
            (depth_m,) = depth
            state = self.propagation(feature, self.find_neighbors(depth_m, self.check_camera(rgb, camera)))
            feature = torch.cat([feature, state], dim=1)
        return SegmentationOutput(self.classifier.upsample(self.classifier(feature), (rgb.shape[-2], rgb.shape[-1])))


VARIANTS = {
    "gnn3d_resnet101": Variant(GNN3D, {"encoder": "resnet101s"}, note="dilated to 1/8"),
    "gnn3d_vgg16": Variant(
        GNN3D, {"encoder": "vgg16", "hidden_channels": 1024}, note="with the VGG-16 of DeepLab-LargeFOV"
    ),
    "gnn3d_resnet18": Variant(
        GNN3D,
        {"encoder": "resnet18", "channels": 64, "hidden_channels": 64, "neighbors": 16},
        note="for CPUs: 64 channels and 16 neighbors",
        small=True,
        tiny={"encoder": "test_resnet", "channels": 16, "hidden_channels": 16, "neighbors": 4},
    ),
}
