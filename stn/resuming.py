"""Goes on with an interrupted run: its config, its checkpoint, and what its loggers wrote."""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from pytorch_lightning.loggers import Logger, TensorBoardLogger

from stn.check import check
from stn.config import override
from stn.csv_logger import DurableCSVLogger, read_rows
from stn.errors import InputError
from stn.run import find_run, load_checkpoint, read_config, read_metrics

WHERE = ("dirpath", "folder", "save_dir", "root_dir", "log_dir", "artifact_location")  # where something is written
# Loggers that can send what they log, and their keys that a file may set: others could send it to a stranger.
RUN_ID = {"MLFlowLogger": "run_id", "WandbLogger": "id"}
SENDING = {
    "MLFlowLogger": ("experiment_name", "run_name", "save_dir", "artifact_location", "tracking_uri", "log_model"),
    "WandbLogger": ("project", "name", "entity", "save_dir", "offline", "log_model"),
}


def resumed(where: str, overrides: Sequence[str] = (), allow: Sequence[str] = ()) -> tuple[DictConfig, Path]:
    """The config of an interrupted run, and the checkpoint that holds its state.

    where: a run's folder or "latest". overrides: may raise trainer.max_epochs, if the schedule is constant.
    allow: packages whose classes the config may name, see `Run.open`.
    Raises InputError for a run that cannot go on.
    """
    folder = run_to_resume(where)
    config = read_config(folder, allow)
    assert config is not None
    check_paths(config, folder)
    checkpoint, state = last_checkpoint(folder)
    free = ("resume", "allow", "trainer.max_epochs", "hydra.run.dir")
    for text in overrides:
        if text.partition("=")[0] not in free:
            raise InputError(
                f"{text} cannot be set on resuming, which takes the run's own config: only trainer.max_epochs can be "
                "raised"
            )
    before = config.trainer.max_epochs
    more = [text for text in overrides if text.startswith("trainer.max_epochs=")]
    changed = override(config, more)
    check(changed)
    is_constant = config.optimizer.schedule == "constant"
    if changed.trainer.max_epochs != before and not is_constant:
        raise InputError(
            f"trainer.max_epochs={changed.trainer.max_epochs} cannot be set on resuming: the schedule "
            f"{config.optimizer.schedule} ends after {before} epochs; only a constant schedule can have more or fewer"
        )
    epoch = state["stn"]["epoch"]
    if more and changed.trainer.max_epochs < epoch:
        raise InputError(f"{more[-1]} cannot be set on resuming: {folder} has been trained for {epoch} epochs already")
    # A run that was interrupted in its test goes on too: the test is made then.
    if "test_accuracy" in read_metrics(folder) and not (more and epoch < changed.trainer.max_epochs):
        raise InputError(
            f"{folder} is finished after {epoch} epoch{'s' * (epoch != 1)}: there is nothing to resume"
            + (", unless trainer.max_epochs is raised" if is_constant else "")
        )
    return changed, checkpoint


def run_to_resume(where: str) -> Path:
    """The folder of the run that is to go on. Raises InputError for a folder that holds none."""
    folder = find_run(where)
    if folder.is_file():  # a checkpoint of the run
        folder = folder.parent.parent
    if not (folder / "config.yaml").exists():
        if (folder / "multirun.yaml").exists():
            raise InputError(f"{folder} holds a sweep: go on with it by -m {shlex.quote(f'resume={folder}')}")
        raise InputError(f"{folder} has no config.yaml, so it cannot be resumed: give the folder of a run")
    return folder


def check_paths(config: DictConfig, folder: Path) -> None:
    """Raises InputError for a callback or a logger that would write outside the run's folder, or send to a stranger."""
    inside = folder.resolve()
    for group in ("callbacks", "logger"):
        for name, node in config[group].items():
            sent = SENDING.get(str((node or {}).get("_target_")).rpartition(".")[2])
            for key, value in (node or {}).items():
                shown = f"{folder}/config.yaml: {group}.{name}.{key}={value}"
                if key in WHERE and value is not None and not Path(value).resolve().is_relative_to(inside):
                    raise InputError(f"{shown} lies outside {folder}, and resuming would write there: set it inside")
                if sent and key not in ("_target_", *sent):
                    raise InputError(f"{shown} is not followed on resuming, only {', '.join(sent)}: leave it out")
                if key == "tracking_uri" and not is_own(value, inside):
                    raise InputError(
                        f"{shown} lies outside {folder}, and resuming would send there what is logged: if it is yours, "
                        "set MLFLOW_TRACKING_URI to it"
                    )


