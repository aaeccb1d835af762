"""python -m stn.train: composes the config, checks it, builds, fits, tests the checkpoint that was kept, and reports.

python -m stn.train experiment=demo
python -m stn.train trainer.max_epochs=50
python -m stn.train -m model=lenet,wide seed=1,2
"""

from __future__ import annotations

import ctypes
import json
import logging
import os
import re
import shutil
import sys
import traceback
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import InstantiationException
from hydra.types import RunMode
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from stn import config as configs

if TYPE_CHECKING:
    import pytorch_lightning as pl
    from pytorch_lightning.loggers import Logger

    from stn.callbacks import History
    from stn.classifier import Classifier
    from stn.data.resident import ResidentDataModule

# torch and Lightning are imported where something is computed: --help and --cfg job answer at once.

BAD_INPUT = 2
INTERRUPTED = 130  # the shell's exit code for a program ended by Ctrl-C


def train(config: DictConfig) -> int:
    """One run, from a composed config to its folder. Returns the exit code; raises ConfigError for bad input."""
    import torch
    from pytorch_lightning import seed_everything
    from pytorch_lightning.callbacks import ModelCheckpoint

    from stn.callbacks import History, NetworkSummary

    quieten()
    configs.check(config)
    keep_freed_memory()
    folder = Path(HydraConfig.get().runtime.output_dir)
    OmegaConf.save(OmegaConf.create(OmegaConf.to_container(config, resolve=True)), folder / "config.yaml")
    seed_everything(config.seed, verbose=False)

    history = History(str(folder / "figures"))
    callbacks = [
        *build_all(config.callbacks, "callbacks"),
        history,
        NetworkSummary(),
        progress_bar(),
    ]
    trainer: pl.Trainer = build(
        config.trainer,
        "trainer",
        callbacks=callbacks,
        logger=build_all(config.logger, "logger"),
        default_root_dir=str(folder),
        enable_checkpointing=any(isinstance(callback, ModelCheckpoint) for callback in callbacks),
        enable_autolog_hparams=False,
    )
    classifier = build_classifier(config)
    classifier.example_input_array = torch.zeros(2, 3, config.data.image_size, config.data.image_size)
    device = trainer.strategy.root_device
    torch.set_float32_matmul_precision(config.matmul_precision)
    if config.compile:
        classifier.net.compile(mode=config.compile)
    if trainer.is_global_zero:
        how = f"{trainer.precision} on {device}, {torch.get_num_threads()} threads"
        how += ", channels-last" if config.channels_last else ""
        how += f", compiled ({config.compile})" if config.compile else ", not compiled"
        optimization = classifier.optimization
        fused = optimization.is_fused(bool(trainer.gradient_clip_val))
        how += f", {optimization.algorithm}{' fused' if fused else ''}"
        if device.type == "cuda":
            how += f", float32 products in {config.matmul_precision} precision"
        if torch.are_deterministic_algorithms_enabled():
            how += ", deterministic" + (": transformers gather, which is slower" if device.type == "cuda" else "")
        print(f"{os.path.relpath(folder)}: {how}")

    data = build_data(config, trainer)
    with running(trainer):
        trainer.fit(classifier, datamodule=data)

    metrics = fit_metrics(classifier, history, data.batch_size * trainer.world_size)
    if not trainer.interrupted:
        kept = getattr(trainer.checkpoint_callback, "best_model_path", "") or None
        metrics["tested_epoch"] = torch.load(kept, weights_only=True)["epoch"] + 1 if kept else trainer.current_epoch
        with running(trainer):
            test = trainer.test(classifier, datamodule=data, ckpt_path=kept, verbose=False)[0]
            metrics |= {name.replace("/", "_"): value for name, value in test.items() if name.startswith("test/")}
    if trainer.is_global_zero:
        report(folder, classifier, trainer.loggers, metrics)
    return INTERRUPTED if trainer.interrupted else 0


