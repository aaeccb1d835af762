"""Images a second in training: this project, its network in a bare loop on the same batches, the tutorial's loop."""

import contextlib
import io
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from statistics import median
from typing import Any, ClassVar

import numpy as np
import pytorch_lightning as pl
import torch
import torch.nn.functional as F
from hydra import compose, initialize_config_dir
from hydra.core.hydra_config import HydraConfig
from matplotlib.axes import Axes
from omegaconf import DictConfig, open_dict
from PIL import Image
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

from stn import config as configs
from stn.benchmark.timing import ratio, synchronize
from stn.data.batches import Batches
from stn.train import build, build_classifier, keep_freed_memory, train

# The network of the second published system as that trained it, and the default; on images that the program makes.
CASES = {
    "LeNet-5 STN": ["experiment=eva7_nemani", "data=shapes", "data.train_images=6400", "data.test_images=1000"],
    "default": [
        *["data=shapes", "data.train_images=3072", "data.test_images=100", "data.val_fraction=0.01"],
        *["data.flip=true", "data.shift=4", "data.cutout=8", "data.cutmix=0.5"],
    ],
}
STOPWATCH = "+callbacks.stopwatch._target_=stn.benchmark.train.Stopwatch"
WORKERS = (0, 2, 4)
TUTORIAL_IMAGES = 3200


class Stopwatch(pl.Callback):
    """Images a second between the first and the last step of each epoch; when it ended, and what it then scored.

    The program makes the callback, by its config: the run's figures are the class's.
    """

    speeds: ClassVar[list[float]] = []
    epochs: ClassVar[list[tuple[float, float]]] = []

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.began = time.perf_counter()
        Stopwatch.speeds.clear()
        Stopwatch.epochs.clear()

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        synchronize(pl_module.device)
        self.started = time.perf_counter()

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if batch_idx + 1 == trainer.num_training_batches:
            synchronize(pl_module.device)
            images = (batch_idx + 1) * len(batch[0])
            Stopwatch.speeds.append(images / (time.perf_counter() - self.started))

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        score = trainer.callback_metrics["val/accuracy"].item()
        Stopwatch.epochs.append((time.perf_counter() - self.began, score))


def measure(rounds: int, device: torch.device, overrides: list[str]) -> Iterator[dict[str, Any]]:
    """A row for each network and arm: images a second, and how many times as many this project's command trains."""
    keep_freed_memory()  # for all arms alike
    for name, case in CASES.items():
        made = [STOPWATCH, "trainer.max_epochs=1", f"trainer.accelerator={accelerator(device)}"]
        with composed([*case, *made, *overrides, "model/placement=none"]) as config:
            without = bare_loop(config, device)
        with composed([*case, *made, *overrides]) as config:
            arms: dict[str, Callable[[], float]] = {
                "stn.train": partial(command, config),
                "bare loop": bare_loop(config, device),
                "bare loop, no transformer": without,
            }
            if name != "default":
                for workers in WORKERS:
                    arms[f"tutorial's loop, {workers} workers"] = tutorial(config, workers, device)
            speeds: dict[str, list[float]] = {arm: [] for arm in arms}
            for turn in range(rounds + 1):
                for arm, images_a_second in arms.items():
                    speed = images_a_second()
                    if turn > 0:  # the first warms up
                        speeds[arm].append(speed)
        for arm, found in speeds.items():
            times, low, high = ratio(speeds["stn.train"], found)
            yield {
                "network": name,
                "arm": arm,
                "images/s": median(found),
                "stn / arm": times,
                "quartiles": [low, high],
            }


@contextlib.contextmanager
def composed(overrides: list[str]) -> Iterator[DictConfig]:
    """The config that a command line composes, with a run's folder that goes when it is left."""
    configs.register()
    with tempfile.TemporaryDirectory() as folder, initialize_config_dir(configs.folder(), version_base="1.3"):
        config = compose("config", [*overrides, f"hydra.runtime.output_dir={folder}"], return_hydra_config=True)
        HydraConfig.instance().set_config(config)
        with open_dict(config):
            del config["hydra"]
        configs.check(config)
        yield config


def accelerator(device: torch.device) -> str:
    """Lightning's name for a device."""
    return "gpu" if device.type == "cuda" else device.type


def command(config: DictConfig) -> float:
    """Images a second of `python -m stn.train` with its bar, loggers and callbacks, from first to last step.

    What comes between epochs (validation, pictures, checkpoints) is not counted.
    """
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        if train(config):
            raise KeyboardInterrupt
    return Stopwatch.speeds[-1]


def bare_loop(config: DictConfig, device: torch.device) -> Callable[[], float]:
    """The same network, precision, optimizer and batches in the shortest loop that trains."""
    batches = training_batches(config, device)
    net = build_classifier(config).net.to(device).train()
    optimizer, schedule = build(config.optimizer, "optimizer").build(net, 1_000_000)
    low = str(config.trainer.precision).startswith("bf16")

    def epoch() -> float:
        synchronize(device)
        started, images = time.perf_counter(), 0
        for image, label in batches:
            with torch.autocast(device.type, dtype=torch.bfloat16, enabled=low):
                scores = net(image.contiguous(memory_format=torch.channels_last))
            loss = F.cross_entropy(scores.float(), label, label_smoothing=config.label_smoothing)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            images += len(image)
        synchronize(device)
        return images / (time.perf_counter() - started)

    return epoch


def training_batches(config: DictConfig, device: torch.device) -> Batches:
    """The training batches of a config, from images on the device."""
    data = build(config.data, "data")
    data.setup()
    batches: Batches = data.train_dataloader()
    batches.images, batches.labels = batches.images.to(device), batches.labels.to(device)
    batches.mean, batches.std = batches.mean.to(device), batches.std.to(device)
    return batches


class OneByOne(Dataset):
    """Images as torchvision's CIFAR10 gives them: each a PIL image, then transformed."""

    def __init__(self, images: np.ndarray, labels: list[int], transform: Callable[[Image.Image], torch.Tensor]) -> None:
        self.images, self.labels, self.transform = images, labels, transform

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        return self.transform(Image.fromarray(self.images[index])), self.labels[index]


def tutorial(config: DictConfig, workers: int, device: torch.device) -> Callable[[], float]:
    """The loop of PyTorch's spatial transformer tutorial on colour images: float32, a DataLoader, SGD."""
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (TUTORIAL_IMAGES, 32, 32, 3), dtype=np.uint8)
    prepare = transforms.Compose([transforms.ToTensor(), transforms.Normalize((0.5,) * 3, (0.5,) * 3)])
    data = OneByOne(images, rng.integers(0, 10, TUTORIAL_IMAGES).tolist(), prepare)
    loader = DataLoader(
        data, batch_size=config.data.batch_size, shuffle=True, num_workers=workers, persistent_workers=workers > 0
    )
    net = build_classifier(config).net.to(device).to(memory_format=torch.contiguous_format).train()
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
        return TUTORIAL_IMAGES / (time.perf_counter() - started)

    return epoch


def draw(rows: list[dict[str, Any]], axes: Axes) -> None:
    """Images a second of each arm, as bars."""
    bars = {f"{row['network']}: {row['arm']}": row["images/s"] for row in rows}
    colours = ["tab:blue" if row["arm"] == "stn.train" else "tab:gray" for row in rows]
    axes.bar_label(axes.barh(list(bars), list(bars.values()), color=colours), fmt="%.0f", padding=3)
    axes.invert_yaxis()
    axes.margins(x=0.15)  # room for the labels
    axes.set(xlabel="images a second in training")
