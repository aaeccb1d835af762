"""Reads files that may come from anybody. Nothing in them is executed, and their sizes are checked first.

A run's own config, given to `python -m stn.train`, is code: it may name any class. What opens a finished run, its
checkpoint or its config.yaml, may name only the classes below, and those of packages that the user allows.
"""

import inspect
import json
import pickletools
import re
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
import yaml
from hydra.utils import get_object
from omegaconf import DictConfig, OmegaConf
from pytorch_lightning.loggers import Logger
from torch import nn

from stn.callbacks import progress_bar
from stn.data.distortion import Distortion
from stn.errors import InputError, require
from stn.optimization import Optimization
from stn.placement import build_network

# By the module that defines a class, the class that it must derive from.
LAYERS = ("linear", "conv", "batchnorm", "normalization", "activation", "dropout", "pooling", "flatten")
NETWORK: dict[str, type] = {
    "stn.layers": nn.Module,
    "stn.networks": nn.Module,
    "stn.placement": nn.Module,
    **{f"torch.nn.modules.{name}": nn.Module for name in LAYERS},
}
# A resumed run builds these too; where they write is checked by `stn.resuming`.
CALLBACKS = ("model_checkpoint", "lr_monitor", "early_stopping", "model_summary", "rich_model_summary", "progress")
RUN: dict[str, type] = {
    **NETWORK,
    "stn.data": pl.LightningDataModule,
    "stn.data.distortion": Distortion,
    "stn.callbacks": pl.Callback,
    **{f"pytorch_lightning.callbacks.{name}": pl.Callback for name in CALLBACKS},
    "stn.csv_logger": Logger,
    "stn.tensorboard_logger": Logger,
    **{f"pytorch_lightning.loggers.{name}": Logger for name in ("csv_logs", "mlflow", "tensorboard", "wandb")},
    "pytorch_lightning.trainer": pl.Trainer,
}
OTHERS = (Optimization, build_network, progress_bar)
ROOTS = ("stn", "torch", "pytorch_lightning")
LARGEST_TEXT = 2**20  # bytes of a config.yaml or a metrics.json
LARGEST_EVALUATION = 2**26  # of an evaluation.json, which has a number for each pair of classes
WRITTEN_BY_RUNS = r"\$\{hydra:runtime\.output_dir\}|[^$]*\$\{folder\}[^$]*"
LONGEST_LIST = 1000
DEEPEST = 20
DESCRIPTION = "network"  # the key of the description of the network in the metadata of a .safetensors file
MOST_NODES = 1_000_000


def read_checkpoint(path: Path) -> Any:
    """What a checkpoint holds, on the CPU. Raises an exception, of many classes, for a file that cannot be read."""
    size = path.stat().st_size
    with zipfile.ZipFile(path) as archive:
        if sum(entry.file_size for entry in archive.infolist()) > size:
            raise ValueError("it would take more memory than its own size")
        for entry in archive.infolist():
            if entry.filename.endswith("data.pkl"):
                check_pickle(archive.read(entry))
    content = torch.load(path, map_location="cpu", weights_only=True)
    for node in nodes(content):
        if isinstance(node, torch.Tensor) and (
            node.layout is not torch.strided or node.nbytes > node.untyped_storage().nbytes()
        ):
            raise ValueError("it has a tensor that is larger than its data")
    return content


def read_safetensors(path: Path) -> dict[str, Any]:
    """What a file of `stn.export format=safetensors` holds, as a checkpoint holds it; {} for another file's.

    Raises InputError without the package, and an exception, of many classes, for a file that cannot be read.
    """
    require("export", "safetensors")
    from safetensors import safe_open

    if not path.is_file():
        raise ValueError("it is not a file")
    with safe_open(path, "pt") as file:  # it checks that every tensor lies within the file
        text = (file.metadata() or {}).get(DESCRIPTION, "{}")
        weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    if len(text) > LARGEST_TEXT:
        raise ValueError(f"its description is longer than {LARGEST_TEXT:,} letters")
    description = parsed(text)
    return {**description, "state_dict": weights} if isinstance(description, dict) else {}


def check_pickle(content: bytes) -> None:
    """Raises ValueError for what `weights_only` admits, but what takes as much memory as it likes."""
    for operation, argument, _ in pickletools.genops(content):
        if operation.name == "STACK_GLOBAL" or (operation.name == "GLOBAL" and "bytearray" in str(argument)):
            raise ValueError("it would build a bytearray")


