"""Images a second in training: the command, a bare loop with the same network, and the tutorial's loop."""

import contextlib
import io
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from statistics import median
from typing import Any

import pytorch_lightning as pl
import torch
import torch.nn.functional as F
from matplotlib.axes import Axes
from omegaconf import DictConfig

from stn.benchmark.report import bars
from stn.benchmark.timing import ratio, synchronize
from stn.benchmark.tutorial import tutorials
from stn.build import build_classifier, build_data, read_data
from stn.check import check
from stn.config import compose
from stn.data.batches import Batches
from stn.data.resident import ResidentDataModule
from stn.errors import InputError
from stn.process import tune_malloc
from stn.training import train

# A published system with LeNet-5, and the default network and fast94 with images of full size; on generated data.
CASES = {
    "LeNet-5 STN": ["experiment=eva7_nemani", "data=shapes", "data.train_images=6400", "data.test_images=1000"],
    "default": [
        *["~callbacks.resizing", "data=shapes", "data.train_images=3200", "data.test_images=100"],
        *["data.val_fraction=0.01", "data.batch_size=1024", "data.flip=true", "data.shift=4", "data.cutout=12"],
    ],
    "fast94": [
        *["experiment=fast94", "~callbacks.resizing", "data=shapes", "data.train_images=3200", "data.test_images=100"],
        "data.flip=true",
    ],
}
PRECISIONS = {"32-true": torch.float32, "bf16-mixed": torch.bfloat16}
WORKERS = (0, 2, 4)
TUTORIAL_IMAGES = 3200


class Stopwatch(pl.Callback):
    """Times a run.

    speeds: images a second between the first and the last step of each epoch.
    epochs: for each epoch that was validated, the seconds since the start of training, and its accuracy.
    """

    def __init__(self) -> None:
        self.speeds: list[float] = []
        self.epochs: list[tuple[float, float]] = []

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.began = time.perf_counter()

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.validated = False
        synchronize(pl_module.device)
        self.started = time.perf_counter()

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.validated = True

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if batch_idx + 1 == trainer.num_training_batches:
            synchronize(pl_module.device)
            images = (batch_idx + 1) * len(batch[0])
            self.speeds.append(images / (time.perf_counter() - self.started))

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if self.validated:  # what is logged otherwise is an earlier epoch's score, or none
            score = trainer.callback_metrics["val/accuracy"].item()
            self.epochs.append((time.perf_counter() - self.began, score))


def measure(rounds: int, device: torch.device, overrides: list[str]) -> Iterator[dict[str, Any]]:
    """A row for each network and arm: images a second, and the command's speed divided by it."""
    tune_malloc()  # for all arms alike
    for name, case in CASES.items():
        made = [*settings(case, overrides), "trainer.max_epochs=1"]
        made += [f"trainer.accelerator={accelerator(device)}", *overrides]
        with composed([*made, "model.placement=none"]) as config:
            without = bare_loop(config, device)
        with composed(made) as config, contextlib.ExitStack() as processes:
            arms: dict[str, Callable[[], float]] = {
                "stn.train": partial(command, config),
                "bare loop": bare_loop(config, device),
                "bare loop, no transformer": without,
            }
            if name == "LeNet-5 STN":
                for workers in WORKERS:
                    loop = processes.enter_context(tutorials(config, TUTORIAL_IMAGES, workers, device))
                    arms[f"tutorial's loop, {workers} workers"] = loop
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


def settings(case: list[str], overrides: list[str]) -> list[str]:
    """The settings of a case, without those of its data if the overrides choose another data set."""
    others = any(override.startswith("data=") for override in overrides)
    return [setting for setting in case if not (others and setting.startswith("data"))]


@contextlib.contextmanager
def composed(overrides: list[str]) -> Iterator[DictConfig]:
    """The config of a run in a temporary folder. Raises InputError for wrong overrides."""
    with tempfile.TemporaryDirectory() as folder:
        config = compose(["overwrite=true", *overrides], folder)  # every round writes there
        check(config)
        yield config


def accelerator(device: torch.device) -> str:
    """Lightning's name for a device."""
    return "gpu" if device.type == "cuda" else device.type


def command(config: DictConfig) -> float:
    """Images a second of `python -m stn.train` with its bar, loggers and callbacks, from the first to the last step.

    Validation, pictures and checkpoints come after the last step and do not count.
    """
    stopwatch = Stopwatch()
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        train(config, [stopwatch])
    return stopwatch.speeds[-1]


def bare_loop(config: DictConfig, device: torch.device) -> Callable[[], float]:
    """The same network, precision, optimizer and batches in the shortest loop that trains."""
    precision = str(config.trainer.precision)
    if precision not in PRECISIONS:
        raise InputError(f"the bare loop trains in {' or '.join(PRECISIONS)}, not {precision}")
    if config.trainer.gradient_clip_val:
        raise InputError(
            f"the bare loop clips no gradients: leave trainer.gradient_clip_val={config.trainer.gradient_clip_val} out"
        )
    torch.set_float32_matmul_precision(config.matmul_precision)
    data = read_data(build_data(config), "fit")
    batches = training_batches(data, device)
    classifier = build_classifier(config, data).to(device).train()
    classifier.normalization.fit(data.mean, data.std)
    if config.compile:
        classifier.net.compile(mode=config.compile)
    optimizer, schedule = classifier.optimization.build(classifier.net, 1_000_000)

    def epoch() -> float:
        synchronize(device)
        started, images = time.perf_counter(), 0
        for image, label, *_ in batches:  # of shapes the poses are known too
            train_step(classifier, optimizer, image, label, PRECISIONS[precision], config.label_smoothing)
            schedule.step()
            images += len(image)
        synchronize(device)
        return images / (time.perf_counter() - started)

    return epoch


def train_step(
    net: torch.nn.Module,
    optimizer: torch.optim.Optimizer,
    images: torch.Tensor,
    labels: torch.Tensor,
    dtype: torch.dtype,
    label_smoothing: float = 0.0,
) -> None:
    """Forward, backward and a step of the optimizer. dtype: of autocast; float32 turns it off."""
    with torch.autocast(images.device.type, dtype=dtype, enabled=dtype != torch.float32):
        scores = net(images)
    loss = F.cross_entropy(scores.float(), labels, label_smoothing=label_smoothing)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()


def training_batches(data: ResidentDataModule, device: torch.device) -> Batches:
    """The training batches of a data set that was read, its images moved to the device."""
    for tensors in (data.images, data.labels):
        tensors["train"] = tensors["train"].to(device)
    return data.train_dataloader()


def draw(rows: list[dict[str, Any]], axes: Axes) -> None:
    """Images a second of each arm, as bars."""
    found = {f"{row['network']}: {row['arm']}": row["images/s"] for row in rows}
    bars(axes, found, peers=[name for name in found if not name.endswith(": stn.train")])
    axes.set(xlabel="images a second in training")
