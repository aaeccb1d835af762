"""Checks a composed config against the signatures of the code that it configures."""

import inspect
import math
import os
import re
import shlex
import shutil
import types
import typing
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Literal

from hydra.utils import get_method
from omegaconf import DictConfig, OmegaConf

from stn.errors import InputError, nearest, nearest_key

GROUPS = ("data", "model", "optimizer", "trainer", "callbacks", "logger")
TOP_LEVEL_KEYS = (
    "folder",
    "overwrite",
    "resume",
    "allow",
    "on_divergence",
    "arm",
    "seed",
    "label_smoothing",
    "pose_weight",
    "pose_label_weight",
    "tta",
    "channels_last",
    "compile",
    "threads",
    "matmul_precision",
)
TTA = Literal["none", "mirror", "six", "turns", "poses", "unmirrored_poses"]
TTA_OF_POSES = ("poses", "unmirrored_poses")
CHOICES = {
    "tta": (None, *typing.get_args(TTA)),
    "compile": (None, "default", "reduce-overhead", "max-autotune"),
    "on_divergence": ("stop", "restart"),
    "matmul_precision": ("highest", "high", "medium"),
}
ACCELERATORS = ("auto", "cpu", "gpu", "cuda", "mps")
PRECISIONS = ("32-true", "64-true", "bf16-mixed", "bf16-true", "16-mixed", "16-true")
ALIASES = ("None", "32", "64", "16", "bf16")  # of Lightning, which runs may have
# Arguments that the program sets itself, by group, and where their values come from. The config must not set them.
SET_BY_PROGRAM = {
    "model": {
        "in_channels": "it comes from data.channels",
        "image_size": "it comes from data.image_size",
        "num_classes": "it comes from the data",
    },
    "trainer": {
        "callbacks": "they are the group callbacks",
        "logger": "it is the group logger",
        "default_root_dir": "it is the key folder",
        "enable_checkpointing": "it follows from the group callbacks",
        "enable_progress_bar": "it follows from callbacks.progress",
        "enable_model_summary": "it follows from callbacks.summary",
    },
}


# Keys that do nothing, by the key and the values under which they do nothing.
WITHOUT_EFFECT = (
    (("model.localization", "model/localization"), "model.placement", ("none", "features", "shared")),
    (("model.warp", "model/warp", "model.transformer"), "model.placement", ("none",)),
    (("callbacks.warps", "callbacks.theta", "callbacks.resizing"), "model.placement", ("none",)),
    (("optimizer.localization_lr_scale",), "model.placement", ("none",)),
    (("optimizer.warmup",), "optimizer.schedule", ("constant", "cosine")),
    (("optimizer.momentum", "optimizer.nesterov"), "optimizer.algorithm", ("adamw",)),
    (("optimizer.fused",), "optimizer.algorithm", ("muon",)),
    (("data.val_fraction",), "data.validate_on", ("test",)),
)


def check_effects(config: DictConfig, overrides: Iterable[str]) -> None:
    """Raises InputError for an override of a key that does nothing in this config."""
    for text in overrides:
        name = text.lstrip("+~").partition("=")[0]
        for keys, other, values in WITHOUT_EFFECT:
            value = OmegaConf.select(config, other)
            if value in values and any(name == key or name.startswith(f"{key}.") for key in keys):
                raise InputError(f"{text} does nothing with {other}={value}: leave out one of the two")
        if name == "trainer.log_every_n_steps" and not any(config.logger.values()):
            raise InputError(f"{text} is for a logger, and there is none: leave it out, or set logger=csv")


def check(config: DictConfig) -> None:
    """Checks every key of a config against the signature of its `_target_`.

    Raises InputError for an unknown key, a value of a wrong type, or a top-level value out of range. Also if the config
    needs a GPU, bfloat16 or a compiler that is not there. The targets check the ranges of their own values.
    """
    plain = OmegaConf.to_container(config, resolve=True)
    assert isinstance(plain, dict)
    _check_parts(plain)
    _check_values(plain)
    _check_node(plain, "")
    _check_trainer(plain["trainer"])


