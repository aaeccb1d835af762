"""Trains and tests the network of a config, and writes the folder of the run."""

from __future__ import annotations

import json
import logging
import math
import os
import re
import shlex
import shutil
import signal
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, suppress
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig
from pytorch_lightning.loggers import Logger, WandbLogger
from pytorch_lightning.utilities.exceptions import MisconfigurationException
from torch import Tensor
from torchvision.datasets.folder import IMG_EXTENSIONS

from stn.build import build_classifier, build_data, build_trainer, read_data
from stn.callbacks import History
from stn.check import TTA_OF_POSES, check
from stn.classifier import Classifier
from stn.cli import print_table, rank, say
from stn.config import save, save_epochs, shell_word, write
from stn.data.resident import ResidentDataModule
from stn.errors import DivergedError, InputError, LostProcessError, user_errors
from stn.hyperparameters import hyperparameters, varied
from stn.layers import (
    Affine,
    NotFiniteError,
    Projective,
    RotationClasses,
    Similarity,
    ThinPlateSpline,
    Warp,
    share_left,
    transformers,
)
from stn.layers.warps import nearest_affine
from stn.process import LockedError, locked, prepare_process, warn_of_threads
from stn.provenance import provenance
from stn.resuming import continue_loggers, continue_runs, last_checkpoint, purge_events
from stn.run import load_checkpoint
from stn.tensorboard_logger import OrderedTensorBoardLogger
from stn.untrusted import read_json

log = logging.getLogger(__name__)

# What a run and the commands that open it write into its folder.
FOLDERS = ("checkpoints", "figures", "projector", "wandb", "mlflow", "evaluation", "predictions", "export")
FILES = (
    *("config.yaml", "environment.json", "metrics.*", "hparams.yaml", "error.txt", "report.html"),
    *("events.out.tfevents.*", "projector_config.pbtxt", "mlflow.db"),
)
FEW_IMAGES = 100  # below so many held out, the best epoch is chosen by chance
LARGEST_SHARE_LEFT = 0.5  # of a distortion that the warp is unable to undo
UNDOING: dict[str, Warp] = {  # the plainest first
    "model/warp=rotation_classes": RotationClasses(),
    "model/warp=rotation_classes model.warp.span=360 model.warp.classes=24": RotationClasses(24, 360),
    "model/warp=similarity": Similarity(),
    "model/warp=affine": Affine(),
    "model/warp=projective": Projective(),
    "model/warp=tps": ThinPlateSpline(),
}
RESTARTS = 3  # after divergence, each with half the learning rate


def train(config: DictConfig, callbacks: Sequence[pl.Callback] = (), checkpoint: Path | None = None) -> dict[str, Any]:
    """Trains and tests the network of a config, and writes the run to `config.folder`.

    callbacks: added to those of the config.
    checkpoint: of an interrupted run, which goes on from it, see `resumed`.
    Returns the content of metrics.json. Raises InputError for a config that cannot be run. DivergedError,
    LostProcessError, and KeyboardInterrupt after Ctrl-C are raised after the results so far are reported.
    """
    check(config)
    check_learning(config)
    prepare_process(config)
    folder = Path(config.folder)
    try:
        with locked(folder, wait=False) if rank() == 0 else nullcontext():  # the first process holds the folder
            return train_in(folder, config, callbacks, checkpoint)
    except LockedError as error:
        raise InputError(f"another process is training in {folder}: wait for it, or take another folder") from error


