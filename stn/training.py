"""Trains and tests the network of a config, and writes the folder of the run."""

from __future__ import annotations

import json
import math
import os
import shutil
import signal
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from omegaconf import DictConfig
from pytorch_lightning.loggers import Logger, TensorBoardLogger
from pytorch_lightning.utilities.exceptions import MisconfigurationException

from stn.build import build_classifier, build_data, build_trainer, read_data
from stn.callbacks import History
from stn.check import check
from stn.classifier import Classifier
from stn.cli import Terminated, print_table
from stn.config import save
from stn.errors import DivergedError, InputError, user_errors
from stn.layers import NotFiniteError
from stn.process import prepare_process
from stn.resuming import continue_loggers, read_rows
from stn.run import load_checkpoint


def train(config: DictConfig, callbacks: Sequence[pl.Callback] = (), checkpoint: Path | None = None) -> dict[str, Any]:
    """Trains and tests the network of a config, and writes the run to `config.folder`.

    callbacks: added to those of the config.
    checkpoint: of an interrupted run, which goes on from it, see `resumed`.
    Returns the content of metrics.json. Raises InputError for a config that cannot be run, and DivergedError. After
    Ctrl-C it reports the results so far, then raises KeyboardInterrupt.
    """
    check(config)
    prepare_process(config)
    folder = Path(config.folder)
    state = load_checkpoint(checkpoint) if checkpoint else None
    rows = read_rows(folder, state["global_step"]) if state else []
    with user_errors("folder"):
        if checkpoint is None and int(os.environ.get("LOCAL_RANK", 0)) == 0:
            make_folder(folder, config.overwrite)
        save(config, folder / "config.yaml")
    pl.seed_everything(config.seed, verbose=False)

    trainer = build_trainer(config, callbacks)
    data = build_data(config, trainer)
    classifier = build_classifier(config, data)
    if state:
        continue_loggers(trainer.loggers, rows, state)
        classifier.random_state = state["stn"]["random_state"]
    if config.compile:
        classifier.net.compile(mode=config.compile)
    if trainer.is_global_zero:
        print(f"{os.path.relpath(folder)}: {describe(config, trainer, classifier)}")
    read_data(data, "fit", "test")

    diverged: DivergedError | None = None
    try:
        with stop_on_sigterm(), keep_after_ctrl_c(trainer):
            trainer.fit(classifier, datamodule=data, ckpt_path=checkpoint, weights_only=True)
    except DivergedError as error:
        diverged = error
    except Exception as error:
        if classifier.random_state is None:  # it has trained
            raise
        raise InputError(f"{checkpoint} does not hold the state of a run of this config: {error}") from error
    metrics = fit_metrics(trainer, classifier, data.batch_size * trainer.world_size)
    if not trainer.interrupted:
        kept = getattr(trainer.checkpoint_callback, "best_model_path", "") or None
        if kept:
            epoch = load_checkpoint(Path(kept))["stn"]["epoch"]
            metrics |= {"tested_checkpoint": os.path.relpath(kept, folder), "tested_epoch": epoch}
        else:
            metrics["tested_epoch"] = trainer.current_epoch
        with stop_on_sigterm(), keep_after_ctrl_c(trainer):
            (test,) = trainer.test(classifier, datamodule=data, ckpt_path=kept, weights_only=True, verbose=False)
            metrics |= {name.replace("/", "_"): value for name, value in test.items() if name.startswith("test/")}
    if trainer.is_global_zero:
        report(folder, classifier, () if trainer.interrupted else trainer.loggers, metrics)
    if diverged:
        raise diverged
    if trainer.interrupted:
        if trainer.is_global_zero and (folder / "checkpoints" / "last.ckpt").exists():
            print(f"it goes on with: python -m stn.train resume={os.path.relpath(folder)}")
        raise Terminated if trainer.received_sigterm else KeyboardInterrupt
    return metrics


def make_folder(folder: Path, overwrite: bool) -> None:
    """Makes the folder of a run. A run that it holds is deleted if `overwrite`, otherwise InputError is raised."""
    if (folder / "config.yaml").exists():
        if not overwrite:
            raise InputError(f"{folder} holds a run already: go on with it by resume={folder}, or set overwrite=true")
        for name in ("checkpoints", "figures"):
            shutil.rmtree(folder / name, ignore_errors=True)
        for pattern in ("config.yaml", "metrics.*", "hparams.yaml", "error.txt", "events.out.tfevents.*"):
            for path in folder.glob(pattern):
                path.unlink()
    folder.mkdir(parents=True, exist_ok=True)


