"""Watches a training of 200 epochs: memory, open files, threads and the time of an epoch must not grow.

python tests/growth.py [epochs]
"""

import json
import os
import statistics
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from conftest import ROOT, TINY

from stn.config import compose
from stn.provenance import provenance
from stn.training import train


class Watch(pl.Callback):
    """A row for each epoch."""

    def __init__(self) -> None:
        self.rows: list[dict[str, float]] = []
        self.since = time.monotonic()

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        now = time.monotonic()
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        row = {"MiB": pages * os.sysconf("SC_PAGE_SIZE") / 2**20, "files": 0.0}
        row["files"] = float(len(list(Path("/proc/self/fd").iterdir())))
        row |= {"threads": float(threading.active_count()), "seconds": now - self.since}
        self.rows.append(row)
        self.since = now


def main(epochs: int) -> None:
    watch = Watch()
    quiet = ["callbacks.progress=null", "callbacks.summary=null", "data.train_images=300", "optimizer=adamw"]
    with tempfile.TemporaryDirectory() as folder:
        train(compose([*TINY, *quiet, f"trainer.max_epochs={epochs}"], Path(folder, "run")), [watch])
    rows = watch.rows[epochs // 10 :]  # the first epochs still fill caches
    found: dict[str, Any] = {"epochs": epochs}
    for name in rows[0]:
        values = [row[name] for row in rows]
        line = statistics.linear_regression(range(len(values)), values)
        halves = [statistics.median(part) for part in (values[: len(values) // 2], values[len(values) // 2 :])]
        found[name] = {"slope_per_epoch": line.slope, "median_of_halves": halves}
    (ROOT / "results" / "growth.json").write_text(json.dumps(found | provenance(), indent=2) + "\n")


if __name__ == "__main__":
    main(int((sys.argv[1:] or ["200"])[0]))