def train_in(
    folder: Path, config: DictConfig, callbacks: Sequence[pl.Callback], checkpoint: Path | None
) -> dict[str, Any]:
    """As `train`, in a folder where no other process trains."""
    with user_errors("folder"):
        if rank() == 0 and checkpoint is None:
            make_folder(folder, config.overwrite)
    restarts = load_checkpoint(checkpoint)["stn"].get("restarts", 0) if checkpoint else 0
    while True:
        trainer, classifier, broke_off = fit(config, callbacks, checkpoint, restarts)
        if not isinstance(broke_off, DivergedError) or config.on_divergence == "stop" or restarts == RESTARTS:
            break
        restarts += 1
        try:
            checkpoint, state = last_checkpoint(folder)
            start = f"epoch {state['stn']['epoch']}"
        except InputError:  # none was written yet
            checkpoint, start = None, "the start"
        say(f"{broke_off}\ngoing back to {start} with half the learning rate ({restarts} of {RESTARTS})")

    data = trainer.datamodule  # type: ignore[attr-defined]  # Lightning sets it
    metrics = fit_metrics(trainer, classifier, data.batch_size * trainer.world_size)
    if restarts:
        metrics["restarts"] = restarts
    if not broke_off:
        kept = getattr(chooser(trainer), "best_model_path", "") or None
        if kept and not Path(kept).is_file():
            say(f"{kept} has been removed: the last weights are tested instead")
            kept = None
        if kept:
            epoch = load_checkpoint(Path(kept))["stn"]["epoch"]
            metrics |= {"tested_checkpoint": os.path.relpath(kept, folder), "tested_epoch": epoch}
        else:
            metrics["tested_epoch"] = trainer.current_epoch
        with broken_off(trainer) as found:
            (test,) = trainer.test(classifier, datamodule=data, ckpt_path=kept, weights_only=True, verbose=False)
            metrics |= {name.replace("/", "_"): value for name, value in test.items() if name.startswith("test/")}
        broke_off = found[0] if found else None
    if trainer.is_global_zero:
        report(folder, () if broke_off else trainer.loggers, metrics)
        for logger in trainer.loggers:
            if isinstance(logger, WandbLogger):  # whose next run would go on with this one
                logger.experiment.finish()
    if broke_off:
        can_go_on = not isinstance(broke_off, DivergedError) and (folder / "checkpoints" / "last.ckpt").exists()
        if trainer.is_global_zero and can_go_on:
            say(f"it goes on with: python -m stn.train {shell_word('resume', os.path.relpath(folder))}")
        raise broke_off
    return metrics


def fit(
    config: DictConfig, callbacks: Sequence[pl.Callback], checkpoint: Path | None, restarts: int
) -> tuple[pl.Trainer, Classifier, BaseException | None]:
    """Trains from a checkpoint or the start. Returns the trainer, the classifier, and what broke the training off.

    restarts: how often the learning rate was halved after a divergence.
    """
    pl.seed_everything(config.seed, verbose=False)
    state = load_checkpoint(checkpoint) if checkpoint else None
    config, given = config.copy(), config
    if state is None:
        config.optimizer.lr *= 0.5**restarts
    if state or restarts:
        purge_events(config, state["global_step"] if state else 0)
    if state:
        continue_runs(config, state)

    compiling = [Compile(config.compile)] if config.compile else []
    trainer = build_trainer(config, [*callbacks, *compiling, KeepSigterm()])
    if rank() > 0 and trainer.world_size == 1:  # its folder is temporary
        raise InputError(
            f"this is process {rank()} of several, by RANK, SLURM_PROCID or LOCAL_RANK, and trains alone: set "
            "trainer.devices for one training by all, or unset them"
        )
    if config.on_divergence == "restart" and trainer.world_size > 1:
        raise InputError("on_divergence=restart needs trainer.devices=1: several processes cannot go back together")
    if trainer.world_size > 1 and HydraConfig.initialized() and HydraConfig.get().mode is RunMode.MULTIRUN:
        raise InputError(f"a job of a sweep trains in one process, not {trainer.world_size}: set trainer.devices=1")
    data = build_data(config, trainer)
    classifier = build_classifier(config, data)
    classifier.restarts = restarts
    if trainer.is_global_zero:
        say(f"{os.path.relpath(config.folder)}: {describe(config, trainer, classifier)}")
        warn_of_threads(trainer.strategy.root_device)
    read_data(data, "fit", "test")
    check_poses(trainer, config, data, classifier)
    if trainer.is_global_zero:
        warn_of_few_images(trainer, data)
    classifier.data_digest = data.digest
    if state and state["stn"].get("data", data.digest) != data.digest:
        raise InputError(f"the training data are not those that {checkpoint} was trained on: it cannot be resumed")
    # Only now: a run that cannot begin costs nothing of what is in the folder.
    if trainer.is_global_zero:
        open_folder(given, trainer, data, is_new=state is None)
    open_loggers(config, trainer, classifier, is_new=state is None)
    if state:
        if trainer.is_global_zero:
            continue_loggers(trainer.loggers, state)
            if state["stn"].get("restarts", 0) == restarts:  # else it goes back after a divergence
                note_resuming(Path(config.folder), trainer)
        classifier.random_state = state["stn"]["random_state"]
    try:
        with broken_off(trainer) as found:
            trainer.fit(classifier, datamodule=data, ckpt_path=checkpoint, weights_only=True)
    except InputError:
        raise
    except Exception as error:
        if classifier.random_state is None:  # it has trained
            raise
        raise InputError(f"{checkpoint} does not hold the state of a run of this config: {error}") from error
    return trainer, classifier, found[0] if found else None


