"""Every family learns four real frames by heart; most mistakes between the files and the loss prevent it."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import rgbdseg
from rgbdseg.config.loss import LossConfig
from rgbdseg.config.train import AugmentationConfig
from rgbdseg.data.dataset import RGBDDataset, rasters_needed
from rgbdseg.losses import segmentation_loss
from rgbdseg.models._base import SegmentationModel
from rgbdseg.sample import RGBDBatch
from rgbdseg.transforms.augment import apply_moves, draw_moves
from rgbdseg.transforms.pack import pack
from tests.shared_data import shared_path

FRAMES = ("2", "7", "500", "1000")
SIZE = (96, 128)
STEPS = 80
# RDFNet has no normalization outside its encoders and small first weights; PAD-Net sees its features only through the
# intermediate predictions, which must be learned first.
MORE_STEPS = {"rdfnet_resnet18": 200, "padnet_resnet18": 300}

# (name, options, learning rate); the smallest variant of each family.
MODELS: list[tuple[str, dict[str, object], float]] = [
    ("acfnet_resnet18", {}, 2e-3),
    ("acnet_resnet18", {}, 2e-3),
    ("danet_resnet18", {}, 2e-3),
    ("deeplabv3plus_resnet18", {"depth_convolution": "malleable"}, 2e-3),
    ("dinodepth_vit_pico", {"depth": "prompts"}, 2e-3),
    ("emsanet_r10_nbt1d", {}, 2e-3),
    ("esanet_r10_nbt1d", {}, 2e-3),
    ("gald_resnet18", {}, 2e-3),
    ("gnn3d_resnet18", {}, 2e-3),
    ("padnet_resnet18", {}, 2e-3),
    ("pap_resnet18", {}, 2e-3),
    ("rdfnet_resnet18", {"conventions": "torchvision"}, 2e-3),
    ("sagate_resnet18", {}, 2e-3),
]


def four_frames(model: SegmentationModel) -> RGBDBatch:
    """Four whole frames at a fifth of their size, by the path that training takes."""
    tree = shared_path("nyuv2/dataset.json").parent
    needs = rasters_needed(model.input_spec, label=True, depth=bool(model.auxiliary_tasks))
    dataset = RGBDDataset(tree, ids=FRAMES, needs=needs)
    small = AugmentationConfig(crop_size=SIZE, scales=(SIZE[0] / 480,), flip_probability=0.0)
    frames = [dataset[index] for index in range(len(FRAMES))]
    samples = [apply_moves(frame, draw_moves(frame, small, torch.Generator())) for frame in frames]
    return pack(samples, model.input_spec, SIZE, with_depth=bool(model.auxiliary_tasks))


@pytest.mark.slow
@pytest.mark.parametrize(("name", "options", "learning_rate"), MODELS, ids=[name for name, _, _ in MODELS])
def test_learns_four_frames_by_heart(name: str, options: dict[str, object], learning_rate: float) -> None:
    torch.manual_seed(0)
    model = rgbdseg.create_model(name, 40, **options).train()
    for dropout in model.modules():  # made to prevent just this
        if isinstance(dropout, nn.Dropout | nn.Dropout2d):
            dropout.p = 0.0
    batch = four_frames(model)
    assert batch.label is not None
    steps = MORE_STEPS.get(name, STEPS)
    optimizer = torch.optim.AdamW(model.parameters(), lr=learning_rate)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, learning_rate, total_steps=steps)
    losses: list[float] = []
    for _ in range(steps):
        optimizer.zero_grad()
        output = model(batch.images, batch.camera)
        loss = segmentation_loss(output, batch.label, LossConfig(), batch.depth_m, batch.camera)
        loss.total.backward()
        optimizer.step()
        schedule.step()
        losses.append(float(loss.parts["main"]))
    with torch.no_grad():  # batch statistics: the running ones have not caught up after so few steps
        prediction = model(batch.images, batch.camera).logits.argmax(1)
    labeled = batch.label != 255
    assert losses[-1] < losses[0] / 4, losses[:: steps // 8]
    assert (prediction == batch.label)[labeled].float().mean() > 0.75
