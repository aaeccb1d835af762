"""Keeps the results of runs as files in results/."""

import json
import re
import shlex
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from statistics import mean
from typing import Any

from stn.callbacks.history import METRICS
from stn.csv_logger import read_rows
from stn.errors import InputError, user_errors
from stn.hyperparameters import class_name
from stn.run import read_metrics
from stn.runs import NEUTRAL, read_plain
from stn.training import write_json
from stn.untrusted import LARGEST_EVALUATION, read_json

RESULTS = Path("results")
# Words of a command that do not name an experiment: they do not change what is trained, or name the images.
UNNAMED = rf"-m|--multirun|({NEUTRAL}|data|data\.root)=.*"

Result = dict[str, Any]


def record(folder: Path) -> Path:
    """Writes the result of a run to results/<experiment>/<seed>.json, and returns that path.

    The result of `python -m stn.colocalize` goes to results/colocalization/. The experiment is named by the settings
    of the run's command. Raises InputError for a run that is not finished, that a script trained, or whose code is in
    no commit, for one that was resumed for more epochs than its command says, and where there is a result of the same
    experiment on other images.
    """
    if (folder / "colocalization.json").is_file():
        return record_colocalization(folder)
    metrics = read_metrics(folder)
    if "test_accuracy" not in metrics:
        raise InputError(f"{folder} is not the folder of a finished run: give one with test_accuracy in metrics.json")
    environment = dict(read_json(folder / "environment.json"))
    for began in (environment, *environment.get("resumed", [])):
        check_commit(folder, began["commit"])
    if any({"resume", "trainer.max_epochs"} <= keys(went_on["command"]) for went_on in environment.get("resumed", [])):
        raise InputError(f"{folder} was resumed for more epochs, so its command does not name it: train it anew")
    plain = read_plain(folder)
    settings = {key: value for key, value in plain.items() if key not in ("folder", "hydra", "callbacks", "logger")}
    settings["callbacks"] = sorted(name for name, node in plain["callbacks"].items() if node)
    if not environment["command"].startswith("python -m stn.train"):
        raise InputError(f"{folder} was not trained by python -m stn.train, whose settings name a result")
    name = experiment(environment["command"])
    path = RESULTS / name.replace("/", "-") / f"{plain['seed']}.json"  # of a group such as data/distortion
    if path.exists() and source_of(json.loads(path.read_text(encoding="utf-8"))["config"]["data"]) != source_of(
        settings["data"]
    ):
        raise InputError(f"{path} is of other images than {folder}: move it, or name them by a setting")
    result = {"experiment": name, "seed": plain["seed"], **environment}
    if (evaluation := folder / "evaluation" / "evaluation.json").is_file():
        with user_errors(str(evaluation)):
            found = dict(read_json(evaluation, LARGEST_EVALUATION))
        same = {"split": "test", "epoch": metrics.get("tested_epoch"), "accuracy": metrics["test_accuracy"]}
        if same.items() <= found.items():  # of the same weights, images and views
            result["accuracy_by_angle"] = found["accuracy_by_angle"]
    write_json(path, result | {"metrics": metrics, "config": settings, "curve": curve(folder)})
    return path


def keys(command: str) -> set[str]:
    """The keys that a command sets."""
    return {word.partition("=")[0] for word in shlex.split(command)}


def record_colocalization(folder: Path) -> Path:
    """As `record`, for the folder of a co-localization."""
    result = dict(read_json(folder / "colocalization.json"))
    check_commit(folder, result["provenance"]["commit"])
    distortion = result["data"]["distortion"]
    kind = source_of(result["data"])
    name = f"{kind}-{distortion['pieces']}-{result['category']}-{result['seed']}"
    path = RESULTS / "colocalization" / f"{name}.json"
    write_json(path, result | {"images_of": kind})
    return path


def source_of(data: Mapping[str, Any]) -> str:
    """The name of a data set, from a run's settings: cifar10, mnist, shapes, or the name of a folder of images."""
    kind = class_name(data["_target_"])
    return Path(str(data["root"])).name if kind == "ImageFolder" else kind.lower()


def check_commit(folder: Path, commit: str | None) -> None:
    """Raises InputError for a run whose code is in no commit."""
    if not commit or commit.endswith("-dirty"):
        raise InputError(f"{folder} was trained by code of no commit ({commit}): commit it, and train again")


def experiment(command: str) -> str:
    """The name of an experiment: its preset, or "default", and the other settings of the command that trained it."""
    words = [word for word in shlex.split(command)[3:] if not re.fullmatch(UNNAMED, word)]
    preset = next((word.partition("=")[2] for word in words if word.startswith("experiment=")), "default")
    return ",".join([preset, *sorted(word for word in words if not word.startswith("experiment="))])


def curve(folder: Path) -> list[dict[str, float]]:
    """The metrics of each epoch, from metrics.csv."""
    epochs: dict[int, dict[str, float]] = defaultdict(dict)
    for row in read_rows(folder / "metrics.csv"):
        found = {name: float(row[name]) for name in METRICS if name in row}
        if found:
            epochs[int(row["epoch"]) + 1].update(found)
    return [{"epoch": epoch, **epochs[epoch]} for epoch in sorted(epochs)]


def read_results() -> dict[str, list[Result]]:
    """All results, by experiment, in the order of the seeds."""
    found: dict[str, list[Result]] = defaultdict(list)
    for path in sorted(RESULTS.glob("*/*.json"), key=lambda path: (path.parent.name, len(path.name), path.name)):
        content = json.loads(path.read_text(encoding="utf-8"))
        if "curve" in content:
            found[content["experiment"]].append(content)
    return dict(found)


def spread(values: Sequence[float], form: str = ".2%") -> str:
    """The mean of some values, with the lowest and the highest of several. form: of each, shares by default."""
    several = f" ({min(values):{form}} to {max(values):{form}})" if len(values) > 1 else ""
    return f"{mean(values):{form}}{several}"


def table(rows: Iterable[Sequence[str]]) -> str:
    """Rows as a Markdown table, the first one as its head."""
    head, *body = ("| " + " | ".join(row) + " |" for row in rows)
    return "\n".join([head, "|" + "---|" * (head.count(" | ") + 1), *body])