def _check_parts(plain: dict[Any, Any]) -> None:
    """Checks that the config has all groups and keys and no others, and that callbacks and loggers are objects."""
    for key in (*GROUPS, *TOP_LEVEL_KEYS):
        if key not in plain or (key in GROUPS and not isinstance(plain[key], dict)):
            raise InputError(f"{key}={plain.get(key)}: the config needs {key}; `--cfg job` shows a complete config")
    for key, value in plain.items():
        if key not in (*GROUPS, *TOP_LEVEL_KEYS):
            raise InputError(
                f"{key}={value}: the config has no key and no group {key!r}; "
                f"{nearest_key(key, plain, GROUPS + TOP_LEVEL_KEYS)}"
            )
    for key in ("distortion", "test_distortion"):
        value = plain["data"].get(key)
        if isinstance(value, dict) and "_target_" not in value:  # as of arm=ceiling
            raise InputError(f"data.{key}={value} changes a distortion, and there is none: set data/{key}=rts")
    for group in ("callbacks", "logger"):
        for key, value in plain[group].items():
            if value is not None and not (isinstance(value, dict) and "_target_" in value):
                raise InputError(
                    f"{group}.{key}={value} must be an object with a _target_; {group}.{key}=null leaves it out"
                )


def _check_values(plain: dict[Any, Any]) -> None:
    """Checks the values of the top-level keys."""
    if not plain["folder"] or not isinstance(plain["folder"], str):
        raise InputError(f"folder={plain['folder']} must be a path")
    if not fits(plain["seed"], int) or not 0 <= plain["seed"] < 2**32:
        raise InputError(f"seed={plain['seed']} must be a whole number from 0 to {2**32 - 1}")
    if not fits(plain["label_smoothing"], float) or not 0 <= plain["label_smoothing"] < 1:
        raise InputError(f"label_smoothing={plain['label_smoothing']} must be a number in [0, 1)")
    for key in ("channels_last", "overwrite"):
        if not fits(plain[key], bool):
            raise InputError(f"{key}={plain[key]} must be true or false")
    allowed_packages(plain["allow"])
    for key, choices in CHOICES.items():
        if plain[key] not in choices:
            raise InputError(f"{key}={plain[key]} must be {one_of(choice or 'null' for choice in choices)}")
    for key in ("pose_weight", "pose_label_weight"):
        if not fits(plain[key], float) or not 0 <= plain[key] < math.inf:
            raise InputError(f"{key}={plain[key]} must be a number, 0 or more")
    if not fits(plain["arm"], str | None):
        raise InputError(f"arm={plain['arm']} must be a name or null")
    cores = os.cpu_count() or 1
    if plain["threads"] is not None and not (fits(plain["threads"], int) and 1 <= plain["threads"] <= cores):
        raise InputError(f"threads={plain['threads']} must be null, or a whole number from 1 to the {cores} cores")
    compilers = [shlex.split(os.environ["CXX"])[0]] if os.environ.get("CXX") else ["g++", "clang++", "cl"]
    if plain["compile"] and not any(map(shutil.which, compilers)):
        raise InputError(
            f"compile={plain['compile']} needs a C++ compiler, and there is none on the PATH: install g++ or clang++, "
            "or leave compile=null"
        )


def allowed_packages(allow: Any) -> list[str]:
    """The packages that the key `allow` names: null, one, or a list. Raises InputError for another value."""
    packages = [allow] if isinstance(allow, str) else [] if allow is None else allow
    if not fits(packages, list[str]) or not all(re.fullmatch(r"(\w+\.)*\w+\.?", package) for package in packages):
        raise InputError(f"allow={allow} must be a package whose code you trust, such as allow=mypackage.")
    return list(packages)


