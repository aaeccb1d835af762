"""Composes a config as the command line does, changes it, saves it, and explains errors in it."""

import os
import re
import shlex
import traceback
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import hydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException, InstantiationException, MissingConfigException, OverrideParseException
from hydra.utils import get_method
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import ConfigAttributeError, ConfigKeyError, OmegaConfBaseException

from stn.check import GROUPS, arguments_of
from stn.errors import InputError, nearest, nearest_key

# torch is imported where it is needed: --help and --cfg job must not wait for it.


def config_folder() -> str:
    """Where the configs are: beside the package in a checkout, inside it when installed."""
    package = Path(__file__).resolve().parent
    return str(next(path for path in (package / "conf", package.parent / "conf") if path.is_dir()))


def register() -> None:
    """Makes ${fastest_precision:…} and ${if:condition,yes,no} known to the configs."""
    OmegaConf.register_new_resolver("fastest_precision", fastest_precision, replace=True)
    OmegaConf.register_new_resolver("if", lambda condition, yes, no: yes if condition else no, replace=True)


def fastest_precision(accelerator: str) -> str:
    """'bf16-mixed' where the hardware computes in bfloat16, '32-true' elsewhere."""
    import torch

    if accelerator in ("auto", "gpu", "cuda") and torch.cuda.is_available():
        fast = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        fast = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return "bf16-mixed" if fast else "32-true"


def compose(overrides: Sequence[str] = (), folder: str | Path | None = None, name: str = "config") -> DictConfig:
    """Composes the config that `python -m stn.train` composes from the same overrides.

    folder: of the run; if None, a new one in outputs/. name: of the file in conf/ from which it starts.
    Raises InputError for overrides that do not compose.
    """
    register()
    overrides = [hydra_word(text) for text in overrides]
    with hydra.initialize_config_dir(config_folder(), version_base="1.3"):
        try:
            config = hydra.compose(name, overrides)
        except Exception as error:
            sentence = explain(error)
            if sentence is None:
                raise
            raise InputError(sentence) from error
    if folder or OmegaConf.is_interpolation(config, "folder"):  # by default Hydra names it
        config.folder = str(folder or Path("outputs", f"{datetime.now():%Y-%m-%d/%H-%M-%S-%f}"))
    return config


def expand_home(text: str) -> str:
    """Replaces the ~ in key=~/folder. No shell does that after a =, and Hydra's grammar has no ~ in values."""
    key, equals, value = text.partition("=")
    return key + equals + re.sub(r"(?<![^,[])~(?=/|,|$)", lambda _: str(Path.home()), value)


def hydra_word(text: str) -> str:
    """A word key=value as Hydra takes it, whose grammar has no ~, and outside quotes no umlauts or brackets."""
    text = expand_home(text)
    key, equals, value = text.partition("=")
    if not equals or text.startswith("-") or re.search(r"[][{},'\"]", value):  # a flag, or written for that grammar
        return text
    try:
        OverridesParser.create().parse_overrides([text])
    except OverrideParseException:
        return f"{key}={quoted(value)}"
    return text


def quoted(value: str) -> str:
    """A text as Hydra takes it for certain."""
    return "'" + re.sub(r"(\\*)('|\Z)", lambda found: 2 * found[1] + ("\\'" if found[2] else ""), value) + "'"


def shell_word(key: str, value: str) -> str:
    """key=value as it is typed into a shell, for any text."""
    text = f"{key}={value}"
    try:
        (parsed,) = OverridesParser.create().parse_overrides([hydra_word(text)])
        is_plain = parsed.value() == value
    except OverrideParseException:
        is_plain = False
    word = text if is_plain else f"{key}={quoted(value)}"
    return f'"{word}"' if not is_plain and not re.search(r'["$`!\\]', word) else shlex.quote(word)


def override(config: DictConfig, overrides: Sequence[str]) -> DictConfig:
    """Copies a composed config and changes some keys. Each override is key=value, or +key=value for a new key.

    Raises InputError for unknown keys, groups, and text that is not such an override.
    """
    changed = config.copy()
    OmegaConf.set_struct(changed, True)
    try:
        for parsed in OverridesParser.create().parse_overrides([hydra_word(text) for text in overrides]):
            key = parsed.key_or_group
            if parsed.is_delete() or parsed.is_sweep_override():
                raise InputError(f"{parsed.input_line!r} is not allowed for a finished run: write key=value")
            if key in GROUPS or "/" in key:
                raise InputError(
                    f"{parsed.input_line!r} chooses from a group, which a finished run has done already: set single "
                    "keys, such as trainer.accelerator=cpu"
                )
            OmegaConf.update(changed, key, parsed.value(), force_add=parsed.is_add())
    except (OverrideParseException, OmegaConfBaseException) as error:
        raise InputError(explain(error) or str(error)) from error
    return changed


