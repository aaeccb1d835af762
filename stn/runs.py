"""Finds the folders of runs, and reads what they say without opening their networks."""

import glob
import math
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from stn.cli import printable
from stn.errors import InputError
from stn.run import read_metrics
from stn.untrusted import read_json, read_text, read_yaml

MARKS = ("config.yaml", "error.txt", "train.log")  # files that make a folder that of a run
# Settings that do not change what is trained. The seed tells apart the runs of a group.
NEUTRAL = (
    r"(hydra|logger|callbacks\.(summary|progress|history|learning_rate|warps|theta|dashboard))(\..*)?|folder|overwrite|resume|allow"
    r"|seed|data\.seed|data\.cache|threads|trainer\.log_every_n_steps|.*\.(dirpath|folder|save_dir|root_dir|log_dir)"
)
# Keys of the data that may differ between runs whose results are compared: they change the training alone.
OF_TRAINING = r"data\.(subset|flip|shift|cutout|cutmix|batch_size|eval_batch_size|cache|follow_links|seed)"
WRITTEN = "the data's "  # before what environment.json says of the data: the classes and digests of the images


@dataclass(frozen=True)
class Finished:
    """A run that has been tested.

    settings: its config as dotted keys, without those that do not change what is trained. data: what must be equal for
    results to be comparable. environment: the content of environment.json, empty if there is none.
    """

    folder: Path
    seed: int
    settings: Mapping[str, Any]
    data: Mapping[str, Any]
    metrics: Mapping[str, Any]
    environment: Mapping[str, Any]


def find_runs(words: Sequence[str]) -> list[Path]:
    """The folders of runs that words name: a run, a pattern, or a folder that holds runs, such as that of a sweep.

    Raises InputError for a word that names none.
    """
    found: dict[Path, Path] = {}
    for word in words:
        path = Path(word).expanduser()
        matching = glob.glob(str(path), recursive=True)  # noqa: PTH207, since Path's takes no absolute pattern
        places = [path] if path.exists() else sorted(map(Path, matching), key=natural)
        if not places:
            raise InputError(f"{word} does not exist: give folders of runs or of sweeps, or a pattern in quotes")
        runs = [run for place in places for run in runs_in(place)]
        if not runs:
            raise InputError(f"{word} holds no run: give the folder of a run, or of a sweep")
        for run in runs:
            found.setdefault(run.resolve(), run)
    if not found:
        raise InputError("there is nothing to compare: give the folders of runs, or that of a sweep")
    return list(found.values())


def runs_in(folder: Path) -> list[Path]:
    """The folder itself if it is that of a run, otherwise the runs in it, in the order of their numbers."""
    found = []
    for place, names, files in os.walk(folder):
        if "multirun.yaml" not in files and not set(MARKS).isdisjoint(files):
            found.append(Path(place))
            names.clear()
        names[:] = [name for name in names if not name.startswith(".")]
    return sorted(found, key=natural)


def natural(path: Path) -> list[tuple[bool, int, str]]:
    """A key that sorts paths by the numbers in them: 2 before 10."""
    return [(part.isdigit(), int(part) if part.isdigit() else 0, part) for part in re.split(r"(\d+)", str(path))]


def latest_sweep() -> Path:
    """The sweep in outputs/ that was started last. Raises InputError if there is none."""
    found = list(Path("outputs").glob("**/multirun.yaml"))
    if not found:
        raise InputError(f"latest: there is no sweep in {Path('outputs').resolve()}; give its folder")
    return max(found, key=lambda path: path.stat().st_mtime_ns).parent


def unfinished(folder: Path) -> str | None:
    """Why a run has no test metric, in a few words; None if it has one. Raises InputError for a broken metrics.json."""
    metrics = read_metrics(folder)
    if any(name.startswith("test_") for name in metrics):
        return None
    if (folder / "error.txt").exists():
        try:
            lines = read_text(folder / "error.txt").strip().splitlines() or [""]
        except (OSError, ValueError) as error:
            lines = [str(error)]
        # One sentence with the name of the program, or the traceback of a bug, whose last line says most.
        said = lines[-1] if lines[0].startswith("Traceback") else lines[0].removeprefix("stn.train: ")
        return f"failed: {brief(said)}"
    epochs = metrics.get("epochs")
    return f"not finished, after {epochs} epochs" if isinstance(epochs, int) else "not finished"


def read_finished(folder: Path) -> Finished:
    """Reads a run that has been tested. Raises InputError for a config.yaml that is not that of a run."""
    plain = read_plain(folder)
    try:
        environment = dict(read_json(folder / "environment.json"))
    except (OSError, ValueError, TypeError):
        environment = {}
    given = environment.get("data")
    data = {key: value for key, value in flat(plain, "").items() if re.fullmatch(r"data(\..*)?", key)}
    data = {key: value for key, value in data.items() if not re.fullmatch(OF_TRAINING, key)}
    data |= {f"{WRITTEN}{key}": value for key, value in (given if isinstance(given, dict) else {}).items()}
    return Finished(folder, plain["seed"], settings_of(plain), data, read_metrics(folder), environment)


def read_plain(folder: Path) -> dict[str, Any]:
    """The config of a run as nested dicts. Classes that it names are not looked up, so it may name any.

    Raises InputError for a config.yaml that is not that of a run.
    """
    path = folder / "config.yaml"
    try:
        config = read_yaml(path)
        OmegaConf.update(config, "folder", "")
        OmegaConf.resolve(config)
        plain: Any = OmegaConf.to_container(config)
        if not isinstance(plain.get("seed"), int) or not isinstance(plain.get("data"), dict):
            raise ValueError("it has no seed or no data")
    except Exception as error:  # of the YAML parser, OmegaConf or the file system
        raise InputError(f"{path} cannot be read as the config of a run ({' '.join(str(error).split())})") from error
    return dict(plain)


def settings_of(plain: Mapping[str, Any]) -> dict[str, Any]:
    """The keys of a plain config that change what is trained, dotted; an object stands for its class."""
    return {key: value for key, value in flat(plain, "").items() if not re.fullmatch(NEUTRAL, key)}


def flat(node: Any, path: str) -> dict[str, Any]:
    """The values in nested dicts by their dotted keys; `_target_` counts as the value of its node."""
    if not isinstance(node, dict):
        return {path: node}
    found: dict[str, Any] = {}
    for key, value in node.items():
        inner = path if key == "_target_" else f"{path}.{key}".lstrip(".")
        found |= flat(value, inner)
    return found


def number(run: Finished, name: str) -> float | None:
    """A metric of a run, None if it has none, or one that is not a finite number."""
    value = run.metrics.get(name)
    is_number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    return float(value) if is_number else None  # type: ignore[arg-type]


def other_data(runs: Sequence[Finished]) -> str | None:
    """In which key the data of two runs differ, in words; None if all are the same."""
    for run in runs[1:]:
        first = runs[0]
        for key in dict.fromkeys([*first.data, *run.data]):
            unknown = key.startswith(WRITTEN) and not (key in first.data and key in run.data)
            if not unknown and first.data.get(key) != run.data.get(key):
                one, other = (brief(str(found.data.get(key)), 60) for found in (first, run))
                return f"{key} is {one} in {first.folder} and {other} in {run.folder}"
    return None


def brief(text: str, longest: int = 200) -> str:
    """The beginning of a text from a file, without what a terminal would obey."""
    shown = printable(text)
    return shown if len(shown) <= longest else f"{shown[:longest]}…"