@contextmanager
def running(trainer: pl.Trainer) -> Iterator[None]:
    """Stays when Lightning would exit after Ctrl-C, so that what there is can be reported.

    Raises ConfigError for what Lightning finds amiss only then: a metric to monitor that nothing logs, say.
    """
    from pytorch_lightning.utilities.exceptions import MisconfigurationException

    try:
        yield
    except SystemExit:
        if not trainer.interrupted:
            raise
    except MisconfigurationException as error:
        said = str(error).partition(" HINT")[0]  # the hints are for whoever writes the module
        raise configs.ConfigError(said) from error


def build_classifier(config: DictConfig) -> Classifier:
    """The classifier of a composed config."""
    from stn.classifier import Classifier

    plain: Any = OmegaConf.to_container(config, resolve=True)
    with sentences("optimizer"):
        instantiate(plain["optimizer"])
    with sentences("model"):
        return Classifier(
            plain["model"],
            plain["optimizer"],
            plain["data"]["num_classes"],
            plain["label_smoothing"],
            plain["score_mirrored"],
            plain["channels_last"],
        )


def build_data(config: DictConfig, trainer: pl.Trainer | None = None) -> ResidentDataModule:
    """The data of a composed config, read; with a trainer, on its device. Raises ConfigError for what is amiss."""
    data: ResidentDataModule = build(config.data, "data")
    data.trainer = trainer
    with sentences("data"):
        data.prepare_data()
        data.setup()
    return data


def build(node: DictConfig, path: str, **extra: Any) -> Any:
    """The object that a node of the config describes. Raises ConfigError when the values do not suit it."""
    with sentences(path):
        return instantiate(node, **extra)


def build_all(nodes: DictConfig, path: str) -> list[Any]:
    """The objects of a group whose keys are names, in order."""
    return [build(node, f"{path}.{name!s}") for name, node in nodes.items()]


@contextmanager
def sentences(path: str) -> Iterator[None]:
    """Turns what is the user's to mend (bad values, files, devices) into a ConfigError that names the part at fault."""
    from pytorch_lightning.utilities.exceptions import MisconfigurationException

    try:
        yield
    except InstantiationException as error:
        cause = error.__cause__
        if not isinstance(cause, (ValueError, OSError, MisconfigurationException)):
            raise
        inner = re.search(r"full_key: (\S+)", str(error))
        key: str = inner[1] if inner else path
        where = key if key.startswith(path) else path + "." + key
        raise configs.ConfigError(f"{where}: {cause!s}") from error
    except (ValueError, OSError, MisconfigurationException) as error:
        raise configs.ConfigError(f"{path}: {error}") from error


def keep_freed_memory() -> None:
    """Has the C library keep what one step frees for the next: fresh pages cost a CPU a fifth of the step."""
    mmap_max, trim_threshold = -4, -1
    with suppress(AttributeError, OSError, TypeError):  # another C library than GNU's
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(mmap_max, 0)
        mallopt(trim_threshold, 2**31 - 1)


def progress_bar() -> pl.Callback:
    """Rich's bar on a terminal, drawn five times a second; where the output goes to a file, a line every 50 steps."""
    from pytorch_lightning.callbacks import RichProgressBar, TQDMProgressBar

    return RichProgressBar(refresh_rate=5) if sys.stdout.isatty() else TQDMProgressBar(refresh_rate=50)


def quieten() -> None:
    """Keeps Lightning's advertisements and its warnings about what is meant to be so out of the output."""
    logging.getLogger("pytorch_lightning.utilities.rank_zero").setLevel(logging.WARNING)
    for message in (
        "Experiment logs directory .* exists",
        "Checkpoint directory .* exists",
        "The number of training batches",
        "Precision .* is not supported by the model summary",
        ".*isinstance.treespec, LeafSpec.",
        "`torch.jit.script` is deprecated",  # torch's own forward derivatives are scripts
    ):
        warnings.filterwarnings("ignore", message=message)


