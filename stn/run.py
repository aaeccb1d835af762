"""Opens the folder of a run: the network, the class names, the config and the metrics."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from hydra.errors import InstantiationException
from omegaconf import DictConfig, OmegaConf
from torch import Tensor

from stn.build import build_data
from stn.check import GROUPS, TOP_LEVEL_KEYS, fits
from stn.classifier import CHECKPOINT_FORMAT, Classifier
from stn.config import config_folder, override, register
from stn.data.resident import ResidentDataModule
from stn.errors import InputError, user_errors
from stn.prediction import Prediction, predict
from stn.untrusted import NETWORK, RUN, check_targets, read_checkpoint, read_json, read_safetensors, read_yaml
from stn.views import Crop, Picture

LARGEST_IMAGE = 2**26  # numbers
# What every checkpoint of this format holds, and what an exported file lacks: part, key and class.
WRITTEN: tuple[tuple[str, str | None, type], ...] = (
    ("state_dict", None, dict),
    ("hyper_parameters", "classes", list),
    ("hyper_parameters", "channels", int),
    ("hyper_parameters", "image_size", int),
    ("stn", "epoch", int),
)
TO_RESUME: tuple[tuple[str, str | None, type], ...] = (
    ("global_step", None, int),
    ("stn", "random_state", torch.Tensor),
)


@dataclass(frozen=True, eq=False)
class Run:
    """A finished or interrupted run, opened from its folder or a checkpoint.

    folder: the run's folder, or the checkpoint's folder if it is not inside a run.
    checkpoint: the file that was opened.
    epoch: the number of epochs after which it was written.
    classifier: the network on the CPU, frozen and in evaluation mode. It takes pixels (N, channels, image_size,
        image_size), uint8 or floats in [0, 1], and returns class scores (N, len(classes)).
    config: the run's config, or None if there is none.
    metrics: the content of metrics.json, empty if there is none.
    """

    folder: Path
    checkpoint: Path
    epoch: int
    classifier: Classifier = field(repr=False)
    config: DictConfig | None = field(repr=False)
    metrics: dict[str, Any] = field(repr=False)

    @classmethod
    def open(cls, where: str | Path = "latest", allow: str | Sequence[str] = ()) -> Run:
        """Opens a run's folder, a checkpoint, or "latest": the run in outputs/ that wrote a checkpoint last.

        A .safetensors file of `python -m stn.export` opens as a checkpoint does.
        In a folder it takes the checkpoint that was tested, otherwise the best one, otherwise the last one.
        No code of a file is executed, whoever wrote it: it may name only parts of stn and layers of torch.nn.
        allow: packages whose classes it may name too, such as "mypackage.". They are imported.
        Raises InputError if there is no checkpoint, or if it cannot be opened.
        """
        allow = (allow,) if isinstance(allow, str) else allow
        path = find_run(where)
        if path.is_dir():
            folder, checkpoint = path, find_checkpoint(path)
        else:
            beside = path.parent.parent / "config.yaml"
            within_a_run = path.parent.name in ("checkpoints", "export") and beside.is_file()
            folder, checkpoint = path.parent.parent if within_a_run else path.parent, path
        content = load_checkpoint(checkpoint)
        classifier = rebuild_classifier(content, checkpoint, allow)
        classifier.freeze()
        return cls(
            folder=folder,
            checkpoint=checkpoint,
            epoch=content["stn"]["epoch"],
            classifier=classifier,
            config=read_config(folder, allow) if checkpoint.parent != folder else None,
            metrics=read_metrics(folder) if checkpoint.parent != folder else {},
        )

    @property
    def classes(self) -> list[str]:
        """The names of the classes, in the order of the scores."""
        return list(self.classifier.hparams["classes"])

    @property
    def channels(self) -> int:
        """The number of channels of the images."""
        return int(self.classifier.hparams["channels"])

    @property
    def image_size(self) -> int:
        """The side of the images in pixels."""
        return int(self.classifier.hparams["image_size"])

    def predict(
        self, images: Picture | Iterable[Picture] | Tensor, crop: Crop | None = None, batch_size: int = 64
    ) -> list[Prediction]:
        """What the network sees in images of any size: a `Prediction` for each, in order.

        images: a path, a PIL image, an array (H, W) or (H, W, C) of uint8 or floats in [0, 1], several of those, or a
            tensor (N, channels, H, W) of uint8 or floats in [0, 1].
        crop: None resizes the whole image to a square, as in training; "center" takes its central square.
        Files and PIL images are turned upright. Transparent pixels show the mean colour of the training images, unless
        the network takes transparency. It computes in float32, on the device of the classifier.
        Raises ValueError for what is no image, and InputError for a network whose scores are not finite.
        """
        return predict(self.classifier, images, crop, batch_size)

    def settings(self, overrides: Sequence[str] = ()) -> DictConfig:
        """The run's config with some keys changed, see `override`.

        Raises InputError for unknown keys, or a checkpoint without a config.
        """
        if self.config is None:
            raise InputError(
                f"{self.checkpoint} is not in the folder of a run, whose config.yaml says which data it needs: give "
                "that folder"
            )
        register()  # an override may use the resolvers of the configs
        return override(self.config, overrides)

    def data(self, config: DictConfig, trainer: pl.Trainer | None = None) -> ResidentDataModule:
        """Builds the data module of a config for this run's network; `read_data` reads it.

        Raises InputError if the classes, the channels or the image size are not those of training.
        """
        data = build_data(config, trainer)
        if list(data.classes) != self.classes:
            lacks, more = sorted(set(self.classes) - {*data.classes}), sorted(set(data.classes) - {*self.classes})
            said = [f"they lack {name!r}" for name in lacks[:1]] + [f"they have {name!r} besides" for name in more[:1]]
            differ = " and ".join(said) or "they are in another order"
            raise InputError(
                f"the classes of the data ({len(data.classes)}) are not those of {self.checkpoint} "
                f"({len(self.classes)}), {differ}: give data of the same classes"
            )
        for name, found, wanted in (
            ("data.channels", data.channels, self.channels),
            (
                "data.image_size" if data.input_size == data.image_size else "data.distortion.canvas",
                data.input_size,
                self.image_size,
            ),
        ):
            if found != wanted:
                raise InputError(f"{name}={found} is not what {self.checkpoint} was trained on: set {name}={wanted}")
        return data


def find_run(where: str | Path) -> Path:
    """The path of a run's folder or of a checkpoint; "latest" is a folder. Raises InputError if there is none."""
    path = latest() if str(where) == "latest" else Path(where).expanduser()
    with user_errors(str(where)):  # of a folder that nobody may look into
        if not path.exists():
            raise InputError(f"{path} does not exist: give a run's folder, a checkpoint, or latest")
        within = path.parent.name in ("", "..")  # the folders above have no names there
        return path.resolve() if path.is_file() and within else path


