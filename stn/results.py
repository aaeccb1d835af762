"""Keeps the results of runs as files in results/, and makes docs/results.md and the table of README from them."""

import csv
import json
import re
import shlex
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from statistics import mean
from typing import Any

from matplotlib.figure import Figure
from omegaconf import OmegaConf

from stn.csv_logger import read_rows
from stn.errors import InputError
from stn.figures import BLUE, VERMILION
from stn.run import read_config, read_metrics
from stn.training import write_json
from stn.untrusted import read_json

RESULTS, PAGE, README, PICTURE = Path("results"), Path("docs/results.md"), Path("README.md"), Path("docs/published.png")
MARKS = ("<!-- made from results/ by python -m stn.record -->", "<!-- end -->")
# Settings that do not change what is trained, so they do not name an experiment.
NEUTRAL = r"-m|--multirun|(data|data\.root|data\.cache|seed|threads|folder|overwrite|callbacks\.progress|hydra\..*)=.*"
CURVE = ("train/accuracy", "train/loss", "val/accuracy", "val/loss")

Result = dict[str, Any]


def record(folder: Path) -> Path:
    """Writes the result of a run to results/<experiment>/<seed>.json, and returns that path.

    The experiment is named by the settings of the run's command. Raises InputError for a run that is not finished, or
    whose code is in no commit.
    """
    config, metrics = read_config(folder), read_metrics(folder)
    if config is None or "test_accuracy" not in metrics:
        raise InputError(f"{folder} is not the folder of a finished run: give one with test_accuracy in metrics.json")
    environment = dict(read_json(folder / "environment.json"))
    if not environment["commit"] or environment["commit"].endswith("-dirty"):
        raise InputError(
            f"{folder} was trained by code of no commit ({environment['commit']}): commit it, and train again"
        )
    plain: Any = OmegaConf.to_container(config)
    settings = {key: value for key, value in plain.items() if key not in ("folder", "hydra", "callbacks", "logger")}
    settings["callbacks"] = sorted(name for name, node in plain["callbacks"].items() if node)
    name = experiment(environment["command"])
    path = RESULTS / name / f"{config.seed}.json"
    result = {"experiment": name, "seed": config.seed, **environment}
    write_json(path, result | {"metrics": metrics, "config": settings, "curve": curve(folder)})
    return path


def experiment(command: str) -> str:
    """The name of an experiment: its preset, or "default", and the other settings of the command that trained it."""
    words = [word for word in shlex.split(command)[3:] if not re.fullmatch(NEUTRAL, word)]
    preset = next((word.partition("=")[2] for word in words if word.startswith("experiment=")), "default")
    return ",".join([preset, *sorted(word for word in words if not word.startswith("experiment="))])


def curve(folder: Path) -> list[dict[str, float]]:
    """The metrics of each epoch, from metrics.csv."""
    epochs: dict[int, dict[str, float]] = defaultdict(dict)
    for row in read_rows(folder / "metrics.csv"):
        found = {name: float(row[name]) for name in CURVE if name in row}
        if found:
            epochs[int(row["epoch"]) + 1].update(found)
    return [{"epoch": epoch, **epochs[epoch]} for epoch in sorted(epochs)]


def read_results() -> dict[str, list[Result]]:
    """All results, by experiment, in the order of the seeds."""
    found: dict[str, list[Result]] = defaultdict(list)
    for path in sorted(RESULTS.glob("*/*.json"), key=lambda path: (path.parent.name, len(path.name), path.name)):
        content = json.loads(path.read_text())
        if "curve" in content:
            found[path.parent.name].append(content)
    return dict(found)


def make_pages() -> None:
    """Writes docs/results.md, its picture, and the table of README."""
    results = read_results()
    PAGE.write_text(page(results))
    README.write_text(with_tables(README, accuracies(results)))
    draw_published(results).savefig(PICTURE, dpi=120)


def page(results: Mapping[str, Sequence[Result]]) -> str:
    """The text of docs/results.md."""
    text = (
        "# Results\n\n"
        "Made by `python -m stn.record` from the files in `results/`: each holds the metrics, the whole config, the "
        "command, the commit, the machine, the versions and the curve of one run.\n\n"
        "All on CIFAR-10: the original images, but for 93 of the 60,000 (20 of them in the test set), which are "
        "JPEG-compressed. Where the shortest time has 1 thread, the machine did other work meanwhile.\n\n"
        f"## Accuracy\n\n{accuracies(results)}\n\n"
        "## The five published systems\n\n"
        "As published, the test set is scored after every epoch, and the best epoch is picked on it.\n\n"
        f"{systems(results)}\n\n"
        "![The test accuracy of each epoch, measured and published](published.png)\n\n"
        f"## What a change is worth\n\nThe same seeds with and without it.\n\n{changes(results)}\n"
    )
    return text.replace("](results/", "](../results/")


def with_tables(path: Path, tables: str) -> str:
    """The text of a page with the tables between its marks made anew. Raises InputError if a mark is missing."""
    text = path.read_text()
    place = re.compile(f"{re.escape(MARKS[0])}.*?{re.escape(MARKS[1])}", re.DOTALL)
    if len(place.findall(text)) != 1:
        raise InputError(f"{path} must have one place for tables, from {MARKS[0]} to {MARKS[1]}")
    return place.sub(lambda _: f"{MARKS[0]}\n{tables}\n{MARKS[1]}", text)


