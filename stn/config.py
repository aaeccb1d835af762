"""Checks a composed config against the code it configures, and says what is wrong in one sentence."""

import difflib
import inspect
import os
import shutil
import types
import typing
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Literal

from hydra.errors import ConfigCompositionException, MissingConfigException, OverrideParseException
from hydra.utils import get_method
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import ConfigAttributeError, ConfigKeyError, OmegaConfBaseException


class ConfigError(ValueError):
    """A config that cannot be run; its text is one sentence for the user."""


def folder() -> str:
    """Where the configs are: beside the package in a checkout, inside it when installed."""
    package = Path(__file__).resolve().parent
    return str(next(path for path in (package / "conf", package.parent / "conf") if path.is_dir()))


def nearest(word: str, choices: Iterable[object]) -> str:
    """'; did you mean …?', or the choices where none is near."""
    names = [str(choice) for choice in choices]
    near = difflib.get_close_matches(word, names, n=1, cutoff=0.5)
    return f"did you mean {near[0]!r}?" if near else f"choose from {', '.join(sorted(names))}"


def check(config: DictConfig) -> None:
    """Holds every key of a composed config against the signature of what its `_target_` names.

    Raises ConfigError for a key that the target does not take, a value of another type, a top-level value out of
    range, no epochs, or a GPU, a GPU's bfloat16 or a compiler where there is none; the targets themselves check the
    ranges of what they take.
    """
    import torch  # here and below, because --help and --cfg job must not wait for it

    plain = OmegaConf.to_container(config, resolve=True)
    assert isinstance(plain, dict)
    _check_parts(plain)
    if not _fits(plain["seed"], int) or not 0 <= plain["seed"] < 2**32:
        raise ConfigError(f"seed={plain['seed']} must be a whole number from 0 to {2**32 - 1}")
    if not _fits(plain["label_smoothing"], float) or not 0 <= plain["label_smoothing"] < 1:
        raise ConfigError(f"label_smoothing={plain['label_smoothing']} must be a number in [0, 1)")
    for key in ("score_mirrored", "channels_last"):
        if not _fits(plain[key], bool):
            raise ConfigError(f"{key}={plain[key]} must be true or false")
    if plain["compile"] not in (None, *COMPILE):
        raise ConfigError(f"compile={plain['compile']} must be null or one of {', '.join(COMPILE)}")
    if plain["matmul_precision"] not in MATMUL:
        raise ConfigError(f"matmul_precision={plain['matmul_precision']} must be one of {', '.join(MATMUL)}")
    if plain["compile"] and not any(shutil.which(os.environ.get("CXX", name)) for name in ("g++", "clang++", "cl")):
        raise ConfigError(
            f"compile={plain['compile']} needs a C++ compiler, and there is none on the PATH: install g++ or clang++, "
            "or leave compile=null"
        )
    _check_node(plain, "")
    accelerator = plain["trainer"].get("accelerator")
    for key in ("max_epochs", "check_val_every_n_epoch", "accumulate_grad_batches"):
        if (value := plain["trainer"].get(key, 1)) is None or value < 1:
            raise ConfigError(f"trainer.{key}={value} must be 1 or more")
    if accelerator in ("gpu", "cuda") and not (torch.cuda.is_available() or torch.backends.mps.is_available()):
        raise ConfigError(
            f"trainer.accelerator={accelerator}: torch finds no GPU here; use trainer=default, which takes what the "
            "machine has, or trainer=cpu"
        )
    precision = str(plain["trainer"].get("precision"))
    on_cuda = accelerator in ("auto", "gpu", "cuda") and torch.cuda.is_available()
    if precision.startswith("bf16") and on_cuda and not torch.cuda.is_bf16_supported(including_emulation=False):
        raise ConfigError(
            f"trainer.precision={precision}: this GPU, {torch.cuda.get_device_name()}, has no bfloat16; use 16-mixed "
            "or 32-true"
        )


GROUPS = ("data", "model", "optimizer", "trainer", "callbacks", "logger")
KEYS = ("seed", "label_smoothing", "score_mirrored", "channels_last", "compile", "matmul_precision")
COMPILE = ("default", "reduce-overhead", "max-autotune")
MATMUL = ("highest", "high", "medium")


def _check_parts(plain: dict[Any, Any]) -> None:
    """That the config has every group and key, no other, and objects where objects belong."""
    for key in (*GROUPS, *KEYS):
        if key not in plain or (key in GROUPS and not isinstance(plain[key], dict)):
            raise ConfigError(f"{key}={plain.get(key)}: the config needs {key}, as in `--cfg job`")
    for key, value in plain.items():
        if key not in (*GROUPS, *KEYS):
            raise ConfigError(
                f"{key}={value}: the config has no key and no group {key!r}; {nearest(key, GROUPS + KEYS)}"
            )
    for group in ("callbacks", "logger"):
        for key, value in plain[group].items():
            if not (isinstance(value, dict) and "_target_" in value):
                raise ConfigError(
                    f"{group}.{key}={value} must be an object with a _target_; ~{group}.{key} leaves one out"
                )


def _check_node(node: Any, path: str) -> None:
    if isinstance(node, list):
        for index, item in enumerate(node):
            _check_node(item, f"{path}.{index}")
    if not isinstance(node, dict):
        return
    if "_target_" in node:
        _check_arguments(node, path)
    for key, value in node.items():
        _check_node(value, f"{path}.{key}".lstrip("."))