@contextmanager
def stop_on_sigterm() -> Iterator[None]:
    """Has SIGTERM, which schedulers send, end a run as Ctrl-C does, but with `Terminated`."""
    if threading.current_thread() is not threading.main_thread():  # only the main thread handles signals
        yield
        return

    def stop(*signal_and_frame: Any) -> None:
        raise Terminated

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@contextmanager
def keep_after_ctrl_c(trainer: pl.Trainer) -> Iterator[None]:
    """Swallows the SystemExit that Lightning raises after Ctrl-C, so that partial results are reported.

    Raises InputError for errors that Lightning finds only in training, such as a monitor that nothing logs, and
    DivergedError for a θ that is not finite.
    """
    try:
        yield
    except SystemExit:
        if not trainer.interrupted:
            raise
    except NotFiniteError as error:
        raise DivergedError(
            f"training has diverged: in epoch {trainer.current_epoch + 1} a transformer's θ is not finite; try a lower "
            "optimizer.lr or optimizer.localization_lr_scale, or trainer.gradient_clip_val=1.0"
        ) from error
    except (RuntimeError, ValueError) as error:  # Lightning has no class for what is the user's
        sentence = str(error).strip()
        if not sentence.startswith(("Early stopping conditioned on metric", "`val_check_interval`")):
            raise
        raise InputError(sentence) from error
    except MisconfigurationException as error:
        sentence = str(error).partition(" HINT")[0]  # the hints are for authors of a LightningModule
        raise InputError(sentence) from error


def describe(config: DictConfig, trainer: pl.Trainer, classifier: Classifier) -> str:
    """Tells how a run computes: precision, device, threads, memory format, compilation and optimizer."""
    device = trainer.strategy.root_device
    said = [f"{trainer.precision} on {device}", f"{torch.get_num_threads()} threads"]
    if config.channels_last:
        said.append("channels-last")
    said.append(f"compiled ({config.compile})" if config.compile else "not compiled")
    optimization = classifier.optimization
    fused = optimization.is_fused(bool(trainer.gradient_clip_val))
    said.append(f"{optimization.algorithm}{' fused' if fused else ''}")
    if device.type == "cuda":
        said.append(f"float32 products in {config.matmul_precision} precision")
    if torch.are_deterministic_algorithms_enabled():
        slower = " (transformers sample by gathering, which is slower)" if device.type == "cuda" else ""
        said.append(f"deterministic{slower}")
    return ", ".join(said)


def fit_metrics(trainer: pl.Trainer, classifier: Classifier, images: int) -> dict[str, Any]:
    """The number of parameters and, from the history, accuracies, seconds and images per second.

    images: in a step, over all processes.
    """
    metrics: dict[str, Any] = {"parameters": sum(parameter.numel() for parameter in classifier.net.parameters())}
    history = next((callback for callback in trainer.callbacks if isinstance(callback, History)), None)  # type: ignore[attr-defined]
    if history is None or not history.epochs:
        return metrics
    metrics["epochs"] = history.epochs
    if history.rows:
        best = history.best()
        metrics |= {"best_epoch": best["epoch"], "best_val_accuracy": best["val/accuracy"]}
        metrics["last_val_accuracy"] = history.rows[-1]["val/accuracy"]
    return metrics | {
        "seconds": history.seconds,
        "seconds_per_epoch": history.seconds / history.epochs,
        "images_per_second": images * history.steps / history.seconds,
    }


def write_json(path: Path, values: Mapping[str, Any]) -> None:
    """Writes a JSON file at once, or leaves the one before. Numbers that are not finite become null."""
    finite = {
        name: None if isinstance(value, float) and not math.isfinite(value) else value for name, value in values.items()
    }
    part = path.with_suffix(".part")
    part.write_text(json.dumps(finite, indent=2, allow_nan=False) + "\n")
    part.replace(path)


def report(folder: Path, classifier: Classifier, loggers: Sequence[Logger], metrics: Mapping[str, Any]) -> None:
    """Writes metrics.json, prints it as a table, and logs it to TensorBoard with the hyper-parameters."""
    write_json(folder / "metrics.json", metrics)
    print_table(metrics)
    shown = os.path.relpath(folder)
    print(f"everything is in {shown}, the pictures in {shown}/figures")
    for logger in loggers:
        if isinstance(logger, TensorBoardLogger):
            numbers = {f"summary/{name}": value for name, value in metrics.items() if not isinstance(value, str)}
            logger.log_hyperparams(dict(classifier.hparams), numbers)
            logger.save()
            program = "tensorboard"
            if not shutil.which(program):
                program = os.path.relpath(Path(sys.executable).with_name(program))
            print(f"the dashboard: {program} --logdir {shown}")
