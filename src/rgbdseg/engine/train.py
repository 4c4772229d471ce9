"""Training a model from a config: from an empty run folder, or on from where a run stopped."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import warnings
from collections.abc import Iterator
from pathlib import Path

import torch
from lightning.fabric import Fabric
from rich.console import Console

from rgbdseg.config.train import TrainConfig, samples_per_pass
from rgbdseg.data.dataset import RGBDDataset, rasters_needed
from rgbdseg.data.hha_audit import require_fitting_hha
from rgbdseg.data.tree import PreparedTree, open_tree
from rgbdseg.engine.checkpoints import DivergedError, RunCheckpoints, read_progress, restore
from rgbdseg.engine.data_module import SegmentationData
from rgbdseg.engine.hardware import (
    check_hardware,
    check_share,
    device_type,
    make_fabric,
    processes_here,
    with_choices,
)
from rgbdseg.engine.loggers import check_loggers
from rgbdseg.engine.loop import train_loop
from rgbdseg.engine.memory import plan_passes
from rgbdseg.engine.probe import is_open, probed
from rgbdseg.engine.processes import is_main_process, working_together
from rgbdseg.engine.reporting import Report
from rgbdseg.engine.run_folder import RunFolder, trim_log
from rgbdseg.engine.run_lock import locked
from rgbdseg.engine.start import EarlierWeights, load_first_weights
from rgbdseg.engine.step import make_state
from rgbdseg.engine.stop import StopSignals
from rgbdseg.errors import DataError, RGBDSegError, UsageError
from rgbdseg.freed_memory import freed_memory_kept
from rgbdseg.models._base import SegmentationModel
from rgbdseg.models._registry import create_model
from rgbdseg.parallel import WorkerError
from rgbdseg.weights.facts import ModelFacts

__all__ = ["build_run", "explained_failures", "is_main_process", "quiet_lightning", "train", "trains_on_depth"]


@freed_memory_kept()
def train(config: TrainConfig, out: str | Path, resume: bool = False, console: Console | None = None) -> RunFolder:
    """Train and return the run folder; last.ckpt in it is the result.

    Args:
        config: the complete run.
        out: folder of the run; a new or an empty one, unless ``resume``.
        resume: continue the run in ``out`` from its last checkpoint, exactly as if it had never stopped.
        console: where progress is shown; default nowhere.

    Raises:
        Interrupted: when a signal stops it; the state is saved.
        RGBDSegError: for anything that a user can mend.
    """
    console = console or Console(quiet=True)
    check_hardware(config.hardware)
    check_loggers(config.logging)
    run = RunFolder(Path(out))
    fabric = make_fabric(config.hardware)
    if resume:
        run.require_run()
        config = _as_stored(config, run)
    elif fabric.is_global_zero:
        run.check_new()
    with locked(run.root) if fabric.is_global_zero else contextlib.nullcontext():
        checkpoint = run.last if resume and run.last.is_file() else None
        model, datasets = build_run(config)
        # A checkpoint holds all weights, so a resumed run does not need the files that it started from.
        earlier = None if checkpoint else load_first_weights(model, config.model, datasets[0].label_set)
        if fabric.world_size > 1 or fabric.device.type != "cpu":
            config = _with_choices(config, console)
        if fabric.is_global_zero:
            config = _with_passes(config, model, console)
            samples_per_pass(config, fabric.world_size)
            config = _with_probe(config, model, fabric, console)
            if datasets[1] is not None:
                check_share(len(datasets[1]), fabric.world_size)
            # Everything that can be refused has been: only now is something created.
            _prepare_folder(run, config, resume, checkpoint, console)
            if earlier is not None:
                console.print(str(earlier), highlight=False, soft_wrap=True)
        try:
            with explained_failures(run), working_together(fabric, config.hardware):
                passes = fabric.broadcast(config.hardware.accumulate)  # chosen by the main process
                hardware = dataclasses.replace(config.hardware, accumulate=passes)
                config = dataclasses.replace(config, hardware=hardware)
                _run(config, run, fabric, model, datasets, checkpoint=checkpoint, earlier=earlier, console=console)
        except RGBDSegError:
            if fabric.is_global_zero and not resume and not run.has_begun():
                run.undo_start()
            raise
    return run


def _run(
    config: TrainConfig,
    run: RunFolder,
    fabric: Fabric,
    model: SegmentationModel,
    datasets: tuple[RGBDDataset, RGBDDataset | None],
    *,
    checkpoint: Path | None,
    earlier: EarlierWeights | None,
    console: Console,
) -> None:
    """Train in one of the processes of a run, all of which have been started."""
    if config.hardware.deterministic:
        torch.use_deterministic_algorithms(True)
    facts = model_facts(config, model, datasets[0])
    data = SegmentationData(config, *datasets, facts.input_spec, with_depth=trains_on_depth(model))
    state = make_state(model, config, fabric)
    if checkpoint is not None:
        restore(state, checkpoint)
    start = state.step
    if fabric.broadcast(start) != start:
        raise UsageError(f"the machines of this run see different files in {run.root}; put it where all see the same")
    checkpoints = RunCheckpoints(run, config.schedule, facts, write=fabric.is_global_zero)
    if state.step == config.schedule.iterations and state.epoch_finished:
        return
    source = None if earlier is None else earlier.to_dict()
    report = Report(run, config, fabric, console, step=start, started_from=source)
    finished = False
    signals = StopSignals(console)
    try:
        with signals:
            train_loop(state, data, config, fabric, checkpoints=checkpoints, report=report, signals=signals)
        finished = True
    except RuntimeError as error:
        if "DataLoader worker" not in str(error):
            raise
        if signals.received:  # by loader processes as well, before they were ready for it
            raise KeyboardInterrupt from None
        raise WorkerError(
            "a loader process died, most often for lack of memory; lower loader.workers (0 loads in this process)"
        ) from error
    finally:
        report.close(finished)
        if config.hardware.deterministic:
            torch.use_deterministic_algorithms(False)


def _prepare_folder(
    run: RunFolder,
    config: TrainConfig,
    resume: bool,
    checkpoint: Path | None,
    console: Console,
) -> None:
    """Create the folder, or bring it to the state that the run goes on from."""
    if not resume:
        run.start(config)
    else:
        run.remove_leftovers()
    if checkpoint is not None:
        step, epoch_finished = read_progress(checkpoint)
        trim_log(run.log, step, epoch_finished)
        console.print(f"resuming after iteration {step}", highlight=False)
    elif resume:
        trim_log(run.log, -1)


@contextlib.contextmanager
def explained_failures(run: RunFolder | None = None) -> Iterator[None]:
    """Turn what training trips over, and a user can mend, into RGBDSegError with the remedy.

    Args:
        run: whose last checkpoint is offered, where there is one.
    """
    try:
        yield
    except DivergedError as error:
        again = "start a new run with a lower optimizer.learning_rate"
        if run is not None and run.last.is_file():
            good = read_progress(run.last)[0]
            again = f"go on from iteration {good} with resume=True and hardware.precision 32-true, or {again}"
        raise DivergedError(f"{error}; {again}") from error
    except ValueError as error:
        if "more than 1 value per channel" not in str(error):
            raise
        raise RGBDSegError(
            "one sample per pass is too few for the batch statistics of this model; raise loader.batch_size or lower "
            "hardware.accumulate"
        ) from error
    except torch.OutOfMemoryError as error:
        raise RGBDSegError(
            "the device ran out of memory; raise hardware.accumulate or set hardware.precision to bf16-mixed, or start "
            "a new run with a lower loader.batch_size"
        ) from error
    except RuntimeError as error:
        if "without overflow" in str(error):
            raise DivergedError(
                "a step of the optimizer is too long for any number; start a new run with a lower "
                "optimizer.learning_rate"
            ) from error
        # Not imported: PyTorch's compiler takes seconds, and most runs never use it.
        if not any(kind.__name__ == "TorchDynamoException" for kind in type(error).__mro__):
            raise
        raise RGBDSegError(
            f"torch.compile failed ({str(error).strip().splitlines()[0][:200]}); set hardware.compile to false"
        ) from error


def build_run(config: TrainConfig) -> tuple[SegmentationModel, tuple[RGBDDataset, RGBDDataset | None]]:
    """Return the model with random weights, and the training and validation frames of a config."""
    if config.hardware.threads:
        torch.set_num_threads(config.hardware.threads)
    tree = open_tree(config.data)
    loader = config.loader
    label_set = RGBDDataset(tree, loader.train_split, needs=("label",)).label_set
    torch.manual_seed(config.seed)
    model = create_model(config.model.name, num_classes=len(label_set), **config.model.options)
    needs = rasters_needed(model.input_spec, label=True)
    train_set = RGBDDataset(tree, loader.train_split, needs=needs, hha_cache=loader.hha_cache)
    if "hha" in needs:
        require_fitting_hha(tree, train_set.ids)
    if trains_on_depth(model):
        train_set = _with_depth_target(config, model, train_set, tree)
    validation_set = None
    if config.schedule.validate_every_epochs:
        validation_set = RGBDDataset(
            tree, loader.validation_split, needs=needs, hha_cache=loader.hha_cache, limit=loader.validation_limit
        )
    if len(train_set) == 0:
        raise DataError(f"split '{config.loader.train_split}' of {config.data} is empty; nothing to train on")
    return model, (train_set, validation_set)


def trains_on_depth(model: SegmentationModel) -> bool:
    """Return whether auxiliary outputs of the model are compared with depth, or normals computed from it."""
    return not {"depth", "normals"}.isdisjoint(model.auxiliary_tasks)


def _with_depth_target(
    config: TrainConfig, model: SegmentationModel, plain: RGBDDataset, tree: PreparedTree
) -> RGBDDataset:
    """Return the training set with depth; raises DataError naming the need when depth or a camera is missing."""
    tasks = " and ".join(task for task in ("depth", "normals") if task in model.auxiliary_tasks)
    need = f"{config.model.name} is trained to predict {tasks} besides the classes"
    try:
        train_set = RGBDDataset(tree, plain.split, needs=plain.needs | {"depth_m"}, hha_cache=config.loader.hha_cache)
    except DataError as error:
        raise DataError(f"{error}; needed since {need}") from error
    if "normals" in model.auxiliary_tasks or config.loss.dense.depth_focal_px is not None:
        for index, sample_id in enumerate(train_set.ids):
            if train_set.camera(index) is None:
                raise DataError(
                    f"{tree.root}: frame '{sample_id}' has no camera, needed since {need}; state camera or cameras in "
                    "dataset.json"
                )
    return train_set


def _as_stored(config: TrainConfig, run: RunFolder) -> TrainConfig:
    """Fill in what the config leaves open by what the run was started with."""
    stored, hardware = run.stored_config().get("hardware"), config.hardware
    if not isinstance(stored, dict):
        return config
    if hardware.precision == "auto":
        hardware = dataclasses.replace(hardware, precision=stored.get("precision", "auto"))
    if hardware.channels_last is None:
        hardware = dataclasses.replace(hardware, channels_last=stored.get("channels_last"))
    return dataclasses.replace(config, hardware=hardware)


def _with_choices(config: TrainConfig, console: Console) -> TrainConfig:
    """Fill in the precision and the order in memory that the devices suggest, and say so."""
    hardware = with_choices(config.hardware)
    if hardware.precision != config.hardware.precision:
        console.print(f"hardware.precision auto: {hardware.precision} on this machine", highlight=False)
    return dataclasses.replace(config, hardware=hardware)


def _with_probe(config: TrainConfig, model: SegmentationModel, fabric: Fabric, console: Console) -> TrainConfig:
    """Fill in the precision and the order in memory that are fastest here, and say so."""
    if not is_open(config.hardware):
        return config
    with explained_failures():
        hardware, text = probed(config, model, fabric)
    console.print(text, highlight=False, soft_wrap=True)
    return dataclasses.replace(config, hardware=hardware)


def _with_passes(config: TrainConfig, model: SegmentationModel, console: Console) -> TrainConfig:
    """Fill in the number of passes where the config leaves it open."""
    hardware = config.hardware
    if hardware.accumulate is not None:
        return config
    kind = device_type(hardware)
    devices = processes_here(hardware)
    plan = plan_passes(config, model, devices, kind)
    if plan.accumulate > 1:
        samples = config.loader.batch_size // (devices * hardware.nodes * plan.accumulate)
        console.print(
            f"one pass of the batch needs about {plan.needed_bytes / 2**30:.0f} GiB, {plan.free_bytes / 2**30:.0f} are "
            f"free: {plan.accumulate} passes of {samples} samples instead, which batch statistics are then taken over "
            "(hardware.accumulate sets the number)",
            highlight=False,
            soft_wrap=True,
        )
    return dataclasses.replace(config, hardware=dataclasses.replace(hardware, accumulate=plan.accumulate))


def model_facts(config: TrainConfig, model: SegmentationModel, dataset: RGBDDataset) -> ModelFacts:
    """Return what a checkpoint of this run says beside its weights."""
    return ModelFacts(
        model_name=config.model.name,
        model_options=dict(config.model.options),
        input_spec=model.input_spec,
        label_set=dataset.label_set,
        dataset=dataset.description.name,
        hha=dataset.hha_parameters.to_dict() if "hha" in model.input_spec.rasters else None,
        config=config.to_dict(),
        label_values=dataset.description.label_values,
        image_size=dataset.frame_size(0),
    )


def quiet_lightning() -> None:
    """Silence messages of Lightning that are about its own use; for the command line."""
    logging.getLogger("lightning.fabric").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module=r"lightning\..*")
    warnings.filterwarnings("ignore", message="This DataLoader will create")