def save(config: DictConfig, path: Path) -> None:
    """Writes a config with all values resolved, except the run's folder. So it can be run again in another folder."""
    placeholder = "THE-FOLDER-OF-THE-RUN"
    resolved: Any = OmegaConf.to_container(OmegaConf.merge(config, {"folder": placeholder}), resolve=True)
    resolved["folder"] = "${hydra:runtime.output_dir}"
    resolved["hydra"] = OmegaConf.load(Path(config_folder(), "config.yaml")).hydra  # which names the new folder
    write(path, OmegaConf.to_yaml(OmegaConf.create(resolved)).replace(placeholder, "${folder}"))


def save_epochs(number: int, path: Path) -> None:
    """Sets trainer.max_epochs in a config that `save` has written."""
    saved = OmegaConf.load(path)
    OmegaConf.update(saved, "trainer.max_epochs", number)
    write(path, OmegaConf.to_yaml(saved))


def write(path: Path, text: str) -> None:
    """Writes a text file at once, or leaves the one before."""
    part = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        part.write_text(text, encoding="utf-8")
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def explain(error: BaseException) -> str | None:
    """One sentence for an InputError or an error of Hydra or OmegaConf; None for other errors, which are bugs."""
    link: BaseException | None = error
    while link is not None:
        if isinstance(link, InputError):
            return str(link)
        # OmegaConf raises an error of its own for one of a resolver, without naming it as the cause.
        link = link.__cause__ or (link.__context__ if isinstance(link, OmegaConfBaseException) else None)
    # A ValueError of Hydra, or a TypeError of its own code for a list.
    raised = traceback.extract_tb(error.__traceback__)
    if "Config group override must be" in str(error) or (
        isinstance(error, TypeError) and "/hydra/" in (raised[-1].filename if raised else "")
    ):
        return "a group needs the name of one of its choices, for example logger=none, not null or a number"
    if not isinstance(error, (HydraException, OmegaConfBaseException)) or isinstance(error, InstantiationException):
        return None
    chain: list[BaseException] = []
    link = error
    while link is not None:
        chain.append(link)
        link = link.__cause__ or link.__context__
    for link in chain:
        if isinstance(link, MissingConfigException) and link.missing_cfg_file:
            group, _, choice = str(link.missing_cfg_file).rpartition("/")
            return f"{group}={choice}: there is no such {group}; {nearest(choice, link.options or [])}"
        if isinstance(link, OverrideParseException):
            return f"{link.override!r} is not understood; write key=value, or quote the value"
        if isinstance(link, (ConfigKeyError, ConfigAttributeError)) and link.full_key:
            return _explain_unknown_key(str(link.full_key), link.parent_node)
    return " ".join(str(error).split())


def _explain_unknown_key(full_key: str, parent: Any) -> str:
    """One sentence for a key that its parent node does not have."""
    path, _, key = full_key.rpartition(".")
    keys = [str(name) for name in parent] if isinstance(parent, DictConfig) else []
    if not path:
        root = Path(config_folder())
        groups = [str(folder.relative_to(root)) for folder in root.rglob("*") if folder.is_dir()]
        if "/" in key:
            dotted = key.replace("/", ".")
            return f"{key}: there is no group {key!r}; write {dotted}=… for a key, or {nearest(key, sorted(groups))}"
        if key in groups:
            return f"{key}: it is left out by ~{key}, but something else in the config needs it"
        plain: Any = OmegaConf.to_container(parent) if isinstance(parent, DictConfig) else {}
        meant = nearest_key(key, plain, [*keys, *groups])
        return f"{key}: the config has no key and no group {key!r}; {meant}"
    if "_target_" in keys and key in arguments_of(get_method(parent["_target_"]))[0]:
        return f"{full_key} is not in the config, which uses its default: set it with +{full_key}=…"
    return f"{full_key}: {path} has no key {key!r}; {nearest(key, [name for name in keys if name != '_target_'])}"