def accuracies(results: Mapping[str, Sequence[Result]]) -> str:
    """The table of the presets that are tested once, at their end."""
    rows = [("preset", "parameters", "epochs", "test accuracy", "seeds", "shortest time", "machine")]
    for name, runs in results.items():
        if "," in name or runs[0]["config"]["data"]["validate_on"] == "test":
            continue
        metrics = [run["metrics"] for run in runs]
        fastest = min(runs, key=lambda run: run["metrics"]["seconds"])
        rows.append(
            (
                f"[`{name}`](results/{name})",
                f"{metrics[0]['parameters']:,}",
                str(metrics[0]["epochs"]),
                f"**{spread([one['test_accuracy'] for one in metrics])}**",
                str(len(runs)),
                f"{fastest['metrics']['seconds']:,.0f} s",
                machine(fastest),
            )
        )
    return table(rows)


def systems(results: Mapping[str, Sequence[Result]]) -> str:
    """The table of the published systems."""
    rows = [("preset", "parameters", "epochs", "published", "measured: best", "last", "seeds")]
    for name, published in json.loads((RESULTS / "published.json").read_text()).items():
        runs = results.get(name, [])
        said = [f"{key} {published[key]:.2%}" for key in ("best", "last") if key in published]
        if not runs:
            continue
        best = [max(run["curve"], key=lambda row: row["val/accuracy"]) for run in runs]
        epochs = ", ".join(f"{row['epoch']:.0f}" for row in best)
        rows.append(
            (
                f"[`{name}`](results/{name})",
                f"{runs[0]['metrics']['parameters']:,}",
                str(runs[0]["metrics"]["epochs"]),
                ", ".join(said) or "none",
                f"{spread([row['val/accuracy'] for row in best])} (epoch {epochs})",
                spread([run["curve"][-1]["val/accuracy"] for run in runs]),
                str(len(runs)),
            )
        )
    return table(rows)


def changes(results: Mapping[str, Sequence[Result]]) -> str:
    """The table of the experiments that are a preset with other settings, beside the preset."""
    rows = [("preset", "changed", "test accuracy", "unchanged", "seeds")]
    for name, runs in results.items():
        preset, _, settings = name.partition(",")
        without = {run["seed"]: run["metrics"]["test_accuracy"] for run in results.get(preset, [])}
        pairs = [(run["metrics"]["test_accuracy"], without[run["seed"]]) for run in runs if run["seed"] in without]
        if settings and pairs:
            shown = " ".join(f"`{setting}`" for setting in settings.split(","))
            here, there = (spread(found) for found in zip(*pairs, strict=True))
            rows.append((f"[`{preset}`](results/{preset})", shown, here, there, str(len(pairs))))
    return table(rows)


def draw_published(results: Mapping[str, Sequence[Result]]) -> Figure:
    """The test accuracy of each epoch of the published systems, measured and published."""
    with (RESULTS / "published_logs.csv").open(newline="") as file:
        logs = list(csv.DictReader(file))
    names = [name for name in json.loads((RESULTS / "published.json").read_text()) if name in results]
    figure = Figure(figsize=(11, 2.8), layout="constrained")
    for axes, name in zip(figure.subplots(1, max(1, len(names)), sharey=True, squeeze=False)[0], names, strict=False):
        for run in results[name]:
            epochs, values = [row["epoch"] for row in run["curve"]], [row["val/accuracy"] for row in run["curve"]]
            axes.plot(epochs, values, color=BLUE, label="measured")
        rows = [row for row in logs if row["system"] == name]
        epochs, values = [int(row["epoch"]) for row in rows], [float(row["test_accuracy"]) for row in rows]
        style = "." if len(rows) < 10 else "-"  # of some only a few epochs are known
        axes.plot(epochs, values, style, color=VERMILION, label="published")
        axes.set(title=name, xlabel="epoch")
        axes.grid(alpha=0.3)
    axes = figure.axes[0]
    axes.set_ylabel("test accuracy")
    axes.legend(loc="lower right")
    return figure


def spread(values: Sequence[float], form: str = ".2%") -> str:
    """The mean of some values, with the lowest and the highest of several. form: of each, shares by default."""
    several = f" ({min(values):{form}} to {max(values):{form}})" if len(values) > 1 else ""
    return f"{mean(values):{form}}{several}"


def machine(run: Result) -> str:
    """The machine of a run in a few words."""
    found = run["machine"]
    if "gpu" in found:
        return str(found["gpu"])
    fast = next((feature for feature in found["features"] if "bf16" in feature), "no bfloat16")
    return f"{found['processor']} ({fast}), {found['threads']} thread{'s' * (found['threads'] > 1)}"


def table(rows: Iterable[Sequence[str]]) -> str:
    """Rows as a Markdown table, the first one as its head."""
    head, *body = ("| " + " | ".join(row) + " |" for row in rows)
    return "\n".join([head, "|" + "---|" * (head.count(" | ") + 1), *body])