def _check_trainer(trainer: Mapping[str, Any]) -> None:
    """Checks trainer settings that Lightning accepts, but that cannot train here."""
    import torch

    known = {"accelerator": ACCELERATORS, "precision": PRECISIONS}
    for key, choices in known.items():
        if str(trainer.get(key)) not in (*choices, *ALIASES):
            raise InputError(f"trainer.{key}={trainer[key]} must be {one_of(choices)}")
    accelerator, precision = trainer.get("accelerator"), str(trainer.get("precision"))
    devices = str(trainer.get("devices"))
    if re.fullmatch(r"0|-\d+", devices) and (devices != "-1" or accelerator == "cpu"):  # Lightning's for all GPUs
        raise InputError(f"trainer.devices={devices} must be 1 or more, or auto")
    at_least_1 = ("max_epochs", "check_val_every_n_epoch", "accumulate_grad_batches", "max_steps")
    for key in at_least_1:
        value = trainer.get(key, None if key == "max_epochs" else 1)
        if value is None or (value < 1 and (key, value) != ("max_steps", -1)):  # -1 is Lightning's for no limit
            raise InputError(f"trainer.{key}={'null' if value is None else value} must be 1 or more")
    for key in ("limit_train_batches", "limit_val_batches", "limit_test_batches", "val_check_interval"):
        value = trainer.get(key)
        if value is not None and (not fits(value, float) or (isinstance(value, float) and value > 1)):
            raise InputError(f"trainer.{key}={value} must be a share, up to 1.0, or a whole number of batches")
        if value is not None and value <= 0:
            raise InputError(f"trainer.{key}={value} must be above 0")
    if trainer.get("check_val_every_n_epoch", 1) > trainer["max_epochs"]:
        raise InputError(
            f"trainer.check_val_every_n_epoch={trainer['check_val_every_n_epoch']} must be at most trainer.max_epochs="
            f"{trainer['max_epochs']}: otherwise no epoch is validated"
        )
    for key in ("gradient_clip_val", "log_every_n_steps"):
        if trainer.get(key) is not None and not trainer[key] >= 0:
            raise InputError(f"trainer.{key}={trainer[key]} must not be negative")
    if accelerator in ("gpu", "cuda") and not (torch.cuda.is_available() or torch.backends.mps.is_available()):
        raise InputError(
            f"trainer.accelerator={accelerator}: torch finds no GPU here; use trainer.accelerator=auto, which takes "
            "what the machine has, or cpu"
        )
    on_cuda = accelerator in ("auto", "gpu", "cuda") and torch.cuda.is_available()
    # A process for each. Two train on a single core too, which is enough to try it.
    most = max(1, torch.cuda.device_count()) if on_cuda else max(2, os.cpu_count() or 1)
    if devices.isdigit() and int(devices) > most:
        raise InputError(
            f"trainer.devices={devices} is more than this machine has: set {most} or less, or trainer.num_nodes for "
            "more machines"
        )
    if precision.startswith("bf16") and on_cuda and not torch.cuda.is_bf16_supported(including_emulation=False):
        raise InputError(
            f"trainer.precision={precision}: this GPU, {torch.cuda.get_device_name()}, has no bfloat16; use 16-mixed "
            "or 32-true"
        )


def _check_node(node: Any, path: str) -> None:
    """Checks a node of the config and all nodes inside it. path: its key."""
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
    """Checks the keys of an object against the signature of its `_target_`."""
    if not isinstance(node["_target_"], str):
        raise InputError(f"{path}._target_={node['_target_']} must be the name of a class, such as torch.nn.Linear")
    try:
        target = get_method(node["_target_"])
    except Exception as error:
        raise InputError(f"{path}._target_={node['_target_']} cannot be imported: {error}") from error
    if not isinstance(node.get("_partial_", False), bool):
        raise InputError(f"{path}._partial_={node['_partial_']} must be true or false")
    arguments, open_ended = arguments_of(target)
    given = SET_BY_PROGRAM.get(path.partition(".")[0], {})
    if not node.get("_partial_"):
        for key in required_arguments(target):
            if key not in node and key not in given:
                raise InputError(f"{path}.{key} is missing: {path} needs it")
    for key, value in node.items():
        if key.startswith("_"):
            continue
        if key == "filename" and "/" in str(value):
            raise InputError(f"{path}.{key}={value} must be the name of a file in the run's folder, without /")
        if key in ("folder", "dirpath", "save_dir", "filename") and value == "":
            raise InputError(f"{path}.{key} is empty: leave it out, or give a name")
        if key in given:
            raise InputError(f"{path}.{key}={value} cannot be set: {given[key]}")
        if key in arguments:
            if not fits(value, arguments[key]):
                raise InputError(f"{path}.{key}={value} must be {spell(arguments[key])}")
        elif open_ended is None:
            raise InputError(
                f"{path}.{key}={value}: {path} has no key {key!r}; {nearest(key, arguments.keys() - given)}"
            )
        elif not fits(value, open_ended):
            raise InputError(f"{path}.{key}={value} must be {spell(open_ended)}")


