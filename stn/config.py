"""Composes a config as the command line does, changes it, saves it, and explains what is wrong with it."""

from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import hydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import ConfigCompositionException, MissingConfigException, OverrideParseException
from hydra.utils import get_method
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import ConfigAttributeError, ConfigKeyError, OmegaConfBaseException

from stn.check import arguments_of
from stn.errors import InputError, nearest

# torch is imported where it is needed: --help and --cfg job must not wait for it.


def config_folder() -> str:
    """Where the configs are: beside the package in a checkout, inside it when installed."""
    package = Path(__file__).resolve().parent
    return str(next(path for path in (package / "conf", package.parent / "conf") if path.is_dir()))


def register() -> None:
    """Makes ${fastest_precision:…} known to the configs."""
    OmegaConf.register_new_resolver("fastest_precision", fastest_precision, replace=True)


def fastest_precision(accelerator: str) -> str:
    """'bf16-mixed' where the hardware computes in bfloat16, '32-true' elsewhere."""
    import torch

    if accelerator in ("auto", "gpu", "cuda") and torch.cuda.is_available():
        fast = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        fast = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return "bf16-mixed" if fast else "32-true"


def compose(overrides: Sequence[str] = (), folder: str | Path | None = None) -> DictConfig:
    """The config that `python -m stn.train` composes from the same overrides, for a run in `folder`.

    Without a folder, a new one in outputs/. Raises InputError for overrides that do not compose.
    """
    register()
    with hydra.initialize_config_dir(config_folder(), version_base="1.3"):
        try:
            config = hydra.compose("config", list(overrides))
        except Exception as error:
            sentence = explain(error)
            if sentence is None:
                raise
            raise InputError(sentence) from error
    if folder or OmegaConf.is_interpolation(config, "folder"):  # Hydra's folder, which is not there
        config.folder = str(folder or Path("outputs", f"{datetime.now():%Y-%m-%d/%H-%M-%S-%f}"))
    return config


def override(config: DictConfig, overrides: Sequence[str]) -> DictConfig:
    """A copy of a composed config with the values of some keys set, each written key=value.

    Raises InputError for a key that the config does not have, or text that is no key=value.
    """
    changed = config.copy()
    OmegaConf.set_struct(changed, True)
    try:
        for parsed in OverridesParser.create().parse_overrides(list(overrides)):
            if not parsed.is_add() and not parsed.is_delete() and parsed.key_or_group:
                OmegaConf.update(changed, parsed.key_or_group, parsed.value())
            else:
                raise InputError(f"{parsed.input_line!r} cannot be applied to a finished run; write key=value")
    except (OverrideParseException, OmegaConfBaseException) as error:
        raise InputError(explain(error) or str(error)) from error
    return changed


def save(config: DictConfig, path: Path) -> None:
    """Writes a config with all values resolved but the run's folder, so that it can be run again in another one."""
    placeholder = "THE-FOLDER-OF-THE-RUN"
    resolved = OmegaConf.to_container(OmegaConf.merge(config, {"folder": placeholder}), resolve=True)
    text = OmegaConf.to_yaml(OmegaConf.create(resolved))
    text = text.replace(f"folder: {placeholder}\n", "folder: ${hydra:runtime.output_dir}\n", 1)
    path.write_text(text.replace(placeholder, "${folder}"))


def explain(error: BaseException) -> str | None:
    """One sentence for an error of Hydra or OmegaConf, or None for any other."""
    chain: list[BaseException] = []
    link: BaseException | None = error
    while link is not None:
        chain.append(link)
        link = link.__cause__ or link.__context__
    for link in chain:
        if isinstance(link, InputError):
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
        root = Path(config_folder())
        groups = [str(folder.relative_to(root)) for folder in root.rglob("*") if folder.is_dir()]
        if "/" in key:
            dotted = key.replace("/", ".")
            return f"{key}: there is no group {key!r}; write {dotted}=… for a key, or {nearest(key, sorted(groups))}"
        return f"{key}: the config has no key and no group {key!r}; {nearest(key, [*keys, *groups])}"
    if "_target_" in keys and key in arguments_of(get_method(parent["_target_"]))[0]:
        return f"{full_key} is left at its default by the config; set it with +{full_key}=…"
    return f"{full_key}: {path} has no key {key!r}; {nearest(key, keys)}"