def latest() -> Path:
    """The run in outputs/ that wrote a checkpoint last. Raises InputError if there is none."""
    checkpoints = list(Path("outputs").glob("**/checkpoints/*.ckpt"))
    if not checkpoints:
        raise InputError(
            f"latest: there is no run with a checkpoint in {Path('outputs').resolve()}; train one, or give its folder"
        )
    return max(checkpoints, key=lambda path: path.stat().st_mtime).parent.parent


def find_checkpoint(folder: Path) -> Path:
    """The checkpoint to open in a run's folder. Raises InputError if there is none."""
    names = [read_metrics(folder).get("tested_checkpoint"), "checkpoints/best.ckpt", "checkpoints/last.ckpt"]
    for name in names:
        if isinstance(name, str) and name and (folder / name).is_file():
            return folder / name
    if others := [path for path in (folder / "checkpoints").glob("*.ckpt") if path.is_file()]:
        return max(others, key=lambda path: path.stat().st_mtime_ns)
    jobs = sorted(path.parent.parent for path in folder.glob("*/checkpoints/*.ckpt"))
    if jobs:
        raise InputError(f"{folder} holds the runs of a sweep: give one of them, such as {jobs[0]}")
    raise InputError(
        f"{folder} has no checkpoint in checkpoints/: give the folder of another run (those with callbacks=minimal "
        "keep none)"
    )