def is_own(uri: str | None, folder: Path) -> bool:
    """Whether a store of MLflow is a file within a folder, or the one that the user's environment names."""
    if uri is None or uri == os.environ.get("MLFLOW_TRACKING_URI"):
        return True
    path = re.fullmatch(r"(?:sqlite:///|file:(?://)?)([^?#]*)", uri)
    return path is not None and Path(path[1]).resolve().is_relative_to(folder)


def last_checkpoint(folder: Path) -> tuple[Path, dict[str, Any]]:
    """The last checkpoint of a run that can be read, and its content. Raises InputError if there is none.

    That is last.ckpt; without it, the file that was written last, whatever the config calls it.
    """
    broken: InputError | None = None
    paths = [path for path in (folder / "checkpoints").glob("*.ckpt") if path.is_file()]
    for path in sorted(paths, key=lambda path: (path.name == "last.ckpt", path.stat().st_mtime_ns), reverse=True):
        try:
            content = load_checkpoint(path)
        except InputError as error:
            broken = broken or error
            continue
        if broken:
            print(f"{broken}\nresuming from {path} instead, after epoch {content['stn']['epoch']}")
        return path, content
    raise broken or InputError(
        f"{folder} has no checkpoint in checkpoints/, so it cannot be resumed: train again, without callbacks=minimal"
    )


def purge_events(config: DictConfig, step: int) -> None:
    """Has TensorBoard hide what was logged from a step on, because it is trained again."""
    for node in config.logger.values():
        if node and node["_target_"].endswith("TensorBoardLogger"):
            OmegaConf.update(node, "purge_step", step, force_add=True)


def continue_runs(config: DictConfig, state: dict[str, Any]) -> None:
    """Has Weights & Biases and MLflow go on with their own run, which the checkpoint names whose content is `state`."""
    runs = state["stn"].get("logger_runs", {})
    for node in config.logger.values():
        kind = str(node["_target_"] if node else None).rpartition(".")[2]
        if kind in RUN_ID and re.fullmatch(r"\w+", str(runs.get(kind) or "")):
            OmegaConf.update(node, RUN_ID[kind], runs[kind], force_add=True)


def continue_loggers(loggers: Sequence[Logger], state: dict[str, Any]) -> None:
    """Has loggers continue after the checkpoint whose content is `state`.

    metrics.csv loses the rows that are trained again. The row of the epoch's means may be missing: it is written after
    the checkpoint, and the run may have been killed in between.
    """
    step = state["global_step"] - 1
    means = {**state["stn"].get("train_means", {}), "epoch": state["epoch"]}
    for logger in loggers:
        if isinstance(logger, DurableCSVLogger):
            rows = read_rows(Path(logger.experiment.metrics_file_path))
            rows = [row for row in rows if row.get("step", "").isdigit() and int(row["step"]) <= step]
            if rows and not any(row["step"] == str(step) and "train/loss" in row for row in rows):
                rows.append({**{key: str(value) for key, value in means.items()}, "step": str(step)})
            logger.experiment.replace(rows)
        elif isinstance(logger, TensorBoardLogger) and not has_means(Path(logger.log_dir), step):
            logger.log_metrics(means, step)


def has_means(folder: Path, step: int) -> bool:
    """Whether TensorBoard's files in a folder have the means of the training metrics at a step."""
    from tensorboard.backend.event_processing.event_file_loader import EventFileLoader  # takes a second to import

    return any(
        event.step == step and any(value.tag in ("loss/train", "train/loss") for value in event.summary.value)
        for path in folder.glob("events.out.tfevents.*")
        for event in EventFileLoader(str(path)).Load()
    )
