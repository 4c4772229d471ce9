"""Parameter groups, the optimizer, and the schedule of rates and momentum."""

from __future__ import annotations

import dataclasses
import math
import re
from typing import Literal

import torch
from torch import nn

from rgbdseg.config.train import OptimizerConfig, ScheduleConfig
from rgbdseg.errors import UsageError
from rgbdseg.models._base import SegmentationModel

Part = Literal["backbone", "head"]


def parameter_groups(model: SegmentationModel, config: OptimizerConfig) -> list[dict[str, object]]:
    """Return the groups backbone decay / no decay, head decay / no decay; empty groups are left out.

    Weights of convolutions and linear layers decay; biases, normalization and the model's `no_decay_names` do not,
    unless `weight_decay_on` says otherwise.  Blocks with a rate of their own have groups of their own.
    A parameter that has several names (tied weights) appears once.

    Raises:
        UsageError: for a rate of blocks in a backbone that has no single row of them.
    """
    normalization = {
        id(p)
        for module in model.modules()
        if isinstance(module, (nn.modules.batchnorm._NormBase, nn.LayerNorm, nn.GroupNorm))
        for p in module.parameters(recurse=False)
    }
    blocks_behind = _blocks_behind(model, config)
    groups: dict[tuple[str, int, bool], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        part = "backbone" if name.startswith(model.backbone_prefixes) else "head"
        is_weight = id(parameter) not in normalization and name.rsplit(".", 1)[-1] not in (
            "bias",
            *model.no_decay_names,
        )
        decays = {
            "weights": is_weight,
            "all": True,
            "all_but_backbone_norms": part == "head" or id(parameter) not in normalization,
        }[config.weight_decay_on]
        groups.setdefault((part, blocks_behind.get(name, 0), decays), []).append(parameter)
    factor = {"backbone": 1.0, "head": config.head_learning_rate_factor}
    return [
        {
            "name": f"{part}_{f'{behind}_behind_' if behind else ''}{'decay' if decay else 'no_decay'}",
            "params": groups[part, behind, decay],
            "lr": config.learning_rate * factor[part] * config.block_rate_factor**behind,
            "weight_decay": config.weight_decay if decay else 0.0,
        }
        # Backbone before head, late blocks before early ones, and what decays first.
        for part, behind, decay in sorted(groups, key=lambda key: (key[0], key[1], not key[2]))
    ]


_BLOCK = re.compile(r"(?P<before>.*?)\bblocks\.(?P<index>\d+)\.")
_AFTER_BLOCKS = ("norm", "fc_norm")


def _blocks_behind(model: SegmentationModel, config: OptimizerConfig) -> dict[str, int]:
    """Return how many blocks come after each parameter of the backbone, by name; nothing where all have one rate."""
    if config.block_rate_factor == 1:
        return {}
    names = [name for name, _ in model.named_parameters() if name.startswith(model.backbone_prefixes)]
    found = {name: match for name in names if (match := _BLOCK.match(name))}
    rows = {match["before"] for match in found.values()}
    if len(rows) != 1:
        raise UsageError(
            f"optimizer.block_rate_factor is {config.block_rate_factor}, but the backbone of {type(model).__name__} "
            f"has {len(rows)} rows of transformer blocks; expected one, as in a plain vision transformer"
        )
    (row,) = rows
    last = max(int(match["index"]) for match in found.values())
    behind = {name: last - int(match["index"]) for name, match in found.items()}
    for name in names:
        if name not in found and name.startswith(row):
            behind[name] = 0 if name.removeprefix(row).split(".")[0] in _AFTER_BLOCKS else last
    return behind


def make_optimizer(model: SegmentationModel, config: OptimizerConfig) -> torch.optim.Optimizer:
    """Build the optimizer over `parameter_groups`."""
    groups = parameter_groups(model, config)
    # One kernel for all parameters; PyTorch has it for these devices.  Under float16 it undoes the loss scale itself,
    # which is too late for clipping.
    fused = config.gradient_clip_norm is None and all(p.device.type in ("cpu", "cuda") for p in model.parameters())
    if config.name == "sgd":
        return torch.optim.SGD(
            groups, lr=config.learning_rate, momentum=config.momentum, nesterov=config.nesterov, fused=fused
        )
    return torch.optim.AdamW(groups, lr=config.learning_rate, fused=fused)


def learning_rate_factor(iteration: int, config: ScheduleConfig, part: Part = "head") -> float:
    """Return the factor on the base rate at an optimizer step, counted from 0.

    Linear warm-up, then (1 - iteration / total) ** power at the absolute iteration (so the rate drops a little where
    warm-up ends, as in the released SA-Gate trainer), or what else the schedule says.

    Args:
        iteration: of the run.
        config: of the schedule.
        part: whose rate; the backbone can begin later.
    """
    if config.set_after_step:
        if iteration == 0:
            return 1.0
        iteration -= 1
    stage, iteration = divmod(iteration, config.stage_iterations)
    total = config.decay_iterations or config.stage_iterations
    warmup = config.warmup_iterations
    if warmup is None:
        warmup = config.warmup_epochs * config.iterations_per_epoch
    if part == "backbone":
        delay = config.backbone_delay_epochs * config.iterations_per_epoch
        if iteration < delay:
            return 0.0
        iteration, total = iteration - delay, total - delay
        if config.backbone_warmup_epochs is not None:
            warmup = config.backbone_warmup_epochs * config.iterations_per_epoch
    if config.changes == "epoch":
        per = config.iterations_per_epoch
        iteration, warmup, total = iteration // per, warmup // per, max(1, total // per)
    return float(config.stage_factor**stage * _factor_of_stage(iteration, warmup, total, config))


def _factor_of_stage(position: int, warmup: int, total: int, config: ScheduleConfig) -> float:
    """Return the factor at a position within a stage; positions are iterations, or epochs."""
    if config.decay == "one_cycle":
        rise, fall = _cycle(position, warmup, total)
        low, high = (config.warmup_start, 1.0) if fall is None else (config.end_share, 1.0)
        return low + (high - low) * _cosine(rise if fall is None else 1 - fall)
    if position < warmup:
        return config.warmup_start + (1 - config.warmup_start) * position / warmup
    if config.decay == "step":
        per_epoch = 1 if config.changes == "epoch" else config.iterations_per_epoch
        return config.step_factor ** (position // (config.step_epochs * per_epoch))
    start = warmup if config.decay_from == "warmup" else 0
    return max(0.0, 1.0 - (position - start) / max(1, total - start)) ** config.power


def momentum_at(iteration: int, config: ScheduleConfig) -> float | None:
    """Return the momentum at an optimizer step, or None where the optimizer's own stays."""
    if config.momentum_range is None:
        return None
    low, high = config.momentum_range
    flat = dataclasses.replace(config, warmup_start=0.0, end_share=0.0, stage_factor=1.0)
    return high - (high - low) * learning_rate_factor(iteration, flat)


def _cycle(position: int, warmup: int, total: int) -> tuple[float, float | None]:
    """Return how far the rise is, and how far the fall, from 0 to 1; None before it."""
    peak, last = max(0, warmup - 1), total - 1
    if position < peak:
        return position / peak, None
    return 1.0, (position - peak) / max(1, last - peak)


def _cosine(share: float) -> float:
    """Return 0 at 0 and 1 at 1, flat at both ends."""
    return (1 - math.cos(math.pi * share)) / 2


def set_rates(optimizer: torch.optim.Optimizer, iteration: int, config: ScheduleConfig) -> None:
    """Set rates and momentum of every group for an optimizer step, and begin its stage where one begins."""
    if iteration and iteration % config.stage_iterations == 0:
        optimizer.state.clear()
    factors: dict[Part, float] = {part: learning_rate_factor(iteration, config, part) for part in ("backbone", "head")}
    momentum = momentum_at(iteration, config)
    for group in optimizer.param_groups:
        part: Part = "backbone" if group["name"].startswith("backbone") else "head"
        group["lr"] = group.setdefault("initial_lr", group["lr"]) * factors[part]
        if momentum is not None:
            group["momentum"] = momentum