def open_folder(config: DictConfig, trainer: pl.Trainer, data: ResidentDataModule, *, is_new: bool) -> None:
    """Empties the folder of a new run, and notes the command that began it; keeps the config."""
    folder = Path(config.folder)
    if is_new:
        empty_folder(folder)
        read = {"classes": list(data.classes), "train_digest": data.digest, "test_digest": data.test_digest}
        write_json(folder / "environment.json", provenance(trainer.strategy.root_device) | {"data": read})
    (folder / "error.txt").unlink(missing_ok=True)  # of what was tried before
    if is_new or not (folder / "config.yaml").exists():
        save(config, folder / "config.yaml")
    else:
        save_epochs(config.trainer.max_epochs, folder / "config.yaml")


def note_resuming(folder: Path, trainer: pl.Trainer) -> None:
    """Notes the command that resumes a run, and deletes the metrics of what it was before."""
    (folder / "metrics.json").unlink(missing_ok=True)
    here = provenance(trainer.strategy.root_device)
    with suppress(OSError, ValueError, TypeError):  # a run without its environment.json goes on too
        before = dict(read_json(folder / "environment.json"))
        resumed = [*before.get("resumed", []), {key: here[key] for key in ("command", "commit", "date")}]
        write_json(folder / "environment.json", before | {"resumed": resumed})


def open_loggers(config: DictConfig, trainer: pl.Trainer, classifier: Classifier, *, is_new: bool) -> None:
    """Opens the loggers, and tells those of a new run its settings. Raises InputError for one that cannot be opened."""
    overrides = HydraConfig.get().overrides.task if HydraConfig.initialized() else []
    settings = hyperparameters(config, overrides) | {"tta": classifier.tta}
    for logger in trainer.loggers:
        with user_errors("logger", Exception):  # of arguments, files, servers and accounts
            _ = logger.experiment  # type: ignore[attr-defined]  # every class of loggers has it
        if is_new:
            logger.log_hyperparams(settings)
            if isinstance(logger, OrderedTensorBoardLogger):
                logger.log_row(settings, varied(overrides))


def check_learning(config: DictConfig) -> None:
    """Raises InputError for a transformer that would learn nothing or other poses than the true, and a blind search."""
    if config.arm == "search" and config.tta != "turns":
        raise InputError(f"arm=search looks in 12 directions by tta=turns, not tta={config.tta}: set tta=turns")
    weight, transformer = config.pose_weight, config.model.get("transformer")
    if not isinstance(transformer, DictConfig):
        return
    if not weight and transformer.get("classifier_gradient") == 0 and config.model.get("placement") != "none":
        raise InputError(
            "model.transformer.classifier_gradient=0 leaves the transformer nothing to learn from: set pose_weight=1, "
            "or a gradient above 0"
        )
    if weight and transformer.get("align_corners"):  # the true poses are those of the edges of pixels
        raise InputError(f"pose_weight={weight} needs model.transformer.align_corners=false: leave out one of the two")


