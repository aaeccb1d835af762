"""Builds the data module, the classifier and the trainer of a config."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytorch_lightning as pl
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from pytorch_lightning.callbacks import LearningRateMonitor, ModelCheckpoint, ModelSummary, ProgressBar

from stn.checkpoint_io import DurableCheckpointIO
from stn.classifier import Classifier
from stn.data.decoding import BrokenFilesError
from stn.data.resident import ResidentDataModule
from stn.errors import require, user_errors


def build_data(config: DictConfig, trainer: pl.Trainer | None = None) -> ResidentDataModule:
    """Builds the data module of a config; `read_data` reads it.

    The images will be on the trainer's device, or on the CPU without a trainer.
    Raises InputError for values that cannot be used.
    """
    with user_errors("data"):
        data: ResidentDataModule = instantiate(config.data)
    data.trainer = trainer
    return data


def read_data(data: ResidentDataModule, *stages: str) -> ResidentDataModule:
    """Reads what the stages need: "fit", "test". Raises InputError for files that cannot be used."""
    broken: list[BrokenFilesError] = []
    with user_errors("data"):
        data.prepare_data()
        for stage in stages:
            try:
                data.setup(stage)
            except BrokenFilesError as error:  # those of the other stages are told too
                broken.append(error)
        if broken:
            every = {path: said for error in broken for path, said in error.broken.items()}
            raise BrokenFilesError(every, {path for error in broken for path in error.paths})
    return data


def build_classifier(config: DictConfig, data: ResidentDataModule) -> Classifier:
    """Builds the classifier of a config for the images and classes of `data`.

    Raises InputError for values that cannot be used.
    """
    plain: Any = OmegaConf.to_container(config, resolve=True)
    with user_errors("optimizer"):
        instantiate(plain["optimizer"])  # only so that an error names the right group
    with user_errors("model"):
        return Classifier(
            plain["model"],
            plain["optimizer"],
            classes=list(data.classes),
            channels=data.channels,
            image_size=data.input_size,
            label_smoothing=plain["label_smoothing"],
            pose_weight=plain["pose_weight"],
            pose_label_weight=plain["pose_label_weight"],
            tta=plain["tta"] or ("mirror" if data.augmentation.flip else "none"),
            channels_last=plain["channels_last"],
        )


def build_trainer(config: DictConfig, callbacks: Sequence[pl.Callback] = ()) -> pl.Trainer:
    """Builds the trainer of a config, with its callbacks and loggers.

    callbacks: appended to those of the config.
    Raises InputError for values that cannot be used.
    """
    loggers = build_group(config, "logger")
    every = [*build_group(config, "callbacks"), *callbacks]
    # A checkpoint to go on from holds what is known of the best one, so it is written after that.
    every.sort(key=lambda callback: isinstance(callback, ModelCheckpoint) and callback.monitor is None)
    if not loggers:  # LearningRateMonitor raises an error without one
        every = [callback for callback in every if not isinstance(callback, LearningRateMonitor)]
    with user_errors("trainer", TypeError, RuntimeError):  # of devices that Lightning cannot count, and of SLURM
        trainer: pl.Trainer = instantiate(
            config.trainer,
            callbacks=every,
            logger=loggers,
            default_root_dir=config.folder,
            plugins=[DurableCheckpointIO()],
            # Otherwise Lightning adds its defaults where the config has none.
            enable_checkpointing=any(isinstance(callback, ModelCheckpoint) for callback in every),
            enable_progress_bar=any(isinstance(callback, ProgressBar) for callback in every),
            enable_model_summary=any(isinstance(callback, ModelSummary) for callback in every),
            enable_autolog_hparams=False,
        )
    return trainer


def build_group(config: DictConfig, group: str) -> list[Any]:
    """Builds the objects of `callbacks` or `logger`, in order. A key that is null is left out."""
    built = []
    for name, node in config[group].items():
        if node is None:
            continue
        logs_elsewhere = node["_target_"].rpartition(".")[2] in ("MLFlowLogger", "WandbLogger")
        if logs_elsewhere:
            require_logger(node)
        # Servers and accounts have errors of their own.
        with user_errors(f"{group}.{name!s}", *([Exception] if logs_elsewhere else [])):
            built.append(instantiate(node))
    return built


def require_logger(node: DictConfig) -> None:
    """Raises InputError if a package is not installed that a logger of another package needs."""
    if node["_target_"].endswith("WandbLogger"):
        require("wandb", "wandb")
    else:
        database = str(node.get("tracking_uri")).startswith(
            "sqlite:"
        )  # which the light package of MLflow does not have
        require("mlflow", "mlflow", *(["sqlalchemy"] if database else []))
