"""Goes on with an interrupted run: its config, its checkpoint, and what its loggers wrote."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from pytorch_lightning.loggers import CSVLogger, Logger

from stn.config import override
from stn.errors import InputError
from stn.run import find_run, load_checkpoint, read_config


def resumed(where: str, overrides: Sequence[str] = ()) -> tuple[DictConfig, Path]:
    """The config of an interrupted run, and the checkpoint that holds its state.

    where: a run's folder or "latest". overrides: may raise trainer.max_epochs, if the schedule is constant.
    Raises InputError for a run that cannot go on.
    """
    folder = find_run(where)
    if folder.is_file():  # a checkpoint of the run
        folder = folder.parent.parent
    config = read_config(folder)
    if config is None:
        raise InputError(f"{folder} has no config.yaml, so it cannot be resumed: give the folder of a run")
    checkpoint, state = last_checkpoint(folder)
    free = ("resume", "trainer.max_epochs", "hydra.run.dir")
    for text in overrides:
        if text.partition("=")[0] not in free:
            raise InputError(
                f"{text} cannot be set on resuming, which takes the run's own config: only trainer.max_epochs can be "
                "raised"
            )
    before = config.trainer.max_epochs
    changed = override(config, [text for text in overrides if text.startswith("trainer.max_epochs=")])
    if changed.trainer.max_epochs != before and config.optimizer.schedule != "constant":
        raise InputError(
            f"trainer.max_epochs={changed.trainer.max_epochs} cannot be set on resuming: the schedule "
            f"{config.optimizer.schedule} ends after {before} epochs; only a constant schedule can be longer"
        )
    if state["stn"]["epoch"] >= changed.trainer.max_epochs:
        raise InputError(
            f"{folder} is finished after {before} epochs: there is nothing to resume"
            + (", unless trainer.max_epochs is raised" if config.optimizer.schedule == "constant" else "")
        )
    # What an interrupted epoch wrote to TensorBoard is hidden, because it is trained again.
    for node in changed.logger.values():
        if node and node["_target_"].endswith(".TensorBoardLogger"):
            OmegaConf.update(node, "purge_step", state["global_step"], force_add=True)
    return changed, checkpoint


def last_checkpoint(folder: Path) -> tuple[Path, dict[str, Any]]:
    """The last checkpoint of a run that can be read, and its content. Raises InputError if there is none."""
    broken: InputError | None = None
    for name in ("last", "best"):
        path = folder / "checkpoints" / f"{name}.ckpt"
        if path.is_file():
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


def read_rows(folder: Path, steps: int) -> list[dict[str, str]]:
    """The rows of metrics.csv for the first `steps` steps; none if there is no such file."""
    path = folder / "metrics.csv"
    if not path.is_file():
        return []
    with path.open(newline="") as file:
        return [row for row in csv.DictReader(file) if int(row["step"]) < steps]


def write_rows(rows: Sequence[dict[str, str]], loggers: Sequence[Logger]) -> None:
    """Has CSV loggers continue after these rows: a new logger deletes the file that it finds."""
    for logger in loggers:
        if isinstance(logger, CSVLogger) and rows:
            logger.experiment.metrics = [{key: value for key, value in row.items() if value} for row in rows]
            logger.save()
