"""Augmented images a second, compared with torchvision image by image, and with an epoch of training."""

from collections.abc import Callable, Iterator
from functools import partial
from statistics import median
from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from PIL import Image
from torchvision import transforms

from stn.benchmark.report import bars
from stn.benchmark.timing import interleaved, ratio
from stn.benchmark.train import CASES, accelerator, bare_loop, composed, settings, training_batches
from stn.build import build_data, read_data
from stn.data.batches import Augmentation, Batches
from stn.networks import Normalization
from stn.process import tune_malloc

IMAGES = 10_000
CIFAR10_MEAN, CIFAR10_STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)
ONE_BY_ONE = 500
BATCH = 250


def measure(rounds: int, device: torch.device, overrides: list[str]) -> Iterator[dict[str, Any]]:
    """A row for each reference: images a second of this project's batches and of the reference, and their ratio.

    The first reference is torchvision: mirrored, shifted by 4, normalized, with a cutout of 8. The others are epochs of
    training, which the batches are a part of; their share of it is the inverse of the ratio.
    """
    tune_malloc()  # for all arms alike
    made = {
        name: [*settings(case, overrides), f"trainer.accelerator={accelerator(device)}", *overrides]
        for name, case in CASES.items()
    }
    for composition in made.values():  # reports bad input before the timing starts
        with composed(composition) as config:
            read_data(build_data(config), "fit")
    images = np.random.default_rng(0).integers(0, 256, (IMAGES, 32, 32, 3), dtype=np.uint8)
    normalization = Normalization().to(device)
    normalization.fit(CIFAR10_MEAN, CIFAR10_STD)
    arms: dict[str, Callable[[], object]] = {
        "batches": partial(drain, batched(images, device), normalization),
        "one by one": one_by_one(images),
    }
    yield row("torchvision, one by one, in one process", interleaved(arms, rounds, device), IMAGES, ONE_BY_ONE)
    for name, composition in made.items():
        with composed(composition) as config:
            batches = training_batches(read_data(build_data(config), "fit"), device)
            arms = {"batches": partial(drain, batches, normalization), "epoch": bare_loop(config, device)}
            count = len(batches) * batches.batch_size
            yield row(f"an epoch: {name}", interleaved(arms, rounds, device), count, count)


def row(beside: str, seconds: dict[str, list[float]], count: int, count_there: int) -> dict[str, Any]:
    """A row from the seconds of two candidates. count, count_there: the images that each handles in a call."""
    ours, theirs = seconds.values()
    ours, theirs = [time / count for time in ours], [time / count_there for time in theirs]
    factor, low, high = ratio(theirs, ours)
    return {
        "images/s": 1 / median(ours),
        "beside": beside,
        "images/s there": 1 / median(theirs),
        "times as fast": factor,
        "quartiles": [low, high],
    }


def drain(batches: Batches, normalization: Normalization) -> None:
    """Iterates over all batches, and normalizes them."""
    for images, *_ in batches:
        normalization(images)


def batched(images: np.ndarray, device: torch.device) -> Batches:
    """Images as this project's batches."""
    resident = torch.from_numpy(images).permute(0, 3, 1, 2).contiguous().to(device)
    return Batches(
        resident,
        torch.zeros(len(images), dtype=torch.long, device=device),
        batch_size=BATCH,
        mean=CIFAR10_MEAN,
        augmentation=Augmentation(flip=True, shift=4, cutout=8),
    )


def one_by_one(images: np.ndarray) -> Callable[[], None]:
    """A call that augments the first `ONE_BY_ONE` images by torchvision, image by image, as a Dataset does."""
    transform = transforms.Compose(
        [
            transforms.RandomHorizontalFlip(),
            transforms.RandomCrop(32, padding=4, padding_mode="reflect"),
            transforms.ToTensor(),
            transforms.Normalize(CIFAR10_MEAN, CIFAR10_STD),
            transforms.RandomErasing(p=1.0, scale=(1 / 16, 1 / 16), ratio=(1.0, 1.0)),
        ]
    )

    def epoch() -> None:
        for start in range(0, ONE_BY_ONE, BATCH):
            torch.stack([transform(Image.fromarray(image)) for image in images[start : start + BATCH]])

    return epoch


def draw(rows: list[dict[str, Any]], axes: Axes) -> None:
    """Images a second of the batches and of the references, as bars."""
    peers = {row["beside"]: row["images/s there"] for row in rows}
    bars(axes, {"batches": rows[0]["images/s"]} | peers, peers)
    axes.set(xscale="log", xlabel="images a second")