def arguments_of(target: Any) -> tuple[dict[str, Any], Any]:
    """The arguments of a class or function with their types, and the type of its **keywords, or None without those.

    If a constructor has **keywords, the arguments of its base class count too.
    """
    functions = [target]
    if inspect.isclass(target):
        bases = [base for base in target.__mro__ if base.__module__ not in ("builtins", "torch.nn.modules.module")]
        functions = [vars(base)["__init__"] for base in bases if "__init__" in vars(base)]
    arguments: dict[str, Any] = {}
    open_ended: Any = None
    for function in functions:
        try:
            hints = typing.get_type_hints(function)
        except NameError:  # hints that only a type checker can resolve
            hints = {}
        parameters = list(inspect.signature(function).parameters.values())
        for parameter in parameters:
            if parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY) and parameter.name != "self":
                arguments.setdefault(parameter.name, hints.get(parameter.name, Any))
        others = [parameter.name for parameter in parameters if parameter.kind is parameter.VAR_KEYWORD]
        if not others:
            return arguments, None
        open_ended = hints.get(others[0], Any)
    return arguments, open_ended


def required_arguments(target: Any) -> list[str]:
    """The names of the arguments without which a class or function cannot be called."""
    named = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    parameters = inspect.signature(target).parameters.values()
    return [found.name for found in parameters if found.kind in named and found.default is found.empty]


def fits(value: Any, hint: Any) -> bool:
    """Whether a value of a config (a primitive, a list, or a node with a `_target_`) matches a type hint."""
    if hint is Any:
        return True
    if isinstance(value, dict):
        if typing.get_origin(hint) is Callable and "_target_" in value:
            return bool(value.get("_partial_"))  # else it would be an object
        return _makes(value, hint) if "_target_" in value else dict in (hint, typing.get_origin(hint))
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return any(fits(value, choice) for choice in inner)
    if origin is Literal:
        return any(value == choice and type(value) is type(choice) for choice in inner)
    if isinstance(value, list):
        items = [part for part in inner if part is not Ellipsis] or [Any]
        is_sequence = hint is list or (origin not in (None, dict) and issubclass(origin, Iterable))
        return is_sequence and all(fits(item, items[0]) for item in value)
    if hint is float:
        return isinstance(value, (int, float)) and not isinstance(value, bool)
    if hint is int:
        return isinstance(value, int) and not isinstance(value, bool)
    if hint is None or hint is type(None):
        return value is None
    return inspect.isclass(hint) and isinstance(value, hint)


def _makes(node: Mapping[str, Any], hint: Any) -> bool:
    """Whether a node with a `_target_` makes an object of a class, if both are known."""
    try:
        target = get_method(node["_target_"])
    except Exception:  # reported where the node itself is checked
        return True
    if inspect.isclass(hint) and inspect.isclass(target) and not node.get("_partial_"):
        return issubclass(target, hint)
    return True


def one_of(choices: Iterable[object]) -> str:
    """Choices in words: a, b or c."""
    *others, last = map(str, choices)
    return f"{', '.join(others)} or {last}" if others else last


def spell(hint: Any) -> str:
    """A type hint in words."""
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return one_of(dict.fromkeys(word for choice in inner for word in re.split(", | or ", spell(choice))))
    if origin is Literal:
        return one_of(inner)
    if origin is Callable:
        return "an object with a _target_ and _partial_=true"
    if getattr(hint, "__module__", "").startswith(("stn.", "torch.nn")):
        return "an object with a _target_" + (f", a {hint.__name__}" if inspect.isclass(hint) else "")
    words = {int: "a whole number", float: "a number", bool: "true or false", str: "a text", type(None): "null"}
    if hint in words:
        return words[hint]
    return (
        f"a list of {spell(inner[0]).removeprefix('a ')}s"
        if origin is not None and inner
        else getattr(hint, "__name__", str(hint))
    )
