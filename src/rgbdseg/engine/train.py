"""Training a model from a config: from an empty run folder, or on from where a run stopped."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.util
import logging
import warnings
from collections.abc import Iterator
from pathlib import Path

import torch
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import EMAWeightAveraging
from lightning.pytorch.loggers import Logger, TensorBoardLogger
from lightning.pytorch.utilities import rank_zero_only
from rich.console import Console
from torch._dynamo.exc import TorchDynamoException

from rgbdseg.config.train import TrainConfig, check_config, passes, samples_per_pass
from rgbdseg.data.dataset import RGBDDataset, rasters_needed
from rgbdseg.data.tree import PreparedTree, open_tree
from rgbdseg.engine.callbacks import RunCheckpoints, TrainingLog, TrainingProgress, interruptible
from rgbdseg.engine.checkpoint_io import AtomicCheckpointIO
from rgbdseg.engine.data_module import SegmentationData
from rgbdseg.engine.hardware import check_hardware, check_share, trainer_options, uses_gpu
from rgbdseg.engine.memory import plan_passes
from rgbdseg.engine.run_folder import RunFolder, trim_log
from rgbdseg.engine.start import EarlierWeights, load_first_weights
from rgbdseg.engine.sync_batch_norm import synchronise_batch_norm
from rgbdseg.engine.task import SegmentationTask
from rgbdseg.errors import DataError, RGBDSegError
from rgbdseg.models._base import SegmentationModel
from rgbdseg.models._registry import create_model
from rgbdseg.weights.checkpoint import ModelFacts, load_torch


def train(config: TrainConfig, out: str | Path, resume: bool = False, console: Console | None = None) -> RunFolder:
    """Train and return the run folder; last.ckpt in it is the result.

    resume: continue the run in ``out`` from its last checkpoint, exactly as if it had never stopped.
    Raises Interrupted (state saved) when a signal stops it, and the library's errors for anything a user can mend.
    """
    console = console or Console(quiet=True)
    check_config(config)
    check_hardware(config.hardware)
    run = RunFolder(Path(out))
    checkpoint = run.last if resume and run.last.is_file() else None
    model, datasets = build_run(config)
    # A checkpoint holds all weights, so a resumed run does not need the files that it started from.
    earlier = None if checkpoint else load_first_weights(model, config.model, datasets[0].label_set)
    config = _with_passes(config, model, run, console)
    task = SegmentationTask(model, config, model_facts(config, model, datasets[0]))
    data = SegmentationData(config, *datasets, task.facts.input_spec, with_depth=trains_on_depth(model))
    trainer = _make_trainer(config, run, console, earlier)
    samples_per_pass(config, trainer.world_size)
    if datasets[1] is not None:
        check_share(len(datasets[1]), trainer.world_size)
    main_process = is_main_process()
    # Everything that can be refused has been: only now is something created.
    if resume:
        run.require_run()
        if main_process:
            run.remove_leftovers()
    elif main_process:
        run.start(config)
    if checkpoint is not None and main_process:
        _trim_to(checkpoint, run, console)
    elif earlier is not None and main_process:
        console.print(str(earlier), highlight=False, soft_wrap=True)
    if trainer.world_size > 1 and config.hardware.sync_batch_norm:
        synchronise_batch_norm(task, cpu=trainer.strategy.root_device.type == "cpu")
    if config.hardware.compile:
        task.model.compile()
    try:
        _fit(trainer, task, data, checkpoint)
    except RGBDSegError:
        if main_process and not resume and trainer.global_step == 0:
            run.undo_start()
        raise
    return run


def _trim_to(checkpoint: Path, run: RunFolder, console: Console) -> None:
    """Bring the log to the state that the run resumes from, and say which it is."""
    iteration = int(load_torch(checkpoint).get("rgbdseg", {}).get("progress", {}).get("iteration", 0))
    trim_log(run.log, iteration)
    console.print(f"resuming after iteration {iteration}", highlight=False)


def _fit(trainer: Trainer, task: SegmentationTask, data: SegmentationData, checkpoint: Path | None) -> None:
    with explained_failures(), interruptible():
        trainer.fit(task, datamodule=data, ckpt_path=checkpoint, weights_only=True)


@contextlib.contextmanager
def explained_failures() -> Iterator[None]:
    """Turn what training trips over, and a user can mend, into RGBDSegError with the remedy."""
    try:
        yield
    except FloatingPointError as error:
        raise RGBDSegError(
            f"{error}; --resume with --hardware.precision 32-true, or start a new run with a lower "
            "--optimizer.learning_rate"
        ) from error
    except ValueError as error:
        if "more than 1 value per channel" not in str(error):
            raise
        raise RGBDSegError(
            "one sample per pass is too few for the batch statistics of this model; raise --loader.batch_size or lower "
            "--hardware.accumulate"
        ) from error
    except TorchDynamoException as error:
        raise RGBDSegError(
            f"torch.compile failed ({str(error).strip().splitlines()[0][:200]}); use --hardware.compile false"
        ) from error
    except torch.OutOfMemoryError as error:
        raise RGBDSegError(
            "the device ran out of memory; raise --hardware.accumulate or use --hardware.precision bf16-mixed, or "
            "start a new run with a lower --loader.batch_size"
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
    if config.hardware.channels_last:
        model.to(memory_format=torch.channels_last)
    needs = rasters_needed(model.input_spec, label=True)
    train_set = RGBDDataset(tree, loader.train_split, needs=needs, hha_cache=loader.hha_cache)
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


def _with_passes(config: TrainConfig, model: SegmentationModel, run: RunFolder, console: Console) -> TrainConfig:
    """Fill in the number of passes where the config leaves it open."""
    hardware = config.hardware
    if hardware.accumulate is not None:
        return config
    if not is_main_process() and run.config_file.is_file():
        # The main process has chosen and taken memory since: all must take its number.
        chosen = run.stored_config().get("hardware", {}).get("accumulate")
        return dataclasses.replace(config, hardware=dataclasses.replace(hardware, accumulate=chosen))
    on_gpu = uses_gpu(hardware)
    devices = hardware.devices if hardware.devices > 0 else max(1, torch.cuda.device_count() if on_gpu else 1)
    plan = plan_passes(config, model, devices, "cuda" if on_gpu else "cpu")
    if plan.accumulate > 1 and is_main_process():
        samples = config.loader.batch_size // (devices * hardware.nodes * plan.accumulate)
        console.print(
            f"one pass of the batch needs about {plan.needed_bytes / 2**30:.0f} GiB, {plan.free_bytes / 2**30:.0f} are "
            f"free: {plan.accumulate} passes of {samples} samples instead, which batch statistics are then taken over "
            "(--hardware.accumulate sets the number)",
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
        hha=dataset.hha_parameters.to_dict() if model.input_spec.geometry == "hha" else None,
        config=config.to_dict(),
    )


def _make_trainer(
    config: TrainConfig, run: RunFolder, console: Console, earlier: EarlierWeights | None = None
) -> Trainer:
    hardware, schedule = config.hardware, config.schedule
    callbacks: list[Callback] = []
    if config.ema_decay is not None:
        callbacks.append(EMAWeightAveraging(decay=config.ema_decay))
    callbacks += [
        TrainingLog(run, started_from=None if earlier is None else earlier.to_dict()),
        TrainingProgress(config, console),
        RunCheckpoints(run, schedule, passes(config), console),
    ]
    return Trainer(
        **trainer_options(hardware),
        precision=hardware.precision,
        max_epochs=schedule.epochs,
        accumulate_grad_batches=passes(config),
        gradient_clip_val=config.optimizer.gradient_clip_norm,
        check_val_every_n_epoch=schedule.validate_every_epochs or None,
        limit_val_batches=1.0 if schedule.validate_every_epochs else 0,
        num_sanity_val_steps=0,
        logger=_make_logger(run),
        callbacks=callbacks,
        plugins=[AtomicCheckpointIO()],
        deterministic=hardware.deterministic,
        log_every_n_steps=10,
        default_root_dir=run.root,
    )


def _make_logger(run: RunFolder) -> Logger | bool:
    if importlib.util.find_spec("tensorboard") is None:
        return False
    return TensorBoardLogger(save_dir=run.root, name=run.tensorboard.name, version="")


def is_main_process() -> bool:
    """Return whether this is the process that creates folders and writes results.

    Lightning starts one process per device by running the same command again.
    """
    return int(getattr(rank_zero_only, "rank", 0) or 0) == 0


def quiet_lightning() -> None:
    """Silence messages of Lightning that are about its own use; for the command line."""
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    logging.getLogger("lightning.fabric").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module=r"lightning\..*")
    warnings.filterwarnings("ignore", message="This DataLoader will create")