def check_poses(trainer: pl.Trainer, config: DictConfig, data: ResidentDataModule, classifier: Classifier) -> None:
    """Raises InputError if poses cannot be learned as `pose_weight` asks for, and warns of turns beyond the warp's."""
    if not config.pose_weight:
        return
    said = f"pose_weight={config.pose_weight}"
    first = next(iter(transformers(classifier.net).values()), None)
    if first is None:
        raise InputError(f"{said} needs a transformer: set model.placement=input, or leave it out")
    if len(transformers(classifier.net)) > 1 and config.model.transformer.get("classifier_gradient") == 0:
        raise InputError(
            f"{said} teaches the first transformer alone, so with model.transformer.classifier_gradient=0 the others "
            "learn nothing: set a gradient above 0, or model.placement=input"
        )
    if "train" in data.figures and (data.augmentation.flip or data.augmentation.shift):
        raise InputError(f"{said} needs the poses of the data set, which are moved: set data.flip=false data.shift=0")
    *_, figures = next(iter(data.train_dataloader()))
    if figures.ndim != 3:
        raise InputError(f"{said} needs images whose poses are known: set data/distortion=rts, or data=shapes")
    warp, figures = deepcopy(first.warp).cpu(), figures[:64].cpu()
    left = share_left(warp, figures)
    if left > LARGEST_SHARE_LEFT:
        advice = warp_for(figures, is_poses=config.tta in TTA_OF_POSES)
        raise InputError(f"{said}: {type(warp).__name__} leaves {left:.0%} of the distortion of these images: {advice}")
    if isinstance(warp, RotationClasses) and trainer.is_global_zero:
        turned, reach = (float(one.abs().max().rad2deg()) for one in (nearest_affine(figures)["rotation"], warp.angles))
        if turned > reach + math.degrees(warp.step):
            wider = "model.warp.span=180" if turned < 91 else "model.warp.span=360 model.warp.classes=24"
            log.warning("images are turned by %.0f degrees, and the warp by %.0f at most: set %s", turned, reach, wider)


def warp_for(figures: Tensor, is_poses: bool) -> str:
    """The settings of the plainest family of warps that can undo a distortion, in words.

    figures (N, 16, 2): where in the images the `figure_points` are. is_poses: whether `tta` reads several poses.
    """
    for words, warp in UNDOING.items():
        if share_left(warp, figures) < 0.1:
            reads = " tta=null" if is_poses and not isinstance(warp, RotationClasses) else ""
            return f"set {words}{reads}"
    return "choose another data/distortion"


def chooser(trainer: pl.Trainer) -> pl.callbacks.Checkpoint | None:
    """The callback whose weights are tested: one that watches a metric, or else the first; None without any."""
    callbacks = sorted(trainer.checkpoint_callbacks, key=lambda callback: getattr(callback, "monitor", None) is None)
    return callbacks[0] if callbacks else None


def warn_of_few_images(trainer: pl.Trainer, data: ResidentDataModule) -> None:
    """Warns if few held-out images choose the weights that are tested."""
    held_out = len(data.labels["val"])
    if held_out < FEW_IMAGES and data.validate_on != "test" and getattr(chooser(trainer), "monitor", None):
        log.warning(
            "the tested epoch is chosen by %d held-out images, much by chance: hold out %d by data.val_fraction, or "
            "test the last epoch by callbacks.checkpoint=null",
            held_out,
            FEW_IMAGES,
        )


def make_folder(folder: Path, overwrite: bool) -> None:
    """Makes the folder of a run.

    Raises InputError for one that holds a run, unless `overwrite`, or that holds images or folders of something else.
    """
    if folder.resolve() == Path.cwd():
        raise InputError("a run would fill the current folder: give it one of its own, such as hydra.run.dir=runs/mine")
    if (folder / "config.yaml").exists() and not overwrite:
        go_on = shell_word("resume", str(folder))
        raise InputError(f"{folder} holds a run already: go on with it by {go_on}, or set overwrite=true")
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / "config.yaml").exists():
        of_an_attempt = FOLDERS if overwrite else ()
        for path in sorted(folder.iterdir()):
            is_data = path.is_dir() or path.suffix.lower() in IMG_EXTENSIONS
            if is_data and not path.name.startswith(".") and path.name not in of_an_attempt:
                name = path.name + "/" * path.is_dir()
                raise InputError(f"{folder} holds {name} already, which is not of a run: give another folder")


