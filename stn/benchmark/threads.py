"""Images a second of a network's training with one thread and with as many as torch takes."""

from collections.abc import Callable, Iterator
from statistics import median
from typing import Any

import torch
from matplotlib.axes import Axes

from stn.benchmark.report import bars
from stn.benchmark.timing import interleaved, ratio
from stn.benchmark.train import CASES, accelerator, bare_loop, composed, settings


def measure(rounds: int, device: torch.device, _: list[str]) -> Iterator[dict[str, Any]]:
    """A row for each network and number of threads: images a second, and how many times those of one thread."""
    most = torch.get_num_threads()
    counts = sorted({1, most})
    for name, case in CASES.items():
        with composed([*settings(case, []), f"trainer.accelerator={accelerator(device)}"]) as config:
            epoch = bare_loop(config, device)
            speeds: dict[int, list[float]] = {count: [] for count in counts}
            arms = {str(count): timed_with(count, epoch, speeds[count]) for count in counts}
            interleaved(arms, rounds, device)
        torch.set_num_threads(most)
        for count in counts:
            found = speeds[count][-rounds:]  # without those that warm up
            times, low, high = ratio(found, speeds[1][-rounds:])
            yield {
                "network": name,
                "threads": count,
                "images/s": median(found),
                "times one thread": times,
                "quartiles": [low, high],
            }


def timed_with(threads: int, epoch: Callable[[], float], speeds: list[float]) -> Callable[[], None]:
    """A call that trains an epoch with so many threads, and appends its images a second to `speeds`."""

    def call() -> None:
        torch.set_num_threads(threads)
        speeds.append(epoch())

    return call


def draw(rows: list[dict[str, Any]], axes: Axes) -> None:
    """Images a second of each network and number of threads, as bars."""
    names = (f"{row['network']}, {row['threads']} thread{'s' * (row['threads'] > 1)}" for row in rows)
    bars(axes, dict(zip(names, (row["images/s"] for row in rows), strict=True)))
    axes.set(xlabel="images a second in training")
