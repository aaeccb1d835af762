"""How speed and memory change with the batch, the image's size, the transformers, the data and the epochs."""

import multiprocessing
import resource
import statistics
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from matplotlib.axes import Axes
from matplotlib.ticker import LogLocator, NullLocator

from stn.benchmark.data import CIFAR10_MEAN, CIFAR10_STD
from stn.benchmark.timing import timed
from stn.benchmark.train import PRECISIONS, train_step
from stn.config import fastest_precision
from stn.data.batches import Augmentation, Batches
from stn.layers import ConvLocalization, SpatialTransformer
from stn.networks import ConvNet, Normalization
from stn.process import tune_malloc


@dataclass(frozen=True)
class Setting:
    """What is trained: the tutorial's network behind `transformers` transformers, one after another."""

    batch: int = 256
    size: int = 32
    transformers: int = 1
    images: int = 4096
    epochs: int = 1


START = Setting()
GROWN: dict[str, tuple[int, ...]] = {
    "batch": (32, 64, 128, 256, 512),
    "size": (32, 64, 96, 128),
    "transformers": (0, 1, 2, 3),
    "images": (4096, 16384, 65536),
    "epochs": (1, 4, 16),
}


def measure(rounds: int, device: torch.device, _: list[str]) -> Iterator[dict[str, Any]]:
    """A row for each setting: images a second, and the peak memory minus that of a process that trains nothing.

    Each setting has a new process, because the peak of a process never falls.
    """
    idle = alone(Setting(images=256), 0, device)[1]
    for name, values in GROWN.items():
        for value in values:
            speed, peak = alone(replace(START, **{name: value}), rounds, device)
            yield {"grows": name, "to": value, "images/s": speed, "memory (MiB)": peak - idle}


def alone(setting: Setting, rounds: int, device: torch.device) -> tuple[float, float]:
    """Images a second and the peak in MiB of a setting, in a new process."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(trained, asdict(setting), rounds, str(device)).result()


def trained(values: dict[str, int], rounds: int, where: str) -> tuple[float, float]:
    """Trains a setting in this process: median images a second, and the process's peak in MiB.

    rounds: how many stretches of steps are timed.
    """
    tune_malloc()
    setting, device = Setting(**values), torch.device(where)
    images = torch.randint(0, 256, (setting.images, 3, setting.size, setting.size), dtype=torch.uint8, device=device)
    batches = Batches(
        images,
        torch.randint(0, 10, (setting.images,), device=device),
        batch_size=setting.batch,
        augmentation=Augmentation(flip=True, shift=4),
    )
    layers = [SpatialTransformer(ConvLocalization(image_size=setting.size)) for _ in range(setting.transformers)]
    normalization = Normalization()
    normalization.fit(CIFAR10_MEAN, CIFAR10_STD)
    net = torch.nn.Sequential(normalization, *layers, ConvNet(image_size=setting.size)).to(device)
    net.to(memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.01, fused=True)
    dtype = PRECISIONS[fastest_precision(device.type)]
    # A stretch has about 2048 images and at least two batches. The next one continues where it ended.
    stretch = max(2, 2048 // setting.batch)

    def forever() -> Iterator[tuple[torch.Tensor, ...]]:
        while True:
            yield from batches
            batches.set_epoch(batches.epoch + 1)

    endless = forever()

    def steps() -> None:
        for _ in range(stretch):
            image, label = next(endless)
            train_step(net, optimizer, image.contiguous(memory_format=torch.channels_last), label, dtype)

    if rounds:
        seconds = [timed(steps, 1, device) for _ in range(rounds + 1)][1:]
        for _ in range(setting.epochs - 1):
            for _ in range(max(1, len(batches) // stretch)):
                seconds.append(timed(steps, 1, device))
    speed = stretch * setting.batch / statistics.median(seconds) if rounds else 0.0
    if device.type == "cuda":
        return speed, torch.cuda.max_memory_allocated() / 2**20
    return speed, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10


def draw(rows: list[dict[str, Any]], axes: Axes) -> None:
    """Time per image (solid) and memory (dashed), relative to the smallest setting."""
    for number, name in enumerate(GROWN):
        found = [row for row in rows if row["grows"] == name and row["to"]]
        if not found:  # ended before
            continue
        growth = [row["to"] / found[0]["to"] for row in found]
        times = [found[0]["images/s"] / row["images/s"] for row in found]
        memory = [max(1.0, row["memory (MiB)"]) for row in found]
        axes.plot(growth, times, color=f"C{number}", marker="o", label=name)
        axes.plot(growth, [peak / memory[0] for peak in memory], color=f"C{number}", marker=".", linestyle="--")
    axes.set(xscale="log", yscale="log", xlabel="growth", ylabel="relative: time an image (solid), memory (dashed)")
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(LogLocator(2))
        axis.set_major_formatter("{x:g}")
        axis.set_minor_locator(NullLocator())
    axes.legend()
    axes.grid(alpha=0.3)