def fit_metrics(classifier: Classifier, history: History, images: int) -> dict[str, float]:
    """What training came to, with `images` a step: validation accuracy of the best and last epoch, time, images/s."""
    metrics: dict[str, float] = {"parameters": sum(parameter.numel() for parameter in classifier.net.parameters())}
    if not history.rows:
        return metrics
    best, last = history.best(), history.rows[-1]
    epochs, seconds = last["epoch"], last["seconds"]
    return metrics | {
        "epochs": epochs,
        "best_epoch": best["epoch"],
        "best_val_accuracy": best["val/accuracy"],
        "last_val_accuracy": last["val/accuracy"],
        "seconds": seconds,
        "seconds_per_epoch": seconds / epochs,
        "images_per_second": images * last["steps"] / seconds,
    }


def report(folder: Path, classifier: Classifier, loggers: list[Logger], metrics: Mapping[str, float]) -> None:
    """Writes metrics.json, shows its figures as a table, and logs them beside the hyper-parameters."""
    from pytorch_lightning.loggers import TensorBoardLogger
    from rich.console import Console
    from rich.table import Table

    (folder / "metrics.json").write_text(json.dumps(metrics, indent=2) + "\n")
    table = Table(show_header=False)
    for name, value in metrics.items():
        shown = f"{value:.2%}" if name.endswith("accuracy") else f"{value:,.4g}" if value < 1000 else f"{value:,.0f}"
        table.add_row(name.replace("_", " "), shown)
    Console().print(table)
    shown = os.path.relpath(folder)
    print(f"everything is in {shown}, the pictures in {shown}/figures")
    for logger in loggers:
        if isinstance(logger, TensorBoardLogger):
            summary = {f"summary/{name}": value for name, value in metrics.items()}
            logger.log_hyperparams(dict(classifier.hparams), summary)
            logger.save()
            program = "tensorboard"
            if not shutil.which(program):
                program = os.path.relpath(Path(sys.executable).with_name(program))
            print(f"the dashboard: {program} --logdir {shown}")


@hydra.main(version_base="1.3", config_path=configs.folder(), config_name="config")
def launch(config: DictConfig) -> None:
    """Hydra's task: one run, its failure said at once and kept in its folder, so that a sweep goes on."""
    try:
        code = train(config)
    except Exception as error:
        sentence = configs.explain(error)
        text = f"stn.train: {sentence}\n" if sentence else traceback.format_exc()
        sys.stderr.write(text)
        (Path(HydraConfig.get().runtime.output_dir) / "error.txt").write_text(text)
        code = BAD_INPUT if sentence else 1
        if HydraConfig.get().mode is RunMode.MULTIRUN:
            raise JobFailedError(code) from error
    if code:
        sys.exit(code)


class JobFailedError(Exception):
    """A job of a sweep ended with this exit code; what was wrong is said already."""


def main() -> None:
    """The command line: exit code 2 and one sentence for bad input."""
    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra then raises what it would else print as a traceback
    configs.register()
    try:
        launch()
    except JobFailedError as failed:
        sys.exit(failed.args[0])
    except KeyboardInterrupt:
        print("stn.train: interrupted before training began", file=sys.stderr)
        sys.exit(INTERRUPTED)
    except Exception as error:
        sentence = configs.explain(error)
        if sentence is None and (cause := os_error(error)):  # a run tells its own: this is Hydra, making its folder
            sentence = f"the output folder cannot be written: {cause}"
        if sentence is None:
            raise
        print(f"stn.train: {sentence}", file=sys.stderr)
        sys.exit(BAD_INPUT)


def os_error(error: BaseException | None) -> OSError | None:
    """The OSError that led to an error, if one did."""
    while error is not None and not isinstance(error, OSError):
        error = error.__cause__ or error.__context__
    return error


if __name__ == "__main__":
    main()
