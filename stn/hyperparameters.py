"""The settings by which runs differ, for loggers."""

from collections.abc import Sequence
from typing import Any

from omegaconf import DictConfig, OmegaConf

# By their names, the keys of a config that people vary. A class stands for the choice of a group.
KEYS = {
    "model": "model.classifier._target_",
    "warp": "model.warp._target_",
    "placement": "model.placement",
    "data": "data._target_",
    "batch_size": "data.batch_size",
    "epochs": "trainer.max_epochs",
    "optimizer": "optimizer.algorithm",
    "lr": "optimizer.lr",
    "seed": "seed",
    "tta": "tta",
}
NAMES = {key: name for name, key in KEYS.items()}


def hyperparameters(config: DictConfig, overrides: Sequence[str] = ()) -> dict[str, str | float | bool]:
    """The settings of a config that people vary, without nesting.

    overrides: of the command line. The keys that they set count too, so that a sweep shows what it varies.
    """
    more = [key for key in map(key_of, overrides) if "." in key and not key.startswith(("callbacks.", "logger."))]
    keys = KEYS | {key: key for key in more if key not in NAMES}
    found = {name: setting(config, key) for name, key in keys.items()}
    return {name: value for name, value in found.items() if value is not None}


def varied(overrides: Sequence[str]) -> list[str]:
    """The names of the settings that overrides of the command line set."""
    return [NAMES.get(key, key.rpartition("/")[2]) for key in map(key_of, overrides)]


def key_of(override: str) -> str:
    """The key or group of an override."""
    return override.partition("=")[0].lstrip("+~")


def class_name(path: str) -> str:
    """The name of a class by its path, for a data set without the suffix DataModule."""
    return path.rpartition(".")[2].removesuffix("DataModule")


def setting(config: DictConfig, key: str) -> str | float | bool | None:
    """The value of a key as loggers take it; of the path of a class its name."""
    value: Any = OmegaConf.select(config, key)
    if key.endswith("_target_") and value:
        return class_name(value)
    return value if value is None or isinstance(value, (bool, int, float)) else str(value)
