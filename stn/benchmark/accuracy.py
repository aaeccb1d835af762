"""How long training takes to reach an accuracy, compared with 50 epochs of the tutorial's loop."""

import contextlib
import io
from collections.abc import Iterator
from statistics import mean
from typing import Any

import torch
from matplotlib.axes import Axes
from omegaconf import DictConfig

from stn.benchmark.report import bars
from stn.benchmark.train import CASES, TUTORIAL_IMAGES, WORKERS, Stopwatch, accelerator, composed
from stn.benchmark.tutorial import tutorials
from stn.build import build_data, read_data
from stn.process import tune_malloc
from stn.training import train

EXPERIMENTS = ("fast85", "fast94")
GOALS = (0.60, 0.67, 0.90, 0.94)
EPOCHS, IMAGES = 50, 50_000  # of the published systems


def measure(rounds: int, device: torch.device, overrides: list[str]) -> Iterator[dict[str, Any]]:
    """A row for each experiment and goal: the mean seconds, over `rounds` seeds, to an accuracy on the validation set.

    The time starts with the first step; start-up and test are not counted. The goal "the end" is the end of the last
    epoch, with the test accuracy. The last column is the time of 50 epochs of the tutorial's loop, with its best number
    of workers, divided by the row's seconds. overrides: name the data.
    """
    tune_malloc()
    made = [f"trainer.accelerator={accelerator(device)}", *overrides]
    for experiment in EXPERIMENTS:  # reports bad input before the timing starts
        with composed([f"experiment={experiment}", *made]) as config:
            read_data(build_data(config), "fit", "test")
    with composed([*CASES["LeNet-5 STN"], f"trainer.accelerator={accelerator(device)}"]) as config:
        speed = 0.0
        for workers in WORKERS:
            with tutorials(config, TUTORIAL_IMAGES, workers, device) as epoch:
                speed = max(speed, *(epoch() for _ in range(3)))
    fifty = EPOCHS * IMAGES / speed
    yield row("the tutorial's loop, 50 epochs", "", [], [fifty], fifty)
    for experiment in EXPERIMENTS:
        seconds: dict[float, list[float]] = {goal: [] for goal in GOALS}
        scores, whole = [], []
        for seed in range(rounds):
            with composed([f"experiment={experiment}", *made, f"seed={seed}"]) as config:
                epochs, score = run(config)
            scores.append(score)
            whole.append(epochs[-1][0])
            for goal in GOALS:
                seconds[goal] += [second for second, accuracy in epochs if accuracy >= goal][:1]
        yield row(experiment, "the end", scores, whole, fifty)
        for goal, times in seconds.items():
            if len(times) == rounds:
                yield row(experiment, f"{goal:.0%}", [], times, fifty)


def run(config: DictConfig) -> tuple[list[tuple[float, float]], float]:
    """Seconds and validation accuracy after each epoch of a run, and its test accuracy."""
    stopwatch = Stopwatch()
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        metrics = train(config, [stopwatch])
    return stopwatch.epochs, metrics["test_accuracy"]


def row(what: str, goal: str, scores: list[float], seconds: list[float], fifty: float) -> dict[str, Any]:
    """A row of some runs: their mean seconds, test accuracies, and how many times faster than `fifty` seconds."""
    return {
        "what": what,
        "to": goal,
        "seeds": len(seconds),
        "test accuracy": mean(scores) if scores else "",
        "from, to": [min(scores), max(scores)] if scores else "",
        "seconds": mean(seconds),
        "tutorial's 50 epochs / this": fifty / mean(seconds),
    }


def draw(rows: list[dict[str, Any]], axes: Axes) -> None:
    """Seconds to each goal, as bars."""
    found = {f"{row['what']} {row['to']}": row["seconds"] for row in rows}
    bars(axes, found, peers=list(found)[:1])
    axes.set(xscale="log", xlabel="seconds")
