"""Writing the state of a run to its folder, and taking it up again."""

from __future__ import annotations

import contextlib
import os
import shutil
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from rgbdseg.config.train import ScheduleConfig
from rgbdseg.engine.health import all_finite
from rgbdseg.engine.run_folder import RunFolder
from rgbdseg.engine.step import TrainingState
from rgbdseg.errors import CheckpointError, RGBDSegError
from rgbdseg.files import atomic_path
from rgbdseg.models._base import SegmentationModel
from rgbdseg.weights.checkpoint import load_exactly, load_torch, save_torch
from rgbdseg.weights.facts import FACTS_KEY, STATE_PREFIX, ModelFacts

TRAINED = "current_model_state"
"""Key of the trained weights where ``state_dict`` holds their average."""


class DivergedError(RGBDSegError):
    """Training whose loss or weights are no finite numbers any more."""

    everywhere = True


class RunCheckpoints:
    """Keeps last.ckpt fresh, and numbered checkpoints.

    What is no number never takes the place of a good state, and a checkpoint of a finished epoch is in its numbered
    place before it becomes the last: a run that is killed in between does the end of the epoch again.

    Args:
        run: folder that they are written to.
        schedule: how often, in minutes for last.ckpt and in epochs for numbered ones.
        facts: of the model, which every checkpoint holds.
        write: whether this process writes them; otherwise it only looks for numbers that are not finite.
    """

    def __init__(self, run: RunFolder, schedule: ScheduleConfig, facts: ModelFacts, write: bool) -> None:
        self.run = run
        self.schedule = schedule
        self.facts = facts
        self.write = write
        self._saved_at = time.monotonic()

    @property
    def due(self) -> bool:
        """Whether the newest state is older than the config allows."""
        return time.monotonic() - self._saved_at > 60 * self.schedule.checkpoint_every_minutes

    def save(self, state: TrainingState) -> None:
        """Write last.ckpt, and the numbered checkpoint where an epoch is finished that leaves one.

        Raises:
            DivergedError: for a state that is no number throughout; files stay as they were.
        """
        self._saved_at = time.monotonic()
        values = state_values(state, self.facts, self.schedule.iterations_per_epoch)
        if not all_finite(_tensors(values)):
            raise DivergedError(f"the weights became infinite or not a number by iteration {state.step}")
        if not self.write:
            return
        numbered = self._numbered(state)
        save_torch(values, numbered or self.run.last)
        if numbered is not None:
            _copy(numbered, self.run.last)

    def _numbered(self, state: TrainingState) -> Path | None:
        epoch, inside = divmod(state.step, self.schedule.iterations_per_epoch)
        every = self.schedule.checkpoint_every_epochs
        if inside or not state.epoch_finished or not every or epoch % every:
            return None
        return self.run.epoch(epoch) if epoch >= self.schedule.checkpoint_from_epoch else None


def state_values(state: TrainingState, facts: ModelFacts, iterations_per_epoch: int) -> dict[str, Any]:
    """Return what a checkpoint holds: the evaluated weights with their facts, and all that training goes on from."""
    progress = {
        "iteration": state.step,
        "epoch": state.step // iterations_per_epoch,
        "epoch_finished": state.epoch_finished,
    }
    values: dict[str, Any] = {
        "global_step": state.step,
        "state_dict": _prefixed(state.evaluated),
        "optimizer_states": [state.optimizer.state_dict()],
        "loss_scale": state.scaler.state_dict(),
        FACTS_KEY: {**facts.to_dict(), "progress": progress},
    }
    if state.average is not None:
        values[TRAINED] = _prefixed(state.model)
        values["averaging_state"] = {"n_averaged": state.average.n_averaged.clone()}
    return values


def restore(state: TrainingState, path: Path) -> None:
    """Set ``state`` to what a checkpoint holds, those of version 0.1 included.

    Raises:
        CheckpointError: where the file is unreadable, or is one of another network or optimizer.
    """
    values = load_torch(path)
    with _explained(path):
        _restore(state, values, path)


