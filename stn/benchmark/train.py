"""Images a second in training: this project, its network in a bare loop on the same batches, the tutorial's loop."""

import contextlib
import io
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from statistics import median
from typing import Any, ClassVar

import pytorch_lightning as pl
import torch
import torch.nn.functional as F
from hydra import compose, initialize_config_dir
from hydra.core.hydra_config import HydraConfig
from matplotlib.axes import Axes
from omegaconf import DictConfig, open_dict

from stn import config as configs
from stn.benchmark.timing import ratio, synchronize
from stn.benchmark.tutorial import tutorials
from stn.data.batches import Batches
from stn.train import build, build_classifier, build_data, keep_freed_memory, train

# The network of the second published system as that trained it, the default, and fast94, whose images grow no more;
# on images that the program makes.
CASES = {
    "LeNet-5 STN": ["experiment=eva7_nemani", "data=shapes", "data.train_images=6400", "data.test_images=1000"],
    "default": [
        *["data=shapes", "data.train_images=3072", "data.test_images=100", "data.val_fraction=0.01"],
        *["data.flip=true", "data.shift=4", "data.cutout=8", "data.cutmix=0.5"],
    ],
    "fast94": [
        *["experiment=fast94", "~callbacks.resizing", "data=shapes", "data.train_images=6400", "data.test_images=100"],
        "data.flip=true",
    ],
}
STOPWATCH = "+callbacks.stopwatch._target_=stn.benchmark.train.Stopwatch"
PRECISIONS = {"32-true": torch.float32, "bf16-mixed": torch.bfloat16}
WORKERS = (0, 2, 4)
TUTORIAL_IMAGES = 3200


class Stopwatch(pl.Callback):
    """Images a second between the first and the last step of each epoch; when those validated ended, and their scores.

    The program makes the callback, by its config: the run's figures are the class's.
    """

    speeds: ClassVar[list[float]] = []
    epochs: ClassVar[list[tuple[float, float]]] = []

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.began = time.perf_counter()
        Stopwatch.speeds.clear()
        Stopwatch.epochs.clear()

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
            Stopwatch.speeds.append(images / (time.perf_counter() - self.started))

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if self.validated:  # what is logged otherwise is an earlier epoch's score, or none
            score = trainer.callback_metrics["val/accuracy"].item()
            Stopwatch.epochs.append((time.perf_counter() - self.began, score))


def measure(rounds: int, device: torch.device, overrides: list[str]) -> Iterator[dict[str, Any]]:
    """A row for each network and arm: images a second, and how many times as many this project's command trains."""
    keep_freed_memory()  # for all arms alike
    for name, case in CASES.items():
        made = [*settings(case, overrides), STOPWATCH, "trainer.max_epochs=1"]
        made += [f"trainer.accelerator={accelerator(device)}", *overrides]
        with composed([*made, "model/placement=none"]) as config:
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
    """What a case sets; nothing of the data, where the overrides name other data."""
    others = any(override.startswith("data=") for override in overrides)
    return [setting for setting in case if not (others and setting.startswith("data"))]


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
    precision = str(config.trainer.precision)
    if precision not in PRECISIONS:
        raise configs.ConfigError(f"the bare loop trains in {' or '.join(PRECISIONS)}, not {precision}")
    if config.trainer.gradient_clip_val:
        raise configs.ConfigError(
            f"the bare loop clips no gradients: leave trainer.gradient_clip_val={config.trainer.gradient_clip_val} out"
        )
    torch.set_float32_matmul_precision(config.matmul_precision)
    batches = training_batches(config, device)
    classifier = build_classifier(config)
    net = classifier.net.to(device).train()
    if config.compile:
        net.compile(mode=config.compile)
    optimizer, schedule = build(config.optimizer, "optimizer").build(net, 1_000_000)

    def epoch() -> float:
        synchronize(device)
        started, images = time.perf_counter(), 0
        for image, label in batches:
            image = image.contiguous(memory_format=classifier.memory_format)
            train_step(net, optimizer, image, label, PRECISIONS[precision], config.label_smoothing)
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
    """Forward, backward and a step of the optimizer; `dtype` is autocast's, or float32 for none."""
    with torch.autocast(images.device.type, dtype=dtype, enabled=dtype != torch.float32):
        scores = net(images)
    loss = F.cross_entropy(scores.float(), labels, label_smoothing=label_smoothing)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()


def training_batches(config: DictConfig, device: torch.device) -> Batches:
    """The training batches of a config, from images on the device."""
    batches = build_data(config).train_dataloader()
    batches.images, batches.labels = batches.images.to(device), batches.labels.to(device)
    batches.mean, batches.std = batches.mean.to(device), batches.std.to(device)
    return batches


def draw(rows: list[dict[str, Any]], axes: Axes) -> None:
    """Images a second of each arm, as bars."""
    bars = {f"{row['network']}: {row['arm']}": row["images/s"] for row in rows}
    colours = ["tab:blue" if row["arm"] == "stn.train" else "tab:gray" for row in rows]
    axes.bar_label(axes.barh(list(bars), list(bars.values()), color=colours), fmt="%.0f", padding=3)
    axes.invert_yaxis()
    axes.margins(x=0.15)  # room for the labels
    axes.set(xlabel="images a second in training")
