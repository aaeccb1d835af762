"""A sweep, python -m stn.train -m: how it goes on after an interruption, and the table at its end."""

import os
import shlex
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf

from stn import cli
from stn.check import allowed_packages
from stn.config import expand_home, hydra_word, quoted
from stn.errors import InputError, user_errors

# torch is imported where it is needed: --help must not wait for it.

folders: list[Path] = []  # of the sweep that this process runs


class Sweep(Callback):
    """Hydra's callback that tells the folder of a sweep.

    resumes: whether the sweep goes on with what is in its folder.
    """

    def __init__(self, resumes: bool = False) -> None:
        self.resumes = resumes

    def on_multirun_start(self, config: DictConfig, **more: Any) -> None:
        folders.append(Path(config.hydra.sweep.dir))


@contextmanager
def told() -> Iterator[None]:
    """Ends a sweep with its table, also if jobs have failed. If it is interrupted, it says how to go on."""
    failed: cli.JobFailedError | None = None
    try:
        yield
    except cli.JobFailedError as error:
        failed = error
    except KeyboardInterrupt:
        if folders and (folders[0] / "multirun.yaml").exists():
            go_on = shlex.join(["python", "-m", "stn.train", "-m", f"resume={os.path.relpath(folders[0])}"])
            print(f"the sweep goes on with: {go_on}")
        raise
    if folders:
        tell(folders[0])
    if failed:
        raise failed


def tell(folder: Path) -> None:
    """Prints what the jobs of a sweep have found, and writes it into comparison/ of its folder."""
    from stn.comparison import compare_runs
    from stn.comparison_report import print_report, write_report
    from stn.runs import runs_in

    try:
        # Who varies the data of a sweep means to.
        comparison = compare_runs(runs_in(folder), allow_different_data=True)
    except InputError as error:
        print(error)
        return
    with user_errors("hydra.sweep.dir"):
        (folder / "comparison").mkdir(exist_ok=True)
        write_report(comparison, folder / "comparison")
    print_report(comparison, folder / "comparison")


def arguments(words: Sequence[str]) -> list[str]:
    """The words of a command line; -m resume=SWEEP is replaced by what started the sweep.

    Raises InputError for what is not the folder of a sweep, and for settings that it would not have.
    """
    multirun = ("-m", "--multirun", "hydra.mode=MULTIRUN")
    given = [word for word in words if word.startswith("resume=")]
    if set(multirun).isdisjoint(words):
        return list(words)
    if not given:
        check_new(words)
        return list(words)
    rest = [word for word in words if word not in (*multirun, *given)]
    for before, word in zip(["", *rest], rest, strict=False):
        is_value = before in ("--config-dir", "-cd", "--config-path", "-cp", "--config-name", "-cn")
        if not is_value and not word.startswith(("-", "hydra.", "hydra/", "allow=")):
            raise InputError(f"{word} cannot be set on resuming a sweep, which keeps its settings: leave it out")
    folder = find_sweep(given[-1].partition("=")[2])
    settings, of_hydra = read_overrides(folder / "multirun.yaml")
    for text in of_hydra:
        # It chooses the jobs or names their folders, and is not taken from a file that may be anybody's.
        chooses = ("hydra.sweep.subdir=", "hydra.job.config.", "hydra.sweeper.", "hydra/sweeper=")
        if text.startswith(chooses) and text not in map(hydra_word, rest):
            raise InputError(f"{folder} was started with {text}, which says what its jobs are: give it again")
    return ["-m", *settings, f"hydra.sweep.dir={quoted(str(folder))}", "hydra.callbacks.sweep.resumes=true", *rest]


def check_new(words: Sequence[str]) -> None:
    """Raises InputError for a new sweep in the folder of another, whose settings it would replace."""
    if any(word.lstrip("+").lower() == "overwrite=true" or word in ("--cfg", "-c", "--info", "-i") for word in words):
        return
    for word in words:
        key, _, where = expand_home(word).partition("=")
        folder = Path(where.strip("'\""))
        if key == "hydra.sweep.dir" and (folder / "multirun.yaml").exists():
            go_on = shlex.join(["-m", f"resume={folder}"])
            raise InputError(f"{folder} holds a sweep already: go on with it by {go_on}, or give another folder")


def find_sweep(where: str) -> Path:
    """The folder of a sweep; "latest" is the one in outputs/ that was started last. Raises InputError for another."""
    from stn.runs import latest_sweep

    folder = latest_sweep() if where == "latest" else Path(expand_home(f"={where}")[1:])
    if not folder.exists():
        raise InputError(f"{folder} does not exist: give a sweep's folder, or latest")
    if not (folder / "multirun.yaml").is_file():
        if (folder / "config.yaml").exists():
            raise InputError(f"{folder} is a single run: leave out -m")
        raise InputError(f"{folder} has no multirun.yaml: give the folder of a sweep")
    return folder


def read_overrides(path: Path) -> tuple[list[str], list[str]]:
    """The settings of the command that started a sweep, and those of them that are for Hydra, from its multirun.yaml.

    Raises InputError for a file that is no such file, and for settings that reach beyond the config of a run.
    """
    from stn.untrusted import parse_yaml

    try:
        found: Any = OmegaConf.to_container(parse_yaml(path), resolve=False)
        settings, of_hydra = (list(found["hydra"]["overrides"][part]) for part in ("task", "hydra"))
        for parsed in OverridesParser.create().parse_overrides(settings):
            key, text = parsed.key_or_group, str(parsed.input_line)
            # A group may be a file anywhere, and a file may set anything.
            reaches = parsed.package is not None or key.startswith("hydra") or ("." not in key and ".." in text)
            if reaches or "${" in text or key in ("folder", "resume", "allow"):
                raise ValueError(f"{text[:100]!r} is not a setting that a sweep can be resumed with")
        return settings, [str(text) for text in of_hydra]
    except Exception as error:  # of the YAML parser, OmegaConf, Hydra or the file system
        raise InputError(f"{path} cannot be resumed from ({' '.join(str(error).split())})") from error


def is_resumed() -> bool:
    """Whether the job in this process is one of a sweep that goes on."""
    callback = HydraConfig.get().callbacks.get("sweep")  # none in a config of an earlier version
    return bool(callback and callback.resumes)


def continued(config: DictConfig, folder: Path) -> tuple[DictConfig, Path | None] | None:
    """How a job of a resumed sweep goes on: the config and the last checkpoint. None if it is finished.

    Without a checkpoint it is trained anew, and so is one that has failed.
    Raises InputError for a folder that holds a run with other settings.
    """
    from stn.resuming import check_paths, last_checkpoint, resumed
    from stn.runs import read_plain, settings_of, unfinished
    from stn.untrusted import RUN, check_targets

    allow = allowed_packages(config.allow)
    plain: Any = OmegaConf.to_container(config, resolve=True)
    if (folder / "config.yaml").exists():
        kept = read_plain(folder)
        here, there = ({"seed": found["seed"]} | settings_of(found) for found in (plain, kept))
        for key in dict.fromkeys([*here, *there]):
            if here.get(key) != there.get(key):
                raise InputError(f"{folder} holds a run with {key}={there.get(key)}, not {here.get(key)}: move it away")
        if not unfinished(folder):
            return None
        if not (folder / "error.txt").exists():
            try:
                last_checkpoint(folder)
            except InputError:
                pass  # it was interrupted before the first one
            else:
                return resumed(str(folder), allow=allow)
    with user_errors("resume"):
        check_targets(plain, RUN, allow)
    check_paths(config, folder)
    config.overwrite = True
    return config, None