def _restore(state: TrainingState, values: Mapping[str, Any], path: Path) -> None:
    trained = _unprefixed(values.get(TRAINED, values["state_dict"]))
    averaged = _unprefixed(values["state_dict"])
    optimizer_state = values["optimizer_states"][0]
    state.step = int(values["global_step"])
    load_exactly(state.model, trained, path)
    if state.average is not None:
        load_exactly(state.average.module, averaged, path)
        count = values.get("averaging_state", {}).get("n_averaged", torch.tensor(0))
        state.average.n_averaged.copy_(count)
    _restore_optimizer(state, optimizer_state, list(trained), path)
    scale = values.get("loss_scale", values.get("MixedPrecision"))
    if scale and state.scaler.is_enabled():
        state.scaler.load_state_dict(scale)
    state.epoch_finished = _epoch_finished(values, path)


def read_progress(path: Path) -> tuple[int, bool]:
    """Return the step of a checkpoint, and whether the epoch that it ends, if any, has been validated."""
    values = load_torch(path)
    with _explained(path):
        return int(values["global_step"]), _epoch_finished(values, path)


@contextlib.contextmanager
def _explained(path: Path) -> Iterator[None]:
    """Say that a checkpoint is not one of a run where it lacks something, or holds something else in its place."""
    try:
        yield
    except (KeyError, IndexError) as error:
        raise _not_resumable(path, f"it lacks {error}") from error
    except (TypeError, ValueError, AttributeError, OverflowError, RuntimeError) as error:
        raise _not_resumable(path, f"what it holds is damaged ({error})") from error


def _epoch_finished(values: Mapping[str, Any], path: Path) -> bool:
    progress = values[FACTS_KEY]["progress"]
    if "epoch_finished" in progress:
        return bool(progress["epoch_finished"])
    # Version 0.1 kept the state of Lightning's loops: a run stopped in an epoch's last step had not processed it.
    processed = values["loops"]["fit_loop"]["epoch_progress"]["current"]["processed"]
    return int(processed) >= int(progress["epoch"])


def _restore_optimizer(state: TrainingState, stored: dict[str, Any], order: list[str], path: Path) -> None:
    """Load the optimizer's state, which counts parameters in the order that the network had when it was saved."""
    names = {id(parameter): name for name, parameter in state.model.named_parameters()}
    place = {name: index for index, name in enumerate(order)}
    current = state.optimizer.state_dict()
    numbers = iter(range(len(names)))
    stored_number: dict[str, int] = {}
    for group in state.optimizer.param_groups:  # each holds its parameters in the order of the network
        for name in sorted((names[id(parameter)] for parameter in group["params"]), key=place.__getitem__):
            stored_number[name] = next(numbers)
    if [len(g["params"]) for g in stored["param_groups"]] != [len(g["params"]) for g in current["param_groups"]]:
        raise _not_resumable(path, "its optimizer has other parameters")
    moved: dict[int, Any] = {}
    numbers = iter(range(len(names)))
    for group in state.optimizer.param_groups:
        for parameter in group["params"]:
            number, entry = next(numbers), stored["state"].get(stored_number[names[id(parameter)]])
            if entry is None:
                continue
            if any(isinstance(v, Tensor) and v.ndim and v.shape != parameter.shape for v in entry.values()):
                raise _not_resumable(path, f"its optimizer state of {names[id(parameter)]} has another shape")
            moved[number] = entry
    groups = [
        {**old, "params": new["params"], "fused": new.get("fused"), "name": new.get("name")}
        for old, new in zip(stored["param_groups"], current["param_groups"], strict=True)
    ]
    state.optimizer.load_state_dict({"state": moved, "param_groups": groups})


def _not_resumable(path: Path, reason: str) -> CheckpointError:
    return CheckpointError(
        f"{path} cannot be resumed: {reason}; start a new run from its weights with model.start_from {path}"
    )


def _prefixed(model: SegmentationModel | nn.Module) -> dict[str, Tensor]:
    return {STATE_PREFIX + name: tensor for name, tensor in model.state_dict().items()}


def _unprefixed(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(STATE_PREFIX): t for name, t in weights.items() if name.startswith(STATE_PREFIX)}


def _tensors(values: Any) -> list[Tensor]:
    if isinstance(values, Tensor):
        return [values]
    if isinstance(values, Mapping):
        values = list(values.values())
    return [tensor for value in values for tensor in _tensors(value)] if isinstance(values, list) else []


def _copy(source: Path, target: Path) -> None:
    with atomic_path(target) as temporary:
        temporary.unlink()
        try:
            os.link(source, temporary)  # the next save replaces last.ckpt, so the bytes are never written again
        except OSError:
            shutil.copyfile(source, temporary)