def read_yaml(path: Path) -> DictConfig:
    """The config of a run, without the part for Hydra. Raises an exception, of many classes, for any other file."""
    config = parse_yaml(path)
    config.pop("hydra", None)  # of the command that repeats the run
    for node in nodes(OmegaConf.to_container(config)):
        # Those that a run writes. Others could read the environment, or grow without end.
        if isinstance(node, str) and "${" in node and not re.fullmatch(WRITTEN_BY_RUNS, node):
            raise ValueError(f"{node[:100]!r} would be evaluated")
    return config


def parse_yaml(path: Path) -> DictConfig:
    """What a YAML file holds, of which nothing may be resolved yet. Raises an exception, of many classes."""
    text = read_text(path)
    depth = 0
    for event in yaml.parse(text, Loader=yaml.SafeLoader):
        if isinstance(event, yaml.AliasEvent):  # aliases of aliases make a config of any size
            raise ValueError("it has aliases")
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if depth > DEEPEST:
            raise ValueError(f"it is nested more than {DEEPEST} deep")
    config = OmegaConf.create(text)
    if not isinstance(config, DictConfig):
        raise ValueError("it is a list")
    return config


def read_json(path: Path, largest: int = LARGEST_TEXT) -> Any:
    """What a JSON file holds. Raises ValueError or OSError for one that cannot be read."""
    return parsed(read_text(path, largest))


def parsed(text: str) -> Any:
    """What a text of JSON holds. Raises ValueError for another text."""
    try:
        return json.loads(text)
    except RecursionError as error:
        raise ValueError("it is nested too deep") from error


def read_text(path: Path, largest: int = LARGEST_TEXT) -> str:
    """The text of a file. Raises ValueError for one that is too large or not a file."""
    if not path.is_file() or path.stat().st_size > largest:
        raise ValueError(f"it is not a file of at most {largest:,} bytes")
    return path.read_text(encoding="utf-8")


def nodes(content: Any) -> Iterator[Any]:
    """All values within nested dicts and lists. Raises ValueError if there are too many, or nested too deep."""
    waiting, count = [(content, 0)], 0
    while waiting:
        node, depth = waiting.pop()
        count += 1
        if depth > DEEPEST or count > MOST_NODES:
            raise ValueError(f"it holds more than {MOST_NODES:,} values, or is nested more than {DEEPEST} deep")
        yield node
        inner = node.values() if isinstance(node, dict) else node if isinstance(node, (list, tuple)) else ()
        waiting += [(value, depth + 1) for value in inner]


def check_targets(config: Any, classes: dict[str, type], allow: Sequence[str] = ()) -> None:
    """Checks every `_target_` within a config, nested dicts and lists, before anything is built from it.

    classes: NETWORK or RUN. allow: packages whose classes and functions may be named too, such as "mypackage.".
    Raises InputError for another one, and ValueError for what no config of a run holds.
    """
    for node in nodes(config):
        if isinstance(node, str) and "${" in node:
            raise ValueError(f"{node!r} would be evaluated")
        if not isinstance(node, (dict, list, str, int, float, type(None))):
            raise ValueError(f"it holds a {type(node).__name__}")
        if isinstance(node, list) and len(node) > LONGEST_LIST:
            raise ValueError(f"it holds a list of {len(node):,} values")
        for key in node if isinstance(node, dict) else ():
            if (
                not isinstance(key, str)
                or key in ("device", "dtype")
                or (key.startswith("_") and key not in ("_target_", "_partial_"))
            ):
                raise ValueError(f"it has the key {key!r}")
        if isinstance(node, dict) and "_target_" in node and not is_allowed(node["_target_"], classes, allow):
            name = str(node["_target_"])[:100]
            package = name.partition(".")[0]
            trust = f": if you trust the code of its package, set allow={package}." if package not in ROOTS else ""
            raise InputError(f"_target_={name} is not a part of this version of stn that a file may name{trust}")


def is_allowed(name: Any, classes: dict[str, type], allow: Sequence[str]) -> bool:
    """Whether a dotted name is that of an allowed class or function, also after its re-exports are followed."""
    packages = [package.removesuffix(".") for package in allow]
    # Nothing else is even imported.
    if not isinstance(name, str) or not within(name, ("stn", "torch.nn", "pytorch_lightning", *packages)):
        return False
    try:
        found = get_object(name)
    except Exception:  # of any module that it imports
        return False
    if any(found is other for other in OTHERS):
        return True
    module = str(getattr(found, "__module__", ""))
    if packages and within(module, packages):
        return True
    return inspect.isclass(found) and any(
        within(module, (package,)) and issubclass(found, base) for package, base in classes.items()
    )


def within(name: str, packages: Sequence[str]) -> bool:
    """Whether a dotted name lies within one of some packages."""
    return any(f"{name}.".startswith(f"{package}.") for package in packages)