def _check_arguments(node: Mapping[str, Any], path: str) -> None:
    try:
        target = get_method(node["_target_"]) if not isinstance(node["_target_"], type) else node["_target_"]
    except Exception as error:
        raise ConfigError(f"{path}._target_={node['_target_']} cannot be imported: {error}") from error
    arguments, open_ended = arguments_of(target)
    for key, value in node.items():
        if key.startswith("_"):
            continue
        if key in arguments:
            if not _fits(value, arguments[key]):
                raise ConfigError(f"{path}.{key}={value} must be {_spell(arguments[key])}")
        elif open_ended is None:
            raise ConfigError(f"{path}.{key}={value}: {path} has no key {key!r}; {nearest(key, arguments)}")
        elif not _fits(value, open_ended):
            raise ConfigError(f"{path}.{key}={value} must be {_spell(open_ended)}")


def arguments_of(target: Any) -> tuple[dict[str, Any], Any]:
    """The arguments a class or function takes with their types, and the type of those of any other name, or None.

    A constructor that hands **keywords on takes those of its base class.
    """
    functions = [target]
    if inspect.isclass(target):
        functions = [vars(base)["__init__"] for base in target.__mro__ if "__init__" in vars(base)]
    arguments: dict[str, Any] = {}
    open_ended: Any = None
    for function in functions:
        hints = typing.get_type_hints(function)
        parameters = list(inspect.signature(function).parameters.values())
        for parameter in parameters:
            if parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY) and parameter.name != "self":
                arguments.setdefault(parameter.name, hints.get(parameter.name, Any))
        others = [parameter.name for parameter in parameters if parameter.kind is parameter.VAR_KEYWORD]
        if not others:
            return arguments, None
        open_ended = hints.get(others[0], Any)
    return arguments, open_ended


def _fits(value: Any, hint: Any) -> bool:
    """Whether a value of a config (a primitive, a list, or a node with a `_target_`) is what a type hint asks for."""
    if hint is Any:
        return True
    if isinstance(value, dict):
        return "_target_" in value
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return any(_fits(value, choice) for choice in inner)
    if origin is Literal:
        return any(value == choice and type(value) is type(choice) for choice in inner)
    if isinstance(value, list):
        items = [part for part in inner if part is not Ellipsis] or [Any]
        is_sequence = origin is not None and issubclass(origin, Iterable)
        return is_sequence and all(_fits(item, items[0]) for item in value)
    if hint is float:
        return isinstance(value, (int, float)) and not isinstance(value, bool)
    if hint is int:
        return isinstance(value, int) and not isinstance(value, bool)
    if hint is None or hint is type(None):
        return value is None
    return inspect.isclass(hint) and isinstance(value, hint)


def _spell(hint: Any) -> str:
    """A type hint in words."""
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return " or ".join(dict.fromkeys(" or ".join(_spell(choice) for choice in inner).split(" or ")))
    if origin is Literal:
        return " or ".join(str(choice) for choice in inner)
    if origin is Callable or getattr(hint, "__module__", "").startswith(("stn.", "torch.nn")):
        return "an object with a _target_"
    words = {int: "a whole number", float: "a number", bool: "true or false", str: "a text", type(None): "null"}
    if hint in words:
        return words[hint]
    return (
        f"a list of {_spell(inner[0]).removeprefix('a ')}s"
        if origin is not None and inner
        else getattr(hint, "__name__", str(hint))
    )


def explain(error: BaseException) -> str | None:
    """One sentence for an error of Hydra or OmegaConf, or None for any other."""
    chain: list[BaseException] = []
    link: BaseException | None = error
    while link is not None:
        chain.append(link)
        link = link.__cause__ or link.__context__
    for link in chain:
        if isinstance(link, ConfigError):
            return str(link)
        if isinstance(link, MissingConfigException) and link.missing_cfg_file:
            group, _, choice = str(link.missing_cfg_file).rpartition("/")
            return f"{group}={choice}: there is no such {group}; {nearest(choice, link.options or [])}"
        if "Config group override must be" in str(link):
            return "a group takes the name of one of its choices (logger=none, say), not null and not a number"
        if isinstance(link, OverrideParseException):
            return f"{link.override!r} is not understood; write key=value, or quote the value"
        if isinstance(link, (ConfigKeyError, ConfigAttributeError)) and link.full_key:
            return _explain_unknown_key(str(link.full_key), link.parent_node)
    if isinstance(error, (ConfigCompositionException, OmegaConfBaseException)):
        return " ".join(str(error).split())
    return None


def _explain_unknown_key(full_key: str, parent: Any) -> str:
    path, _, key = full_key.rpartition(".")
    keys = [str(name) for name in parent] if isinstance(parent, DictConfig) else []
    if not path:
        groups = [entry.name for entry in Path(folder()).iterdir() if entry.is_dir()]
        return f"{key}: the config has no key and no group {key!r}; {nearest(key, [*keys, *groups])}"
    if "_target_" in keys and key in arguments_of(get_method(parent["_target_"]))[0]:
        return f"{full_key} is left at its default by the config; set it with +{full_key}=…"
    return f"{full_key}: {path} has no key {key!r}; {nearest(key, keys)}"


def fastest_precision(accelerator: str) -> str:
    """'bf16-mixed' where the processor computes in bfloat16 by hardware, '32-true' elsewhere."""
    import torch

    if accelerator in ("auto", "gpu", "cuda") and torch.cuda.is_available():
        fast = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        fast = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return "bf16-mixed" if fast else "32-true"


def class_count(root: str) -> int:
    """How many classes the folder `root`/train has; 0 where there is no such folder, which the data then reports."""
    train = Path(root) / "train"
    if not train.is_dir():
        return 0
    return sum(entry.is_dir() and not entry.name.startswith(".") for entry in train.iterdir())


def register() -> None:
    """Makes ${fastest_precision:…} and ${class_count:…} known to the configs."""
    OmegaConf.register_new_resolver("fastest_precision", fastest_precision, replace=True)
    OmegaConf.register_new_resolver("class_count", class_count, replace=True)
