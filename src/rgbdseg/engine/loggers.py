"""Where losses and scores go: log.jsonl in any case, and the loggers that the config names."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import threading
from collections.abc import Callable, Mapping
from typing import Any

from lightning.fabric.loggers.csv_logs import CSVLogger
from lightning.fabric.loggers.logger import Logger
from lightning.fabric.loggers.tensorboard import TensorBoardLogger

from rgbdseg.config.train import LoggingConfig, TrainConfig
from rgbdseg.engine.run_folder import RunFolder
from rgbdseg.errors import UsageError
from rgbdseg.files import WriteError

_PACKAGES = {"tensorboard": "rgbdseg[log]", "wandb": "wandb"}


def check_loggers(config: LoggingConfig) -> None:
    """Raise UsageError for a logger whose package is not installed."""
    for name in config.loggers:
        if name in _PACKAGES and importlib.util.find_spec(name) is None:
            raise UsageError(
                f"logging.loggers has {name}, which is not installed; install it with pip install {_PACKAGES[name]}, "
                "or leave it out"
            )


class RunLog:
    """Appends to log.jsonl and hands numbers to the other loggers; used by the main process only.

    Args:
        run: whose log it is.
        config: of the run.
        step: where this process takes the run up.
    """

    def __init__(self, run: RunFolder, config: TrainConfig, step: int) -> None:
        self.run = run
        self._excepthook = threading.excepthook
        threading.excepthook = _without_tensorboard(threading.excepthook)
        self._loggers = self._guarded(lambda: _make_loggers(run, config, step))

    def line(self, entry: Mapping[str, Any]) -> None:
        """Append one object to log.jsonl; raises WriteError when the disk refuses."""
        try:
            with open(self.run.log, "a", encoding="utf-8") as file:
                file.write(json.dumps(entry) + "\n")
        except OSError as error:
            raise WriteError(f"cannot write {self.run.log}: {error.strerror}") from error

    def numbers(self, step: int, values: Mapping[str, float]) -> None:
        """Give numbers by name (``train/loss``) to the loggers beside log.jsonl."""

        def give() -> None:
            for logger in self._loggers:
                logger.log_metrics(dict(values), step)

        self._guarded(give)

    def close(self, success: bool) -> None:
        """Write what is left."""

        def finish() -> None:
            for logger in self._loggers:
                logger.finalize("success" if success else "failed")

        try:
            if success:
                self._guarded(finish)
            else:
                _try(finish)  # the first error is the one to be told
        finally:
            threading.excepthook = self._excepthook

    def _guarded(self, act: Callable[[], Any]) -> Any:
        """Turn a disk that refuses into one sentence, whatever a logger makes of it."""
        try:
            return act()
        except Exception as error:
            cause: BaseException | None = error
            while cause is not None and not isinstance(cause, OSError):
                cause = cause.__cause__ or cause.__context__
            if cause is None:
                raise
            raise WriteError(f"cannot write the logs of {self.run.root}: {cause.strerror or cause}") from error


def _make_loggers(run: RunFolder, config: TrainConfig, step: int) -> list[Logger]:
    names = set(config.logging.loggers)
    if "tensorboard_if_installed" in names and importlib.util.find_spec("tensorboard") is not None:
        names.add("tensorboard")
    loggers: list[Logger] = []
    if "tensorboard" in names:
        # What a killed run has written after the step that it goes on from is not shown.
        purge: dict[str, Any] = {"purge_step": step + 1} if step else {}
        loggers.append(TensorBoardLogger(root_dir=run.root, name=run.tensorboard.name, version="", **purge))
    if "csv" in names:
        loggers.append(CSVLogger(root_dir=run.root, name=run.csv.name))
    if "wandb" in names:
        from lightning.pytorch.loggers import WandbLogger  # noqa: PLC0415  (imports wandb)

        # The same folder goes on with the same record.
        number = hashlib.sha256(str(run.root.resolve()).encode()).hexdigest()[:12]
        loggers.append(
            WandbLogger(
                project="rgbdseg",
                name=run.root.name,
                id=number,
                resume="allow",
                save_dir=run.root,
                config=config.to_dict(),
            )
        )
    return loggers


def _without_tensorboard(usual: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """TensorBoard's writing thread prints a traceback for a full disk and raises the error in this thread as well."""

    def hook(failed: threading.ExceptHookArgs) -> None:
        if not type(failed.thread).__module__.startswith("tensorboard"):
            usual(failed)

    return hook


def _try(act: Callable[[], Any]) -> None:
    try:
        act()
    except Exception:
        return
