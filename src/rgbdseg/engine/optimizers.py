"""Parameter groups, optimiser and learning-rate schedule."""

from __future__ import annotations

import torch
from torch import nn

from rgbdseg.config.train import OptimizerConfig, ScheduleConfig
from rgbdseg.models._base import SegmentationModel


def parameter_groups(model: SegmentationModel, config: OptimizerConfig) -> list[dict[str, object]]:
    """Return the groups backbone decay / no decay, head decay / no decay; empty groups are left out.

    Weights of convolutions and linear layers decay; biases, normalisation and the model's `no_decay_names` do not,
    unless `weight_decay_on` is 'all'.
    A parameter that has several names (tied weights) appears once.
    """
    normalisation = {
        id(p)
        for module in model.modules()
        if isinstance(module, (nn.modules.batchnorm._NormBase, nn.LayerNorm, nn.GroupNorm))
        for p in module.parameters(recurse=False)
    }
    sorted_parameters: dict[tuple[str, bool], list[nn.Parameter]] = {
        (part, decay): [] for part in ("backbone", "head") for decay in (True, False)
    }
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        leaf = name.rsplit(".", 1)[-1]
        decays = config.weight_decay_on == "all" or (
            id(parameter) not in normalisation and leaf != "bias" and leaf not in model.no_decay_names
        )
        part = "backbone" if name.startswith(model.backbone_prefixes) else "head"
        sorted_parameters[part, decays].append(parameter)
    factor = {"backbone": 1.0, "head": config.head_learning_rate_factor}
    return [
        {
            "name": f"{part}_{'decay' if decay else 'no_decay'}",
            "params": parameters,
            "lr": config.learning_rate * factor[part],
            "weight_decay": config.weight_decay if decay else 0.0,
        }
        for (part, decay), parameters in sorted_parameters.items()
        if parameters
    ]


def make_optimizer(model: SegmentationModel, config: OptimizerConfig) -> torch.optim.Optimizer:
    """Build the optimiser over `parameter_groups`."""
    groups = parameter_groups(model, config)
    # One kernel for all parameters; PyTorch has it for these devices.  Under float16 it undoes the loss scale itself,
    # which is too late for clipping.
    fused = config.gradient_clip_norm is None and all(p.device.type in ("cpu", "cuda") for p in model.parameters())
    if config.name == "sgd":
        return torch.optim.SGD(groups, lr=config.learning_rate, momentum=config.momentum, fused=fused)
    return torch.optim.AdamW(groups, lr=config.learning_rate, fused=fused)


def learning_rate_factor(iteration: int, config: ScheduleConfig) -> float:
    """Return the factor on the base rate at an optimiser step, counted from 0.

    Linear warm-up from 0, then (1 - iteration / total) ** power at the absolute iteration (so the rate drops a little
    where warm-up ends, as in the released SA-Gate trainer), or one factor more after every so many epochs.
    """
    warmup = config.warmup_epochs * config.iterations_per_epoch
    if iteration < warmup:
        return iteration / warmup
    if config.decay == "step":
        return config.step_factor ** (iteration // (config.step_epochs * config.iterations_per_epoch))
    return max(0.0, 1.0 - iteration / config.iterations) ** config.power