def empty_folder(folder: Path) -> None:
    """Deletes what an earlier run has written into a folder."""
    for name in FOLDERS:
        shutil.rmtree(folder / name, ignore_errors=True)
    for pattern in FILES:
        for path in folder.glob(pattern):
            path.unlink()


class KeepSigterm(pl.Callback):
    """Keeps the program's own handler of SIGTERM: Lightning's waits for processes that wait for this one."""

    def __init__(self) -> None:
        self.handler = signal.getsignal(signal.SIGTERM)

    def on_sanity_check_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if threading.current_thread() is threading.main_thread():  # which alone handles signals
            signal.signal(signal.SIGTERM, self.handler)

    on_train_start = on_validation_start = on_test_start = on_sanity_check_start


class Compile(pl.Callback):
    """Compiles the network when training starts, in one of torch.compile's modes."""

    # Not earlier: torch 2.12 never compiles what ran first while Lightning's summary counted operations.

    def __init__(self, mode: str) -> None:
        self.mode = mode

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        pl_module.get_submodule("net").compile(mode=self.mode)


@contextmanager
def broken_off(trainer: pl.Trainer) -> Iterator[list[BaseException]]:
    """Yields a list, to which what breaks a training off is appended, so that the results so far can be reported.

    That is KeyboardInterrupt, for which Lightning raises SystemExit; DivergedError, also where a θ is not finite; and
    LostProcessError. Raises InputError for errors that Lightning finds only in training, such as a monitor
    that nothing logs.
    """
    found: list[BaseException] = []
    try:
        yield found
    except SystemExit as left:
        if not trainer.interrupted or left.__context__ is None:
            raise
        found.append(left.__context__)
    except DivergedError as error:
        found.append(error)
    except NotFiniteError as error:
        diverged = DivergedError(
            f"training has diverged: in epoch {trainer.current_epoch + 1} a transformer's θ is not finite; try a lower "
            "optimizer.lr or optimizer.localization_lr_scale, or trainer.gradient_clip_val=1.0"
        )
        diverged.__cause__ = error
        found.append(diverged)
    except (RuntimeError, ValueError) as error:  # Lightning has no class for what is the user's
        sentence = str(error).strip()
        if trainer.world_size > 1 and re.search("[Cc]onnection (closed|reset)|Broken pipe|NCCL|[Tt]imed out", sentence):
            lost = LostProcessError("another process of this training has ended; its own error says why")
            lost.__cause__ = error
            found.append(lost)
            return
        if not sentence.startswith(("Early stopping conditioned on metric", "`val_check_interval`")):
            raise
        raise InputError(sentence) from error
    except OSError as error:
        if not error.filename or Path(trainer.default_root_dir) not in Path(os.fsdecode(error.filename)).parents:
            raise
        raise InputError(f"the run's folder cannot be written any more: {error}") from error
    except MisconfigurationException as error:
        sentence = str(error).partition(" HINT")[0]  # the hints are for authors of a LightningModule
        raise InputError(sentence) from error


def describe(config: DictConfig, trainer: pl.Trainer, classifier: Classifier) -> str:
    """Tells how a run computes: precision, device, threads, memory format, compilation and optimizer."""
    device, threads = trainer.strategy.root_device, torch.get_num_threads()
    said = [f"{trainer.precision} on {device}", f"{threads} thread{'s' * (threads > 1)}"]
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
    write(path, json.dumps(finite, indent=2, allow_nan=False) + "\n")


def report(folder: Path, loggers: Sequence[Logger], metrics: Mapping[str, Any]) -> None:
    """Writes metrics.json, prints it as a table, and says where the rest is."""
    write_json(folder / "metrics.json", metrics)
    print_table(metrics)
    shown = os.path.relpath(folder)
    said = f"everything is in {shown}"
    if (folder / "figures" / "warps").is_dir():
        said += f", the pictures of every epoch in {shown}/figures/warps"
    say(said)
    for logger in loggers:
        if isinstance(logger, OrderedTensorBoardLogger):
            logger.log_success()
            program = "tensorboard"
            if not shutil.which(program):
                program = os.path.relpath(Path(sys.executable).with_name(program))
            say(f"the dashboard: {shlex.join([program, '--logdir', shown])}")
