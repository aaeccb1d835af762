"""The accuracy and loss of every epoch, and their curve."""

import logging
import time
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from matplotlib.figure import Figure

from stn.callbacks.pictures import drawing

log = logging.getLogger(__name__)

METRICS = ("train/accuracy", "train/loss", "val/accuracy", "val/loss")


class History(pl.Callback):
    """Keeps the metrics of each epoch that was validated, and draws them when training ends or is interrupted.

    folder: of the picture, accuracy.png.

    `rows` has a dict for each such epoch, with its number and its metrics; `epochs`, `steps` and `seconds` are those of
    training, up to the end of the last epoch.
    """

    def __init__(self, folder: str) -> None:
        self.folder = Path(folder)
        self.rows: list[dict[str, float]] = []
        self.epochs, self.steps, self.seconds = 0, 0, 0.0
        self.validated = False

    def state_dict(self) -> dict[str, Any]:
        return {"rows": self.rows, "epochs": self.epochs, "steps": self.steps, "seconds": self.seconds}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.rows = list(state_dict["rows"])
        self.epochs, self.steps, self.seconds = (state_dict[name] for name in ("epochs", "steps", "seconds"))

    def best(self) -> dict[str, float]:
        """The row with the highest validation accuracy; the earliest one if several are equal."""
        return max(self.rows, key=lambda row: row["val/accuracy"])

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.started = time.monotonic() - self.seconds  # of a run that is resumed

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.validated = not trainer.sanity_checking

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.epochs, self.steps = trainer.current_epoch + 1, trainer.fit_loop.total_batch_idx + 1
        self.seconds = time.monotonic() - self.started
        if self.validated:  # else the validation metrics are still those of an earlier epoch
            self.validated = False
            metrics = {name: trainer.callback_metrics[name].item() for name in METRICS}
            self.rows.append({"epoch": self.epochs} | metrics)
            said = ", ".join(f"{name} {value:.4f}" for name, value in metrics.items())
            log.info("epoch %d, %.1f s: %s", self.epochs, self.seconds, said)

    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        with drawing("the curve of the accuracy"):
            self._draw(trainer)

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        with drawing("the curve of the accuracy"):
            self._draw(trainer)

    def _draw(self, trainer: pl.Trainer) -> None:
        if not self.rows or not trainer.is_global_zero:
            return
        epochs = [row["epoch"] for row in self.rows]
        figure = Figure(figsize=(9, 3.4), layout="constrained")
        for axes, metric in zip(figure.subplots(1, 2), ("accuracy", "loss"), strict=True):
            for stage, colour in (("train", "tab:gray"), ("val", "tab:blue")):
                values = [row[f"{stage}/{metric}"] for row in self.rows]
                axes.plot(epochs, values, color=colour, label=stage, marker="." if len(epochs) < 20 else None)
            axes.set(xlabel="epoch", ylabel=metric)
            axes.xaxis.get_major_locator().set_params(integer=True)
            axes.grid(alpha=0.3)
            axes.legend()
        best = self.best()
        figure.suptitle(f"best validation accuracy {best['val/accuracy']:.2%} at epoch {best['epoch']:.0f}")
        self.folder.mkdir(parents=True, exist_ok=True)
        figure.savefig(self.folder / "accuracy.png", dpi=120)
