"""A step of the training of LiteFusion: losses, optimizer and the average of the weights, on a GPU as one launch."""

from __future__ import annotations

import argparse
import copy
import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from litefusion_data import VOID, Batch
from rgbdseg.device import native_bfloat16
from rgbdseg.losses.overlap import lovasz_softmax_loss
from rgbdseg.models.litefusion import LiteFusion

# B batch, H height, W width

_PARTS = {"encoder": 1.0, "depth_encoder": 2.0}  # learning rates beside that of the color encoder
_DECODER = 4.0
_WARM_UP = 3  # steps before they are recorded as one launch


class TrainingNet(nn.Module):
    """LiteFusion as it is trained: fed at its inner size, with an output that says which classes are to be seen."""

    def __init__(self, model: LiteFusion) -> None:
        super().__init__()
        self.model = model
        self.presence = nn.Linear(model.context.merge[0].out_channels, 40)

    def forward(self, rgb: Tensor, geometry: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return logits at 1/4 and 1/16, and presence logits (B, classes)."""
        model = self.model
        fine, coarse = model._decode(*model._encode(rgb, geometry))
        return model.classifier(model.drop(fine)), model.auxiliary(coarse), self.presence(coarse.mean((2, 3)))


def logits_of(model: LiteFusion, rgb: Tensor, geometry: Tensor) -> Tensor:
    """Return logits at 1/4 of the inner size."""
    return model.classifier(model._decode(*model._encode(rgb, geometry))[0])


def loss_of(output: tuple[Tensor, ...], batch: Batch, weight: Tensor, smoothing: float, lovasz: float) -> Tensor:
    """Return the weighted sum of all losses of the labels."""
    logits, auxiliary, presence = (one.float().contiguous() for one in output)
    fine = functional.interpolate(logits, size=batch.half_label.shape[-2:], mode="bilinear", align_corners=False)
    loss = _smoothed_cross_entropy(fine, batch.half_label, weight, smoothing)
    auxiliary = functional.interpolate(
        auxiliary, size=batch.quarter_label.shape[-2:], mode="bilinear", align_corners=False
    )
    loss = loss + 0.3 * functional.cross_entropy(auxiliary, batch.quarter_label, weight, ignore_index=VOID)
    loss = loss + 0.3 * functional.binary_cross_entropy_with_logits(presence, batch.present)
    if lovasz:
        loss = loss + lovasz * lovasz_softmax_loss(logits, batch.quarter_label)
    return loss


def _smoothed_cross_entropy(logits: Tensor, label: Tensor, weight: Tensor, smoothing: float) -> Tensor:
    """Return what `torch.nn.functional.cross_entropy` does, which asks the device how many pixels are void."""
    logs = logits.log_softmax(1)
    known = label != VOID
    share = (weight[torch.where(known, label, 0)] * known).sum()
    spread = -((logs * weight[:, None, None]).sum(1) * known).sum() / share
    right = functional.nll_loss(logs, label, weight, ignore_index=VOID)
    return (1 - smoothing) * right + smoothing / logits.shape[1] * spread


class Step:
    """A step of training and of the average of the weights; on a GPU one launch instead of thousands.

    The average is also a teacher: it sees the colors as they are and the depth of every image, and what it says is
    learned beside the labels.  Another teacher has half a say, and all of it in the beginning.

    Args:
        net: on its device, in channels-last memory on a GPU.
        batch: any of the size of those to come; only what it looks like matters.
        options: of the command line.
        teacher: another model, trained before.
    """

    def __init__(
        self, net: TrainingNet, batch: Batch, options: argparse.Namespace, teacher: LiteFusion | None = None
    ) -> None:
        self.net, self.options, self.teacher = net, options, teacher
        self.average = copy.deepcopy(net.model).eval().requires_grad_(False)
        device = batch.rgb.device
        self.weight = torch.ones(40, device=device)
        on_gpu = device.type == "cuda"
        self._in_bfloat16 = native_bfloat16(device)
        self.optimizer = torch.optim.AdamW(self._groups(), betas=(0.9, 0.99), fused=on_gpu, capturable=on_gpu)
        self.total, self.teaching, self.own_say = (torch.zeros((), device=device) for _ in range(3))
        self.batch = batch.map(lambda part: part.clone())
        live, average = net.model.state_dict(), self.average.state_dict()
        floats = [key for key, value in average.items() if value.is_floating_point()]
        self._live, self._averaged = [live[key] for key in floats], [average[key] for key in floats]
        self.count = 0
        self._graphs: dict[bool, torch.cuda.CUDAGraph] = {}
        if on_gpu and not options.eager:
            self._record()

    def _groups(self) -> list[dict[str, object]]:
        groups: dict[tuple[float, bool], list[nn.Parameter]] = {}
        for name, parameter in self.net.named_parameters():
            part = name.removeprefix("model.").split(".")[0]
            groups.setdefault((_PARTS.get(part, _DECODER), parameter.ndim > 1), []).append(parameter)
        return [
            {
                "params": members,
                "lr": torch.zeros((), device=members[0].device),
                "factor": factor * self.options.rate,
                "weight_decay": self.options.decay if matrix else 0.0,
            }
            for (factor, matrix), members in groups.items()
        ]

    def _record(self) -> None:
        """Record a step without the Lovász loss and one with it; nothing has been learned afterwards."""
        before = [value.clone() for value in self.net.state_dict().values()]
        pool = None
        for late in (False, True):
            stream = torch.cuda.Stream()
            stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(stream):
                for _ in range(_WARM_UP):
                    self._work(late)
            torch.cuda.current_stream().wait_stream(stream)
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, pool=pool):
                self._work(late)
            # One follows the other, so that both may work in the same memory.
            pool = graph.pool()
            self._graphs[late] = graph
        for value, own in zip(before, self.net.state_dict().values(), strict=True):
            own.copy_(value)
        self.reset()

    def reset(self) -> None:
        """Forget the moments of the optimizer, the losses and the number of steps, for the next stage of training."""
        self.count = 0
        self.total.zero_()
        for state in self.optimizer.state.values():
            for value in state.values():
                value.zero_()

    def _work(self, late: bool) -> None:
        batch = self.batch
        self.optimizer.zero_grad(set_to_none=True)
        with torch.autocast(batch.rgb.device.type, torch.bfloat16, enabled=self._in_bfloat16):
            output = self.net(batch.rgb, batch.geometry)
            told = self._taught(batch)
        lovasz = self.options.lovasz if late else 0.0
        loss = loss_of(output, batch, self.weight, self.options.smoothing, lovasz)
        taught = functional.cross_entropy(output[0].float().contiguous(), told)
        (loss + self.teaching * taught).backward()
        nn.utils.clip_grad_norm_(self.net.parameters(), 5.0)
        self.optimizer.step()
        self.total += loss.detach()

    @torch.no_grad()
    def _taught(self, batch: Batch) -> Tensor:
        """Return the probabilities (B, 40, h/4, w/4) that are taught."""
        images = (batch.plain_rgb, batch.whole_geometry)
        own = logits_of(self.average, *images).float().contiguous().softmax(1)
        if self.teacher is None:
            return own
        return torch.lerp(logits_of(self.teacher, *images).float().contiguous().softmax(1), own, self.own_say)

    def __call__(self, batch: Batch, done: float, teaching: float) -> None:
        """Do one step.

        Args:
            batch: of the size that was shown in the beginning.
            done: part of the stage that is over, from 0 to 1.
            teaching: weight of what the teachers say.
        """
        options = self.options
        with torch.no_grad():
            for own, new in zip(self.batch, batch, strict=True):
                own.copy_(new)
        factor = min(1.0, (self.count + 1) / max(1, options.warm_up)) * max(0.002, 0.5 * (1 + math.cos(math.pi * done)))
        for group in self.optimizer.param_groups:
            group["lr"].fill_(group["factor"] * factor)
        own = min(max((done - 0.15) / 0.2, 0.0), 1.0)
        self.teaching.fill_(teaching * (own if self.teacher is None else 1.0))
        self.own_say.fill_(0.5 * own)
        late = options.lovasz > 0 and done > options.lovasz_from
        if self._graphs:
            self._graphs[late].replay()
        else:
            self._work(late)
        self.count += 1
        decay = min(options.average, (self.count + 1) / (self.count + 10))
        torch._foreach_lerp_(self._averaged, self._live, 1 - decay)
