"""A run is a folder that opens again: the network, what it needs of the data, the config and the metrics."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from omegaconf import DictConfig, OmegaConf

from stn.build import build_data
from stn.classifier import CHECKPOINT_FORMAT, Classifier
from stn.config import override, register
from stn.data.resident import ResidentDataModule
from stn.errors import InputError


@dataclass(frozen=True)
class Run:
    """A finished or interrupted run, opened from its folder or a checkpoint.

    folder: of the run; where a checkpoint stands alone, the checkpoint's.
    checkpoint: the file that was opened. epoch: after which it was written, counted from 1.
    classifier: the network, in evaluation mode on the CPU. It takes pixels (N, channels, image_size, image_size),
        uint8 or floats in [0, 1], and returns class scores (N, len(classes)).
    config: as composed, None where a checkpoint stands alone. metrics: of metrics.json, empty where there is none.
    """

    folder: Path
    checkpoint: Path
    epoch: int
    classifier: Classifier
    config: DictConfig | None
    metrics: dict[str, Any]

    @classmethod
    def open(cls, where: str | Path = "latest") -> Run:
        """Opens a run's folder, a checkpoint, or "latest": the run in outputs/ that wrote a checkpoint last.

        Of a folder it opens the checkpoint that was tested, or else the best one, or else the last one.
        Raises InputError where there is none, or for one that cannot be opened.
        """
        path = latest() if str(where) == "latest" else Path(where).expanduser()
        if not path.exists():
            raise InputError(f"{path} does not exist: give a run's folder, a checkpoint, or latest")
        if path.is_dir():
            folder, checkpoint = path, find_checkpoint(path)
        else:
            folder, checkpoint = path.parent, path
            if (path.parent.parent / "config.yaml").is_file():
                folder = path.parent.parent
        content = load(checkpoint)
        classifier = Classifier(**content["hyper_parameters"])
        try:
            classifier.load_state_dict(content["state_dict"])
        except RuntimeError as error:
            raise InputError(f"{checkpoint} has weights of another network than the one it describes") from error
        return cls(
            folder=folder,
            checkpoint=checkpoint,
            epoch=content["stn"]["epoch"],
            classifier=classifier.eval(),
            config=read_config(folder),
            metrics=read_metrics(folder),
        )

    @property
    def classes(self) -> list[str]:
        """The names of the classes, in the order of the scores."""
        return list(self.classifier.hparams["classes"])

    @property
    def channels(self) -> int:
        """Channels of the images."""
        return int(self.classifier.hparams["channels"])

    @property
    def image_size(self) -> int:
        """Side of the images in pixels."""
        return int(self.classifier.hparams["image_size"])

    def settings(self, overrides: Sequence[str] = ()) -> DictConfig:
        """The run's config with some keys set anew. Raises InputError for unknown keys, or a run without a config."""
        if self.config is None:
            raise InputError(
                f"{self.checkpoint} stands alone: its data is described by config.yaml in the folder of its run, so "
                "give that folder"
            )
        register()
        return override(self.config, overrides)

    def data(self, config: DictConfig, trainer: pl.Trainer | None = None) -> ResidentDataModule:
        """The data set of a config, to be read, for this run's network.

        Raises InputError where its classes or its images are not those that the network was trained on.
        """
        data = build_data(config, trainer)
        if list(data.classes) != self.classes:
            odd = sorted(set(data.classes) ^ set(self.classes)) or data.classes
            raise InputError(
                f"the data has {len(data.classes)} classes and {self.checkpoint} was trained on {len(self.classes)}; "
                f"only one of the two has {odd[0]!r}: give data of the same classes"
            )
        for name in ("channels", "image_size"):
            if getattr(data, name) != getattr(self, name):
                raise InputError(
                    f"data.{name}={getattr(data, name)} is not what {self.checkpoint} was trained on: set "
                    f"data.{name}={getattr(self, name)}"
                )
        return data


def latest() -> Path:
    """The run in outputs/ that wrote a checkpoint last. Raises InputError where there is none."""
    checkpoints = list(Path("outputs").glob("**/checkpoints/*.ckpt"))
    if not checkpoints:
        raise InputError(
            f"latest: there is no run with a checkpoint in {Path('outputs').resolve()}; train one, or give its folder"
        )
    return max(checkpoints, key=lambda path: path.stat().st_mtime).parent.parent


def find_checkpoint(folder: Path) -> Path:
    """The checkpoint of a run's folder to open. Raises InputError where there is none."""
    names = [read_metrics(folder).get("tested_checkpoint"), "checkpoints/best.ckpt", "checkpoints/last.ckpt"]
    for name in names:
        if name and (folder / name).is_file():
            return folder / name
    jobs = sorted(path.parent.parent for path in folder.glob("*/checkpoints/*.ckpt"))
    if jobs:
        raise InputError(f"{folder} is a sweep of {len(set(jobs))} runs: give one of them, such as {jobs[0]}")
    raise InputError(
        f"{folder} holds no checkpoint: give the folder of a run that kept one in checkpoints/, as runs do unless they "
        "are trained with callbacks=minimal"
    )


def load(checkpoint: Path) -> dict[str, Any]:
    """What a checkpoint holds, on the CPU. Raises InputError for a file that this version cannot open."""
    try:
        content: Any = torch.load(checkpoint, map_location="cpu", weights_only=True)
    except Exception as error:  # of zipfile, pickle, torch or the file system
        why = (str(error) or type(error).__name__).splitlines()[0]
        raise InputError(
            f"{checkpoint} is no readable checkpoint, perhaps cut off ({why}): give another one"
        ) from error
    if not isinstance(content, dict) or not {"state_dict", "hyper_parameters"} <= content.keys():
        raise InputError(f"{checkpoint} is no checkpoint of a classifier: give one that stn.train wrote")
    found = content.get("stn", {"format": 1})["format"]
    if found != CHECKPOINT_FORMAT:
        when = "an earlier" if found < CHECKPOINT_FORMAT else "a later"
        raise InputError(
            f"{checkpoint} was written by {when} version of stn (format {found}, and this version opens "
            f"{CHECKPOINT_FORMAT}): open it with that version, or train again"
        )
    return content


def read_config(folder: Path) -> DictConfig | None:
    """The config of a run's folder, or None. Raises InputError for one that cannot be read."""
    path = folder / "config.yaml"
    if not path.is_file():
        return None
    try:
        config = OmegaConf.load(path)
        assert isinstance(config, DictConfig)
        config.folder = str(folder)
        OmegaConf.resolve(config)
    except Exception as error:
        raise InputError(f"{path} is no config of a run ({' '.join(str(error).split())})") from error
    return config


def read_metrics(folder: Path) -> dict[str, Any]:
    """What metrics.json of a run's folder holds, or nothing. Raises InputError for one that cannot be read."""
    path = folder / "metrics.json"
    if not path.is_file():
        return {}
    try:
        found = json.loads(path.read_text())
        assert isinstance(found, dict)
    except (ValueError, AssertionError) as error:
        raise InputError(f"{path} is not the JSON that a run writes: remove it, or give a checkpoint") from error
    return found