def load_checkpoint(checkpoint: Path) -> dict[str, Any]:
    """The content of a checkpoint, on the CPU. Raises InputError for a file that this version cannot open."""
    exported = checkpoint.suffix == ".safetensors"
    try:
        content = read_safetensors(checkpoint) if exported else read_checkpoint(checkpoint)
    except InputError:
        raise
    except Exception as error:  # zipfile, pickle, torch and the file system have different ones
        why = (str(error) or type(error).__name__).splitlines()[0]
        raise InputError(
            f"{checkpoint} cannot be read, it may be incomplete ({why}): give another checkpoint"
        ) from error
    settings, written = (content.get(key) if isinstance(content, dict) else None for key in ("hyper_parameters", "stn"))
    if not isinstance(settings, dict) or not {"model", "optimizer"} <= settings.keys():
        raise InputError(f"{checkpoint} is not a checkpoint of stn.train: give another checkpoint")
    found = written.get("format", 1) if isinstance(written, dict) else 1
    if found != CHECKPOINT_FORMAT:
        when = "an earlier" if isinstance(found, int) and found < CHECKPOINT_FORMAT else "a later"
        raise InputError(
            f"{checkpoint} was written by {when} version of stn (format {found}; this version needs "
            f"{CHECKPOINT_FORMAT}): open it with that version, or train again"
        )
    for where, key, kind in WRITTEN if exported else WRITTEN + TO_RESUME:
        part = content.get(where)
        value = part.get(key) if isinstance(part, dict) and key else part
        if not isinstance(value, kind) or isinstance(value, bool):
            raise InputError(
                f"{checkpoint} has been changed: {key or where} must be {kind.__name__}: give another checkpoint"
            )
    return content


def rebuild_classifier(content: dict[str, Any], checkpoint: Path, allow: Sequence[str] = ()) -> Classifier:
    """The classifier in the content of a checkpoint. Raises InputError if it may not or cannot be built."""
    settings, weights = content["hyper_parameters"], content["state_dict"]
    try:
        for key in ("model", "optimizer"):
            check_targets(settings[key], NETWORK, allow)
        if not all(isinstance(name, str) for name in settings["classes"]):
            raise ValueError("a class has no name")
        if not (1 <= settings["channels"] * settings["image_size"] ** 2 <= LARGEST_IMAGE):
            raise ValueError("its images are too large")
        with torch.device("meta"):  # takes no memory
            shapes = {name: tensor.shape for name, tensor in Classifier(**settings).state_dict().items()}
        if shapes != {name: getattr(tensor, "shape", None) for name, tensor in weights.items()}:
            raise InputError(f"{checkpoint} has weights that do not fit the network it describes")
        if not all(tensor.isfinite().all() for tensor in weights.values()):
            raise InputError(f"{checkpoint} has weights that are not finite, it has diverged: give another checkpoint")
        classifier = Classifier(**settings)
        classifier.load_state_dict(weights)
    except InputError as error:
        raise error if str(checkpoint) in str(error) else InputError(f"{checkpoint}: {error}") from error
    except (InstantiationException, TypeError, ValueError, RuntimeError) as error:
        why = " ".join(str(error.__cause__ or error).split())
        raise InputError(f"{checkpoint} describes a network that cannot be built here ({why})") from error
    return classifier


def read_config(folder: Path, allow: Sequence[str] = ()) -> DictConfig | None:
    """The config of a run's folder, None if there is none. Raises InputError for one that cannot be used."""
    path = folder / "config.yaml"
    if not path.exists():
        return None
    try:
        config = read_yaml(path)
        defaults = OmegaConf.load(Path(config_folder(), "config.yaml"))
        for key in TOP_LEVEL_KEYS:  # a run of an earlier version lacks those that came later
            if key not in config:
                OmegaConf.update(config, key, OmegaConf.select(defaults, key))
        OmegaConf.update(config, "folder", str(folder))
        if fits(config.threads, int):  # of a machine that may have had more cores
            config.threads = min(config.threads, os.cpu_count() or 1)
        OmegaConf.resolve(config)
        check_targets(OmegaConf.to_container(config), RUN, allow)
        if missing := [group for group in GROUPS if group not in config]:
            raise ValueError(f"it has no key {missing[0]!r}")
    except InputError as error:
        raise InputError(f"{path}: {error}") from error
    except Exception as error:  # of the YAML parser, OmegaConf or the file system
        raise InputError(f"{path} cannot be read as the config of a run ({' '.join(str(error).split())})") from error
    return config


def read_metrics(folder: Path) -> dict[str, Any]:
    """The content of metrics.json, empty if there is none. Raises InputError for a file that cannot be read."""
    path = folder / "metrics.json"
    if not path.exists():
        return {}
    try:
        return dict(read_json(path))
    except (ValueError, TypeError, OSError) as error:
        raise InputError(f"{path} is not the JSON that a run writes: remove it, or give a checkpoint") from error
