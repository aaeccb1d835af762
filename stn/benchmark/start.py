"""Seconds from the command to the first trained batch, and what of them the imports of the libraries take."""

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from functools import partial
from statistics import median
from typing import Any

import pytorch_lightning as pl
import torch
from matplotlib.axes import Axes

from stn.benchmark.report import bars
from stn.benchmark.timing import interleaved, ratio
from stn.benchmark.train import accelerator

FIRST_BATCH = "stn.train, to the first batch"
SETTINGS = ["data=shapes", "data.train_images=2000", "data.test_images=100"]


class EndAfterBatch(pl.Callback):
    """Ends the process after the first batch, leaving everything undone."""

    def on_train_batch_end(self, *step: Any) -> None:
        os._exit(0)


def measure(rounds: int, device: torch.device, _: list[str]) -> Iterator[dict[str, Any]]:
    """A row for each part of a start: its seconds, and the seconds of the whole start divided by them.

    Every process is a new one. The data are generated in a twentieth of a second.
    """
    callback = f"+callbacks.end._target_={EndAfterBatch.__module__}.{EndAfterBatch.__name__}"
    with tempfile.TemporaryDirectory() as folder:
        settings = [*SETTINGS, callback, f"trainer.accelerator={accelerator(device)}", "overwrite=true"]
        commands = {
            FIRST_BATCH: ["-m", "stn.train", *settings, f"hydra.run.dir={folder}/run"],
            "stn.train --help": ["-m", "stn.train", "--help"],
            "import torch": ["-c", "import torch"],
            "import pytorch_lightning": ["-c", "import pytorch_lightning"],
        }
        arms = {name: partial(run, arguments) for name, arguments in commands.items()}
        seconds = interleaved(arms, rounds, torch.device("cpu"))
    for name, found in seconds.items():
        times, low, high = ratio(seconds[FIRST_BATCH], found)
        yield {"what": name, "seconds": median(found), "the start / this": times, "quartiles": [low, high]}


def run(arguments: list[str]) -> None:
    """Runs Python with some arguments."""
    subprocess.run([sys.executable, *arguments], check=True, stdout=subprocess.DEVNULL)


def draw(rows: list[dict[str, Any]], axes: Axes) -> None:
    """Seconds of each part, as bars."""
    bars(axes, {row["what"]: row["seconds"] for row in rows}, form="{:.1f}")
    axes.set(xlabel="seconds")
