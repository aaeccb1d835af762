"""The training loop of PyTorch's spatial transformer tutorial."""

import multiprocessing
import time
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from omegaconf import DictConfig, OmegaConf
from PIL import Image
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

from stn.benchmark.timing import synchronize
from stn.build import build_classifier, build_data


class OneByOne(Dataset):
    """Images as torchvision's CIFAR10 gives them: each a PIL image, then transformed."""

    def __init__(self, images: np.ndarray, labels: list[int], transform: Callable[[Image.Image], torch.Tensor]) -> None:
        self.images, self.labels, self.transform = images, labels, transform

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        return self.transform(Image.fromarray(self.images[index])), self.labels[index]


def tutorial(config: DictConfig, images: int, workers: int, device: torch.device) -> Callable[[], float]:
    """An epoch over so many colour images, in float32, by a DataLoader and SGD; gives the images a second."""
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (images, 32, 32, 3), dtype=np.uint8)
    prepare = transforms.Compose([transforms.ToTensor(), transforms.Normalize((0.5,) * 3, (0.5,) * 3)])
    data = OneByOne(pixels, rng.integers(0, 10, images).tolist(), prepare)
    loader = DataLoader(
        data, batch_size=config.data.batch_size, shuffle=True, num_workers=workers, persistent_workers=workers > 0
    )
    net = build_classifier(config, build_data(config)).net.to(device).to(memory_format=torch.contiguous_format).train()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.01)

    def epoch() -> float:
        started = time.perf_counter()
        for image, label in loader:
            image, label = image.to(device), label.to(device)
            optimizer.zero_grad()
            loss = F.nll_loss(F.log_softmax(net(image), dim=1), label)
            loss.backward()
            optimizer.step()
        synchronize(device)
        return images / (time.perf_counter() - started)

    return epoch


@contextmanager
def tutorials(config: DictConfig, images: int, workers: int, device: torch.device) -> Iterator[Callable[[], float]]:
    """Runs the loop in a new process, without the settings of this one."""
    plain = OmegaConf.to_container(config, resolve=True)
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, spawn, initializer=_begin, initargs=(plain, images, workers, str(device))) as process:
        yield lambda: process.submit(_epoch).result()


_loop: Callable[[], float]  # set in the new process


def _begin(plain: Any, images: int, workers: int, device: str) -> None:
    global _loop
    warnings.filterwarnings(
        "ignore", message="This DataLoader will create"
    )  # more workers than cores are timed on purpose
    _loop = tutorial(OmegaConf.create(plain), images, workers, torch.device(device))


def _epoch() -> float:
    return _loop()
