"""The accuracy and loss of every epoch, and their curve."""

from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from matplotlib.figure import Figure

METRICS = ("train/accuracy", "train/loss", "val/accuracy", "val/loss")


class History(pl.Callback):
    """Keeps each epoch's metrics as a row and draws them to `folder`/accuracy.png when training ends, or is ended."""

    def __init__(self, folder: str) -> None:
        self.folder = Path(folder)
        self.rows: list[dict[str, float]] = []

    def best(self) -> dict[str, float]:
        """The row of the epoch with the highest validation accuracy, the first of equals."""
        return max(self.rows, key=lambda row: row["val/accuracy"])

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        now = trainer.callback_metrics
        if all(name in now for name in METRICS):
            self.rows.append({"epoch": trainer.current_epoch + 1, **{name: now[name].item() for name in METRICS}})

    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._draw(trainer)

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        self._draw(trainer)

    def state_dict(self) -> dict[str, Any]:
        return {"rows": self.rows}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.rows = state_dict["rows"]

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
            axes.grid(alpha=0.3)
            axes.legend()
        best = self.best()
        figure.suptitle(f"best validation accuracy {best['val/accuracy']:.2%} at epoch {best['epoch']:.0f}")
        self.folder.mkdir(parents=True, exist_ok=True)
        figure.savefig(self.folder / "accuracy.png", dpi=120)
